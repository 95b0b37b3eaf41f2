"""Documents of schedules/: which there are, and what Dagster is given of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from export_pipelines.components.automation import (
    AutomationSpec,
    ChainSensorSpec,
    DrillScheduleSpec,
    DueCleanupSensorSpec,
    ExpireScheduleSpec,
    ExportScheduleSpec,
    FailureNoticeSpec,
    LoadSensorSpec,
    TidyScheduleSpec,
    UpstreamSensorSpec,
    VerifyScheduleSpec,
)
from export_pipelines.components.drill import CHECK as DRILL
from export_pipelines.components.drill import drill_definitions
from export_pipelines.components.load_assets import LoadAssets
from export_pipelines.components.load_sensor import load_sensor
from export_pipelines.components.notices import failure_notice
from export_pipelines.components.resources import PostgresConnectionResource
from export_pipelines.components.schedules import expire_schedules, export_schedules
from export_pipelines.components.sensors import chain_sensor, due_cleanup_sensor, upstream_sensor
from export_pipelines.components.tables import TableAssets, asset_key
from export_pipelines.components.tidy_schedule import tidy_definitions
from export_pipelines.components.transforms import TransformAssets
from export_pipelines.components.verification import CHECK as VERIFIED
from export_pipelines.components.verification import verify_definitions
from export_pipelines.specs.documents import Document, document_spec, suggest

if TYPE_CHECKING:
    from export_pipelines.components.project import Project

AUTOMATION: dict[str, type[AutomationSpec]] = {
    "ExportSchedule": ExportScheduleSpec,
    "ExpireSchedule": ExpireScheduleSpec,
    "DrillSchedule": DrillScheduleSpec,
    "VerifySchedule": VerifyScheduleSpec,
    "TidySchedule": TidyScheduleSpec,
    "ChainSensor": ChainSensorSpec,
    "UpstreamSensor": UpstreamSensorSpec,
    "DueCleanupSensor": DueCleanupSensorSpec,
    "LoadSensor": LoadSensorSpec,
    "FailureNotice": FailureNoticeSpec,
}
"""Types of the documents in schedules/."""


def add_automation(project: Project, document: Document) -> None:
    """Add what a document defines. Raises SpecError, SpecErrors."""
    spec = document_spec(document, AUTOMATION)
    if spec.name in {name for name, _ in project.automations}:
        raise document.error(f"there are two of the name {spec.name!r}", ("name",))
    tables = _tables_of(project, spec, document)
    if isinstance(spec, DrillScheduleSpec):
        _check_drill(project, spec, tables, document)
    if isinstance(spec, VerifyScheduleSpec):
        _refuse_second_verify(project, tables, document)
    loads: list[LoadAssets | TransformAssets] = [*project.loads_named(spec.tables)]
    loads += project.transforms_named(spec.tables)
    try:
        project.automations.append((spec.name, automation(spec, tables, project.resources, loads)))
    except Exception as error:  # Dagster's own rules, and rhythms that cannot be
        raise document.error(str(error)) from error


def automation(
    spec: AutomationSpec,
    tables: Sequence[TableAssets],
    resources: Mapping[str, Any],
    loads: Sequence[LoadAssets | TransformAssets] = (),
) -> dg.Definitions:
    """The schedules or the sensor of a document."""
    match spec:
        case LoadSensorSpec():
            return load_sensor(spec, loads)
        case VerifyScheduleSpec():
            return verify_definitions(spec, tables, resources)
        case TidyScheduleSpec():
            return tidy_definitions(spec)
        case ExportScheduleSpec():
            return dg.Definitions(schedules=export_schedules(spec, tables))
        case DrillScheduleSpec():
            return drill_definitions(spec, tables)
        case ExpireScheduleSpec():
            return dg.Definitions(schedules=expire_schedules(spec, tables))
        case ChainSensorSpec():
            return dg.Definitions(sensors=[chain_sensor(spec, tables)])
        case UpstreamSensorSpec():
            return dg.Definitions(sensors=[upstream_sensor(spec, tables)])
        case DueCleanupSensorSpec():
            return dg.Definitions(sensors=[due_cleanup_sensor(spec, tables)])
        case FailureNoticeSpec():
            return dg.Definitions(sensors=[failure_notice(spec, tables, loads)])
    raise TypeError(f"nothing to make of {type(spec).__name__}")


def _tables_of(project: Project, spec: AutomationSpec, document: Document) -> list[TableAssets]:
    """The tables that a document names. A broken table breaks what names it by its id; patterns pass over it."""
    both = isinstance(spec, FailureNoticeSpec)
    loading = isinstance(spec, LoadSensorSpec)
    for number, pattern in enumerate(spec.tables):
        if pattern == "*" or (not loading and any(project.tables_named([pattern]))):
            continue
        if (both or loading) and (any(project.loads_named([pattern])) or any(project.transforms_named([pattern]))):
            continue
        broken = any(fnmatch.fnmatchcase(each.id, pattern) for each in project.broken)
        why = "is broken itself" if broken else "matches no table"
        hint = (
            "mend the table first"
            if broken
            else suggest(pattern, [*project.loads, *project.transforms] if loading else list(project.tables))
        )
        raise document.error(f"{pattern!r} {why}", ("tables", number), hint)
    return list(project.tables_named(spec.tables))


def _check_drill(project: Project, spec: DrillScheduleSpec, tables: Sequence[TableAssets], document: Document) -> None:
    """Raises SpecError: its connection is missing, or a table has a drill already, since a check has one definition."""
    if spec.connection is not None and not isinstance(
        project.resources.get(spec.connection), PostgresConnectionResource
    ):
        raise document.error(f"there is no connection {spec.connection!r} in resources/", ("connection",))
    keys = {key for _, each in project.automations for check in each.asset_checks or () for key in check.check_keys}
    for each in tables:
        if dg.AssetCheckKey(asset_key(each.table, "archive"), DRILL) in keys:
            raise document.error(f"{each.table.id} is in another DrillSchedule already", ("tables",))


def _refuse_second_verify(project: Project, tables: Sequence[TableAssets], document: Document) -> None:
    """Raises SpecError: a table is verified by another document, and a check has one definition."""
    keys = {key for _, each in project.automations for check in each.asset_checks or () for key in check.check_keys}
    for each in tables:
        if dg.AssetCheckKey(asset_key(each.table, "archive"), VERIFIED) in keys:
            raise document.error(f"{each.table.id} is in another VerifySchedule already", ("tables",))
