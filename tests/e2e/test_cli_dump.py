"""`export-pipelines dump` on a real database, and the old command line."""

from __future__ import annotations

import gzip
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, Result
from tests.support.dagster_project import EVENTS, make_events, new_project, query
from tests.support.servers import run_sql

# Commands in processes of their own take their time: part of `make test-all`.
pytestmark = pytest.mark.slow

BCU = """
type: export_pipelines.ExportTable
attributes:
  table: public.events
  compression: none
  dump: {aliases: [batches]}
"""


@pytest.fixture
def cli(tmp_path: Path, database: str, storage_url: str) -> CommandLine:
    """The command line in a project with ten days of `health/zm`, and the snapshot `health/bcu`."""
    make_events(database)
    root = tmp_path / "project"
    root.mkdir()
    folder = new_project(root)
    folder.write("assets/health/zm/defs.yaml", EVENTS.replace(", end: 2025-01-11", ""))
    folder.write("assets/health/bcu/defs.yaml", BCU)
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


def refused(result: Result, message: str, code: int = 1) -> None:
    assert result.code == code, result.out + result.err
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_range_with_times_of_day_is_dumped_in_batches(cli: CommandLine) -> None:
    arguments = ("--start", "2025-01-01 00:05", "--end", "2025-01-02 10:05", "--batch-hours", "10")
    shown = cli("dump", "zm", *arguments, "--dry-run", "--json")
    assert [each["shorter"] for each in shown.json] == [False, False, False, True]
    made = cli("dump", "zm", *arguments, "--batch-rows", "10000", "--json")
    assert made.code == 0, made.err
    assert "the last batch of health/zm is shorter" in made.err
    (result,) = made.json
    assert [each["rows"] for each in result["done"]] == [16, 0, 20, 0]
    text = gzip.decompress(Path(result["done"][0]["files"][0]["path"]).read_bytes()).decode()
    assert text.count("\n") == 17
    assert query(cli.variables["DAGSTER_PG_URL"], "SELECT pipeline_name, status FROM runs") == [
        ("health__zm_dump", "SUCCESS")
    ]


def test_the_old_command_line_dumps_both_days_and_snapshots(cli: CommandLine) -> None:
    made = cli("--dump", "zm", "2025-01-01", "2025-01-07", "--batch-days", "1", "--json")
    assert made.code == 0, made.err
    assert [each["partition"] for each in made.json[0]["done"]] == [f"2025-01-0{n}" for n in range(1, 8)]
    snapshot = cli("--dump", "bcu", "--json")
    assert snapshot.code == 0, snapshot.err
    assert (snapshot.json[0]["rows"], snapshot.json[0]["done"][0]["range"]) == (200, "snapshot")
    status = cli("run", "zm", "--stage", "export", "--dry-run", "--json", "--from", "2025-01-01", "--to", "2025-01-10")
    assert [each["partitions"] for each in status.json] == [["2025-01-08", "2025-01-09", "2025-01-10"]]


def test_several_dumps_run_in_parallel_and_one_that_fails_takes_none_down(cli: CommandLine, tmp_path: Path) -> None:
    (cli.root / "assets/health/bad").mkdir()
    (cli.root / "assets/health/bad/defs.yaml").write_text(
        BCU.replace("public.events", "public.nothing").replace("batches", "b")
    )
    made = cli("dump", "batches", "health/bad", "--to", str(tmp_path / "out"), "--container", "zip", "--json")
    assert made.code == 1, made.err
    good, bad = made.json
    assert (good["table"], good["rows"], good["errors"]) == ("health/bcu", 200, [])
    assert "nothing" in bad["errors"][0]
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["bcu-snapshot.zip"]
    pools = query(cli.variables["DAGSTER_PG_URL"], "SELECT concurrency_key FROM concurrency_limits")
    assert pools == [("connection_source",)]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["health/zn", "--start", "2025-01-01"], "did you mean 'health/zm'", 1),
        (["zm"], "needs a range", 2),
        (["zm", "--start", "2025-01-01"], "has no end", 2),
        (["bcu", "--start", "2025-01-01", "--end", "2025-01-02"], "takes no range", 2),
        (["zm", "--start", "2025-01-02", "--end", "2025-01-01"], "which is not later", 2),
        (["zm", "--start", "2025-01-02", "--end", "2025-01-02"], "for that day alone, end at 2025-01-03", 2),
        (["zm", "--start", "2025-01-01", "--end", "2999-01-01"], "the end is excluded, and must be past", 1),
        (["zm", "--start", "x", "--end", "2999-01-01"], "is no time", 2),
        (["zm", "--start", "2025-01-01", "--end", "2025-01-02", "--timezone", "Mars"], "unknown time zone", 2),
        (["zm", "--batch", "often"], "no length of a batch", 2),
        (["zm", "--batch-days", "1", "--batch-hours", "1"], "give one of", 2),
        ([], "name tables", 2),
    ],
)
def test_bad_input_is_one_error_and_no_file(cli: CommandLine, arguments: list[str], message: str, code: int) -> None:
    refused(cli("dump", *arguments), message, code)
    assert list(cli.root.rglob("*.gz")) == []


