"""The command line on a real database: what it does, what it prints, how it fails."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export_pipelines.local.children import free_port
from export_pipelines.local.postgres import Address
from tests.support.command_line import CommandLine, Result
from tests.support.dagster_project import EVENTS, RESOURCES, Folder, make_events, new_project, query
from tests.support.servers import new_database, run_sql

SLOW = """
type: export_pipelines.ExportTable
attributes: {cleanup: "off"}
"""


OTHER = """
---
type: export_pipelines.PostgresConnection
attributes: {resource_key: other, url: {env: OTHER_URL}, connect_timeout: 3}
"""


def project_at(root: Path, source: str, catalog: str) -> CommandLine:
    """A project with the table `sales/events`, and the command line in it."""
    folder = new_project(root)
    folder.write("assets/sales/events/defs.yaml", EVENTS)
    return CommandLine(
        root,
        {
            "DATABASE_URL": source,
            "DAGSTER_PG_URL": catalog,
            "EXPORT_PATH": str(root / "exports"),
            "ARCHIVE_URL": (root / "archive").as_uri(),
            "DAGSTER_HOME": str(root / "home"),
        },
    )


@pytest.fixture
def cli(tmp_path: Path, database: str, storage_url: str) -> CommandLine:
    """The command line in a project with ten days of `sales/events`."""
    make_events(database)
    (tmp_path / "project").mkdir()
    return project_at(tmp_path / "project", database, storage_url)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, postgres: Address) -> Iterator[CommandLine]:
    """A project whose ten days were taken through everything, for commands that only look."""
    from export_pipelines.catalog.migrate import migrate

    with new_database(postgres) as source, new_database(postgres) as catalog:
        migrate(catalog, "export_pipelines")
        make_events(source)
        cli = project_at(tmp_path_factory.mktemp("done"), source, catalog)
        ran = cli("run", "--all", "--json")
        assert ran.code == 0, ran.err
        yield cli


def one_error(result: Result, *parts: str) -> None:
    """It failed by one clear error with a hint, without a traceback or a password."""
    assert result.code == 1, result.out + result.err
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.err
    assert "hint: " in result.err
    assert "Traceback" not in result.err
    assert "s3cret" not in result.err + result.out
    for part in parts:
        assert part in result.err


def test_help_imports_neither_dagster_nor_a_database_driver() -> None:
    code = (
        "import sys; from export_pipelines.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'dagster', 'psycopg2', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "restore" in ran.stdout


def test_every_command_explains_itself(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from export_pipelines.cli import main

    for name in main.list_commands(None):  # type: ignore[arg-type]
        shown = CliRunner().invoke(main, [name, "--help"])
        assert shown.exit_code == 0
        assert "--verbose" in shown.output


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path)
    assert cli("run").code == 2
    assert cli("nothing-like-that").code == 2
    assert cli("restore", "a/b", "--into", "x").code == 2
    assert cli("--project", str(tmp_path / "nowhere"), "list").code == 2


def test_a_new_project_passes_its_own_checks(tmp_path: Path, database: str, catalog_url: str) -> None:
    made = CommandLine(tmp_path)("init", "shop")
    assert made.code == 0, made.err
    cli = CommandLine(tmp_path / "shop", {"DATABASE_URL": database, "DAGSTER_PG_URL": catalog_url})
    offline, online = cli("check", "--offline"), cli("check")
    assert (offline.code, online.code) == (0, 0), offline.err + online.err
    assert "1 table" in online.out
    ran = cli("run", "--all", "--json")
    assert ran.code == 0, ran.err
    assert ran.json[0]["rows"] > 100
    assert (tmp_path / "shop" / ".local" / "archive").is_dir()


def test_init_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    one_error(CommandLine(tmp_path)("init", "."), "mine.txt")
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_run_takes_each_closed_partition_through_everything_and_once(cli: CommandLine) -> None:
    first = cli("run", "sales/events", "--json")
    assert first.code == 0, first.err
    (result,) = first.json
    assert (result["done"], result["rows"], result["deleted"]) == (10, 200, 200)
    assert query(cli.variables["DATABASE_URL"], "SELECT count(*) FROM events") == [(0,)]
    again = cli("run", "events", "--json")
    assert again.code == 0, again.err
    assert (again.json[0]["partitions"], again.json[0]["done_before"]) == (0, 10)


def test_a_run_is_in_the_instance_with_its_job_and_the_range_of_its_partitions(done: CommandLine) -> None:
    storage = done.variables["DAGSTER_PG_URL"]
    assert query(storage, "SELECT pipeline_name, status FROM runs") == [("sales__events_chain", "SUCCESS")]
    tags = dict(query(storage, "SELECT key, value FROM run_tags"))
    assert tags["dagster/asset_partition_range_start"] == "2025-01-01"
    assert tags["dagster/asset_partition_range_end"] == "2025-01-10"
    assert tags["export_pipelines/table"] == "sales/events"


def test_a_run_belongs_to_the_code_location_of_the_workspace(cli: CommandLine) -> None:
    Folder(cli.root).write(
        "workspace.yaml",
        """
        load_from:
          - python_module:
              module_name: export_pipelines.definitions
              working_directory: .
              location_name: our_place
        """,
    )
    assert cli("run", "events", "--partition", "2025-01-03").code == 0
    ((body,),) = query(cli.variables["DAGSTER_PG_URL"], "SELECT run_body FROM runs")
    assert '"our_place"' in str(body)
    assert '"__repository__"' in str(body)


def test_run_takes_the_partitions_and_the_stage_that_it_is_given(cli: CommandLine) -> None:
    ran = cli("run", "events", "--from", "2025-01-02", "--to", "2025-01-04", "--stage", "export", "--json")
    assert ran.code == 0, ran.err
    (status,) = cli("status", "events", "--json").json
    assert (status["exported"], status["archived"], status["cleaned"], status["rows"]) == (3, 0, 0, 60)
    planned = cli("run", "events", "--dry-run", "--stage", "archive", "--json").json
    assert planned[0]["partitions"] == ["2025-01-02", "2025-01-03", "2025-01-04"]


def test_run_takes_late_rows_the_next_time(cli: CommandLine) -> None:
    assert cli("run", "events", "--stage", "export").code == 0
    run_sql(cli.variables["DATABASE_URL"], "INSERT INTO events VALUES (-1, '2025-01-05 12:00+00', 'late')")
    rest = cli("run", "events", "--stage", "archive")
    assert rest.code == 0, rest.err
    cleaned = cli("run", "events", "--stage", "cleanup", "--json")
    assert (cleaned.json[0]["deleted"], cleaned.json[0]["late"]) == (200, 1)
    assert "late" in cli("status", "events").out
    again = cli("run", "events", "--json")
    assert (again.json[0]["partitions"], again.json[0]["deleted"]) == (1, 1), again.err
    assert query(cli.variables["DATABASE_URL"], "SELECT count(*) FROM events") == [(0,)]


def test_a_refused_cleanup_fails_the_command_and_says_why(cli: CommandLine) -> None:
    assert cli("hold", "events", "--partition", "2025-01-04", "--reason", "court order", "--owner", "ann").code == 0
    ran = cli("run", "events", "--json")
    assert ran.code == 1
    assert (ran.json[0]["done"], ran.json[0]["deleted"]) == (9, 180)
    assert "held by ann" in ran.err
    assert "court order" in ran.err
    assert "hint: " in ran.err
    (hold,) = cli("holds", "--json").json
    assert cli("unhold", str(hold["id"])).code == 0
    assert cli("run", "events", "--json").json[0]["deleted"] == 20
    one_error(cli("unhold", str(hold["id"])), "no hold")


def test_plan_deletes_nothing(cli: CommandLine) -> None:
    assert cli("run", "events", "--stage", "export").code == 0
    assert cli("run", "events", "--stage", "archive").code == 0
    planned = cli("plan", "events", "--json")
    assert planned.code == 0, planned.err
    assert sum(each["would_delete"] for each in planned.json) == 200
    assert "DELETE FROM" in planned.json[0]["sql"]
    shown = cli("plan", "events").out
    assert shown.endswith("\nlimited to the identities of archived rows\n")
    assert "<" not in shown.partition("The statement")[2].replace(" < ", "")
    assert query(cli.variables["DATABASE_URL"], "SELECT count(*) FROM events") == [(200,)]


def test_verify_finds_a_damaged_file(done: CommandLine, tmp_path: Path) -> None:
    intact = done("verify", "--json")
    assert intact.code == 0, intact.err
    assert (intact.json[0]["artifacts"], intact.json[0]["rows"]) == (10, 200)
    file = next((done.root / "archive").rglob("*2025-01-04*.csv.gz"))
    before = file.read_bytes()
    file.chmod(0o644)
    try:
        file.write_bytes(before[:-9] + b"x" + before[-8:])
        damaged = done("verify", "events", "--no-database")
        assert damaged.code == 1
        assert file.name in damaged.err
    finally:
        file.write_bytes(before)


def test_restore_brings_the_rows_back_once(done: CommandLine) -> None:
    restored = done("restore", "events", "--all", "--into", "public.back", "--json")
    assert restored.code == 0, restored.err
    assert (restored.json["rows"], restored.json["created"]) == (200, True)
    assert query(done.variables["DATABASE_URL"], "SELECT count(*), sum(id) FROM back") == [(200, 902100)]
    one_error(done("restore", "events", "--partition", "2025-01-02", "--into", "public.back"), "has rows already")
    one_error(done("restore", "events", "--partition", "2031-01-02", "--into", "public.other"), "not archived")


def test_restore_takes_a_range_and_says_what_became_of_rows_that_were_there(done: CommandLine) -> None:
    url = done.variables["DATABASE_URL"]
    query(url, "CREATE TABLE kept (id bigint PRIMARY KEY, at timestamptz, note text)")
    query(url, "INSERT INTO kept VALUES (1001, '2025-01-02 00:01Z', 'row 1'), (1002, '2025-01-02', 'other')")
    given = ("restore", "events", "--from", "2025-01-02", "--to", "2025-01-03", "--into", "kept")
    one_error(done(*given), "2 of 20 rows of partition 2025-01-02")
    skipped = done(*given, "--on-conflict", "skip")
    assert "38 inserted, 1 already there, 1 there with other values, and skipped" in skipped.out, skipped.err
    replaced = done(*given, "--on-conflict", "replace", "--json").json
    assert (replaced["inserted"], replaced["skipped"], replaced["replaced"], replaced["differing"]) == (0, 39, 1, 1)
    assert query(url, "SELECT count(*), min(note) FILTER (WHERE id = 1002) FROM kept") == [(40, "row 2")]


def test_restore_writes_a_file_and_overwrites_none(done: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "some.csv.gz"
    given = ("restore", "events", "--from", "2025-01-09", "--to-file", str(file))
    written = done(*given)
    assert "40 rows of 2 partitions from 2 files" in written.out, written.err
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    assert (len(lines), lines[0], lines[1].split(",")[0]) == (41, "id,at,note", "8001")
    one_error(done(*given), "exists already")


@pytest.mark.parametrize(
    "options",
    [
        ("--into", "x"),
        ("--all",),
        ("--all", "--partition", "2025-01-02", "--into", "x"),
        ("--from", "2025-01-02", "--partition", "2025-01-02", "--into", "x"),
        ("--all", "--into", "x", "--to-file", "y"),
        ("--all", "--to-file", "y", "--on-conflict", "skip"),
        ("--all", "--into", "x", "--on-conflict", "merge"),
    ],
)
def test_restore_refuses_options_that_do_not_go_together(cli: CommandLine, options: tuple[str, ...]) -> None:
    assert cli("restore", "events", *options).code == 2


def test_list_shows_tables_and_broken_folders(cli: CommandLine) -> None:
    Folder(cli.root).write("assets/sales/bad/defs.yaml", "type: export_pipelines.ExportTable\nattributes: {tabel: x}\n")
    shown = cli("list", "--json")
    assert shown.code == 0
    assert [each["table"] for each in shown.json["tables"]] == ["sales/events"]
    assert shown.json["broken"][0]["table"] == "sales/bad"
    ran = cli("run", "sales/bad")
    assert ran.code == 1
    assert "assets/sales/bad/defs.yaml:2" in ran.err


def test_list_and_check_take_names_and_patterns_and_count_what_was_asked_for(cli: CommandLine) -> None:
    Folder(cli.root).write("assets/sales/more/defs.yaml", EVENTS)
    Folder(cli.root).write("assets/sales/bad/defs.yaml", "type: export_pipelines.ExportTable\nattributes: {tabel: x}\n")
    assert [each["table"] for each in cli("list", "ev*", "--json").json["tables"]] == ["sales/events"]
    everything = cli("list", "sales/*", "--json").json
    assert [each["table"] for each in everything["tables"]] == ["sales/events", "sales/more"]
    assert [each["table"] for each in everything["broken"]] == ["sales/bad"]
    one_error(cli("list", "nothing*"), "matches no table")
    assert cli("check", "events", "--offline").out == "ok: 1 table, files only\n"
    assert cli("check", "[em]*", "--offline").out == "ok: 2 tables, files only\n"
    assert cli("check", "sales/*", "--offline").code == 1


def test_a_run_of_cleanup_alone_shows_what_was_deleted(cli: CommandLine) -> None:
    for stage in ("export", "archive"):
        assert cli("run", "events", "--partition", "2025-01-02", "--stage", stage).code == 0
    ran = cli("run", "events", "--partition", "2025-01-02", "--stage", "cleanup")
    assert ran.out.splitlines()[1].split() == ["sales/events", "1", "of", "1", "-", "-", "-", "-", "20"]
    assert "1 of 1 partition" in ran.err


def test_check_tells_every_error_at_once_with_file_and_line(cli: CommandLine) -> None:
    folder = Folder(cli.root)
    table = "type: export_pipelines.ExportTable\nattributes:\n  partitions: {every: day, start: 2025-01-01}\n"
    window = "WHERE at >= %(window_start)s AND at < %(window_end)s"
    folder.write("assets/sales/a/defs.yaml", table + "  nonsense: 1\n")
    folder.write("assets/sales/b/defs.yaml", table)
    folder.write("assets/sales/b/select.sql", f"SELECT *\nFROM events\nWHERE no_such = 1\nAND {window[6:]}")
    folder.write("assets/sales/c/defs.yaml", table + "  cleanup: after_archive\n")
    folder.write("assets/sales/c/select.sql", f"SELECT count(*) FROM events {window}")
    folder.write("assets/sales/c/delete.sql", f"DELETE FROM events\n{window}\nAND missing = 2")
    folder.write("assets/sales/d/defs.yaml", table)
    folder.write("assets/sales/d/select.sql", f"SELECT 1; DELETE FROM events {window}")
    folder.write("resources/more/defs.yaml", "type: export_pipelines.PostgresConnection\nattributes: {url: x}\n")
    folder.write(
        "schedules/x/defs.yaml", "type: export_pipelines.ExportSchedule\nattributes: {name: x, tables: [zz]}\n"
    )
    checked = cli("check")
    assert checked.code == 1
    for place in (
        "assets/sales/a/defs.yaml:4: nonsense",
        "assets/sales/b/select.sql:3",
        "assets/sales/c/delete.sql:3",
        "assets/sales/d/select.sql:1",
        "resources/more/defs.yaml:2",
        "schedules/x/defs.yaml:2",
    ):
        assert place in checked.err
    assert "6 errors" in checked.err
    assert "Traceback" not in checked.err
    offline = cli("check", "--offline", "--json")
    assert offline.code == 1
    assert len(offline.json["errors"]) == 4


def test_check_refuses_a_cleanup_whose_rows_cannot_be_proved_or_that_sets_off_more(cli: CommandLine) -> None:
    run_sql(
        cli.variables["DATABASE_URL"],
        "CREATE TABLE notes (event bigint REFERENCES events ON DELETE CASCADE)",
    )
    folder = Folder(cli.root)
    folder.write(
        "assets/sales/sums/defs.yaml",
        """
        type: export_pipelines.ExportTable
        attributes:
          partitions: {every: day, start: 2025-01-01}
          cleanup: after_archive
        """,
    )
    window = "WHERE at >= %(window_start)s AND at < %(window_end)s"
    folder.write("assets/sales/sums/select.sql", f"SELECT count(*) FROM events {window} GROUP BY note")
    folder.write("assets/sales/sums/delete.sql", f"DELETE FROM events {window}")
    checked = cli("check")
    assert checked.code == 1
    assert "nothing can prove which rows are in the file" in checked.err
    assert "assets/sales/sums/defs.yaml:4: cleanup" in checked.err
    assert checked.err.count("ON DELETE CASCADE") == 2
    assert "notes_event_fkey" in checked.err


def test_check_says_what_right_is_missing(cli: CommandLine, postgres: Address) -> None:
    url = cli.variables["DATABASE_URL"]
    run_sql(url, "CREATE ROLE reader LOGIN PASSWORD 's3cret'")
    try:
        run_sql(url, "GRANT SELECT ON events TO reader")
        host = url.split("@")[1]
        checked = cli("check", DATABASE_URL=f"postgresql://reader:s3cret@{host}")
        assert checked.code == 1
        assert "permission denied" in checked.err
        assert "assets/sales/events/defs.yaml" in checked.err
        assert "s3cret" not in checked.err
        ran = cli("run", "events", "--partition", "2025-01-01", DATABASE_URL=f"postgresql://reader:s3cret@{host}")
        assert ran.code == 1
        assert "permission denied" in ran.err
        assert "hint: " in ran.err
        assert "Traceback" not in ran.err
    finally:
        run_sql(url, "DROP OWNED BY reader")
        run_sql(url, "DROP ROLE reader")


def test_unknown_tables_and_partitions_are_one_clear_error(done: CommandLine) -> None:
    one_error(done("run", "sales/evnets"), "no table", "did you mean")
    one_error(done("run", "events", "--partition", "2024-12-31"), "2024-12-31", "2025-01-01")
    one_error(done("run", "events", "--partition", "yesterday"), "yesterday")
    one_error(done("plan", "nothing"), "no table")
    one_error(done("verify", "nothing"), "no table")


def test_a_range_that_can_never_be_is_wrong_usage(done: CommandLine) -> None:
    backwards = ("--from", "2025-01-05", "--to", "2025-01-04")
    into = ("--into", "public.back")
    for arguments in (("run", "events"), ("plan", "events"), ("restore", "events", *into)):
        refused = done(*arguments, *backwards)
        assert refused.code == 2 and "is later than" in refused.err, refused.err


def test_check_passes_over_a_demo_that_nobody_has_loaded(tmp_path: Path) -> None:
    folder = new_project(tmp_path)
    folder.write("assets/nycflights13/planes/defs.yaml", EVENTS.replace("public.events", "nycflights13.planes"))
    cli = CommandLine(tmp_path)
    checked = cli("check")
    assert checked.code == 0, checked.err
    assert "the demo's tables of nycflights13 are not loaded, and were passed over" in checked.err
    named = cli("check", "planes")
    assert named.code == 1 and "nycflights13.planes" in named.err


def test_a_partition_that_is_open_is_refused(cli: CommandLine) -> None:
    Folder(cli.root).write("assets/sales/events/defs.yaml", EVENTS.replace(", end: 2025-01-11", ""))
    today = time.strftime("%Y-%m-%d", time.gmtime())
    one_error(cli("run", "events", "--partition", today), "is open until")


def test_a_database_that_is_down_is_one_clear_error(cli: CommandLine) -> None:
    # It is transient, and would be tried again for a quarter of a minute.
    Folder(cli.root).write("assets/sales/events/defs.yaml", EVENTS + "  retries: {attempts: 0}\n")
    down = f"postgresql://me:s3cret@127.0.0.1:{free_port()}/app"
    one_error(cli("status", DAGSTER_PG_URL=down), "cannot connect")
    ran = cli("run", "events", "--partition", "2025-01-01", DATABASE_URL=down)
    assert ran.code == 1
    assert "cannot connect" in ran.err
    assert "s3cret" not in ran.err
    assert "Traceback" not in ran.err
    checked = cli("check", DATABASE_URL=down)
    assert checked.code == 1
    assert "resources/defs.yaml:2" in checked.err
    assert "1 error" in checked.err


def test_a_wrong_password_is_one_clear_error_that_does_not_show_it(cli: CommandLine) -> None:
    url = cli.variables["DAGSTER_PG_URL"]
    wrong = f"postgresql://project:s3cret@{url.split('@')[1]}"
    one_error(cli("status", DAGSTER_PG_URL=wrong), "password")
    checked = cli("check", DATABASE_URL=wrong)
    assert checked.code == 1
    assert "s3cret" not in checked.err
    assert "hint: check the user, password" in checked.err


def test_a_catalog_that_was_not_migrated_is_one_clear_error(cli: CommandLine, second_database: str) -> None:
    one_error(cli("status", DAGSTER_PG_URL=second_database), "export-pipelines migrate")
    migrated = cli("migrate", DAGSTER_PG_URL=second_database)
    assert migrated.code == 0, migrated.err
    assert "applied" in migrated.out
    assert "newest" in cli("migrate", DAGSTER_PG_URL=second_database).out


def test_a_store_that_cannot_be_written_is_one_clear_error(cli: CommandLine) -> None:
    (cli.root / "file").write_text("not a folder")
    archive = (cli.root / "file" / "below").as_uri()
    checked = cli("check", ARCHIVE_URL=archive)
    assert checked.code == 1
    assert "resources/defs.yaml:" in checked.err
    assert "1 error" in checked.err
    ran = cli("run", "events", "--partition", "2025-01-01", ARCHIVE_URL=archive)
    assert ran.code == 1
    assert "hint: " in ran.err
    assert "Traceback" not in ran.err
    assert query(cli.variables["DATABASE_URL"], "SELECT count(*) FROM events") == [(200,)]


def test_a_folder_that_is_no_project_is_one_clear_error(tmp_path: Path) -> None:
    one_error(CommandLine(tmp_path)("list"), "not in a project", "export-pipelines init")


def test_sweep_removes_only_what_is_old_enough(done: CommandLine) -> None:
    swept = done("sweep", "--json")
    assert swept.code == 0, swept.err
    assert swept.json == {"dry_run": False, "removed": []}


def test_adopt_takes_files_of_an_older_service(cli: CommandLine) -> None:
    import gzip

    folder = cli.root / "old"
    folder.mkdir()
    (folder / "events-2025_01_02-12_00_00_AM.csv.gz").write_bytes(gzip.compress(b"id,at,note\n1,2025-01-01 10:00,x\n"))
    dry = cli("adopt", "events", "old", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert [(each["partition"], each["rows"]) for each in dry.json] == [("2025-01-01", 1)]
    assert cli("adopt", "events", "old").code == 0
    assert cli("verify", "ev*", "--json").json[0]["rows"] == 1
    (folder / "events-2020_01_02-12_00_00_AM.csv.gz").write_bytes(b"")
    older = cli("adopt", "events", "old")
    assert "is older than the first partition" in older.out
    assert "set `start` in " in older.err


def test_doctor_names_what_is_wrong_and_the_remedy(cli: CommandLine) -> None:
    well = cli("doctor", "--json")
    assert well.code == 0, well.out
    assert {each["what"] for each in well.json} >= {"python", "DATABASE_URL", "catalog", "ARCHIVE_URL"}
    ill = cli("doctor", DATABASE_URL=f"postgresql://me:s3cret@127.0.0.1:{free_port()}/app")
    assert ill.code == 1
    assert "hint: DATABASE_URL" in ill.err
    other = RESOURCES + OTHER
    Folder(cli.root).write("resources/defs.yaml", other)
    assert "connection other: set it in the environment" in cli("doctor").err
    ill = cli("doctor", OTHER_URL=f"postgresql://me:s3cret@127.0.0.1:{free_port()}/app")
    assert ill.code == 1 and "hint: connection other" in ill.err
    assert cli("doctor", OTHER_URL=cli.variables["DATABASE_URL"]).code == 0
    assert "s3cret" not in ill.out + ill.err


@contextmanager
def slow_run(cli: CommandLine) -> Iterator[subprocess.Popen[str]]:
    """A run whose query takes a minute, once the server is at it."""
    Folder(cli.root).write("assets/sales/slow/defs.yaml", SLOW)
    Folder(cli.root).write("assets/sales/slow/select.sql", "SELECT id, pg_sleep(60) FROM events")
    with cli.start("run", "slow") as process:
        try:
            deadline = time.monotonic() + 120
            while not sleeping(cli):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.2)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ends(cli: CommandLine) -> bool:
    """Whether the slow query ends soon: the server looks once a second whether its client is still there."""
    deadline = time.monotonic() + 50
    while sleeping(cli) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not sleeping(cli)


def sleeping(cli: CommandLine) -> bool:
    """Whether the server runs the slow query."""
    found = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY%pg_sleep(60)%'"
    return query(cli.variables["DATABASE_URL"], found) == [(1,)]


def test_ctrl_c_cancels_the_run_and_its_query(cli: CommandLine) -> None:
    with slow_run(cli) as process:
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert query(cli.variables["DAGSTER_PG_URL"], "SELECT status FROM runs") == [("CANCELED",)]
    assert ends(cli)
    assert not [path for path in (cli.root / "exports").rglob("*") if path.is_file()]


def test_a_run_that_is_terminated_elsewhere_ends(cli: CommandLine) -> None:
    # What the UI's server does for a run that has no worker to be told.
    code = (
        "import dagster as dg\n"
        "with dg.DagsterInstance.get() as instance:\n"
        "    instance.run_launcher.terminate(instance.get_runs()[0].run_id)\n"
    )
    with slow_run(cli) as process:
        subprocess.run([sys.executable, "-c", code], env=cli.environment(), check=True, capture_output=True)
        process.communicate(timeout=90)
    assert process.returncode == 130
    assert query(cli.variables["DAGSTER_PG_URL"], "SELECT status FROM runs") == [("CANCELED",)]
    assert ends(cli)


def test_a_run_whose_process_was_killed_is_marked_by_the_next(cli: CommandLine) -> None:
    with slow_run(cli) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert cli("run", "events", "--partition", "2025-01-01").code == 0
    found = query(cli.variables["DAGSTER_PG_URL"], "SELECT pipeline_name, status FROM runs ORDER BY id")
    assert found == [("sales__slow_chain", "FAILURE"), ("sales__events_chain", "SUCCESS")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_takes_everything_through_and_a_second_call_finds_it_done(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[2]
    for name in ("assets", "resources", "schedules"):
        shutil.copytree(checkout / name, tmp_path / name)
    shutil.copy(checkout / "workspace.yaml", tmp_path)
    cli = CommandLine(tmp_path, seconds=600)
    first, second = cli("demo", "--json"), cli("demo", "--json")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    tables = {each["table"]: each for each in first.json["tables"]}
    flights = tables["nycflights13/flights"]
    assert (flights["partitions"], flights["rows"], flights["deleted"]) == (365, 336_776, 336_776)
    assert tables["nycflights13/weather"]["deleted"] == 26_115
    assert tables["nycflights13/airlines"]["rows"] == 16
    assert all(tables[f"knowledge_base/{name}"]["deleted"] > 0 for name in ("agency", "source", "source_run_page"))
    assert second.json["tables"] == first.json["tables"]
    assert second.json["seconds"] < 90
