"""Schedules that run a stage of tables for each partition that has closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from export_pipelines import naming, windows
from export_pipelines.components.automation import (
    AutomationSpec,
    ClockSpec,
    DefaultStatus,
    ExpireScheduleSpec,
    ExportScheduleSpec,
)
from export_pipelines.components.expire import EXPIRE
from export_pipelines.components.requests import run_requests
from export_pipelines.components.tables import TableAssets
from export_pipelines.specs.table import PartitionsSpec, TableDefinition
from export_pipelines.windows import Window

LONG_AGO = datetime(1970, 1, 1)
DAY = 24 * 60

Evaluation = Callable[[dg.ScheduleEvaluationContext], Iterable[dg.RunRequest]]


def export_schedules(spec: ExportScheduleSpec, tables: Sequence[TableAssets]) -> list[dg.ScheduleDefinition]:
    """The schedules of a document: one a table, since in Dagster a schedule has one job, one rhythm and one zone.

    That of a single table has the document's name; of several, the table's name is added.

    Raises:
        ValueError: a table has no partitions and there is no cron, or its rhythm cannot be shifted by the offset.
    """
    named = [each for each in tables if spec.stage in each.jobs]
    alone = len(named) == 1
    return [
        _schedule(spec, spec.name if alone else f"{spec.name}__{naming.dagster_name(each.table.id)}", each)
        for each in named
    ]


def expire_schedules(spec: ExpireScheduleSpec, tables: Sequence[TableAssets]) -> list[dg.ScheduleDefinition]:
    """The schedules of a document: one a table that has a retention, named as above.

    Raises:
        ValueError: a table that is named by its id has none.
    """
    named = [each for each in tables if EXPIRE in each.jobs]
    for each in tables:
        if each not in named and each.table.id in spec.tables:
            raise ValueError(f"{each.table.id} has no retention, so nothing of it expires")
    alone = len(named) == 1
    return [
        clock_schedule(
            spec,
            each.jobs[EXPIRE],
            f"expire of {each.table.id}",
            name=spec.name if alone else f"{spec.name}__{naming.dagster_name(each.table.id)}",
        )
        for each in named
    ]


def clock_schedule(spec: ClockSpec, job: Any, description: str, **more: Any) -> dg.ScheduleDefinition:
    """The schedule of a document, under its name. `more` is of Dagster's schedule."""
    return dg.ScheduleDefinition(
        **{"name": spec.name, **more},
        cron_schedule=spec.cron,
        execution_timezone=spec.timezone,
        job=job,
        default_status=_status(spec),
        description=spec.description or description,
    )


def _status(spec: AutomationSpec) -> dg.DefaultScheduleStatus:
    running = spec.default_status is DefaultStatus.RUNNING
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED


def _schedule(spec: ExportScheduleSpec, name: str, assets: TableAssets) -> dg.ScheduleDefinition:
    cron, zone = (spec.cron, spec.timezone) if spec.cron else _rhythm(assets.table, spec.offset_minutes)
    return dg.ScheduleDefinition(
        name=name,
        cron_schedule=cron,
        execution_timezone=zone,
        job=assets.jobs[spec.stage],
        execution_fn=_evaluation(spec, cron, zone, assets.table),
        default_status=_status(spec),
        description=spec.description or f"{spec.stage} of each closed partition of {assets.table.id}",
    )


def _evaluation(spec: ExportScheduleSpec, cron: str, zone: str, table: TableDefinition) -> Evaluation:
    ticks = dg.TimeWindowPartitionsDefinition(cron_schedule=cron, timezone=zone, start=LONG_AGO, fmt="%Y-%m-%dT%H:%M%z")

    def evaluate(context: dg.ScheduleEvaluationContext) -> Iterable[dg.RunRequest]:
        now = context.scheduled_execution_time
        before = ticks.get_prev_partition_window(now)
        if before is None:
            raise ValueError(f"{cron!r} has no tick before {now}")
        offset = timedelta(minutes=spec.offset_minutes)
        found = _closed_between(table, before.start - offset, now - offset)
        yield from run_requests(table, spec.stage, found, now.isoformat())

    return evaluate


def _closed_between(table: TableDefinition, after: datetime, until: datetime) -> list[Window]:
    """The windows that ended after one time and not after another; the snapshot always."""
    partitions = table.spec.partitions
    if partitions is None:
        return [Window(windows.SNAPSHOT)]
    found = windows.closed_windows(partitions, until)
    return [window for window in found if window.end and window.end.timestamp() > after.timestamp()]


def _rhythm(table: TableDefinition, offset: int) -> tuple[str, str]:
    """Cron and zone of the moments `offset` minutes after the table's partitions close."""
    partitions = table.spec.partitions
    if partitions is None:
        raise ValueError(f"{table.id} has no partitions that could close; give a cron")
    definition = windows.partitions_definition(partitions)
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        # Counted from `start`, as no cron can say: look every hour, which finds each partition once.
        return f"{(partitions.start.minute + offset) % 60} * * * *", partitions.timezone
    return _shifted(definition.cron_schedule, offset, table, partitions), partitions.timezone


def _shifted(cron: str, offset: int, table: TableDefinition, partitions: PartitionsSpec) -> str:
    if offset == 0:
        return cron
    minute, hour, *days = cron.split()
    if minute.isdigit() and hour == "*":
        # Later than an hour: the hours that were due then are looked up by time, so any tick of the hour will do.
        return f"{(int(minute) + offset) % 60} * {' '.join(days)}"
    if minute.isdigit() and hour.isdigit() and days == ["*", "*", "*"]:
        total = (int(hour) * 60 + int(minute) + offset) % DAY
        return f"{total % 60} {total // 60} * * *"
    if minute.isdigit() and hour.isdigit() and int(hour) * 60 + int(minute) + offset < DAY:
        total = int(hour) * 60 + int(minute) + offset
        return f"{total % 60} {total // 60} {' '.join(days)}"
    raise ValueError(f"offset_minutes {offset} cannot be added to the rhythm {cron!r} of {table.id}; give a cron")
