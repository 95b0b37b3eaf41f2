"""Tables as Dagster assets, run against a real PostgreSQL: chains, ranges, failures, retries."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import dagster as dg
import pytest

from export_pipelines.components.requests import RANGE_END, RANGE_START
from tests.support.dagster_project import EVENTS, Folder, make_events, new_project, query


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with the table `demo/events` in a real database."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DAGSTER_PG_URL", catalog_url)
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    root = tmp_path / "project"
    root.mkdir()
    made = new_project(root)
    made.write("assets/demo/events/defs.yaml", EVENTS)
    make_events(database)
    return made


def run(
    folder: Folder, instance: dg.DagsterInstance, job: str, first: str | None = None, last: str | None = None
) -> dg.ExecuteInProcessResult:
    """Run a job over one partition, or a range."""
    definition = folder.load().definitions().resolve_job_def(job)
    if last is None:
        return definition.execute_in_process(instance=instance, partition_key=first, raise_on_error=False)
    tags = {RANGE_START: first or "", RANGE_END: last}
    return definition.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


PASSING = (
    "CREATE FUNCTION passing(note text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN "
    "IF {condition} THEN RAISE 'not this one' USING ERRCODE = '{code}'; END IF; RETURN note; END $$"
)


def key(stage: str, table: str = "events") -> dg.AssetKey:
    return dg.AssetKey(["demo", f"{table}_{stage}"])


def told(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> list[dg.AssetMaterialization]:
    """The materialisations of a run as Dagster has stored them, in their order."""
    logs = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return [entry.asset_materialization for entry in logs if entry.asset_materialization]


def partitions(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult, stage: str) -> list[str | None]:
    return [made.partition for made in told(instance, result) if made.asset_key == key(stage)]


def test_export_tells_what_it_wrote(folder: Folder, instance: dg.DagsterInstance) -> None:
    result = run(folder, instance, "demo__events_export", "2025-01-02")
    assert result.success
    (made,) = told(instance, result)
    values = {name: value.value for name, value in made.metadata.items()}
    assert made.partition == "2025-01-02"
    assert values["rows"] == values["dagster/row_count"] == 20
    assert values["raw_bytes"] > values["stored_bytes"] > 0
    assert values["window"] == "2025-01-02T00:00:00+00:00 → 2025-01-03T00:00:00+00:00"
    assert Path(values["path"]).is_file()
    assert [column.name for column in values["dagster/column_schema"].columns] == ["id", "at", "note"]
    assert values["preview"].splitlines()[0] == "| id | at | note |"
    assert len(values["preview"].splitlines()) == 2 + 5
    assert values["seconds"] > 0


def test_chain_exports_archives_and_cleans_up_in_one_run(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    result = run(folder, instance, "demo__events_chain", "2025-01-03")
    assert result.success
    exported, archived, cleaned = told(instance, result)
    assert archived.metadata["manifest"].value == 1
    assert exported.tags is not None and archived.tags is not None
    assert exported.tags["dagster/data_version"] == archived.tags["dagster/data_version"]
    assert cleaned.metadata["deleted"].value == 20
    assert query(database, "SELECT count(*) FROM events WHERE at::date = '2025-01-03'") == [(0,)]
    assert query(database, "SELECT count(*) FROM events") == [(180,)]
    checks = {each.check_name: each.passed for each in result.get_asset_check_evaluations()}
    assert checks == {
        "schema_unchanged": True,
        "digests_agree": True,
        "no_late_rows": True,
        "delete_matches_select": True,
        "not_held": True,
    }


def test_range_goes_past_a_failed_partition_and_names_it_at_the_end(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    query(database, PASSING.format(condition="note = 'row 7'", code="22012"))
    folder.write(
        "assets/demo/events/select.sql",
        "SELECT id, at, CASE WHEN id = 2007 THEN passing(note) ELSE note END AS note FROM events "
        "WHERE at >= %(window_start)s AND at < %(window_end)s",
    )
    folder.write(
        "assets/demo/events/delete.sql", "DELETE FROM events WHERE at >= %(window_start)s AND at < %(window_end)s"
    )
    folder.write("assets/demo/events/defs.yaml", EVENTS.replace("  table: public.events\n  time_column: at\n", ""))
    result = run(folder, instance, "demo__events_chain", "2025-01-01", "2025-01-05")
    assert not result.success
    done = ["2025-01-01", "2025-01-02", "2025-01-04", "2025-01-05"]
    assert partitions(instance, result, "archive") == done
    assert instance.get_materialized_partitions(key("export")) == set(done)
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    text = failure.step_failure_data.user_failure_data.description
    assert text.startswith("1 of 5 partitions of demo/events failed\nexport of demo/events 2025-01-03: ")
    assert "not this one" in text


def test_results_of_a_range_are_shown_once_and_as_they_come(folder: Folder, instance: dg.DagsterInstance) -> None:
    result = run(folder, instance, "demo__events_chain", "2025-01-01", "2025-01-03")
    assert result.success
    events = [(made.asset_key.path[-1], made.partition) for made in told(instance, result)]
    days = ("2025-01-01", "2025-01-02", "2025-01-03")
    assert events == [(f"events_{stage}", day) for day in days for stage in ("export", "archive", "cleanup")]


def test_range_of_a_table_without_an_end_is_taken_partition_by_partition(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    folder.write("assets/demo/events/defs.yaml", EVENTS.replace(", end: 2025-01-11", ""))
    result = run(folder, instance, "demo__events_chain", "2025-01-02", "2025-01-04")
    assert result.success
    assert partitions(instance, result, "cleanup") == ["2025-01-02", "2025-01-03", "2025-01-04"]
    assert query(database, "SELECT count(*) FROM events") == [(140,)]


def test_run_without_a_partition_is_refused(folder: Folder, instance: dg.DagsterInstance, database: str) -> None:
    result = run(folder, instance, "demo__events_cleanup")
    assert not result.success
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    assert "names no partition" in failure.step_failure_data.user_failure_data.description
    assert query(database, "SELECT count(*) FROM events") == [(200,)]


def test_late_rows_stay_and_fail_a_check_as_a_warning(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    assert run(folder, instance, "demo__events_export", "2025-01-01").success
    assert run(folder, instance, "demo__events_archive", "2025-01-01").success
    query(database, "INSERT INTO events VALUES (999999, '2025-01-01 12:00+00', 'late')")
    result = run(folder, instance, "demo__events_cleanup", "2025-01-01")
    assert result.success
    checks = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert not checks["no_late_rows"].passed
    assert checks["no_late_rows"].severity is dg.AssetCheckSeverity.WARN
    assert checks["no_late_rows"].partition == "2025-01-01"
    assert "1 rows came or changed" in (checks["no_late_rows"].description or "")
    assert query(database, "SELECT id FROM events WHERE at < '2025-01-02'") == [(999999,)]


def test_changed_columns_fail_a_check(folder: Folder, instance: dg.DagsterInstance, database: str) -> None:
    assert run(folder, instance, "demo__events_export", "2025-01-01").success
    query(database, "ALTER TABLE events ADD COLUMN extra int")
    result = run(folder, instance, "demo__events_export", "2025-01-02")
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.description) == ("schema_unchanged", False, "extra is new (integer)")


def test_stage_that_was_not_asked_for_is_not_run(folder: Folder, instance: dg.DagsterInstance) -> None:
    result = run(folder, instance, "demo__events_export", "2025-01-01")
    assert result.success
    assert instance.get_materialized_partitions(key("archive")) == set()


def test_database_that_is_down_is_tried_again_and_then_named(
    folder: Folder, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody:secret-word@127.0.0.1:1/none")
    folder.write("assets/demo/events/defs.yaml", EVENTS + "  retries: {attempts: 1, delay_seconds: 0}\n")
    result = run(folder, instance, "demo__events_chain", "2025-01-01", "2025-01-10")
    assert not result.success
    assert len(result.filter_events(lambda event: event.event_type_value == "STEP_UP_FOR_RETRY")) == 1
    (failure,) = result.filter_events(lambda event: event.is_step_failure)
    text = failure.step_failure_data.user_failure_data.description
    assert text.startswith("3 of 10 partitions of demo/events failed; 7 were not tried")
    assert not any("secret-word" in entry.to_json() for entry in instance.all_logs(result.run_id))


def test_second_attempt_does_not_do_again_what_is_done(
    folder: Folder, instance: dg.DagsterInstance, database: str, catalog_url: str
) -> None:
    query(database, "CREATE TABLE gate ()")
    query(database, PASSING.format(condition="to_regclass('gate') IS NOT NULL", code="53300"))
    folder.write(
        "assets/demo/events/select.sql",
        "SELECT id, at, CASE WHEN id / 1000 = 2 THEN passing(note) ELSE note END AS note FROM events "
        "WHERE at >= %(window_start)s AND at < %(window_end)s",
    )
    spec = EVENTS.replace("  table: public.events\n  time_column: at\n", "").replace("after_archive", '"off"')
    folder.write("assets/demo/events/defs.yaml", spec + "  retries: {attempts: 5, delay_seconds: 0.5}\n")
    opener = Thread(target=open_the_gate, args=(database, catalog_url))
    opener.start()
    result = run(folder, instance, "demo__events_export", "2025-01-01", "2025-01-04")
    opener.join()
    assert result.success
    assert result.filter_events(lambda event: event.event_type_value == "STEP_RESTARTED")
    assert partitions(instance, result, "export") == ["2025-01-01", "2025-01-02", "2025-01-03", "2025-01-04"]
    begun = query(catalog_url, "SELECT DISTINCT partition FROM export_pipelines.export WHERE state = 'failed'")
    assert begun == [("2025-01-03",)]


def open_the_gate(database: str, catalog_url: str) -> None:
    """Wait until an export has failed, and take away what made it fail."""
    deadline = time.monotonic() + 60
    while not query(catalog_url, "SELECT 1 FROM export_pipelines.export WHERE state = 'failed'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    query(database, "DROP TABLE gate")


INTERRUPTED = """
import sys
from pathlib import Path
import dagster as dg
from dagster._utils.interrupts import setup_interrupt_handlers
from export_pipelines.components.project import load_project

