"""Sensors and schedules: what they start, and that nothing is started twice or skipped."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from export_pipelines.components import run_feed
from export_pipelines.components.requests import RANGE_END, RANGE_START
from tests.support.dagster_project import EVENTS, Folder, make_events, new_project, query

CHAIN = """
type: export_pipelines.ChainSensor
attributes: {name: after_export}
"""
UPSTREAM = """
type: export_pipelines.UpstreamSensor
attributes: {name: landed, asset: upstream/landing, tables: [demo/events]}
"""

DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2026-01-01")


@dg.asset(key=["upstream", "landing"], partitions_def=DAYS)
def landing() -> None:
    """What an upstream code location makes."""


@dg.asset(key=["upstream", "other"], partitions_def=DAYS)
def other() -> None:
    """Something else of that location."""


UPSTREAM_DEFS = dg.Definitions(
    [landing, other],
    jobs=[
        dg.define_asset_job("landing_job", [landing]),
        dg.define_asset_job("other_job", [other]),
    ],
    executor=dg.in_process_executor,
)


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with the table `demo/events` in a real database, and both sensors."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DAGSTER_PG_URL", catalog_url)
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    root = tmp_path / "project"
    root.mkdir()
    made = new_project(root)
    made.write("assets/demo/events/defs.yaml", EVENTS)
    made.write("schedules/chain/defs.yaml", CHAIN)
    made.write("schedules/upstream/defs.yaml", UPSTREAM)
    make_events(database)
    return made


def tick(
    folder: Folder, instance: dg.DagsterInstance, name: str, cursor: str | None
) -> tuple[list[dg.RunRequest], str]:
    """One evaluation of a sensor, as the daemon does it; its requests and its cursor."""
    definitions = folder.load().definitions()
    with dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        sensor_name=name,
        repository_def=definitions.get_repository_def(),
        resources=definitions.resources,
    ) as context:
        data = definitions.resolve_sensor_def(name).evaluate_tick(context)
    assert data.cursor is not None
    return list(data.run_requests or []), data.cursor


def run(
    folder: Folder, instance: dg.DagsterInstance, job: str, first: str, last: str | None = None
) -> dg.ExecuteInProcessResult:
    """Run a job of the project over one partition, or a range."""
    definition = folder.load().definitions().resolve_job_def(job)
    if last is None:
        return definition.execute_in_process(instance=instance, partition_key=first, raise_on_error=False)
    return definition.execute_in_process(
        instance=instance, tags={RANGE_START: first, RANGE_END: last}, raise_on_error=False
    )


def land(instance: dg.DagsterInstance, *days: str, job: str = "landing_job") -> list[str]:
    """Runs of the upstream location, one a day; their ids."""
    definition = UPSTREAM_DEFS.resolve_job_def(job)
    return [definition.execute_in_process(instance=instance, partition_key=day).run_id for day in days]


def test_export_of_the_upstream_partition_is_asked_for_once(folder: Folder, instance: dg.DagsterInstance) -> None:
    (run_id,) = land(instance, "2025-01-02")
    requests, cursor = tick(folder, instance, "landed", None)
    (request,) = requests
    assert request.job_name == "demo__events_export"
    assert request.partition_key == "2025-01-02"
    assert request.run_key == f"export:demo/events:{run_id}"
    assert request.tags["export_pipelines/upstream_run_id"] == run_id
    assert request.tags["export_pipelines/root_run_id"] == run_id
    again, _ = tick(folder, instance, "landed", cursor)
    assert again == []


def test_evaluation_that_was_lost_asks_for_the_same_run_keys(folder: Folder, instance: dg.DagsterInstance) -> None:
    land(instance, "2025-01-02", "2025-01-03")
    first, _ = tick(folder, instance, "landed", None)
    second, _ = tick(folder, instance, "landed", None)
    assert [each.run_key for each in first] == [each.run_key for each in second]
    assert len(first) == 2


def test_hundred_upstream_runs_are_taken_in_one_tick(folder: Folder, instance: dg.DagsterInstance) -> None:
    folder.write(
        "assets/demo/events/defs.yaml", EVENTS.replace("start: 2025-01-01, end: 2025-01-11", "start: 2024-01-01")
    )
    days = [f"2024-{month:02}-{day:02}" for month in range(1, 6) for day in range(1, 21)]
    ids = land(instance, *days)
    started = time.monotonic()
    requests, _ = tick(folder, instance, "landed", None)
    assert time.monotonic() - started < 60
    assert [each.tags["export_pipelines/upstream_run_id"] for each in requests] == ids
    assert [each.partition_key for each in requests] == days
    assert len({each.run_key for each in requests}) == 100


def test_upstream_runs_of_other_assets_and_days_outside_are_passed_over(
    folder: Folder, instance: dg.DagsterInstance
) -> None:
    land(instance, "2025-01-02", job="other_job")
    land(instance, "2024-06-01")
    requests, _ = tick(folder, instance, "landed", None)
    assert requests == []


def test_upstream_job_is_known_by_name_and_location(folder: Folder, instance: dg.DagsterInstance) -> None:
    folder.write(
        "schedules/upstream/defs.yaml",
        UPSTREAM.replace("asset: upstream/landing", "job: landing_job"),
    )
    land(instance, "2025-01-02")
    land(instance, "2025-01-03", job="other_job")
    requests, _ = tick(folder, instance, "landed", None)
    assert [each.partition_key for each in requests] == ["2025-01-02"]
    folder.write(
        "schedules/upstream/defs.yaml",
        UPSTREAM.replace("asset: upstream/landing", "job: landing_job, location: elsewhere"),
    )
    assert tick(folder, instance, "landed", None)[0] == []


def test_archive_follows_export_and_cleanup_follows_archive(folder: Folder, instance: dg.DagsterInstance) -> None:
    exported = run(folder, instance, "demo__events_export", "2025-01-02")
    requests, cursor = tick(folder, instance, "after_export", None)
    assert [(each.job_name, each.partition_key) for each in requests] == [("demo__events_archive", "2025-01-02")]
    assert requests[0].tags["export_pipelines/upstream_run_id"] == exported.run_id
    archived = run(folder, instance, "demo__events_archive", "2025-01-02")
    requests, cursor = tick(folder, instance, "after_export", cursor)
    assert [(each.job_name, each.run_key) for each in requests] == [
        ("demo__events_cleanup", f"cleanup:demo/events:{archived.run_id}")
    ]
    assert run(folder, instance, "demo__events_cleanup", "2025-01-02").success
    assert tick(folder, instance, "after_export", cursor)[0] == []


def test_range_is_followed_by_a_range(folder: Folder, instance: dg.DagsterInstance) -> None:
    run(folder, instance, "demo__events_export", "2025-01-02", "2025-01-06")
    requests, _ = tick(folder, instance, "after_export", None)
    assert [(each.tags[RANGE_START], each.tags[RANGE_END]) for each in requests] == [("2025-01-02", "2025-01-06")]


def test_what_a_failed_run_completed_goes_on_in_contiguous_ranges(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    query(
        database,
        "CREATE FUNCTION bad(note text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'bad'; RETURN note; END $$",
    )
    folder.write(
        "assets/demo/events/select.sql",
        "SELECT id, CASE WHEN id = 2007 THEN bad(note) ELSE note END AS note FROM events "
        "WHERE at >= %(window_start)s AND at < %(window_end)s",
    )
    spec = EVENTS.replace("  table: public.events\n  time_column: at\n", "").replace("after_archive", '"off"')
    folder.write("assets/demo/events/defs.yaml", spec)
    assert not run(folder, instance, "demo__events_export", "2025-01-01", "2025-01-06").success
    requests, _ = tick(folder, instance, "after_export", None)
    assert [(each.tags[RANGE_START], each.tags[RANGE_END]) for each in requests] == [
        ("2025-01-01", "2025-01-02"),
        ("2025-01-04", "2025-01-06"),
    ]
    assert len({each.run_key for each in requests}) == 2


def test_run_of_the_whole_chain_is_not_followed(folder: Folder, instance: dg.DagsterInstance) -> None:
    assert run(folder, instance, "demo__events_chain", "2025-01-02").success
    assert tick(folder, instance, "after_export", None)[0] == []


def test_cursor_waits_for_events_that_may_still_be_committed(instance: dg.DagsterInstance) -> None:
    (first,) = land(instance, "2025-01-02")
    runs, cursor = run_feed.finished_runs(instance, None, run_feed.SUCCEEDED)
    assert [each.run_id for each in runs] == [first]
    # An older event than the one seen would be found: the cursor has not passed the fresh one, and remembers it.
    assert '"after": null' in cursor
    (second,) = land(instance, "2025-01-03")
    runs, cursor = run_feed.finished_runs(instance, cursor, run_feed.SUCCEEDED)
    assert [each.run_id for each in runs] == [second]


def test_cleanup_comes_due_by_time(folder: Folder, instance: dg.DagsterInstance) -> None:
    keep = EVENTS.replace("cleanup: after_archive", "cleanup: {mode: keep, keep_days: 30}")
    folder.write("assets/demo/events/defs.yaml", keep)
    folder.write(
        "schedules/due/defs.yaml",
        "type: export_pipelines.DueCleanupSensor\nattributes: {name: due}\n",
    )
    definitions = folder.load().definitions()
    run(folder, instance, "demo__events_export", "2025-01-01", "2025-01-03")
    run(folder, instance, "demo__events_archive", "2025-01-02", "2025-01-03")
    with dg.build_sensor_context(
        instance=instance,
        sensor_name="due",
        repository_def=definitions.get_repository_def(),
        resources=definitions.resources,
    ) as context:
        (request,) = definitions.resolve_sensor_def("due").evaluate_tick(context).run_requests or []
    assert request.job_name == "demo__events_cleanup"
    assert (request.tags[RANGE_START], request.tags[RANGE_END]) == ("2025-01-02", "2025-01-03")
    assert run(folder, instance, "demo__events_cleanup", "2025-01-02", "2025-01-03").success
    with dg.build_sensor_context(
        instance=instance,
        sensor_name="due",
        repository_def=definitions.get_repository_def(),
        resources=definitions.resources,
    ) as context:
        assert not definitions.resolve_sensor_def("due").evaluate_tick(context).run_requests


SCHEDULE = """
type: export_pipelines.ExportSchedule
attributes: {name: nightly, tables: [demo/events], offset_minutes: 30}
"""


def scheduled(folder: Folder, name: str, at: datetime) -> list[dg.RunRequest]:
    """What a schedule asks for at a time."""
    definitions = folder.load().definitions()
    context = dg.build_schedule_context(
        scheduled_execution_time=at, repository_def=definitions.get_repository_def(), resources=definitions.resources
    )
    return list(definitions.resolve_schedule_def(name).evaluate_tick(context).run_requests or [])


def test_schedule_exports_the_partition_that_has_closed(folder: Folder) -> None:
    folder.write("schedules/nightly/defs.yaml", SCHEDULE)
    schedule = folder.load().definitions().resolve_schedule_def("nightly")
    assert schedule.cron_schedule == "30 0 * * *"
    (request,) = scheduled(folder, "nightly", datetime(2025, 1, 5, 0, 30, tzinfo=ZoneInfo("UTC")))
    assert request.partition_key == "2025-01-04"


def test_schedule_with_a_cron_takes_all_that_closed_since_the_last_time(folder: Folder) -> None:
    folder.write(
        "schedules/nightly/defs.yaml",
        SCHEDULE.replace("offset_minutes: 30", "cron: 0 6 * * 1, timezone: Europe/Tallinn"),
    )
    (request,) = scheduled(folder, "nightly", datetime(2025, 1, 13, 6, 0, tzinfo=ZoneInfo("Europe/Tallinn")))
    assert (request.tags[RANGE_START], request.tags[RANGE_END]) == ("2025-01-06", "2025-01-10")
