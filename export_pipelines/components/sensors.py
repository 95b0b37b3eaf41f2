"""Sensors that start the next step of a table when the one before is done, or when its time has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from export_pipelines import windows
from export_pipelines.catalog import Catalog
from export_pipelines.components import run_feed
from export_pipelines.components.automation import (
    AutomationSpec,
    ChainSensorSpec,
    DefaultStatus,
    DueCleanupSensorSpec,
    SensorSpec,
    Stage,
    UpstreamSensorSpec,
)
from export_pipelines.components.requests import caused_by, closed_windows_of, run_requests
from export_pipelines.components.run_feed import Produced
from export_pipelines.components.tables import TableAssets, asset_key, job_name, stages_of
from export_pipelines.specs.table import CleanupMode, TableDefinition
from export_pipelines.windows import Window

Evaluation = Callable[[dg.SensorEvaluationContext], dg.SensorResult | dg.SkipReason]


def sensor_status(spec: AutomationSpec) -> dg.DefaultSensorStatus:
    """Dagster's word for the default status."""
    running = spec.default_status is DefaultStatus.RUNNING
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED


def chain_sensor(spec: ChainSensorSpec, tables: Sequence[TableAssets]) -> dg.SensorDefinition:
    """After export, archive; after archive, cleanup: for all tables at once, so that an idle tick costs three queries.

    What a failed run did complete goes on, too. A run that was itself to do the next stage is left alone: whether that
    failed is its own to say.
    """
    known = {each.table.id: each.table for each in tables}
    steps = {
        asset_key(table, stage): (table, follower)
        for table in known.values()
        for stage, follower in _followers(table, compare=spec.compare)
    }

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        runs, cursor = run_feed.finished_runs(context.instance, context.cursor, run_feed.ENDED)
        requests: list[dg.RunRequest] = []
        for run in runs:
            if not _may_concern(run, steps):
                continue
            made = run_feed.produced(context.instance, run)
            for key, (table, follower) in steps.items():
                if not _does_itself(run, table, follower):
                    requests += _follow(run, table, follower, [each for each in made if each.asset == key])
        return dg.SensorResult(run_requests=requests, cursor=cursor)

    jobs = [each.jobs[stage] for each in tables for stage in (Stage.ARCHIVE, Stage.CLEANUP) if stage in each.jobs]
    return _sensor(spec, jobs, evaluate)


def upstream_sensor(spec: UpstreamSensorSpec, tables: Sequence[TableAssets]) -> dg.SensorDefinition:
    """After an upstream run succeeds, export the partitions that it made.

    They are those of the asset, or of all that the job's run materialised, else the run's own partition; a run without
    any stands for the partition of each table that closed last.
    """
    upstream = dg.AssetKey(spec.asset.split("/")) if spec.asset else None

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        runs, cursor = run_feed.finished_runs(context.instance, context.cursor, run_feed.SUCCEEDED)
        requests: list[dg.RunRequest] = []
        for run in runs:
            if not _is_upstream(run, spec, upstream):
                continue
            made = run_feed.produced(context.instance, run)
            if upstream is not None:
                made = [each for each in made if each.asset == upstream]
                if not made:
                    continue
            for each in tables:
                found = _windows_made(each.table, run, made)
                if not found:
                    context.log.warning(f"run {run.run_id} made no closed partition of {each.table.id}: {made}")
                requests += run_requests(each.table, spec.stage, found, run.run_id, caused_by(run))
        return dg.SensorResult(run_requests=requests, cursor=cursor)

    return _sensor(spec, [each.jobs[spec.stage] for each in tables], evaluate)


