"""What Dagster is told of a table that is loaded: materialisations, checks and observations of its two assets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from dagster import AssetCheckEvaluation

from export_pipelines import naming
from export_pipelines.components.progress import INTERVAL, observed
from export_pipelines.manifest import LandedManifest
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.steps.context import Progress

if TYPE_CHECKING:
    from export_pipelines.steps.load_context import LoadResult

LAND = "land"
LOAD = "load"

Context = dg.AssetExecutionContext | dg.OpExecutionContext


def load_key(load_id: str, step: str = LOAD) -> dg.AssetKey:
    """Key of the asset of a step, or of `source`."""
    return dg.AssetKey(naming.asset_key(load_id, step))


def files_name(load_id: str) -> str:
    """Name of the set of a table's file partitions."""
    return f"{naming.dagster_name(load_id)}_files"


class Teller:
    """Tells Dagster of one run of one table, under the id of its assets. `partition` gives that of a landed file."""

    def __init__(
        self,
        context: Context,
        load: LoadDefinition,
        asset_id: str,
        partition: Callable[[LandedManifest], str | None],
        *,
        force: bool,
    ) -> None:
        self._context = context
        self._load = load
        self._asset_id = asset_id
        self._partition = partition
        self._force = force

    def landed(self, landed: LandedManifest, path: str, seconds: float) -> None:
        """A file has landed; `path` is where, for people."""
        key = self._known_partition(landed)
        metadata = {
            "file": landed.name,
            "url": landed.url,
            "version_at_source": landed.version,
            "raw_bytes": landed.file.raw_size,
            "stored_bytes": landed.file.size,
            "sha256": landed.file.raw_sha256,
            "path": dg.MetadataValue.path(path),
            "manifest": landed.sequence,
            "seconds": round(seconds, 3),
        }
        if landed.rows is not None:
            metadata |= {"rows": landed.rows, "dagster/row_count": landed.rows}
        self._materialize(LAND, key, metadata, landed.file.raw_sha256, f"{landed.name} landed")

    def nothing_landed(self, partition: str, unchanged: int) -> None:
        """A window was pulled, and has nothing new."""
        self._materialize(LAND, partition, {"rows": 0, "unchanged": unchanged}, "", "nothing new")

    def loaded(self, landed: LandedManifest, result: LoadResult, seconds: float) -> None:
        """A landed file was loaded, or there was nothing to do for it."""
        key = self._known_partition(landed)
        if result.action == "superseded" and self._is_materialized(key):
            self._context.log.info(f"{landed.name}: a newer file is loaded already, this one is left out")
            return
        version = result.digest or landed.file.raw_sha256
        summary = f"{landed.name}: {result.action}, {result.rows:,} rows"
        self._materialize(LOAD, key, self._metadata(landed, result, seconds), version, summary)
        self._check(
            key, "quarantine_empty", result.quarantined == 0, f"{result.quarantined} records do not fit", warn=True
        )
        # The records of pages were counted by the definition that landed them.
        counted = landed.source not in ("rest", "wfs") or landed.definition_version == self._load.version
        if landed.rows is not None and counted and result.action != "superseded":
            seen = result.rows + result.quarantined
            text = f"the source gave {landed.rows} rows, and {seen} are in table and quarantine"
            self._check(key, "rows_match_file", seen == landed.rows, text)

    def _metadata(self, landed: LandedManifest, result: LoadResult, seconds: float) -> dict[str, Any]:
        target = self._load.spec.target
        columns = [dg.TableColumn(name=name, type=kind) for name, kind in result.columns]
        metadata = {
            "action": result.action,
            "rows": result.rows,
            "dagster/row_count": result.rows,
            "quarantined": result.quarantined,
            "added": result.added,
            "changed": result.changed,
            "removed": result.removed,
            "dagster/table_name": target.table,
            "table_version": result.table_version,
            "digest": result.digest,
            "file": landed.name,
            "sha256": landed.file.raw_sha256,
            "registry_id": result.registry_id,
            "manifest": landed.sequence,
            "forced": self._force,
            "seconds": round(seconds, 3),
            "rows_per_second": round(result.rows / seconds) if seconds else 0,
        }
        return {**metadata, "dagster/column_schema": dg.TableSchema(columns=columns)} if columns else metadata

    def reporter(self, step: str) -> Callable[[Progress], None]:
        """Tells how far a step is, as often as INTERVAL says."""
        told = time.monotonic()

        def report(progress: Progress) -> None:
            nonlocal told
            if time.monotonic() - told < INTERVAL:
                return
            told = time.monotonic()
            self._context.log_event(dg.AssetObservation(load_key(self._asset_id, step), **observed(step, progress)))

        return report

    def _is_materialized(self, key: str | None) -> bool:
        """Whether there is a load that the partition tells of, newer than what comes too late for it."""
        return key is not None and key in self._context.instance.get_materialized_partitions(load_key(self._asset_id))

    def _known_partition(self, landed: LandedManifest) -> str | None:
        """The partition of a file, which is made known to Dagster."""
        key = self._partition(landed)
        if key is not None and self._load.spec.by_file:
            name = files_name(self._asset_id)
            if not self._context.instance.has_dynamic_partition(name, key):
                self._context.instance.add_dynamic_partitions(name, [key])
        return key

    def _materialize(
        self, step: str, partition: str | None, metadata: dict[str, Any], version: str, summary: str
    ) -> None:
        tags = {"dagster/code_version": self._load.version, **({"dagster/data_version": version} if version else {})}
        self._context.log_event(
            dg.AssetMaterialization(
                load_key(self._asset_id, step), partition=partition, metadata=metadata, tags=tags, description=summary
            )
        )

    def _check(self, partition: str | None, name: str, passed: bool, text: str, *, warn: bool = False) -> None:
        # An op of a job has the same log, with a narrower type.
        cast("dg.AssetExecutionContext", self._context).log_event(
            AssetCheckEvaluation(
                asset_key=load_key(self._asset_id),
                check_name=name,
                passed=passed,
                severity=dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
                description=text,
                partition=partition,
            )
        )
