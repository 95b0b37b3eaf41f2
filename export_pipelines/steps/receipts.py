"""Receipts of deletions: from the catalog, batch by batch, into the archive's chain."""

from __future__ import annotations

from bisect import bisect_right
from itertools import groupby, pairwise

from export_pipelines.catalog import BatchRow, ExportRow, Ranges, count
from export_pipelines.manifest import CleanupReceipt
from export_pipelines.steps import chain
from export_pipelines.steps.context import StepContext


def write_receipts(ctx: StepContext, partition: str) -> int:
    """Write a receipt into the chain for committed batches of a partition that have none; return how many entries.

    Crash: a receipt may be written twice, with the same record numbers; that says nothing new and does no harm.
    """
    batches = [b for b in ctx.catalog.batches(ctx.table.id, partition) if b.receipt_sequence is None]
    sequences = {row.id: row.sequence for row in ctx.catalog.exports(ctx.table.id, partition, expired=True)}
    batches.sort(key=lambda batch: (batch.export_id, batch.proof, batch.id))
    written = 0
    for (export_id, proof), group in groupby(batches, key=lambda batch: (batch.export_id, batch.proof)):
        sequence = sequences.get(export_id)
        if sequence is not None:
            _write(ctx, partition, sequence, proof, list(group))
            written += 1
    return written


def _write(ctx: StepContext, partition: str, artifact_sequence: int, proof: str, batches: list[BatchRow]) -> None:
    deleted = merge([r for batch in batches for r in batch.deleted])
    entry, sha256 = chain.append(
        ctx.archive,
        ctx.table.id,
        ctx.catalog.head(ctx.table.id, ctx.archive.url),
        lambda sequence, previous, written: CleanupReceipt(
            sequence=sequence,
            previous_sha256=previous,
            table=ctx.table.id,
            written=written,
            run_id=ctx.run_id,
            partition=partition,
            artifact_sequence=artifact_sequence,
            deleted_rows=count(deleted),
            deleted=tuple(deleted),
            proof=proof,  # type: ignore[arg-type]
            transactions=tuple(str(batch.source_xid) for batch in batches if batch.source_xid),
        ),
        ctx.signer,
    )
    ctx.catalog.advance_head(ctx.table.id, ctx.archive.url, entry.sequence, sha256)
    ctx.catalog.note_receipt([batch.id for batch in batches], entry.sequence)


class RecordSet:
    """A set of record numbers, held as ranges: its size in memory goes by their number, not by that of the records."""

    def __init__(self, ranges: Ranges = []) -> None:  # noqa: B006 - never changed
        self.ranges = merge(ranges)
        self._firsts = [first for first, _ in self.ranges]

    def __len__(self) -> int:
        return count(self.ranges)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self.ranges[at][1]

    def covers(self, first: int, last: int) -> bool:
        """Whether it has every number from first to last."""
        at = bisect_right(self._firsts, first) - 1
        return at >= 0 and last <= self.ranges[at][1]

    def touches(self, first: int, last: int) -> bool:
        """Whether it has any number from first to last."""
        at = bisect_right(self._firsts, last) - 1
        return at >= 0 and self.ranges[at][1] >= first


def merge(ranges: Ranges) -> Ranges:
    """Inclusive ranges, sorted and joined where they touch or overlap."""
    merged: Ranges = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def to_ranges(numbers: list[int]) -> Ranges:
    """Numbers, in any order, as inclusive ranges."""
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return [(numbers[0], numbers[-1])]
    ordered = sorted(set(numbers))
    gaps = [(before, after) for before, after in pairwise(ordered) if after != before + 1]
    firsts, lasts = [after for _, after in gaps], [before for before, _ in gaps]
    return list(zip(ordered[:1] + firsts, lasts + ordered[-1:], strict=True))


def deleted_records(ctx: StepContext, row: ExportRow) -> RecordSet:
    """Record numbers of a file whose rows were deleted by earlier cleanups."""
    batches = ctx.catalog.batches(ctx.table.id, row.partition)
    return RecordSet([deleted for batch in batches if batch.export_id == row.id for deleted in batch.deleted])
