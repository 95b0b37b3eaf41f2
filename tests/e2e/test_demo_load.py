"""`demo --load`: real rows through real HTTP into an embedded PostgreSQL, once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from export_pipelines.errors import SourceError
from export_pipelines.local.mariadb import programs
from tests.support.command_line import CommandLine


@pytest.mark.slow
def test_the_demo_loads_transforms_and_copies_on_and_a_second_call_finds_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    cli = CommandLine(tmp_path, seconds=300)
    first = cli("demo", "--load", "--json")
    assert first.code == 0, first.err
    rows = {each["table"]: each["rows_in_table"] for each in first.json["tables"]}
    # Where a MariaDB is installed, there is a table that is pulled from it.
    with suppress(SourceError):
        programs()
        assert rows.pop("flights/airports") == 1_458
    assert rows == {
        "flights/flights": 336_776,
        "flights/airlines": 16,
        "flights/planes": 3_322,
        "flights/delays": 185,
        "datasets/flights": 336_776,
        "datasets/delays": 185,
    }
    # The server of its tables does not run any more; it is started for these.
    demo = CommandLine(tmp_path / ".local" / "demo-load")
    (seen,) = demo("load", "status", "flights/airlines", "--json").json
    assert (seen["loaded"], seen["waiting"], seen["rows"]) == (1, 0, 16)
    checked = demo("verify")
    assert checked.code == 0, checked.err
    again = cli("demo", "--load", "--json")
    assert again.code == 0, again.err
    assert {each["loaded"] for each in again.json["tables"] if not each["table"].startswith("datasets/")} == {0}