setup_interrupt_handlers()
with dg.DagsterInstance.local_temp(sys.argv[2]) as instance:
    job = load_project(Path(sys.argv[1])).definitions().resolve_job_def("demo__events_export")
    try:
        job.execute_in_process(instance=instance, partition_key="2025-01-01", raise_on_error=False)
    except BaseException as error:
        print(type(error).__name__)
    print(instance.get_runs()[0].status.value)
"""


def test_terminated_run_stops_its_query_leaves_no_file_and_is_not_tried_again(
    folder: Folder, tmp_path: Path, database: str
) -> None:
    folder.write("assets/demo/events/select.sql", "SELECT id, pg_sleep(60) FROM events WHERE at < %(window_end)s")
    spec = EVENTS.replace("  table: public.events\n  time_column: at\n", "").replace("after_archive", '"off"')
    folder.write("assets/demo/events/defs.yaml", spec)
    home = tmp_path / "home"
    home.mkdir()
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active'"
    active += " AND pid <> pg_backend_pid() AND datname = current_database()"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(folder.root), str(home)], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while query(database, active) == [(0,)]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    # What the UI's Terminate does: it notes the wish, then signals the run's process.
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        instance.report_run_canceling(instance.get_runs()[0])
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - signalled < 30
    assert output.split()[-1] == "CANCELED"
    # The server looks once a second whether its client is still there.
    while query(database, active) != [(0,)]:
        assert time.monotonic() - signalled < 30
        time.sleep(0.1)
    assert not [file for file in (tmp_path / "exports").rglob("*.gz") if not file.name.startswith(".")]
