"""What the chain says of files that were given up."""

from __future__ import annotations

from export_pipelines.catalog import ExportRow
from export_pipelines.manifest import ExpireTombstone
from export_pipelines.steps import chain
from export_pipelines.steps.context import StepContext
from export_pipelines.stores.base import Store


def expiry_of(ctx: StepContext, row: ExportRow) -> str:
    """When and why an export was given up, to follow its name in a sentence."""
    if row.expire_sequence is None:
        return "is being expired"
    entry, _ = chain.read_entry(ctx.archive, ctx.table.id, row.expire_sequence)
    return told(entry) if isinstance(entry, ExpireTombstone) else "was expired"


def told(tombstone: ExpireTombstone) -> str:
    """When and why, to follow the name of what expired."""
    return f"was expired on {tombstone.written:%Y-%m-%d} ({tombstone.reason})"


def last_tombstones(archive: Store, table_id: str) -> dict[str, ExpireTombstone]:
    """The last tombstone of each partition that has one. Raises IntegrityError if the chain is broken."""
    return {entry.partition: entry for entry in chain.entries(archive, table_id) if isinstance(entry, ExpireTombstone)}