def due_cleanup_sensor(spec: DueCleanupSensorSpec, tables: Sequence[TableAssets]) -> dg.SensorDefinition:
    """Clean up the partitions whose keep period is over: due by time and not by an event, so the catalog is asked."""
    keeping = [
        each for each in tables if each.table.spec.cleanup.mode is CleanupMode.KEEP and Stage.CLEANUP in each.jobs
    ]

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        catalog = context.resources.catalog.open()
        now = datetime.now(UTC)
        requests: list[dg.RunRequest] = []
        for each in keeping:
            latest = now - timedelta(days=each.table.spec.cleanup.keep_days)
            due = _due(each.table, catalog, latest)
            # A partition is tried once a day until nothing of it is left.
            requests += run_requests(each.table, Stage.CLEANUP, due, f"due-{now:%Y-%m-%d}")
        return dg.SensorResult(run_requests=requests)

    return _sensor(spec, [each.jobs[Stage.CLEANUP] for each in keeping], evaluate, resources={"catalog"})


def _due(table: TableDefinition, catalog: Catalog, latest: datetime) -> list[Window]:
    """Windows that are archived, ended by `latest`, and of which a cleanup has not yet left nothing behind."""
    complete = {key for key, row in catalog.cleanups(table.id).items() if row.complete}
    newest = {each.partition: each for each in catalog.exports(table.id, expired=True)}
    keys = {key for key, each in newest.items() if each.state == "archived"} - complete
    return closed_windows_of(table, keys, latest.timestamp())


def _sensor(
    spec: SensorSpec, jobs: Sequence[Any], evaluate: Evaluation, resources: Iterable[str] = ()
) -> dg.SensorDefinition:
    return dg.SensorDefinition(
        name=spec.name,
        jobs=list(jobs),
        evaluation_fn=evaluate,
        minimum_interval_seconds=spec.interval_seconds,
        default_status=sensor_status(spec),
        description=spec.description or type(spec).__doc__,
        required_resource_keys=set(resources),
    )


def _followers(table: TableDefinition, *, compare: bool) -> Iterator[tuple[Stage, Stage]]:
    """Pairs of a stage and the one that follows it by event."""
    yield Stage.EXPORT, Stage.ARCHIVE
    mode = table.spec.cleanup.mode
    at_once = mode is CleanupMode.AFTER_ARCHIVE or (compare and mode is CleanupMode.OFF)
    if at_once and Stage.CLEANUP in stages_of(table):
        yield Stage.ARCHIVE, Stage.CLEANUP


def _may_concern(run: dg.DagsterRun, keys: Iterable[dg.AssetKey]) -> bool:
    """Whether a run can have made any of the assets; saves reading the events of all others."""
    if run.asset_selection:
        return not run.asset_selection.isdisjoint(keys)
    return "export_pipelines/table" in run.tags


def _does_itself(run: dg.DagsterRun, table: TableDefinition, stage: Stage) -> bool:
    """Whether a run was itself to do a stage of a table."""
    if run.asset_selection:
        return asset_key(table, stage) in run.asset_selection
    return run.job_name in (job_name(table, Stage.CHAIN), job_name(table, stage))


def _follow(
    run: dg.DagsterRun, table: TableDefinition, stage: Stage, made: Sequence[Produced]
) -> Iterator[dg.RunRequest]:
    found = closed_windows_of(table, [each.partition for each in made], time.time())
    return run_requests(table, stage, found, run.run_id, caused_by(run))


def _is_upstream(run: dg.DagsterRun, spec: UpstreamSensorSpec, asset: dg.AssetKey | None) -> bool:
    if spec.job and run.job_name != spec.job:
        return False
    if spec.location:
        origin = run.remote_job_origin
        return origin is not None and origin.location_name == spec.location
    return asset is None or not run.asset_selection or asset in run.asset_selection


def _windows_made(table: TableDefinition, run: dg.DagsterRun, made: Sequence[Produced]) -> list[Window]:
    """The table's windows that an upstream run stands for."""
    now = time.time()
    if table.spec.partitions is None:
        return [Window(windows.SNAPSHOT)]
    keys = {each.partition for each in made if each.partition} or {run.tags.get("dagster/partition")} - {None}
    if keys:
        return closed_windows_of(table, keys, now)
    return windows.closed_windows(table.spec.partitions, datetime.fromtimestamp(now, UTC))[-1:]
