"""Holds and retention on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.dagster_project import EVENTS, make_events, new_project

# Commands in processes of their own take their time: part of `make test-all`.
pytestmark = pytest.mark.slow

RETENTION = EVENTS + "  retention: {keep: 30 days, newest: 2, only_copies: give_up_for_good}\n"


@pytest.fixture
def cli(tmp_path: Path, database: str, storage_url: str) -> CommandLine:
    """A project with ten days of `sales/events`, of which the files of two are to stay."""
    make_events(database)
    root = tmp_path / "project"
    root.mkdir()
    new_project(root).write("assets/sales/events/defs.yaml", RETENTION)
    return CommandLine(
        root,
        {
            "DATABASE_URL": database,
            "DAGSTER_PG_URL": storage_url,
            "EXPORT_PATH": str(root / "exports"),
            "ARCHIVE_URL": (root / "archive").as_uri(),
            "DAGSTER_HOME": str(root / "home"),
        },
    )


def files(cli: CommandLine) -> int:
    """Archived files of data."""
    return len(list((cli.root / "archive").rglob("*.csv.gz")))


def test_expire_shows_its_plan_asks_and_does_what_it_has_shown(cli: CommandLine) -> None:
    assert cli("run", "events").code == 0
    plan = cli("expire", "--dry-run", "--json")
    assert plan.code == 0
    (table,) = plan.json
    assert (table["freed"]["files"], table["kept"]["files"], table["by_rule"]["newest 2"]["rows"]) == (8, 2, 40)
    assert files(cli) == 10
    refused = cli("expire")
    assert refused.code == 1
    assert "nobody is there to agree" in refused.err
    assert "--yes" in refused.err
    assert files(cli) == 10
    done = cli("expire", "--yes")
    assert done.code == 0, done.err
    assert "8 files given up" in done.out
    assert "wanted by none of keep 30 days, newest 2" in done.out
    assert files(cli) == 2
    (status,) = cli("status", "--json").json
    assert (status["exported"], status["archived"], status["expired"], status["cleaned"], status["rows"]) == (
        10,
        10,
        8,
        2,
        40,
    )
    assert "done already" in cli("run", "events").out
    assert cli("expire", "--yes").code == 0


def test_expire_of_a_table_without_retention_is_one_clear_error(cli: CommandLine) -> None:
    (cli.root / "assets/sales/events/defs.yaml").write_text(EVENTS)
    assert "no table has a retention" in cli("expire", "--yes").out
    named = cli("expire", "events", "--yes")
    assert named.code == 1
    assert "has no retention" in named.err
    assert "hint: " in named.err


def test_a_hold_by_range_shows_and_refuses_until_it_is_released_and_stays_on_record(cli: CommandLine) -> None:
    placed = cli("hold", "events", "--from", "2025-01-04", "--to", "2025-01-06", "--reason", "audit", "--owner", "ann")
    assert placed.code == 0, placed.err
    assert "from 2025-01-04 to 2025-01-06" in placed.out
    ran = cli("run", "events", "--json")
    assert (ran.code, ran.json[0]["deleted"]) == (1, 160)
    assert "held by ann" in ran.err
    status = cli("status")
    assert "from 2025-01-04 to 2025-01-06" in status.err
    assert "audit" in status.err
    assert cli("expire", "--yes").code == 0
    assert files(cli) == 4
    (hold,) = cli("holds", "--json").json
    assert cli("unhold", str(hold["id"]), "--by", "bob").code == 0
    assert cli("holds", "--json").json == []
    assert "bob" in cli("holds", "--all").out
    assert cli("run", "events", "--json").json[0]["deleted"] == 40


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--partition", "2025-01-04", "--from", "2025-01-01"), 2, "give --partition, or --from and --to"),
        (("--from", "yesterday"), 2, "is no time"),
        (("--from", "2025-01-04", "--to", "2025-01-04"), 2, "is not before"),
        (("--partition", "2031-01-01"), 1, "does not exist"),
    ],
)
def test_a_hold_of_nothing_is_refused(cli: CommandLine, arguments: tuple[str, ...], code: int, message: str) -> None:
    refused = cli("hold", "events", *arguments, "--reason", "x")
    assert refused.code == code
    assert message in refused.err
    assert cli("holds", "--json").json == []
