"""How the transaction of a batch ended whose commit was not confirmed: by whether its rows are still there."""

from __future__ import annotations

from export_pipelines.catalog import BatchRow, ExportRow
from export_pipelines.errors import SourceError
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.steps.batches import batches
from export_pipelines.steps.chain import artifact_at
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Unprovable
from export_pipelines.steps.mysql.deletion import MysqlDeletion
from export_pipelines.steps.mysql.keyless import digests_there
from export_pipelines.steps.mysql.locating import locator
from export_pipelines.steps.mysql.statements import statements
from export_pipelines.steps.receipts import RecordSet
from export_pipelines.windows import Window


def rows_still_there(ctx: StepContext, session: MysqlSession, batch: BatchRow, row: ExportRow) -> bool:
    """Whether a row of a batch is in the table as it was: then its transaction did not commit.

    Where the table was altered meanwhile nobody can tell, and the transaction counts as committed: a receipt too many
    costs a comparison at a restore, one missing would cost the rows.
    """
    if row.record is None or row.sequence is None:
        return False
    manifest = artifact_at(ctx.archive, ctx.table.id, row.sequence)
    window = Window(row.partition, row.record.window_start, row.record.window_end)
    parts = statements(ctx.table, window, session)
    if parts.delete is None or manifest.identity_file is None:
        return False
    deletion = MysqlDeletion(ctx, window, parts, parts.delete)
    try:
        table = deletion.table(session, manifest)
    except (Unprovable, SourceError):
        return False
    wanted = _wanted(ctx, manifest, RecordSet(batch.deleted))
    if not manifest.export.identity.key:
        # Others may have deleted some meanwhile, and equal rows stand for each other.
        return digests_there(deletion, session, table, wanted) * 2 > len(wanted)
    at = locator(session, table, parts.delete, manifest.export.identity.key)
    return not set(wanted).isdisjoint(at.read(wanted, lock=False, matching=False).matched)


def _wanted(ctx: StepContext, manifest: ArtifactManifest, deleted: RecordSet) -> list[bytes]:
    """The lines of these records."""
    drop = int(manifest.export.identity.mode == "key")
    with batches(ctx, manifest, RecordSet(), repeats=False, drop=drop) as found:
        return [
            line
            for batch in found
            for line, number in zip(batch.identities, batch.ordinals, strict=True)
            if number in deleted
        ]
