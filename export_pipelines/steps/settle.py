"""Batches whose commit was not confirmed: a crash or a lost connection came between it and our note of it."""

from __future__ import annotations

from export_pipelines.errors import PartitionBusy
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import engine_of


def settle_open_batches(ctx: StepContext, partition: str) -> int:
    """Ask the source how the transactions of unsettled batches ended, and note it; return how many there were.

    Raises:
        PartitionBusy: one of them is still going on.
    """
    open_batches = ctx.catalog.batches(ctx.table.id, partition, states=("committing",))
    if not open_batches:
        return 0
    exports = {row.id: row for row in ctx.catalog.exports(ctx.table.id, partition, expired=True)}
    for batch in open_batches:
        deleted = engine_of(ctx).deleted(ctx, batch, exports[batch.export_id])
        if deleted is None:
            raise PartitionBusy(
                f"a transaction of an earlier cleanup of {ctx.table.id!r} has not ended yet",
                hint="run the cleanup again when it has; the server ends it when its connection is gone",
            )
        ctx.catalog.settle_batch(batch.id, committed=bool(deleted), deleted=deleted)
    return len(open_batches)
