"""Cleanup: delete from the source the rows that a verified archive is proved to hold, and nothing else.

What one transaction deletes is: the rows that delete.sql matches now, among the identities of one batch of the sidecar.
The identities that the DELETE returns are compared with the batch before the commit. How each commit is proved, and
what is not promised, is in docs/explanation/why-a-delete-is-safe.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import CleanupRefused, IntegrityError
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.specs.table import CleanupMode
from export_pipelines.steps import chain
from export_pipelines.steps.context import Progress, StepContext
from export_pipelines.steps.engine import ATTEMPTS, Deletion, Moved, Seen, Unprovable, engine_of
from export_pipelines.steps.holding import refuse_held, window_of_row
from export_pipelines.steps.reading import check_archived
from export_pipelines.steps.receipts import deleted_records, write_receipts
from export_pipelines.steps.settle import settle_open_batches
from export_pipelines.steps.tombstones import expiry_of
from export_pipelines.windows import Window


@dataclass(frozen=True)
class CleanupResult:
    """The outcome of one cleanup, in rows. What delete.sql matched is `deleted` + `late` + `not_exported` (and, in
    shadow mode, `would_delete`).

    `late` rows came, changed or were superseded since the export: they stay, and the next export takes them.
    `not_exported` are not given by select.sql, so it and delete.sql disagree. `archived` is what the files of the
    partition hold.
    """

    archived: int = 0
    would_delete: int = 0
    deleted: int = 0
    deleted_before: int = 0
    late: int = 0
    not_exported: int = 0
    batches: int = 0
    proof: str = ""
    seconds: float = 0.0
    shadow: bool = False
    """True when nothing was to be deleted: cleanup is off, and this was a comparison only."""

    @property
    def matched(self) -> int:
        """Rows that delete.sql matched."""
        return self.deleted + self.would_delete + self.late + self.not_exported

    @property
    def complete(self) -> bool:
        """Whether nothing that delete.sql matches is left."""
        return not self.shadow and self.late == 0 and self.not_exported == 0

    def as_dict(self) -> dict[str, Any]:
        """All figures, for metadata and JSON."""
        return {**asdict(self), "matched": self.matched, "complete": self.complete}


@dataclass(frozen=True)
class CleanupPlan:
    """What a cleanup would delete now. `bytes` is the size of these rows in the table, without indexes."""

    archived: int
    would_delete: int
    late: int
    not_exported: int
    bytes: int
    sql: str
    proof: str
    refusals: tuple[str, ...] = field(default=())


def cleanup_partition(ctx: StepContext, window: Window) -> CleanupResult:
    """Delete from the source the rows of a partition that its archive proves it holds.

    With cleanup off nothing is deleted; the comparison alone is made (shadow mode).

    Crash: committed batches stay deleted, all of them archived; a rerun settles the batch that was under way by the
    source's own word for its transaction, and goes on from there.

    Raises:
        CleanupRefused: the partition is not archived, is held or kept, its rows cannot be proved, or the deletion would
            set off triggers, rules or foreign keys that the definition does not acknowledge.
        IntegrityError: the archived file is not what its manifest says.
        PartitionBusy: another cleanup of the table is at work.
        SourceError: the source failed.
    """
    begun = time.monotonic()
    ctx = ctx.deleting
    if ctx.table.spec.cleanup.mode is CleanupMode.OFF:
        plan = plan_cleanup(ctx, window)
        result = CleanupResult(
            archived=plan.archived,
            would_delete=plan.would_delete,
            late=plan.late,
            not_exported=plan.not_exported,
            proof=plan.proof,
            shadow=True,
        )
    else:
        deletion, archived = _prepare(ctx, window)
        _refuse_held_or_kept(ctx, window, archived)
        for partition in sorted({row.partition for row, _ in archived}):
            settle_open_batches(ctx, partition)
            write_receipts(ctx, partition)
        result = CleanupResult(archived=sum(manifest.export.rows for _, manifest in archived))
        left = (0, 0)
        for row, manifest in reversed(archived):
            before = result.deleted
            with _superseded(window, row, archived):
                result = _clean_file(ctx, window, deletion, row, manifest, result)
            write_receipts(ctx, row.partition)
            if row is archived[-1][0] or result.deleted > before:
                left = deletion.left(archived[-1][1])
            if left == (0, 0):
                break
        result = replace(result, late=left[0], not_exported=left[1])
    result = replace(result, seconds=time.monotonic() - begun)
    ctx.catalog.save_cleanup(
        ctx.table.id, window.partition, complete=result.complete, result=result.as_dict(), run_id=ctx.run_id
    )
    return result


def plan_cleanup(ctx: StepContext, window: Window) -> CleanupPlan:
    """What `cleanup_partition` would delete now; deletes nothing. The same proof and the same statement are used.

    Raises:
        CleanupRefused: the partition is not archived or nothing can be proved. Other refusals are in the plan.
    """
    refusals = []
    ctx = ctx.deleting
    deletion, archived = _prepare(ctx, window)
    try:
        _refuse_held_or_kept(ctx, window, archived)
    except CleanupRefused as error:
        refusals.append(error.message)
    rows = size = 0
    proofs = set()
    seen = Seen(needed=len(archived) > 1)
    for row, manifest in reversed(archived):
        with _superseded(window, row, archived):
            for found in deletion.match(row, manifest, deleted_records(ctx, row), seen):
                proofs.add(found.proof)
                refusals += [each for each in found.refusals if each not in refusals]
                rows += found.rows
                size += found.bytes
    late, not_exported = deletion.left(archived[-1][1])
    left = max(0, late + not_exported - rows)
    return CleanupPlan(
        archived=sum(manifest.export.rows for _, manifest in archived),
        would_delete=rows,
        late=left - min(left, not_exported),
        not_exported=min(left, not_exported),
        bytes=size,
        sql=deletion.sql,
        proof=", ".join(sorted(proofs)),
        refusals=tuple(refusals),
    )


Archived = list[tuple[ExportRow, ArtifactManifest]]


def _refuse_held_or_kept(ctx: StepContext, window: Window, archived: Archived) -> None:
    """Refuse for a hold on the table, the partition, or an earlier one whose rows this cleanup would delete too.

    An earlier partition of which nothing is left to delete does not matter. Before each batch it is asked again, in the
    transaction of the catalog that registers the batch.
    """
    refuse_held(ctx, [window, *(window_of_row(row) for row, manifest in archived if not _all_done(ctx, row, manifest))])
    keep = ctx.table.spec.cleanup
    if keep.mode is CleanupMode.KEEP:
        # A snapshot of a table without partitions has no end of its own.
        due = (window.end or archived[-1][1].export.started) + timedelta(days=keep.keep_days)
        if due > datetime.now(UTC):
            raise CleanupRefused(
                f"partition {window.partition} of {ctx.table.id!r} is kept in the source until {due.isoformat()}",
                hint=f"keep_days is {keep.keep_days} in {ctx.table.folder / 'defs.yaml'}",
            )


@contextmanager
def _superseded(window: Window, row: ExportRow, archived: Archived) -> Iterator[None]:
    """Pass over a file that proves nothing (any more), unless it is the latest of the partition itself."""
    latest = next(each for each, _ in reversed(archived) if each.partition == window.partition)
    try:
        yield
    except Unprovable:
        if row is latest:
            raise


def _prepare(ctx: StepContext, window: Window) -> tuple[Deletion, Archived]:
    """The deletion, and the archived files that may hold rows of the window, oldest first."""
    deletion = engine_of(ctx).deletion(ctx, window)
    if deletion is None:
        raise CleanupRefused(
            f"{ctx.table.id!r} has no delete.sql", hint="write one, or derive both statements from `table`"
        )
    partition = None if ctx.table.spec.cumulative else window.partition
    _refuse_expired(ctx, window)
    rows = [
        row
        for row in ctx.catalog.exports(ctx.table.id, partition)
        if row.state == "archived" and row.record is not None and not _later(row.record.window_end, window.end)
    ]
    if not any(row.partition == window.partition for row in rows):
        raise CleanupRefused(
            f"partition {window.partition} of {ctx.table.id!r} is not archived, so nothing of it can be deleted",
            hint="run its export and archive first",
        )
    rows.sort(
        key=lambda row: (row.record.window_end or row.started_at if row.record else row.started_at, row.generation)
    )
    found = [(row, _manifest_of(ctx, row)) for row in rows]
    # A byte that no comparison with the catalog shows would only be seen when the receipts are written: too late.
    numbers = [row.sequence for row in rows if row.sequence is not None]
    chain.refuse_altered(ctx.archive, ctx.table.id, numbers, ctx.catalog.head(ctx.table.id, ctx.archive.url))
    # What was adopted from an older service proves nothing; it must not stand in the way of what was exported since.
    own = [(row, manifest) for row, manifest in found if not manifest.adopted]
    if not any(row.partition == window.partition for row, _ in own):
        raise CleanupRefused(
            f"partition {window.partition} of {ctx.table.id!r} was adopted from an older service, and nothing is known "
            "of its rows in the source",
            hint="export and archive the partition: what of it is still in the source can be cleaned up then",
        )
    return deletion, own


def _refuse_expired(ctx: StepContext, window: Window) -> None:
    """Raises CleanupRefused: the newest generation of the partition was given up."""
    newest = ctx.catalog.exports(ctx.table.id, window.partition, expired=True)[-1:]
    if not newest or not newest[0].given_up:
        return
    raise CleanupRefused(
        f"partition {window.partition} of {ctx.table.id!r} {expiry_of(ctx, newest[0])}, so nothing of it can be "
        "deleted",
        hint="export and archive the partition again; what is still in the source is taken then",
    )


def _manifest_of(ctx: StepContext, row: ExportRow) -> ArtifactManifest:
    """The manifest of an export, compared with what the catalog knows of it.

    Raises:
        IntegrityError: it is missing, altered, or another's.
    """
    manifest = chain.artifact_at(ctx.archive, ctx.table.id, row.sequence or 0)
    record = row.record
    files = (
        (manifest.file, record.file if record else None),
        (manifest.identity_file, record.identity.file if record else None),
    )
    same = manifest.export == record and all(
        (archived and archived.model_copy(update={"key": ""})) == (known and known.model_copy(update={"key": ""}))
        for archived, known in files
    )
    if not same:
        raise IntegrityError(
            f"manifest {row.sequence} of {ctx.table.id!r} in {ctx.archive.url} is not the one that was written for "
            f"partition {row.partition}, generation {row.generation}",
            hint="run `export-pipelines verify`; was `archive` in defs.yaml changed to another store?",
        )
    return manifest


def _later(end: datetime | None, other: datetime | None) -> bool:
    return end is not None and other is not None and end > other


def _all_done(ctx: StepContext, row: ExportRow, manifest: ArtifactManifest) -> bool:
    """Whether every row of a file is known to be deleted."""
    return manifest.export.identity.aligned and len(deleted_records(ctx, row)) == manifest.export.rows


def _clean_file(
    ctx: StepContext,
    window: Window,
    deletion: Deletion,
    row: ExportRow,
    manifest: ArtifactManifest,
    result: CleanupResult,
) -> CleanupResult:
    """Delete the rows of one archived file, batch by batch; begins again if what proves them changes.

    The bytes of the file are checked just before, unless all of its rows are gone already.
    """
    done = deleted_records(ctx, row)
    result = replace(result, deleted_before=result.deleted_before + len(done))
    identity = manifest.export.identity
    if identity.aligned and len(done) == manifest.export.rows:
        return replace(result, proof=result.proof or identity.mode)
    check_archived(ctx.archive, manifest)
    for _ in range(ATTEMPTS):
        try:
            for batch in deletion.delete(row, manifest, deleted_records(ctx, row)):
                result = replace(
                    result,
                    deleted=result.deleted + batch.rows,
                    batches=result.batches + (batch.rows > 0),
                    proof=batch.proof,
                )
                if batch.rows:
                    ctx.progress(Progress("cleanup", ctx.table.id, window.partition, result.deleted, 0))
            return replace(result, proof=result.proof or identity.mode)
        except Moved:
            continue
    raise CleanupRefused(f"the table of {ctx.table.id!r} kept being rewritten or altered during the cleanup")
