"""Restore drills as asset checks `restore_drill` of the archives, each in an op of its own, run by a schedule."""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.components.automation import DrillScheduleSpec
from export_pipelines.components.schedules import clock_schedule
from export_pipelines.components.tables import CHECKS_TAG, TableAssets, asset_key
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.formats.encryption import NO_KEYS
from export_pipelines.steps.pieces import Archived

CHECK = "restore_drill"


def drill_definitions(spec: DrillScheduleSpec, tables: Sequence[TableAssets]) -> dg.Definitions:
    """The checks of a document's tables, the job that runs them, and its schedule; nothing without tables."""
    if not tables:
        return dg.Definitions()
    checks = [_check(spec, each) for each in tables]
    keys = [key for each in checks for key in each.check_keys]
    job = dg.define_asset_job(
        f"{spec.name}_job",
        selection=dg.AssetSelection.checks(*keys),
        description="Restores a random archived partition of each table, and compares it with its manifest.",
        tags={CHECKS_TAG: spec.name},
    )
    schedule = clock_schedule(spec, job, "restore drills", execution_fn=_evaluation(spec, sorted(keys, key=str)))
    return dg.Definitions(asset_checks=checks, jobs=[job], schedules=[schedule])


def _evaluation(
    spec: DrillScheduleSpec, keys: Sequence[dg.AssetCheckKey]
) -> Callable[[dg.ScheduleEvaluationContext], dg.RunRequest]:
    def evaluate(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        # The same tick, evaluated again, means the same tables.
        drawn = random.Random(context.scheduled_execution_time.isoformat())
        some = keys if spec.tables_at_once is None else drawn.sample(keys, min(spec.tables_at_once, len(keys)))
        return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat(), asset_check_keys=list(some))

    return evaluate


def _check(spec: DrillScheduleSpec, assets: TableAssets) -> dg.AssetChecksDefinition:
    table = assets.table
    key = asset_key(table, "archive")
    connection = spec.connection or table.spec.connection

    @dg.multi_asset_check(
        # No part of a table's name begins or ends with `_`, so that no op of another table has this name.
        name=f"{naming.dagster_name(table.id)}___{CHECK}",
        specs=[
            dg.AssetCheckSpec(
                CHECK,
                asset=key,
                description="A random archived partition can be restored, and comes back as its manifest says.",
            )
        ],
        can_subset=True,
        required_resource_keys={table.spec.archive, connection, *assets.identities},
        pool=naming.pool_name(f"connection_{connection}"),
    )
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        if context.run.asset_selection:
            context.log.info("a run that makes the archive is no drill; run the check alone, or by its schedule")
            return
        archived = Archived(
            getattr(context.resources, table.spec.archive).open(),
            table.id,
            sum((getattr(context.resources, each).open() for each in assets.identities), NO_KEYS),
            table.spec.partitions,
        )
        yield _drilled(archived, getattr(context.resources, connection).open(), spec.max_megabytes, key)

    return check


def _drilled(archived: Archived, target: Any, megabytes: int, key: dg.AssetKey) -> dg.AssetCheckResult:
    from export_pipelines.steps.drill import drill
    from export_pipelines.steps.verify import tables_in

    def result(passed: bool, text: str, metadata: dict[str, Any], *, warn: bool = False) -> dg.AssetCheckResult:
        severity = dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR
        return dg.AssetCheckResult(
            passed=passed, asset_key=key, check_name=CHECK, description=text, metadata=metadata, severity=severity
        )

    try:
        if archived.table not in tables_in(archived.store):
            return result(True, "nothing is archived yet", {"rows": 0})
        done = drill(archived, target, max_bytes=megabytes * 10**6)
    except ExportPipelinesError as error:
        return result(False, str(error), {"error": type(error).__name__}, warn=error.transient)
    text = f"{done.partition}: {done.rows:,} rows restored and read back the same"
    metadata = {
        "partition": done.partition,
        "rows": done.rows,
        "files": done.files,
        "raw_bytes": done.raw_bytes,
        "row_digest": done.row_digest,
        "same_bytes": done.same_bytes,
        "seconds": round(done.seconds, 3),
        "mb_per_second": round(done.raw_bytes / 1e6 / max(done.seconds, 1e-3), 3),
    }
    return result(True, text, metadata)
