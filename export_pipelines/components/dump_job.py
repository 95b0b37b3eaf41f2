"""The job `<table>_dump`: any range of a table into files, asked for on the command line, in the Launchpad, by GraphQL.

A batch that is a whole partition is exported as that partition: a materialisation of its export. Any other is an
observation of the export, with its files, rows and digests.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.components.automation import Stage
from export_pipelines.components.partition_run import PartitionRun, step_context
from export_pipelines.components.retrying import another_attempt
from export_pipelines.components.tables import job_name, required_resources
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.specs.dump import Container, parse_interval
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import StepContext

if TYPE_CHECKING:
    from export_pipelines.catalog.dumps import DumpRecord
    from export_pipelines.steps.dump_plan import Batch, DumpPlan, DumpRequest

DUMP = "dump"

CONFIG = {
    "start": dg.Field(
        str,
        is_required=False,
        description="Start of the range: `2024-01-01` (midnight), `2024-01-01 08:00`, or with an offset.",
    ),
    "end": dg.Field(str, is_required=False, description="Its end, exclusive, written likewise; or `now`."),
    "batch": dg.Field(
        str, is_required=False, description="Length of a batch: `90 minutes`, `4 hours`, `7 days`, `1 month`."
    ),
    "timezone": dg.Field(str, is_required=False, description="Zone of start and end; the table's own when absent."),
    "page_rows": dg.Field(int, is_required=False, description="Rows of a file (or of an entry of the ZIP) at most."),
    "container": dg.Field(
        dg.Enum("Container", [dg.EnumValue(each.value) for each in Container]),
        is_required=False,
        description="`none`, or `zip` for one ZIP a batch.",
    ),
    "folder": dg.Field(str, is_required=False, description="Folder for the files, an absolute path."),
    "batch_rows": dg.Field(int, default_value=10_000, description="Rows after which progress is told."),
}


def dump_job(table: TableDefinition, identities: Sequence[str] = ()) -> dg.JobDefinition:
    """The job of a table. Nothing is opened before it runs."""

    @dg.op(
        name=op_name(table),
        config_schema=CONFIG,
        out=dg.Out(dg.Nothing),
        required_resource_keys=required_resources(table) | set(identities),
        description=f"Dumps a range of {table.id}, batch by batch, each in one snapshot.",
        pool=naming.pool_name(table.spec.pool or f"connection_{table.spec.connection}"),
    )
    def dump_table_op(context: dg.OpExecutionContext) -> Any:
        yield dg.Output(None, metadata=_run(context, table, identities))

    @dg.job(
        name=job_name(table, DUMP),
        description=f"Dumps any range of {table.id}, cut into batches. Batches that are whole partitions are exported "
        "as those; the files of others are beside the partitions. It may be run again after a failure.",
        tags={"export_pipelines/table": table.id},
    )
    def job() -> None:
        dump_table_op()

    return job


def op_name(table: TableDefinition) -> str:
    """Name of the job's op, under which its config stands. No table's own op has three underscores before a word."""
    return f"{naming.dagster_name(table.id)}___{DUMP}"


def request_of(config: dict[str, Any]) -> "DumpRequest":
    """What a config asks for. Raises ValueError: its batch is no length."""
    from export_pipelines.steps.dump_plan import DumpRequest

    return DumpRequest(
        start=config.get("start"),
        end=config.get("end"),
        batch=parse_interval(config["batch"]) if config.get("batch") else None,
        timezone=config.get("timezone"),
        page_rows=config.get("page_rows"),
        container=Container(config["container"]) if config.get("container") else None,
        folder=config.get("folder"),
        batch_rows=config["batch_rows"],
    )


def _run(context: dg.OpExecutionContext, table: TableDefinition, identities: Iterable[str]) -> dict[str, Any]:
    from export_pipelines.steps.dump_plan import plan_dump

    try:
        plan = plan_dump(table, request_of(context.op_config), datetime.now(UTC))
        if plan.shorter is not None:
            context.log.info(f"the last batch is shorter than the others: {plan.shorter.partition}")
        step = step_context(context, table, identities)
        _settle(step)
    except (ExportPipelinesError, ValueError) as error:
        raise _failure(context, table, [error]) from None
    failed: list[Exception] = []
    rows = 0
    for batch in plan.batches:
        try:
            rows += _batch(context, table, step, plan, batch)
        except Exception as error:
            # BaseException (a terminated run) goes through.
            context.log.error(f"dump of {table.id} {batch.window.partition} failed: {error}")
            failed.append(error)
            if isinstance(error, ExportPipelinesError) and error.transient:
                raise _failure(context, table, failed) from error
    if failed:
        raise _failure(context, table, failed)
    return {"rows": rows, "batches": len(plan.batches)}


def _settle(step: StepContext) -> None:
    """Make good what an earlier dump of the table left behind."""
    from export_pipelines.steps.dump import settle_dumps
    from export_pipelines.steps.report import settle_reports

    settle_dumps(step)
    settle_reports(step)


def _batch(
    context: dg.OpExecutionContext, table: TableDefinition, step: StepContext, plan: "DumpPlan", batch: "Batch"
) -> int:
    """One batch, told to Dagster as soon as it is there; its rows."""
    from export_pipelines.steps.dump import dump_window

    if batch.whole:
        run = PartitionRun(context, table, step, [Stage.EXPORT], set())
        return int(run.stage(Stage.EXPORT, batch.window)["rows"])
    begun = time.monotonic()
    record = dump_window(step, batch.window, plan.output)
    places = _places(step, plan, record)
    told = f"dump of {record.range}: {record.rows:,} rows, {record.size / 1e6:,.2f} MB stored"
    context.log_event(
        dg.AssetObservation(
            dg.AssetKey(naming.asset_key(table.id, "export")),
            description=told + ("; unchanged since the last one" if record.unchanged else ""),
            metadata=_metadata(record, places, time.monotonic() - begun),
        )
    )
    return record.rows


def _places(step: StepContext, plan: "DumpPlan", record: "DumpRecord") -> list[str]:
    from export_pipelines.stores import open_store

    store = open_store(plan.output.folder) if plan.output.folder else step.exports
    return [store.locate(file.key) for file in record.files]


def _metadata(record: "DumpRecord", places: Sequence[str], seconds: float) -> dict[str, Any]:
    return {
        "dump": record.range,
        "rows": record.rows,
        "raw_bytes": record.raw_size,
        "stored_bytes": record.size,
        "row_digest": record.row_digest,
        "files": dg.MetadataValue.json(
            [{"path": place, "sha256": f.sha256} for place, f in zip(places, record.files, strict=True)]
        ),
        "pages": len(record.pages),
        "container": record.container.value,
        "unchanged": record.unchanged,
        "window": f"{record.window_start.isoformat()} → {record.window_end.isoformat()}"
        if record.window_start and record.window_end
        else "all rows",
        "seconds": round(seconds, 3),
    }


def _failure(context: dg.OpExecutionContext, table: TableDefinition, errors: Sequence[Exception]) -> Exception:
    """What the run ends with: another attempt after a transient error, if the table's `retries` allow it."""
    last, retries = errors[-1], table.spec.retries
    if isinstance(last, ExportPipelinesError) and last.transient and context.retry_number < retries.attempts:
        return another_attempt(retries, context.retry_number)
    messages = [getattr(error, "message", str(error)) for error in errors]
    head = [f"{len(errors)} batches of {table.id} failed"] if len(errors) > 1 else []
    hint = getattr(errors[0], "hint", "")
    return dg.Failure(
        "\n".join([*head, *messages[:10], *([f"hint: {hint}"] if hint else [])]),
        metadata={
            "hint": hint or "see the log",
            "error": type(errors[0]).__name__,
        },
        allow_retries=False,
    )
