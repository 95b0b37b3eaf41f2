"""Tidying by the clock: the asset `operations/<name>` of a TidySchedule, whose figures plot over its runs."""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
import dagster as dg

from export_pipelines.components.automation import TidyScheduleSpec
from export_pipelines.components.schedules import clock_schedule
from export_pipelines.errors import ExportPipelinesError

GROUP = "operations"


def tidy_definitions(spec: TidyScheduleSpec) -> dg.Definitions:
    """The asset of a document, the job that makes it, and its schedule."""
    asset = _asset(spec)
    job = dg.define_asset_job(f"{spec.name}_job", selection=dg.AssetSelection.assets(asset), description=_text(spec))
    schedule = clock_schedule(spec, job, _text(spec))
    return dg.Definitions(assets=[asset], jobs=[job], schedules=[schedule])


def _text(spec: TidyScheduleSpec) -> str:
    return f"Removes logs of runs after {spec.log_days} days, and runs that nothing needs after {spec.history_days}."


def _asset(spec: TidyScheduleSpec) -> dg.AssetsDefinition:
    key = dg.AssetKey([GROUP, spec.name])
    description = _text(spec)

    @dg.multi_asset(
        # No name of a table's op has three of them.
        name=f"{spec.name}___tidy",
        specs=[dg.AssetSpec(key, group_name=GROUP, kinds={"dagster", "retention"}, description=description)],
    )
    def tidy_up(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from export_pipelines.components.tidying import tidy

        try:
            found = tidy(context.instance, log_days=spec.log_days, history_days=spec.history_days)
        except ExportPipelinesError as error:
            raise dg.Failure(str(error), metadata={"hint": error.hint or "see the log"}) from None
        return dg.MaterializeResult(
            metadata={
                "removed_log_events": found.log_events,
                "removed_runs": found.runs,
                "events": found.events - found.log_events,
                "runs": found.all_runs - found.runs,
            }
        )

    return tidy_up
