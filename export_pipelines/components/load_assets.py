"""A table to load as Dagster assets: source → land → load, and the job that does both for all that is new.

File-shaped sources have a partition a file (dynamic: landing adds them), `partitions:` gives windows, others have none.
One op does both steps, and tells of each file as soon as it is done (load_run.py), as the op of an exported table does.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from export_pipelines import naming, windows
from export_pipelines.components.code_references import code_references
from export_pipelines.components.load_run import run_partitions, run_pull
from export_pipelines.components.load_telling import LAND, LOAD, files_name, load_key
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.load_sources import ROW_SOURCES, DatabaseSource
from export_pipelines.specs.transform import TransformDefinition

Origin = LoadDefinition | TransformDefinition
"""What a `table` source copies."""

LOAD_TAG = "export_pipelines/load"
"""Of runs that load a table: its id."""

STALLED_SECONDS = 5 * 3600
"""A run that takes longer is ended by Dagster's run monitoring."""

CHECKS = {
    "quarantine_empty": "Every record of the file was fit for the table.",
    "rows_match_file": "The table and its quarantine have as many rows as the source gave.",
}

CONFIG = {
    "force": dg.Field(bool, default_value=False, description="Fetch and load anew what was loaded before."),
}

PULL_CONFIG = {
    **CONFIG,
    "names": dg.Field([str], default_value=[], description="Names of files, or keys of windows; all when empty."),
    "land": dg.Field(bool, default_value=True, description="Whether to ask the source for what is new."),
    "load": dg.Field(bool, default_value=True, description="Whether to load what has landed."),
}


@dataclass(frozen=True)
class LoadAssets:
    """What a table to load gives to Dagster."""

    load: LoadDefinition
    source: dg.AssetSpec
    steps: dg.AssetsDefinition
    job: dg.JobDefinition
    """Lands and loads all that is new."""

    @property
    def definition(self) -> LoadDefinition:
        """What it was made of."""
        return self.load

    @property
    def deps(self) -> tuple[dg.AssetKey, ...]:
        """Keys of what comes before."""
        return tuple(dep.asset_key for dep in self.source.deps)

    @property
    def assets(self) -> list[Any]:
        """All of its assets."""
        return [self.source, self.steps]


def load_assets(
    load: LoadDefinition,
    resources: Mapping[str, Any],
    upstream: Sequence[dg.AssetKey] = (),
    origin: Origin | None = None,
) -> LoadAssets:
    """The assets and the job of a table. Nothing is read or connected to.

    `upstream` are keys of the assets that come before; `origin` is the table that a `table` source copies.
    """
    with warnings.catch_warnings():
        # Checks a partition are a preview feature of 1.13.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        specs = [_land_spec(load), _load_spec(load)]
        return LoadAssets(
            load, _source_spec(load, upstream), _steps(load, specs, origin), _pull_job(load, resources, origin)
        )


def load_job_name(load_id: str) -> str:
    """Name of the job that lands and loads all that is new."""
    return f"{naming.dagster_name(load_id)}_load"


def load_op_name(load_id: str) -> str:
    """Name of that job's op, under which its config stands."""
    return f"{naming.dagster_name(load_id)}___load"


def required_resources(load: LoadDefinition, origin: Origin | None = None) -> set[str]:
    """Keys of the resources which landing and loading use."""
    spec = load.spec
    used = {spec.target.connection, spec.landing}
    if origin is not None:
        used.add(origin.spec.target.connection)
    if isinstance(spec.source, DatabaseSource) and spec.source.connection:
        used.add(spec.source.connection)
    return used


def partitions_of(load: LoadDefinition) -> dg.PartitionsDefinition[str] | None:
    """By file, by window, or none."""
    if load.spec.by_file:
        return dg.DynamicPartitionsDefinition(name=files_name(load.id))
    return windows.partitions_definition(load.spec.partitions) if load.spec.partitions else None


def shared_pool(route: str | None, connection: str | None) -> str:
    """The pool of a route, else of a connection, one of which there is."""
    return naming.pool_name(f"route_{route}" if route else f"connection_{connection}")


def pool_of(load: LoadDefinition) -> str:
    """The pool whose limit is the greatest number of runs at once: that of its route, else of its source."""
    source = load.spec.source
    connection = source.connection if isinstance(source, DatabaseSource) else None
    if load.spec.route or connection:
        return shared_pool(load.spec.route, connection)
    return naming.pool_name(f"load_{naming.dagster_name(load.id)}")


