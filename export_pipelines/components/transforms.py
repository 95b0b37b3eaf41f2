"""A transform as a Dagster asset, and the job that runs it. What it reads comes before it, as its SQL says."""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.components.code_references import code_references
from export_pipelines.components.load_assets import LOAD_TAG, STALLED_SECONDS, shared_pool
from export_pipelines.components.retrying import another_attempt
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.specs.transform import TransformDefinition
from export_pipelines.specs.transform_loader import transform_version
from export_pipelines.steps.transform_sql import TransformSql

TRANSFORM = "transform"

Context = dg.AssetExecutionContext | dg.OpExecutionContext


@dataclass(frozen=True)
class TransformAssets:
    """What a transform gives to Dagster."""

    transform: TransformDefinition
    sql: TransformSql
    upstream: tuple[str, ...]
    """Ids of what comes before and is of this project, those that its SQL reads included."""
    deps: tuple[dg.AssetKey, ...]
    """Keys of what comes before; those of tables that no folder makes included."""
    unknown: tuple[str, ...]
    """Tables that it reads and no folder of the project makes."""
    steps: dg.AssetsDefinition
    job: dg.JobDefinition

    @property
    def definition(self) -> TransformDefinition:
        """What it was made of."""
        return self.transform


def transform_key(transform_id: str) -> dg.AssetKey:
    """Key of the asset."""
    return dg.AssetKey(naming.asset_key(transform_id, TRANSFORM))


def external_key(connection: str, table: str) -> dg.AssetKey:
    """Key of a table that no folder makes."""
    return dg.AssetKey([naming.safe(part) for part in (connection, *table.split("."))])


def transform_job_name(transform_id: str) -> str:
    """Name of the job that runs it."""
    return f"{naming.dagster_name(transform_id)}_transform"


def transform_assets(
    transform: TransformDefinition,
    resources: Mapping[str, Any],
    sql: TransformSql,
    upstream: Sequence[str],
    deps: Sequence[dg.AssetKey],
    unknown: Sequence[str],
) -> TransformAssets:
    """The asset and the job. Nothing is connected to."""
    keys = (*deps, *(external_key(transform.spec.target.connection, each) for each in unknown))
    asset, job = _asset(transform, keys), _job(transform, resources)
    return TransformAssets(transform, sql, tuple(upstream), keys, tuple(unknown), asset, job)


def _pool(transform: TransformDefinition) -> str:
    return shared_pool(transform.spec.route, transform.spec.target.connection)


def _asset(transform: TransformDefinition, deps: Sequence[dg.AssetKey]) -> dg.AssetsDefinition:
    spec = transform.spec
    made = {"dagster/table_name": spec.target.table} if spec.target.table else {}
    asset = dg.AssetSpec(
        transform_key(transform.id),
        deps=list(deps),
        description="\n\n".join(each for each in (spec.description.strip(), _text(transform)) if each),
        group_name=naming.group_name(transform.group),
        owners=list(spec.owners),
        tags=dict(spec.tags),
        kinds={"postgres", "sql"},
        code_version=transform.version,
        # The op tells of it itself and yields no output.
        skippable=True,
        metadata={
            **made,
            "dagster/code_references": code_references(transform.folder, ["defs.yaml", "transform.sql"]),
        },
    )

    @dg.multi_asset(
        name=naming.dagster_name(transform.id),
        specs=[asset],
        required_resource_keys={spec.target.connection},
        pool=_pool(transform),
    )
    def steps(context: dg.AssetExecutionContext) -> Iterator[Any]:
        run(context, transform)
        yield from ()

    return steps


def _text(transform: TransformDefinition) -> str:
    what = {
        "table": "The rows of a query, built beside and swapped behind a view.",
        "view": "A view.",
        "statements": "Statements that run in one transaction.",
    }[transform.spec.materialize]
    return f"{what}\n\n```sql\n{transform.sql.strip()}\n```"


def _job(transform: TransformDefinition, resources: Mapping[str, Any]) -> dg.JobDefinition:
    key = transform.spec.target.connection

    @dg.op(
        name=f"{naming.dagster_name(transform.id)}___transform",
        out=dg.Out(dg.Nothing),
        required_resource_keys={key},
        description=f"Runs {transform.id}.",
        pool=_pool(transform),
    )
    def work(context: dg.OpExecutionContext) -> Any:
        yield dg.Output(None, metadata=run(context, transform))

    @dg.job(
        name=transform_job_name(transform.id),
        description=f"Runs {transform.id}.",
        tags={
            LOAD_TAG: transform.id,
            "export_pipelines/table": transform.id,
            "dagster/priority": str(transform.spec.priority),
            "dagster/max_runtime": str(STALLED_SECONDS),
        },
        # Dagster would bind them to a copy of the job, and warn when it copies the sensor that has the job, too.
        resource_defs={key: resources[key]},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        work()

    return job


def run(context: Context, transform: TransformDefinition) -> dict[str, Any]:
    """Run it, and tell of it; what is told.

    Raises:
        dagster.Failure: it failed.
        dagster.RetryRequested: a transient error.
    """
    from export_pipelines.steps.transform import TransformContext, run_transform

    source = getattr(context.resources, transform.spec.target.connection).open()
    try:
        result = run_transform(
            TransformContext(transform, source, current_version=partial(transform_version, transform.folder))
        )
    except ExportPipelinesError as error:
        raise _ending(context, transform, error) from error
    told: dict[str, Any] = {
        "seconds": round(result.seconds, 3),
        "sql": dg.MetadataValue.md(f"```sql\n{transform.sql.strip()}\n```"),
    }
    if result.rows is not None:
        told |= {"rows": result.rows, "dagster/row_count": result.rows}
    if result.table_version is not None:
        told["table_version"] = result.table_version
    if result.statements:
        told["statements"] = "\n".join(f"{kind}: {rows} rows" for kind, rows in result.statements)
    if result.columns:
        columns = [dg.TableColumn(name=name, type=kind) for name, kind in result.columns]
        told["dagster/column_schema"] = dg.TableSchema(columns=columns)
    context.log_event(
        dg.AssetMaterialization(
            transform_key(transform.id), metadata=told, tags={"dagster/code_version": transform.version}
        )
    )
    return {"rows": result.rows or 0, "seconds": told["seconds"]}


def _ending(context: Context, transform: TransformDefinition, error: ExportPipelinesError) -> Exception:
    """Another attempt, or the end of the run."""
    retries, number = transform.spec.retries, context.retry_number
    if error.transient and number < retries.attempts:
        return another_attempt(retries, number)
    metadata = {"hint": error.hint or "see the log", "error": type(error).__name__}
    return dg.Failure(error.message, metadata=metadata, allow_retries=False)
