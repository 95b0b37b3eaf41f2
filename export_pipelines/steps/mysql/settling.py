"""How the transaction of a batch ended whose commit was not confirmed: by which of its rows are still there."""

from __future__ import annotations

from collections import Counter

from export_pipelines.catalog import BatchRow, ExportRow, Ranges
from export_pipelines.errors import SourceError
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.steps.batches import batches
from export_pipelines.steps.chain import artifact_at
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Unprovable
from export_pipelines.steps.mysql.deletion import MysqlDeletion
from export_pipelines.steps.mysql.keyless import copies_there
from export_pipelines.steps.mysql.locating import locator
from export_pipelines.steps.mysql.statements import statements
from export_pipelines.steps.receipts import RecordSet, deleted_records, to_ranges
from export_pipelines.windows import Window


def records_gone(ctx: StepContext, session: MysqlSession, batch: BatchRow, row: ExportRow) -> Ranges:
    """Records of a batch whose rows are not in the table as they were: all of them if its transaction was committed,
    none if it was not.

    Users may have touched rows meanwhile, so each counts by itself: one that is there is in the next export, and one
    that is not counts as deleted. Where the table was altered nobody can tell, and all count as deleted: a receipt too
    many costs a comparison at a restore, one missing would cost the rows.
    """
    if row.record is None or row.sequence is None:
        return batch.deleted
    manifest = artifact_at(ctx.archive, ctx.table.id, row.sequence)
    window = Window(row.partition, row.record.window_start, row.record.window_end)
    parts = statements(ctx.table, window, session)
    if parts.delete is None or manifest.identity_file is None:
        return batch.deleted
    try:
        table = MysqlDeletion(ctx, window, parts, parts.delete).table(session, manifest)
    except (Unprovable, SourceError):
        return batch.deleted
    known = _lines(ctx, manifest, deleted_records(ctx, row))
    wanted = {number: line for number, line in known.items() if number in RecordSet(batch.deleted)}
    if manifest.export.identity.key:
        at = locator(session, table, parts.delete, manifest.export.identity.key)
        there = set(at.read(list(wanted.values()), lock=False, matching=False).matched)
        return to_ranges([number for number, line in wanted.items() if line not in there])
    rows = copies_there(session, table, set(wanted.values()))
    gone = _fewer(wanted, Counter(known.values()), rows)
    # A transaction is whole. If most of its rows are gone it was committed, and those that are there came since: equal
    # to others, but in no file.
    return batch.deleted if gone and len(gone) * 2 >= len(wanted) else to_ranges(gone)


def _fewer(wanted: dict[int, bytes], before: Counter[bytes], now: Counter[bytes]) -> list[int]:
    """Records of contents of which the table has fewer rows now than the file has records: so many of each."""
    missing = {line: before[line] - now[line] for line in set(wanted.values())}
    gone = []
    for number, line in wanted.items():
        if missing[line] > 0:
            missing[line] -= 1
            gone.append(number)
    return gone


def _lines(ctx: StepContext, manifest: ArtifactManifest, done: RecordSet) -> dict[int, bytes]:
    """Lines of a sidecar by their numbers, without those in `done`."""
    drop = int(manifest.export.identity.mode == "key")
    with batches(ctx, manifest, done, repeats=False, drop=drop) as found:
        return {n: line for batch in found for line, n in zip(batch.identities, batch.ordinals, strict=True)}
