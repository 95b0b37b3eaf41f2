"""Tidying of Dagster's own storage, in a real PostgreSQL: logs and runs go, and no partition looks missing."""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from export_pipelines.components.tidying import HISTORY_DAYS, LOG_DAYS, tidy
from export_pipelines.errors import RequestError
from tests.support.dagster_project import new_project, query

DAYS = dg.StaticPartitionsDefinition(["mon", "tue", "wed", "thu"])


@dg.asset(partitions_def=DAYS, check_specs=[dg.AssetCheckSpec("good", asset="rows")])
def rows(context: dg.AssetExecutionContext) -> Iterator[Any]:
    """An asset with partitions and a check; `wed` fails."""
    context.log.info("a message")
    if context.partition_key == "wed":
        raise dg.Failure("no", allow_retries=False)
    yield dg.MaterializeResult(metadata={"rows": 1}, check_results=[dg.AssetCheckResult(passed=True)])


@dg.op
def chat(context: dg.OpExecutionContext) -> None:
    """Makes nothing."""
    context.log.info("talk")


@dg.job
def talking() -> None:
    """A job that makes nothing that could be missed."""
    chat()


@pytest.fixture
def instance(database: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance whose storage is in PostgreSQL."""
    overrides = {"storage": {"postgres": {"postgres_url": database}}, "telemetry": {"enabled": False}}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=overrides) as made:
        yield made


def make_runs(instance: dg.DagsterInstance) -> None:
    for day in ("mon", "tue", "mon", "wed"):
        dg.materialize([rows], partition_key=day, instance=instance, raise_on_error=False)
    for _ in range(3):
        talking.execute_in_process(instance=instance)


def seen(instance: dg.DagsterInstance) -> tuple[object, ...]:
    """What the UI shows of the asset: partitions, the latest events, and its check."""
    key = dg.AssetKey("rows")
    status = get_and_update_asset_status_cache_value(instance, key, DAYS)
    assert status is not None
    materialized = instance.get_materialized_partitions(key)
    latest = instance.get_latest_materialization_event(key)
    checks = instance.event_log_storage.get_latest_asset_check_execution_by_key([dg.AssetCheckKey(key, "good")])
    return (
        sorted(materialized),
        sorted(status.deserialize_failed_partition_subsets(DAYS).get_partition_keys()),
        latest.run_id if latest else None,
        [each.run_id for each in checks.values()],
    )


def test_old_logs_and_runs_go_and_every_partition_stays_as_it_was(instance: dg.DagsterInstance, database: str) -> None:
    make_runs(instance)
    before = seen(instance)
    assert before[:2] == (["mon", "tue"], ["wed"])
    now = datetime.now(UTC)
    assert tidy(instance, now=now + timedelta(days=LOG_DAYS - 1)).log_events == 0

    after_logs = now + timedelta(days=LOG_DAYS + 1)
    planned = tidy(instance, now=after_logs, dry_run=True)
    done = tidy(instance, now=after_logs)
    assert (done, done.runs) == (planned, 0) and done.log_events > 50
    assert query(database, "SELECT count(*) FROM event_logs") == [(done.events - done.log_events,)]
    assert seen(instance) == before and instance.get_runs_count() == 7

    later = now + timedelta(days=HISTORY_DAYS + 1)
    # The first run of `mon`, which was made again, and all but the newest of the job that makes nothing.
    assert tidy(instance, now=later, dry_run=True).runs == 3
    assert tidy(instance, now=later).runs == 3
    assert seen(instance) == before and instance.get_runs_count() == 4
    assert query(
        database, "SELECT count(*) FROM event_logs WHERE run_id NOT IN (SELECT run_id FROM runs) AND run_id <> ''"
    ) == [(0,)]
    assert tidy(instance, now=later).runs == 0


def test_runs_that_are_at_work_or_retried_from_stay(instance: dg.DagsterInstance, database: str) -> None:
    first = talking.execute_in_process(instance=instance).run_id
    talking.execute_in_process(instance=instance, tags={"dagster/parent_run_id": first})
    unfinished = talking.execute_in_process(instance=instance).run_id
    talking.execute_in_process(instance=instance)
    query(database, f"UPDATE runs SET status = 'STARTED' WHERE run_id = '{unfinished}'")
    later = datetime.now(UTC) + timedelta(days=HISTORY_DAYS + 1)
    tidy(instance, now=later)
    left = {run.run_id for run in instance.get_runs()}
    assert first in left and unfinished in left and len(left) == 3
    assert query(database, f"SELECT count(*) > 5 FROM event_logs WHERE run_id = '{unfinished}'") == [(True,)]


def test_storage_that_is_not_in_postgresql_is_refused() -> None:
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(RequestError, match="not in PostgreSQL"):
        tidy(instance)


def test_the_schedule_makes_an_asset_with_figures_that_plot(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    folder = new_project(tmp_path / "project")
    folder.write("schedules/tidy/defs.yaml", "type: export_pipelines.TidySchedule\nattributes: {name: tidy}\n")
    for name in ("DATABASE_URL", "DAGSTER_PG_URL"):
        monkeypatch.setenv(name, "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path))
    monkeypatch.setenv("ARCHIVE_URL", tmp_path.as_uri())
    project = folder.load()
    assert not project.broken
    assert project.definitions().resolve_job_def("tidy_job").execute_in_process(instance=instance).success
    made = instance.get_latest_materialization_event(dg.AssetKey(["operations", "tidy"]))
    assert made is not None and made.asset_materialization is not None
    assert made.asset_materialization.metadata["removed_runs"].value == 0
    assert int(str(made.asset_materialization.metadata["events"].value)) > 0