def test_old_dumps_are_imported_and_can_be_dumped(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "old.sql").write_text("SELECT id FROM events WHERE at >= '{start_date}' AND at < '{end_date}'\n")
    (tmp_path / "dumps.yaml").write_text("dumps: {mcct: {query_file: old.sql, date_range: required, batch_days: 7}}\n")
    made = cli("dump", "--import", str(tmp_path / "dumps.yaml"), "--into", "assets/health")
    assert made.code == 0, made.err
    assert cli("check", "--offline").code == 0
    ran = cli("dump", "mcct", "--start", "2025-01-01", "--end", "2025-01-09", "--json")
    assert ran.code == 0, ran.err
    assert [each["rows"] for each in ran.json[0]["done"]] == [140, 20]


def test_an_interruption_ends_all_dumps_and_leaves_no_file(cli: CommandLine) -> None:
    for name in ("slow", "slower"):
        folder = cli.root / "assets/health" / name
        folder.mkdir()
        (folder / "defs.yaml").write_text("type: export_pipelines.ExportTable\nattributes: {}\n")
        (folder / "select.sql").write_text("SELECT n, pg_sleep(0.1) FROM generate_series(1, 6000) n\n")
    going = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND state = 'active' AND query ~ 'COPY.*pg_sleep'"
    )
    process = cli.start("dump", "slow", "slower")
    try:
        until = time.monotonic() + 120
        while query(cli.variables["DATABASE_URL"], going) != [(2,)]:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert query(cli.variables["DATABASE_URL"], going) == [(0,)]
    assert [each for each in (cli.root / "exports").rglob("*") if each.is_file()] == []
    assert query(cli.variables["DAGSTER_PG_URL"], "SELECT DISTINCT status FROM runs") == [("CANCELED",)]


REPORT = BCU.replace("{aliases: [batches]}", "{report: {table: public.reports, columns: {type: kind}}}")


def test_a_table_of_reports_that_is_missing_or_unfit_is_told_by_check_and_by_the_dump(cli: CommandLine) -> None:
    (cli.root / "assets/health/bcu/defs.yaml").write_text(REPORT)
    missing, dumped = cli("check", "bcu"), cli("dump", "bcu")
    refused(
        missing, 'dump.report.table: files could not be entered in public.reports: query failed: relation "public.rep'
    )
    refused(dumped, "`export-pipelines check` says what the table of reports lacks")
    made = missing.err.partition("or make it: ")[2].splitlines()[0]
    assert made.startswith(
        "CREATE TABLE public.reports (file_path text NOT NULL PRIMARY KEY, file_name text, kind text, "
    )
    run_sql(cli.variables["DATABASE_URL"], made.replace("kind text", "sort text"))
    refused(cli("check", "bcu"), "dump.report.columns: ")
    run_sql(cli.variables["DATABASE_URL"], "ALTER TABLE reports RENAME sort TO kind")
    assert cli("check", "bcu").code == 0
    assert cli("dump", "bcu").code == 0
    assert query(cli.variables["DATABASE_URL"], "SELECT kind FROM reports") == [("bcu",)]


def test_a_right_that_the_report_lacks_is_told_by_check_and_printed_by_roles(cli: CommandLine) -> None:
    (cli.root / "assets/health/bcu/defs.yaml").write_text(REPORT)
    admin, name = cli.variables["DATABASE_URL"], f"reader_{os.urandom(4).hex()}"
    run_sql(admin, "CREATE TABLE reports (file_path text, file_name text, kind text, file_size int, row_count int, "
                   "range_start timestamptz, range_end timestamptz, created_at timestamptz)")  # fmt: skip
    run_sql(admin, f"CREATE ROLE {name} LOGIN PASSWORD 'x'; GRANT SELECT ON events TO {name}")
    try:
        cli.variables["DATABASE_URL"] = f"postgresql://{name}:x@{admin.split('@')[1]}"
        refused(cli("check", "bcu"), "needs SELECT and INSERT on it; `export-pipelines roles` prints them")
        printed = cli("roles", "--reader", name, "--connection", "source").out
        assert "Dagster's storage" not in printed
        (grant,) = [line for line in printed.splitlines() if "INSERT" in line]
        run_sql(admin, grant)
        assert cli("check", "bcu").code == 0
    finally:
        run_sql(admin, f"DROP OWNED BY {name}; DROP ROLE {name}")
