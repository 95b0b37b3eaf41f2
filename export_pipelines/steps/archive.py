"""Archive: copy what was exported to the long-term store, read it back, and write the manifest last."""

from __future__ import annotations

import hashlib
import posixpath
import secrets
import time
from dataclasses import dataclass

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import IntegrityError, ObjectMissing, RequestError, StoreError
from export_pipelines.manifest import ArtifactManifest, ExportRecord, FileProof, digest
from export_pipelines.naming import archive_folder
from export_pipelines.specs.table import Compression
from export_pipelines.steps import chain
from export_pipelines.steps.companions import write_companions
from export_pipelines.steps.context import Progress, StepContext
from export_pipelines.steps.reading import CHUNK, read_back
from export_pipelines.steps.receipts import write_receipts
from export_pipelines.steps.settle import settle_open_batches
from export_pipelines.steps.signatures import seal
from export_pipelines.steps.tombstones import expiry_of
from export_pipelines.stores.base import Store
from export_pipelines.windows import Window


@dataclass(frozen=True)
class ArchiveResult:
    """The manifests of a partition. `new` were written now; the others were there before. Bytes are stored ones."""

    manifests: tuple[ArtifactManifest, ...]
    new: int
    bytes: int
    seconds: float


def archive_partition(ctx: StepContext, window: Window) -> ArchiveResult:
    """Copy each exported and not yet archived generation of a partition to the archive, verified by reading it back.

    Crash: without its manifest a copy does not exist; the next run makes another, and `sweep` removes the first.
    A manifest that was written before the catalog knew is found again.

    Raises:
        RequestError: the partition has not been exported.
        PartitionBusy: another run is archiving it.
        IntegrityError: a file is not what the export wrote, or reads back as something else.
        StoreError: a store failed.
    """
    begun = time.monotonic()
    with ctx.catalog.lock(f"archive {ctx.table.id} {window.partition}", f"archiving {ctx.table.id} {window.partition}"):
        rows = ctx.catalog.exports(ctx.table.id, window.partition, expired=True)
        if rows and all(row.given_up for row in rows):
            raise RequestError(
                f"partition {window.partition} of {ctx.table.id!r} {expiry_of(ctx, rows[-1])}, so there is nothing to "
                "archive",
                hint="export it again if it is wanted after all",
            )
        if not rows:
            raise RequestError(
                f"partition {window.partition} of {ctx.table.id!r} has not been exported",
                hint="run its export first; a file without an export is taken in by `export-pipelines adopt`",
            )
        # Receipts of deletions must stand in the chain before a later generation does: restore relies on it. A cleanup
        # that was killed may have left a batch of which only the source knows whether it was deleted.
        settle_open_batches(ctx, window.partition)
        write_receipts(ctx, window.partition)
        pending = _to_archive(ctx, [row for row in rows if row.state == "exported"])
        new = [_archive(ctx, window, row) for row in pending]
        before = [
            chain.artifact_at(ctx.archive, ctx.table.id, row.sequence)
            for row in rows
            if row.state == "archived" and row.sequence is not None
        ]
    size = sum(manifest.file.size for manifest in new)
    return ArchiveResult((*before, *new), len(new), size, time.monotonic() - begun)


def _to_archive(ctx: StepContext, pending: list[ExportRow]) -> list[ExportRow]:
    """Exports to archive, without those that are damaged and that a later one stands in for: they are given up.

    Nothing was deleted by what was never archived, so a later export has all that is still there.
    """
    kept = []
    for row in pending:
        if row is not pending[-1] and not _intact(ctx.exports, row):
            ctx.catalog.give_up_export(row.id, "its file is damaged or gone; a later export stands in for it")
        else:
            kept.append(row)
    return kept


def _intact(exports: Store, row: ExportRow) -> bool:
    """Whether the files of an export are what it wrote."""
    try:
        for proof in filter(None, (row.record.file, row.record.identity.file) if row.record else ()):
            read_back(exports, proof, None)
    except (IntegrityError, ObjectMissing):
        return False
    return True


