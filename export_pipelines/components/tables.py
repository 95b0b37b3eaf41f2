"""A table as Dagster assets: source → export → archive → cleanup, one op for the last three, and its jobs.

One op (a multi-asset of which any part can be run) rather than three: a run over many partitions then takes each
through all its stages before the next, one failed partition does not keep the others from their archive, and a result
is shown as soon as it is there. See docs/decisions/0002-what-drives-the-chain.md.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from export_pipelines import naming, windows
from export_pipelines.components.automation import Stage
from export_pipelines.components.code_references import code_references
from export_pipelines.components.expire import EXPIRE, expire_asset, expire_job
from export_pipelines.components.partition_run import run_partitions
from export_pipelines.specs.table import CleanupMode, TableDefinition
from export_pipelines.steps.texts import texts

MAX_LISTED = 10_000
"""Partitions that are given to Dagster as a list of keys, at most."""

CHECKS_TAG = "export_pipelines/checks"
"""Of runs that answer checks of several tables by the clock: the name of their schedule."""

STAGES = (Stage.EXPORT, Stage.ARCHIVE, Stage.CLEANUP)

CHECKS = {
    Stage.EXPORT: {"schema_unchanged": "The columns and their types are those of the export before."},
    Stage.ARCHIVE: {"digests_agree": "Rows and digests agree between database, file and archive."},
    Stage.CLEANUP: {
        "no_late_rows": "No row came or changed in the source after the partition was exported.",
        "delete_matches_select": "All that delete.sql matches was exported.",
        "not_held": "No hold keeps the partition from cleanup and expire.",
    },
}
"""Names and descriptions of the asset checks by stage."""


_KINDS = {"postgresql": "postgres", "mysql": "mysql"}
"""Icons of Dagster's UI."""


@dataclass(frozen=True)
class TableAssets:
    """What a table gives to Dagster."""

    table: TableDefinition
    source: dg.AssetSpec
    steps: dg.AssetsDefinition
    jobs: dict[str, Any]
    """Stage → asset job; there is no cleanup job for a table without a delete, no `expire` without a retention."""
    expire: dg.AssetsDefinition | None = None
    """Gives up what retention does not want."""
    identities: tuple[str, ...] = ()
    """Keys of the resources which open encrypted files."""

    @property
    def assets(self) -> list[Any]:
        """All of its assets."""
        return [self.source, self.steps, *([self.expire] if self.expire else [])]

    @property
    def definitions(self) -> dg.Definitions:
        """As Dagster's definitions."""
        return dg.Definitions(assets=self.assets, jobs=list(self.jobs.values()))


def table_assets(table: TableDefinition, identities: Sequence[str] = ()) -> TableAssets:
    """The assets and jobs of a table. Nothing is read or connected to.

    `identities` are keys of the resources which open encrypted files.
    """
    with warnings.catch_warnings():
        # Checks a partition are a preview feature of 1.13; tests hold what we need of it.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        specs = [_step_spec(table, stage) for stage in stages_of(table)]
        steps = _steps(table, specs, identities)
        made = TableAssets(table, _source_spec(table), steps, _jobs(table), identities=tuple(identities))
        if table.spec.retention is None:
            return made
        expire = expire_asset(table, required_resources(table), identities)
        return replace(made, expire=expire, jobs={**made.jobs, EXPIRE: expire_job(table)})


def stages_of(table: TableDefinition) -> tuple[Stage, ...]:
    """The stages that a table has: no cleanup where there is no statement to delete with."""
    derived = table.spec.table is not None and table.select_sql is None and table.spec.partitions is not None
    return STAGES if table.delete_sql is not None or derived else STAGES[:2]


def asset_key(table: TableDefinition, stage: Stage | str) -> dg.AssetKey:
    """Key of the asset of a stage, or of `source`."""
    return dg.AssetKey(naming.asset_key(table.id, str(stage)))


def job_name(table: TableDefinition, stage: Stage | str) -> str:
    """Name of the job of a stage, or of `chain`."""
    return f"{naming.dagster_name(table.id)}_{stage}"


def required_resources(table: TableDefinition) -> set[str]:
    """Keys of the resources which a table's steps use."""
    spec = table.spec
    used = {spec.connection, spec.cleanup.connection or spec.connection, spec.store, spec.archive, "catalog", "signing"}
    return used | {spec.dump.report.connection or spec.connection} if spec.dump.report else used


def _source_spec(table: TableDefinition) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(table, "source"),
        deps=[dg.AssetKey(key.split("/")) for key in table.spec.depends_on],
        description=table.spec.description
        or f"Source rows of {table.id}: {table.spec.table or 'see the SQL of export'}",
        group_name=naming.group_name(table.group),
        owners=list(table.spec.owners),
        tags=dict(table.spec.tags),
        kinds={_KINDS[table.engine]},
        metadata=_source_metadata(table),
    )


def _source_metadata(table: TableDefinition) -> dict[str, Any]:
    spec = table.spec
    metadata = {
        "dagster/table_name": spec.table,
        "connection": spec.connection,
        "time_column": spec.time_column,
        "dagster/code_references": _files(table, Stage.EXPORT),
    }
    return {name: value for name, value in metadata.items() if value}


def _step_spec(table: TableDefinition, stage: Stage) -> dg.AssetSpec:
    before = {Stage.EXPORT: "source", Stage.ARCHIVE: Stage.EXPORT, Stage.CLEANUP: Stage.ARCHIVE}[stage]
    kinds = {
        Stage.EXPORT: {table.spec.format.type, table.spec.packing.value} - {"none"},
        Stage.ARCHIVE: {"archive"},
        Stage.CLEANUP: {_KINDS[table.engine], "sql"},
    }[stage]
    return dg.AssetSpec(
        asset_key(table, stage),
        deps=[asset_key(table, before)],
        description=_description(table, stage),
        group_name=naming.group_name(table.group),
        owners=list(table.spec.owners),
        tags=dict(table.spec.tags),
        kinds=kinds,
        code_version=table.version,
        partitions_def=_partitions(table),
        # The op tells of each partition itself (partition_run.py) and yields no outputs.
        skippable=True,
        freshness_policy=_freshness(table, stage),
        metadata={"dagster/code_references": _files(table, stage)},
    )


