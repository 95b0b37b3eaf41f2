"""What the steps return, as Dagster shows it: metadata that plots over partitions, checks, versions of data.

The steps are imported when they run, not when definitions are loaded: each run pays for what it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from export_pipelines.manifest import ArtifactManifest, Column, ExportRecord, FileProof
from export_pipelines.steps.context import StepContext
from export_pipelines.windows import Window

if TYPE_CHECKING:
    from export_pipelines.steps.cleanup import CleanupResult

Metadata = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """The answer to an asset check."""

    name: str
    passed: bool
    description: str = ""
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of one stage of one partition."""

    summary: str
    """One line for people."""
    version: str
    """Dagster's data version."""
    describe: Callable[[StepContext], Metadata]
    """Metadata without what depends on the time it took."""
    raw_bytes: int = 0
    checks: Sequence[Check] = ()
    columns: dg.TableSchema | None = None

    def metadata(self, step: StepContext, seconds: float) -> Metadata:
        """All metadata, `seconds` after the stage began."""
        speed = {"mb_per_second": round(self.raw_bytes / 1e6 / max(seconds, 1e-3), 3)} if self.raw_bytes else {}
        return {**self.describe(step), "seconds": round(seconds, 3), **speed}


def export(step: StepContext, window: Window) -> Outcome:
    """Export a partition."""
    from export_pipelines.steps.export import export_partition

    record = export_partition(step, window)
    text = f"{record.rows:,} rows, {record.file.size / 1e6:,.2f} MB stored"
    if record.unchanged:
        text += f"; unchanged since generation {record.generation}"
    return Outcome(
        summary=text,
        version=record.file.raw_sha256,
        describe=lambda step: {
            **_artifact(record, record.file),
            **_location(step.exports.url, step.exports.locate(record.file.key)),
            "dagster/column_schema": table_schema(record.columns),
            "identity": record.identity.mode + (f": {record.identity.reason}" if record.identity.reason else ""),
            "sql": dg.MetadataValue.md(f"```sql\n{record.select_sql.strip()}\n```"),
            **_preview(step, record),
        },
        raw_bytes=0 if record.unchanged else record.file.raw_size,
        columns=table_schema(record.columns),
    )


def archive(step: StepContext, window: Window) -> Outcome:
    """Archive a partition's exports."""
    from export_pipelines.steps.archive import archive_partition

    manifests = archive_partition(step, window).manifests
    newest = manifests[-1]
    record = newest.export
    return Outcome(
        summary=f"manifest {newest.sequence}: {record.rows:,} rows, read back and equal to the export",
        version=record.file.raw_sha256,
        describe=lambda step: {
            **_artifact(record, newest.file),
            **_location(step.archive.url, step.archive.locate(newest.file.key)),
            "manifest": newest.sequence,
            "exported_by": dg.MetadataValue.dagster_run(record.run_id) if record.run_id else "",
        },
        raw_bytes=record.file.raw_size,
        checks=[_digests(manifests)],
    )


def cleanup(step: StepContext, window: Window) -> Outcome:
    """Clean a partition up, or compare it with the archive where cleanup is off."""
    from export_pipelines.steps.cleanup import cleanup_partition
    from export_pipelines.steps.holding import holds_on

    result = cleanup_partition(step, window)
    stay = result.late + result.not_exported
    return Outcome(
        summary=f"compared only: {stay:,} rows are in the source and not in the archive"
        if result.shadow
        else f"{result.deleted:,} rows deleted, {stay:,} that match stay",
        version=f"{result.deleted_before + result.deleted} deleted, {stay} stay",
        describe=lambda _: result.as_dict(),
        checks=[*_cleanup_checks(result), not_held([f"{hold.scope}: {hold}" for hold in holds_on(step, [window])])],
    )


def _cleanup_checks(result: CleanupResult) -> list[Check]:
    late = f"{result.late:,} rows came or changed after the export; they stay until the partition is exported again"
    other = f"delete.sql matches {result.not_exported:,} rows that select.sql did not export; they stay"
    return [
        Check(
            "no_late_rows",
            passed=result.late == 0,
            severity=dg.AssetCheckSeverity.WARN,
            description=late if result.late else "",
            metadata={"late": result.late},
        ),
        Check(
            "delete_matches_select",
            passed=result.not_exported == 0,
            description=other if result.not_exported else "",
            metadata={"not_exported": result.not_exported},
        ),
    ]


def not_held(holds: Sequence[str]) -> Check:
    """Whether a hold is on the partition, and whose."""
    return Check(
        "not_held",
        passed=not holds,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(holds),
        metadata={"holds": len(holds)},
    )


def schema_unchanged(before: dg.TableSchema | None, now: dg.TableSchema) -> Check:
    """Compare the columns of two exports."""
    metadata = {"columns": len(now.columns)}
    if before is None:
        return Check("schema_unchanged", passed=True, description="the first export", metadata=metadata)
    old = {column.name: column.type for column in before.columns}
    new = {column.name: column.type for column in now.columns}
    changes = [f"{name} is new ({kind})" for name, kind in new.items() if name not in old]
    changes += [f"{name} is gone" for name in old if name not in new]
    changes += [f"{name} was {old[name]}, is {new[name]}" for name in new if name in old and old[name] != new[name]]
    if not changes and list(old) != list(new):
        changes = ["the order of the columns is different"]
    return Check(
        "schema_unchanged",
        passed=not changes,
        description="; ".join(changes),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )


def table_schema(columns: Sequence[Column]) -> dg.TableSchema:
    """Columns as Dagster shows them."""
    return dg.TableSchema(columns=[dg.TableColumn(name=column.name, type=column.type) for column in columns])


def _artifact(record: ExportRecord, file: FileProof) -> Metadata:
    bounds = (record.window_start, record.window_end)
    return {
        "dagster/row_count": record.rows,
        "rows": record.rows,
        "raw_bytes": file.raw_size,
        "stored_bytes": file.size,
        "compression_ratio": round(file.raw_size / file.size, 3) if file.size else 0.0,
        "row_digest": record.row_digest,
        "sha256": file.sha256,
        "generation": record.generation,
        "unchanged": record.unchanged,
        "window": " → ".join(moment.isoformat() if moment else "…" for moment in bounds) if any(bounds) else "all rows",
    }


def _location(store: str, where: str) -> Metadata:
    if store.startswith("file:"):
        return {"path": dg.MetadataValue.path(where)}
    return {"url": dg.MetadataValue.url(where)}


def _digests(manifests: Sequence[ArtifactManifest]) -> Check:
    differing = [
        f"manifest {each.sequence}: {each.file.sha256} in the archive, {each.export.file.sha256} in the export"
        for each in manifests
        if (each.file.sha256, each.file.raw_sha256) != (each.export.file.sha256, each.export.file.raw_sha256)
    ]
    newest = manifests[-1].export
    return Check(
        "digests_agree",
        passed=not differing,
        description="; ".join(differing),
        metadata={"rows": newest.rows, "row_digest": newest.row_digest, "sha256": newest.file.sha256},
    )


def _preview(step: StepContext, record: ExportRecord) -> Metadata:
    rows = step.table.spec.preview_rows
    # The event log would keep in plain what is encrypted in the file.
    if record.unchanged or not record.rows or not record.columns or not rows or record.file.encryption:
        return {}
    from export_pipelines.components.preview import preview

    text = preview(step.exports, record, rows)
    return {"preview": dg.MetadataValue.md(text)} if text else {}
