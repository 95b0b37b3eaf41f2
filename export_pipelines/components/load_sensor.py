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
from export_pipelines.components.load_assets import LOAD_TAG, LoadAssets, load_job_name
from export_pipelines.components.partition_run import UPSTREAM_TAG
from export_pipelines.components.pausing import paused
from export_pipelines.components.sensors import sensor_status
from export_pipelines.specs.load import LoadDefinition


def load_sensor(spec: LoadSensorSpec, loads: Sequence[LoadAssets]) -> dg.Definitions:
    """The sensor of a document. What others have made waits in its cursor until the table may run."""
    followers: dict[dg.AssetKey, list[str]] = {}
    for each in loads:
        for dep in each.source.deps:
            followers.setdefault(dep.asset_key, []).append(each.load.id)

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        state: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
        runs, position = run_feed.finished_runs(context.instance, state.get("runs"), run_feed.ENDED)
        wanted: dict[str, str] = state.get("wanted", {})
        for run in runs:
            for made in run_feed.produced(context.instance, run):
                wanted |= dict.fromkeys(followers.get(made.asset, ()), run.run_id)
        requests = list(_requests(context.instance, spec, [each.load for each in loads], wanted))
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
    instance: dg.DagsterInstance, spec: LoadSensorSpec, loads: Sequence[LoadDefinition], wanted: dict[str, str]
) -> Iterator[dg.RunRequest]:
    """Runs of the tables that may run now. What is requested is taken out of `wanted`."""
    now = datetime.now(UTC)
    waiting = paused(instance, loads)
    for load in loads:
        if load.id in waiting or not load.spec.day.contains(now):
            continue
        if load.id not in wanted and load.spec.source.type == "table":
            continue  # nothing of it is new by the clock
        records = instance.get_run_records(dg.RunsFilter(tags={LOAD_TAG: load.id}), limit=spec.failures)
        if any(not record.dagster_run.is_finished for record in records):
            continue
        last = records[0].dagster_run.run_id if records else "first"
        cause = wanted.pop(load.id, None)
        if cause is None and now < _due(spec, load, records):
            continue
        tags = {UPSTREAM_TAG: cause} if cause else {}
        yield dg.RunRequest(run_key=f"load:{load.id}:{cause or last}", job_name=load_job_name(load.id), tags=tags)


def _due(spec: LoadSensorSpec, load: LoadDefinition, records: Sequence[dg.RunRecord]) -> datetime:
    """When a table is to run again by the clock."""
    if not records:
        return datetime.min.replace(tzinfo=UTC)
    failed = [record.dagster_run.status is dg.DagsterRunStatus.FAILURE for record in records]
    again = failed[0] and not (len(failed) == spec.failures and all(failed))
    pause = timedelta(minutes=spec.failure_pause_minutes) if again else load.spec.pause
    ended = records[0].end_time or records[0].update_timestamp.timestamp()
    return datetime.fromtimestamp(ended, UTC) + pause
