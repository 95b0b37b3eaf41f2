"""`demo --load`: real rows through real HTTP into an embedded PostgreSQL, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine


@pytest.mark.slow
def test_the_demo_loads_files_a_sheet_and_an_api_and_a_second_call_finds_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    cli = CommandLine(tmp_path, seconds=300)
    first = cli("demo", "--load", "--json")
    assert first.code == 0, first.err
    rows = {each["table"]: each["rows_in_table"] for each in first.json["tables"]}
    assert rows == {
        "flights/flights": 336_776,
        "flights/airlines": 16,
        "flights/planes": 3_322,
        "datasets/flights": 336_776,
    }
    again = cli("demo", "--load", "--json")
    assert again.code == 0, again.err
    assert {each["loaded"] for each in again.json["tables"] if each["table"] != "datasets/flights"} == {0}
