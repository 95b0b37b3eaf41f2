"""The job `restore`: archived partitions back into a table, asked for in the Launchpad."""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.components.progress import Reporter
from export_pipelines.errors import ExportPipelinesError, RequestError
from export_pipelines.formats.encryption import NO_KEYS
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.merge import OnConflict
from export_pipelines.steps.pieces import Archived, Choice

JOB = "restore"
DEFAULT_ARCHIVE = "archive"
DEFAULT_CONNECTION = "source"

CONFIG = {
    "table": dg.Field(str, description="Id of the table, `group/table`; it need not be defined any more."),
    "into": dg.Field(str, description="Table to restore into: `name` or `schema.name`. It is made if it is missing."),
    "partition": dg.Field(str, is_required=False, description="One partition."),
    "from": dg.Field(str, is_required=False, description="The first partition of a range."),
    "to": dg.Field(str, is_required=False, description="The last partition of a range, included."),
    "all": dg.Field(bool, default_value=False, description="All partitions."),
    "on_conflict": dg.Field(
        dg.Enum("OnConflict", [dg.EnumValue(policy.value) for policy in OnConflict]),
        default_value=OnConflict.FAIL.value,
        description="What becomes of rows that the table has already, by its key: `fail` restores nothing, `skip` "
        "leaves them, `replace` makes them those of the archive.",
    ),
    "connection": dg.Field(
        str, is_required=False, description="Name of a connection in resources/; the table's own when absent."
    ),
}


@dataclass(frozen=True)
class Places:
    """What a restore may use: the tables that are defined, and all resources, of which it opens those that it needs.

    Requiring them all, as Dagster would have it, would fail for a variable that some other table's connection lacks.
    """

    tables: Mapping[str, TableDefinition]
    resources: Mapping[str, Any]
    identities: tuple[str, ...]

    def open(self, key: str) -> Any:
        """A resource, opened. Raises RequestError: there is none, or a variable that it reads is not set."""
        if key not in self.resources:
            raise RequestError(
                f"there is no {key!r} in resources/", hint=f"known are {', '.join(sorted(self.resources)) or 'none'}"
            )
        try:
            return self.resources[key].process_config_and_initialize().open()
        except (dg.DagsterError, ValueError, KeyError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            told = next((line for line in lines if "environment variable" in line), type(error).__name__)
            raise RequestError(f"resource {key!r} cannot be made: {told}", hint="set its variables") from None

    def archived(self, table: str) -> Archived:
        """A table in its archive, or in the default one when it is defined no more."""
        known = self.tables.get(table)
        store = self.open(known.spec.archive if known else DEFAULT_ARCHIVE)
        keyring = sum((self.open(key) for key in self.identities), NO_KEYS)
        return Archived(store, table, keyring, known.spec.partitions if known else None)


def restore_job(places: Places) -> dg.JobDefinition:
    """The job. Nothing is opened before it runs."""

    @dg.op(
        name="restore_table",
        config_schema=CONFIG,
        out=dg.Out(dg.Nothing),
        description="Loads archived partitions into a table, in one transaction.",
        tags={"kind": "postgres"},
    )
    def restore_table_op(context: dg.OpExecutionContext) -> Any:
        config = context.op_config
        begun = time.monotonic()
        try:
            result = _restore(context, places, config)
        except ExportPipelinesError as error:
            raise dg.Failure(
                error.message,
                metadata={"hint": error.hint or "see the log", "error": type(error).__name__},
                allow_retries=False,
            ) from None
        metadata = _metadata(config, result, time.monotonic() - begun)
        text = f"{result['rows']:,} rows of {config['table']} restored into {config['into']}"
        context.log_event(
            dg.AssetObservation(archive_key(config["table"]), description=text, metadata=metadata),
        )
        yield dg.Output(None, metadata=metadata)

    @dg.job(
        name=JOB,
        description="Brings archived partitions back into a table: one, a range, or all. One transaction: a restore "
        "that fails, or is terminated, leaves the table as it was, and may be run again.",
    )
    def job() -> None:
        restore_table_op()

    return job


def archive_key(table: str) -> dg.AssetKey:
    """Key of the archive's asset of a table."""
    return dg.AssetKey(naming.asset_key(table, "archive"))


def _restore(context: dg.OpExecutionContext, places: Places, config: Mapping[str, Any]) -> dict[str, Any]:
    from export_pipelines.steps.restore import restore_table

    ranged = "from" in config or "to" in config
    if ["partition" in config, ranged, config["all"]].count(True) != 1:
        raise RequestError(
            "the config names no partition, or more than one way to name them",
            hint="give `partition`, or `from` and `to`, or `all: true`",
        )
    table = places.tables.get(config["table"])
    connection = config.get("connection") or (table.spec.connection if table else DEFAULT_CONNECTION)
    target = places.open(connection)
    if not hasattr(target, "session"):
        raise RequestError(f"{connection!r} in resources/ is no connection", hint="name a PostgresConnection")
    result = restore_table(
        places.archived(config["table"]),
        Choice(config.get("partition"), config.get("from"), config.get("to")),
        target,
        config["into"],
        on_conflict=OnConflict(config["on_conflict"]),
        key=table.spec.key if table else (),
        progress=_progress(context, table),
    )
    context.log.info(f"{result.rows:,} rows of {len(result.partitions)} partitions, in {target.name}")
    return {**asdict(result), "connection": connection}


def _progress(context: dg.OpExecutionContext, table: TableDefinition | None) -> Any:
    if table is None:
        return silent
    reporter = Reporter(context, table)
    partitions: set[str] = set()

    def report(progress: Progress) -> None:
        if progress.partition not in partitions:
            partitions.add(progress.partition)
            context.log.info(f"partition {progress.partition}")
        reporter(progress)

    return report


def _metadata(config: Mapping[str, Any], result: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    partitions = result["partitions"]
    return {
        "into": config["into"],
        "connection": result["connection"],
        "made": result["created"],
        "on_conflict": config["on_conflict"],
        "key": ", ".join(result["key"]),
        **{name: result[name] for name in ("rows", "inserted", "skipped", "replaced", "differing")},
        "files": result["artifacts"],
        "partitions": len(partitions),
        "first_partition": partitions[0],
        "last_partition": partitions[-1],
        "seconds": round(seconds, 3),
    }
