"""Sweep: remove what crashed runs left behind, once a grace period has passed.

There are six kinds: temporaries and unfinished uploads of a store; files of export attempts that were never finished;
copies in the archive that have no manifest; local copies which `keep_export: false` should have removed; and, at once,
what an expire gave up and was killed before it removed it, and part of the files of a dump that was killed while it
published them. Only what a run of ours has written is ever removed, and only while the lock of that run's partition is
held. What is published and not in the table of reports is entered there.

A file of an unfinished export is known for ours by its sidecar, which is published just before it. Its name alone says
nothing: an older export service may write files of the same names into the same folder.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import PartitionBusy, RequestError
from export_pipelines.manifest import ArtifactManifest, ExpireTombstone, FileProof
from export_pipelines.naming import AGE, archive_folder, file_key, table_folder
from export_pipelines.steps import chain
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.dump import dump_stores, settle_dumps
from export_pipelines.steps.engine import engine_of
from export_pipelines.steps.expire import complete_expired
from export_pipelines.steps.report import settle_reports
from export_pipelines.steps.sidecar import ENCRYPTED_EXTENSION, EXTENSION, file_of
from export_pipelines.stores.base import ObjectInfo, Store
from export_pipelines.windows import Window, window_of

DAY_SECONDS = 86_400
_PUBLISHED_TOGETHER = timedelta(hours=1)


@dataclass(frozen=True)
class _Orphan:
    """An object that no row of the catalog and no manifest names. `window` is that of the run which wrote it."""

    store: Store
    key: str
    window: Window
    evidence: Mapping[str, ObjectInfo] = field(default_factory=dict)
    """The objects found with it."""


def sweep(contexts: Iterable[StepContext], *, grace_seconds: float = DAY_SECONDS, dry_run: bool = False) -> list[str]:
    """Remove leftovers of these tables, and the temporaries of the stores that they use; return where they were.

    What was last written to less than `grace_seconds` ago stays: give more than the longest export or archive takes.
    With `dry_run` nothing is removed; all else is the same. Leftovers of a partition at work are left for another time.

    Crash: what was removed is gone, the rest is found again.

    Raises:
        IntegrityError: a chain of manifests is broken or cut off, so that nobody can say what it does not name.
        SourceError, StoreError, CatalogError: as they say.
    """
    swept: list[str] = []
    stores: dict[str, Store] = {}
    for ctx in contexts:
        stores |= {ctx.exports.url: ctx.exports, ctx.archive.url: ctx.archive}
        swept += complete_expired(ctx, dry_run=dry_run)
        if not dry_run:
            swept += settle_dumps(ctx)
            settle_reports(ctx)
        stores |= dump_stores(ctx)
        for orphan in (*_export_orphans(ctx, grace_seconds), *_archive_orphans(ctx, grace_seconds)):
            if _remove(ctx, orphan, dry_run):
                swept.append(orphan.store.locate(orphan.key))
    for store in stores.values():
        swept += [f"{store.url}/{name}" for name in store.sweep(grace_seconds, dry_run=dry_run)]
    return swept


def _remove(ctx: StepContext, orphan: _Orphan, dry_run: bool) -> bool:
    """Remove an orphan if, with its partition locked, it still is one."""
    exported = orphan.store is ctx.exports
    try:
        with (engine_of(ctx).locked if exported else _archive_locked)(ctx, orphan.window):
            if orphan.key in (_named_exports(ctx, orphan.evidence) if exported else _named_archived(ctx)):
                return False
            if not dry_run:
                orphan.store.delete(orphan.key)
            return True
    except PartitionBusy:
        return False


@contextmanager
def _archive_locked(ctx: StepContext, window: Window) -> Iterator[None]:
    with ctx.catalog.lock(f"archive {ctx.table.id} {window.partition}", f"archiving {ctx.table.id} {window.partition}"):
        yield


def _export_orphans(ctx: StepContext, grace_seconds: float) -> list[_Orphan]:
    """Objects in the store of exports whose name an attempt of this table can have taken, and that none has kept."""
    candidates = {key: window for window, attempts in _attempts(ctx) for key in _keys(ctx, window, attempts)}
    if not candidates:
        return []
    common = posixpath.commonprefix(list(candidates))
    listed = ctx.exports.list(common.rpartition("/")[0] + "/" if "/" in common else "")
    found = {info.key: info for info in _older(listed, grace_seconds) if info.key in candidates}
    named = _named_exports(ctx, found)
    return [_Orphan(ctx.exports, key, candidates[key], found) for key in found if key not in named]


def _attempts(ctx: StepContext) -> Iterator[tuple[Window, int]]:
    """Each partition that something was ever tried of, with the number of attempts."""
    rows = ctx.catalog.exports(ctx.table.id, published=False)
    for partition in sorted({row.partition for row in rows}):
        try:
            window = window_of(ctx.table.spec.partitions, partition)
        except RequestError:
            # The definition has other partitions now: how its files were named is not known any more.
            continue
        yield window, sum(row.partition == partition for row in rows)


def _keys(ctx: StepContext, window: Window, attempts: int) -> Iterator[str]:
    """Names that so many attempts can have taken: each takes the first free one from its generation on."""
    for number in range(1, 2 * attempts + 1):
        key = file_key(ctx.table, window, number)
        # The definition may have been changed to or from encryption since.
        for each in {key, key.removesuffix(AGE), f"{key.removesuffix(AGE)}{AGE}"}:
            yield from (each, each + EXTENSION, each + ENCRYPTED_EXTENSION)


def _named_exports(ctx: StepContext, found: Mapping[str, ObjectInfo]) -> set[str]:
    """Which of the objects found are to stay: exports that the catalog knows, and what may not be ours."""
    known: dict[str, bool] = {}
    for row in ctx.catalog.exports(ctx.table.id):
        for proof in _proofs(ctx, row):
            if proof.key in found:
                known[proof.key] = known.get(proof.key, False) or not _superfluous(ctx, row, found[proof.key], proof)
    return {key for key, info in found.items() if known.get(key, not _unfinished(ctx, info, found))}


def _proofs(ctx: StepContext, row: ExportRow) -> list[FileProof]:
    """The files of a row in the store of exports; adopted ones never were there."""
    if row.record is None or row.store_url != ctx.exports.url:
        return []
    return [proof for proof in (row.record.file, row.record.identity.file) if proof]


def _superfluous(ctx: StepContext, row: ExportRow, info: ObjectInfo, proof: FileProof) -> bool:
    """Whether this local copy should be gone, since the archive has it."""
    if ctx.table.spec.keep_export or info.size != proof.size:
        return False
    if row.state != "archived" or row.archive_url != ctx.archive.url or row.sequence is None:
        return False
    file = chain.artifact_at(ctx.archive, ctx.table.id, row.sequence).file
    archived = ctx.archive.head(file.key)
    return archived is not None and archived.size == file.size


def _unfinished(ctx: StepContext, info: ObjectInfo, found: Mapping[str, ObjectInfo]) -> bool:
    """Whether an object that no row of this table names is a sidecar, or a file that was published with one."""
    file_key = file_of(info.key)
    if ctx.catalog.tables_of_file(ctx.exports.url, file_key):
        return False
    sidecar = found.get(file_key + EXTENSION) or found.get(file_key + ENCRYPTED_EXTENSION)
    return sidecar is not None and abs(info.modified - sidecar.modified) <= _PUBLISHED_TOGETHER


def _archive_orphans(ctx: StepContext, grace_seconds: float) -> list[_Orphan]:
    """Objects in the folders that the archiver makes for its copies, in which no manifest names anything."""
    folders = {archive_folder(ctx.table, window): window for window, _ in _attempts(ctx)}
    pattern = re.compile(rf"({re.escape(table_folder(ctx.table.id))}/[^/]+)/g\d+-[0-9a-f]{{8}}-[0-9a-f]{{4}}/[^/]+")
    listed = list(ctx.archive.list(f"{table_folder(ctx.table.id)}/"))
    copies = [(info, match[1]) for info in listed if (match := pattern.fullmatch(info.key))]
    if not copies:
        return []
    named = {key.rpartition("/")[0] for key in _named_archived(ctx)}
    old = {info.key for info in _older(listed, grace_seconds)}
    at_work = {info.key.rpartition("/")[0] for info, _ in copies if info.key not in old}
    return [
        _Orphan(ctx.archive, info.key, folders[folder])
        for info, folder in copies
        if folder in folders and info.key.rpartition("/")[0] not in named | at_work
    ]


def _named_archived(ctx: StepContext) -> set[str]:
    """Keys of the files that the chain names and that were not given up.

    Raises:
        IntegrityError: the chain is broken, or shorter than it was.
    """
    known = ctx.catalog.head(ctx.table.id, ctx.archive.url)
    chain.end_of_chain(ctx.archive, ctx.table.id, known)
    entries = list(chain.entries(ctx.archive, ctx.table.id))
    given_up = {entry.artifact_sequence for entry in entries if isinstance(entry, ExpireTombstone)}
    return {
        proof.key
        for entry in entries
        if isinstance(entry, ArtifactManifest) and entry.sequence not in given_up
        for proof in entry.objects
    }


def _older(found: Iterable[ObjectInfo], grace_seconds: float) -> list[ObjectInfo]:
    limit = datetime.now(UTC) - timedelta(seconds=grace_seconds)
    return [info for info in found if info.modified <= limit]