def _partitions(table: TableDefinition) -> dg.PartitionsDefinition[str] | None:
    """The partitions as the UI can show them.

    Dagster 1.13 takes the newest partitions of a time window definition by counting back from today, past its end:
    plots over the partitions of a range that ended long ago would be empty. Such a range is given as a list of keys.
    """
    spec = table.spec.partitions
    if spec is None:
        return None
    definition = windows.partitions_definition(spec)
    if spec.end is None or spec.end.replace(tzinfo=ZoneInfo(spec.timezone)) > datetime.now(UTC):
        return definition
    keys = definition.get_partition_keys()
    return dg.StaticPartitionsDefinition(keys) if len(keys) <= MAX_LISTED else definition


def _files(table: TableDefinition, stage: Stage) -> dg.CodeReferencesMetadataValue:
    """The files to open in an editor: the statement of the stage, and defs.yaml."""
    sql = {Stage.EXPORT: ("select.sql", table.select_sql), Stage.CLEANUP: ("delete.sql", table.delete_sql)}
    name, text = sql.get(stage, ("", None))
    files = [name] * (text is not None) + ["defs.yaml"] * (table.folder / "defs.yaml").is_file()
    return code_references(table.folder, files)


def _freshness(table: TableDefinition, stage: Stage) -> Any:
    hours = table.spec.freshness_hours
    if hours is None or stage is not Stage.EXPORT:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours))


def _description(table: TableDefinition, stage: Stage) -> str:
    spec = table.spec
    select, delete = texts(table)
    export = f"Reads one snapshot into a file of the store `{spec.store}`."
    told = {
        Stage.EXPORT: f"{export}{_other_columns(table)}{_sql(select)}",
        Stage.ARCHIVE: f"Copies the file to the store `{spec.archive}`, reads it back and writes its manifest.",
        Stage.CLEANUP: f"{_cleanup_text(table)}{_sql(delete or '')}",
    }
    return "\n\n".join(text for text in (spec.description.strip(), told[stage]) if text)


def _cleanup_text(table: TableDefinition) -> str:
    cleanup = table.spec.cleanup
    return {
        CleanupMode.OFF: "Deletes nothing (cleanup is off): compares the source with the archive.",
        CleanupMode.AFTER_ARCHIVE: "Deletes the source rows that are proved to be in the archive, once it is verified.",
        CleanupMode.KEEP: "Deletes the source rows that are proved to be in the archive, "
        f"{cleanup.keep_days} days after the end of their partition.",
    }[cleanup.mode]


def _sql(text: str) -> str:
    return f"\n\n```sql\n{text.strip()}\n```" if text else ""


def _other_columns(table: TableDefinition) -> str:
    """What of `SELECT *` is left out or masked."""
    left_out = [f"`{name}` is left out" for name in table.spec.exclude_columns]
    masked = [f"`{name}` is replaced by `{expression}`" for name, expression in table.spec.mask_columns.items()]
    return f" Of its columns {', '.join(left_out + masked)}." if left_out or masked else ""


def _steps(table: TableDefinition, specs: Sequence[dg.AssetSpec], identities: Sequence[str]) -> dg.AssetsDefinition:
    spec = table.spec
    single = spec.partitions is None or spec.partitions.single_run

    @dg.multi_asset(
        name=naming.dagster_name(table.id),
        specs=specs,
        check_specs=_check_specs(table),
        can_subset=True,
        required_resource_keys=required_resources(table) | set(identities),
        backfill_policy=dg.BackfillPolicy.single_run() if single else dg.BackfillPolicy.multi_run(1),
        pool=naming.pool_name(spec.pool or f"connection_{spec.connection}"),
    )
    def steps(context: dg.AssetExecutionContext) -> Iterator[Any]:
        run_partitions(context, table, identities)
        yield from ()

    return steps


def _check_specs(table: TableDefinition) -> list[dg.AssetCheckSpec]:
    partitions = _partitions(table)
    return [
        dg.AssetCheckSpec(name, asset=asset_key(table, stage), description=text, partitions_def=partitions)
        for stage in stages_of(table)
        for name, text in CHECKS[stage].items()
    ]


def _jobs(table: TableDefinition) -> dict[str, Any]:
    stages = stages_of(table)
    tags = {"export_pipelines/table": table.id}
    jobs: dict[str, Any] = {
        stage: dg.define_asset_job(
            job_name(table, stage),
            selection=_selection(table, (stage,)),
            description=f"{stage} of {table.id} alone.",
            tags=tags,
        )
        for stage in stages
    }
    jobs[Stage.CHAIN] = dg.define_asset_job(
        job_name(table, Stage.CHAIN),
        selection=_selection(table, stages),
        description=f"{' → '.join(stages)} of {table.id}, partition by partition, in one run.",
        tags=tags,
    )
    return jobs


def _selection(table: TableDefinition, stages: Sequence[Stage]) -> dg.AssetSelection:
    """Stages with the checks that their steps answer, and without those that have a rhythm of their own."""
    checks = [dg.AssetCheckKey(asset_key(table, stage), name) for stage in stages for name in CHECKS[stage]]
    assets = dg.AssetSelection.assets(*(asset_key(table, stage) for stage in stages))
    return assets.without_checks() | dg.AssetSelection.checks(*checks)
