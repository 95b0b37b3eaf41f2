"""Runs whose process went away when all was done but the telling: Dagster is told what the catalog knows."""

from __future__ import annotations

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData

from export_pipelines.catalog.requests import RequestRow
from export_pipelines.components.opening import open_resource
from export_pipelines.components.request_job import asset_key, metadata_of, op_name
from export_pipelines.worker.context import Context


def report_succeeded(context: Context, row: RequestRow, message: str) -> bool:
    """End the run of a request that succeeded, whose process is gone; whether it was there to be ended so.

    Its file had been verified before the catalog took it, so the run has done what it was for: it is a success, with
    the materialisation that it could not report any more. `message` says in its log what happened. A run that has
    ended, or is being cancelled, is left alone.
    """
    run = context.instance.get_run_by_id(row.run_id or "")
    if run is None or run.is_finished or run.status is dg.DagsterRunStatus.CANCELING:
        return False
    told = f"{message} Request {row.id} had succeeded before, so that this run has."
    context.instance.report_engine_event(told, run)
    _materialise(context, run, row)
    success = DagsterEvent(
        event_type_value=DagsterEventType.PIPELINE_SUCCESS.value, job_name=run.job_name, message=told
    )
    context.instance.report_dagster_event(success, run_id=run.run_id)
    return True


def _materialise(context: Context, run: dg.DagsterRun, row: RequestRow) -> None:
    """Report the materialisation, unless the run has or its data set is gone."""
    kind = DagsterEventType.ASSET_MATERIALIZATION
    dataset = context.project.datasets.get(row.dataset)
    if dataset is None or row.file is None:
        return
    if context.instance.get_records_for_run(run.run_id, of_type=kind, limit=1).records:
        return
    place = open_resource(context.project.resources, context.service.store).locate(row.file.proof.key)
    metadata = metadata_of(dataset, context.service, row, row.file, place)
    made = dg.AssetMaterialization(asset_key(dataset), metadata=metadata)
    event = DagsterEvent(
        event_type_value=kind.value,
        job_name=run.job_name,
        step_key=op_name(dataset),
        event_specific_data=StepMaterializationData(made),
    )
    context.instance.report_dagster_event(event, run_id=run.run_id)
