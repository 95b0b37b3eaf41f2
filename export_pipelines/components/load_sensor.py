"""The sensor that loads by itself: when a table has waited for its pause, and when what comes before it has changed.

It looks at the runs that Dagster knows, so that runs from the UI and the command line count like its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from export_pipelines.components import run_feed
from export_pipelines.components.automation import LoadSensorSpec
from export_pipelines.components.load_assets import LOAD_TAG, LoadAssets
from export_pipelines.components.partition_run import UPSTREAM_TAG
from export_pipelines.components.pausing import paused
from export_pipelines.components.sensors import sensor_status
from export_pipelines.components.transforms import TransformAssets
from export_pipelines.specs.transform import TransformDefinition

Assets = LoadAssets | TransformAssets


def load_sensor(spec: LoadSensorSpec, loads: Sequence[Assets]) -> dg.Definitions:
    """The sensor of a document. What others have made waits in its cursor until the table may run."""
    followers: dict[dg.AssetKey, list[str]] = {}
    for each in loads:
        for key in each.deps:
            followers.setdefault(key, []).append(each.definition.id)

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        state: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
        runs, position = run_feed.finished_runs(context.instance, state.get("runs"), run_feed.ENDED)
        wanted: dict[str, str] = state.get("wanted", {})
        for run in runs:
            for made in run_feed.produced(context.instance, run):
                wanted |= dict.fromkeys(followers.get(made.asset, ()), run.run_id)
        requests = list(_requests(context.instance, spec, loads, wanted))
        return dg.SensorResult(run_requests=requests, cursor=json.dumps({"runs": position, "wanted": wanted}))

    sensor = dg.SensorDefinition(
        name=spec.name,
        jobs=[each.job for each in loads],
        evaluation_fn=evaluate,
        minimum_interval_seconds=spec.interval_seconds,
        default_status=sensor_status(spec),
        description=spec.description or LoadSensorSpec.__doc__,
    )
    return dg.Definitions(sensors=[sensor])


def _requests(
    instance: dg.DagsterInstance, spec: LoadSensorSpec, loads: Sequence[Assets], wanted: dict[str, str]
) -> Iterator[dg.RunRequest]:
    """Runs of the tables that may run now. What is requested is taken out of `wanted`."""
    now = datetime.now(UTC)
    waiting = paused(instance, [each.definition for each in loads])
    for each in loads:
        load = each.definition
        if load.id in waiting or not load.spec.day.contains(now):
            continue
        records = instance.get_run_records(dg.RunsFilter(tags={LOAD_TAG: load.id}), limit=spec.failures)
        if load.id not in wanted and not _by_clock(each) and not _tries_again(spec, records):
            continue  # nothing of it is new by the clock
        if any(not record.dagster_run.is_finished for record in records):
            continue
        last = records[0].dagster_run.run_id if records else "first"
        if isinstance(each, TransformAssets):
            if now < _due_transform(spec, each.transform, records):
                continue
        elif load.id not in wanted and now < _due(spec, load.spec.pause, records):
            continue
        cause = wanted.pop(load.id, None)
        tags = {UPSTREAM_TAG: cause} if cause else {}
        yield dg.RunRequest(run_key=f"load:{load.id}:{cause or last}", job_name=each.job.name, tags=tags)


def _tries_again(spec: LoadSensorSpec, records: Sequence[dg.RunRecord]) -> bool:
    """Whether the last run failed, and not so many in a row that it is left alone."""
    failed = [record.dagster_run.status is dg.DagsterRunStatus.FAILURE for record in records]
    return bool(failed) and failed[0] and not (len(failed) == spec.failures and all(failed))


def _by_clock(each: Assets) -> bool:
    """Whether anything but what comes before makes it run."""
    if isinstance(each, TransformAssets):
        return each.transform.spec.cron is not None
    return each.load.spec.source.type not in ("table", "upload")


def _due_transform(spec: LoadSensorSpec, transform: TransformDefinition, records: Sequence[dg.RunRecord]) -> datetime:
    """When a transform may run again: after its pause, and with a cron at the first tick behind its last run."""
    due = _due(spec, transform.spec.pause, records)
    cron, zone = transform.spec.cron, transform.spec.day.timezone
    if cron is None or _tries_again(spec, records):
        return due
    from dagster._utils.schedules import get_latest_completed_cron_tick

    ticks = get_latest_completed_cron_tick(cron, datetime.now(UTC), zone)
    last = records[0].create_timestamp if records else None
    if ticks is None or (last is not None and last >= ticks):
        return datetime.max.replace(tzinfo=UTC)
    return due


def _due(spec: LoadSensorSpec, usual: timedelta, records: Sequence[dg.RunRecord]) -> datetime:
    """When a table is to run again by the clock."""
    if not records:
        return datetime.min.replace(tzinfo=UTC)
    pause = timedelta(minutes=spec.failure_pause_minutes) if _tries_again(spec, records) else usual
    ended = records[0].end_time or records[0].update_timestamp.timestamp()
    return datetime.fromtimestamp(ended, UTC) + pause