def _source_spec(load: LoadDefinition, upstream: Sequence[dg.AssetKey]) -> dg.AssetSpec:
    source = load.spec.source
    return dg.AssetSpec(
        load_key(load.id, "source"),
        deps=list(upstream),
        description=f"What {load.id} is loaded from: a source of type {source.type}.",
        group_name=naming.group_name(load.group),
        owners=list(load.spec.owners),
        tags=dict(load.spec.tags),
        kinds={source.type},
    )


def _land_spec(load: LoadDefinition) -> dg.AssetSpec:
    text = f"Copies what the source has into the store `{load.spec.landing}`, as it is, once."
    return _spec(load, LAND, [load_key(load.id, "source")], text, {"file"}, {})


def _load_spec(load: LoadDefinition) -> dg.AssetSpec:
    target = load.spec.target
    text = (
        f"Puts landed files into `{target.table}` of `{target.connection}`, by style `{load.spec.style.value}`: each "
        "in one transaction, once."
    )
    return _spec(load, LOAD, [load_key(load.id, LAND)], text, {"postgres"}, {"dagster/table_name": target.table})


def _spec(
    load: LoadDefinition, step: str, deps: Sequence[dg.AssetKey], text: str, kinds: set[str], metadata: dict[str, Any]
) -> dg.AssetSpec:
    return dg.AssetSpec(
        load_key(load.id, step),
        deps=list(deps),
        description="\n\n".join(each for each in (load.spec.description.strip(), text) if each),
        group_name=naming.group_name(load.group),
        owners=list(load.spec.owners),
        tags=dict(load.spec.tags),
        kinds=kinds,
        code_version=load.version,
        partitions_def=partitions_of(load),
        # The op tells of each file itself and yields no outputs.
        skippable=True,
        metadata={**metadata, "dagster/code_references": _files(load)},
    )


def _files(load: LoadDefinition) -> dg.CodeReferencesMetadataValue:
    names = ["defs.yaml", *(["select.sql"] if load.select_sql is not None else [])]
    return code_references(load.folder, names)


def _check_specs(load: LoadDefinition) -> list[dg.AssetCheckSpec]:
    partitions = partitions_of(load)
    return [
        dg.AssetCheckSpec(name, asset=load_key(load.id), description=text, partitions_def=partitions)
        for name, text in CHECKS.items()
        # Only databases say how many rows they gave, and pages that land together are counted.
        if name != "rows_match_file" or load.spec.source.type in ROW_SOURCES or load.spec.one_file
    ]


def _steps(load: LoadDefinition, specs: Sequence[dg.AssetSpec], origin: Origin | None) -> dg.AssetsDefinition:
    single = load.spec.partitions is None or load.spec.partitions.single_run

    @dg.multi_asset(
        name=naming.dagster_name(load.id),
        specs=specs,
        check_specs=_check_specs(load),
        can_subset=True,
        config_schema=CONFIG,
        required_resource_keys=required_resources(load, origin),
        backfill_policy=dg.BackfillPolicy.single_run() if single else dg.BackfillPolicy.multi_run(1),
        pool=pool_of(load),
    )
    def steps(context: dg.AssetExecutionContext) -> Iterator[Any]:
        run_partitions(context, load, origin)
        yield from ()

    return steps


def _pull_job(load: LoadDefinition, resources: Mapping[str, Any], origin: Origin | None) -> dg.JobDefinition:
    @dg.op(
        name=load_op_name(load.id),
        config_schema=PULL_CONFIG,
        out=dg.Out(dg.Nothing),
        required_resource_keys=required_resources(load, origin),
        description=f"Lands and loads what is new of {load.id}.",
        pool=pool_of(load),
    )
    def pull(context: dg.OpExecutionContext) -> Any:
        yield dg.Output(None, metadata=run_pull(context, load, origin))

    # Dagster would bind them to a copy of the job, and warn when it copies the sensor that has the job, too.
    own = {key: resources[key] for key in sorted(required_resources(load, origin))}
    tags = {
        LOAD_TAG: load.id,
        "export_pipelines/table": load.id,
        "dagster/priority": str(load.spec.priority),
        "dagster/max_runtime": str(STALLED_SECONDS),
    }

    @dg.job(
        name=load_job_name(load.id),
        description=f"Lands and loads what is new of {load.id}.",
        tags=tags,
        resource_defs=own,
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        pull()

    return job