def _archive(ctx: StepContext, window: Window, row: ExportRow) -> ArtifactManifest:
    record = row.record
    if record is None:
        raise IntegrityError(f"the catalog has no record of export {row.id} of {row.table_id!r}")
    known = ctx.catalog.head(ctx.table.id, ctx.archive.url)
    if (found := _already_there(ctx, known, record)) is not None:
        manifest, sha256 = found
    else:
        folder = f"{archive_folder(ctx.table, window)}/g{record.generation}-{record.attempt[:8]}-{secrets.token_hex(2)}"
        identity_file = _copy(ctx, window, record.identity.file, folder, None) if record.identity.file else None
        file = _copy(ctx, window, record.file, folder, Compression(record.compression))
        files = (file, identity_file) if identity_file else (file,)
        companions = write_companions(ctx.archive, folder, record, files)
        manifest, sha256 = chain.append(
            ctx.archive,
            ctx.table.id,
            known,
            lambda sequence, previous, written: ArtifactManifest(
                sequence=sequence,
                previous_sha256=previous,
                table=ctx.table.id,
                written=written,
                run_id=ctx.run_id,
                export=record,
                file=file,
                identity_file=identity_file,
                companions=companions,
            ),
            ctx.signer,
        )
    # First this, then the head of the chain: a crash in between leaves the manifest where `_already_there` looks.
    ctx.catalog.mark_archived(row.id, ctx.archive.url, manifest.sequence)
    ctx.catalog.advance_head(ctx.table.id, ctx.archive.url, manifest.sequence, sha256)
    if not ctx.table.spec.keep_export:
        remove_export(ctx.exports, record)
    return manifest


def remove_export(exports: Store, record: ExportRecord) -> None:
    """Remove the local copy of an archived export, file first: a sidecar alone is never taken for one."""
    exports.delete(record.file.key)
    if record.identity.file:
        exports.delete(record.identity.file.key)


def _already_there(
    ctx: StepContext, known: tuple[int, str] | None, record: ExportRecord
) -> tuple[ArtifactManifest, str] | None:
    """The manifest of this attempt that a crashed run wrote, in what the catalog does not know of the chain, and its
    SHA-256."""
    sequence = known[0] if known else 0
    while ctx.archive.head(chain.manifest_key(ctx.table.id, sequence + 1)) is not None:
        sequence += 1
        entry, data = chain.read_entry(ctx.archive, ctx.table.id, sequence)
        if isinstance(entry, ArtifactManifest) and entry.export.attempt == record.attempt:
            if ctx.signer is not None:
                seal(ctx.archive, ctx.table.id, sequence, data, ctx.signer)
            return entry, digest(data)
    return None


def _copy(
    ctx: StepContext, window: Window, proof: FileProof, folder: str, compression: Compression | None
) -> FileProof:
    """Copy one file, compare it with the export's digests on the way, and read the copy back."""
    key = f"{folder}/{posixpath.basename(proof.key)}"
    try:
        source = ctx.exports.open(proof.key)
    except ObjectMissing as error:
        raise StoreError(
            f"the exported file {ctx.exports.locate(proof.key)} is gone", hint="export the partition again"
        ) from error
    with source, ctx.archive.writer(key) as writer:
        sha256 = hashlib.sha256()
        while data := source.read(CHUNK):
            sha256.update(data)
            writer.write(data)
        if sha256.hexdigest() != proof.sha256:
            raise IntegrityError(
                f"the exported file {ctx.exports.locate(proof.key)} is not what the export wrote: its SHA-256 differs",
                hint="its disk may be failing, or somebody changed it; export the partition again",
            )
        writer.publish()

    def progress(size: int) -> None:
        ctx.progress(Progress("archive", ctx.table.id, window.partition, 0, size))

    archived = proof.model_copy(update={"key": key})
    read_back(ctx.archive, archived, compression, progress, ctx.keyring)
    return archived
