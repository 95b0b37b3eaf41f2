"""How the transaction of a batch ended whose commit was not confirmed."""

from __future__ import annotations

from export_pipelines.catalog import BatchRow, ExportRow
from export_pipelines.errors import SourceError
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import Session
from export_pipelines.steps import chain
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Unprovable
from export_pipelines.steps.postgres.proof import conditions, identities_by, proof_of
from export_pipelines.steps.postgres.statements import statements
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.receipts import RecordSet
from export_pipelines.steps.sidecar import read_buckets
from export_pipelines.windows import Window


def status(session: Session, batch: BatchRow, row: ExportRow) -> str | None:
    """committed, aborted or in progress, by the server's own word; None if it does not know (any more)."""
    session.begin()
    view = inspect.snapshot(session)
    session.rollback()
    source = row.record.source if row.record else None
    if source is None or (view.system_identifier, view.timeline) != (source.system_identifier, source.timeline):
        return None
    try:
        return (
            str(found)
            if (found := session.one("SELECT pg_xact_status(%s::text::xid8)", (batch.source_xid,))[0])
            else None
        )
    except SourceError:
        return None


def rows_still_there(ctx: StepContext, session: Session, batch: BatchRow, row: ExportRow) -> bool:
    """Whether the rows of a batch are still in the source: then its transaction did not commit.

    They are looked for by identity where that is sound (a failover in order does not change it), else by content. Where
    neither can tell, the transaction counts as committed: a receipt too many costs a comparison at a restore, one
    missing would cost the rows.
    """
    if row.record is None or row.sequence is None:
        return False
    manifest = chain.artifact_at(ctx.archive, ctx.table.id, row.sequence)
    wanted = RecordSet(batch.deleted)
    if batch.proof != "content" and _same_files(session, manifest):
        return _present(ctx, session, manifest, wanted)
    window = Window(row.partition, row.record.window_start, row.record.window_end)
    try:
        parts = statements(ctx.table, window, session)
        with proof_of(ctx, manifest, parts, RecordSet(), by_content=True) as proof:
            found = sum(number in wanted for each in proof.batches for number in each.ordinals)
    except Unprovable:
        return False
    # Others may have deleted some meanwhile, and equal rows stand for each other.
    return found * 2 > len(wanted)


def _same_files(session: Session, manifest: ArtifactManifest) -> bool:
    """Whether the relation still has the file nodes that it had at the export."""
    identity = manifest.export.identity
    try:
        tree = inspect.relation_tree(session, identity.relation, only=identity.only)
    except SourceError:
        return False
    files = {(relation.oid, relation.relfilenode) for relation in manifest.export.source.relations}
    return bool(files) and files == {(relation.oid, relation.relfilenode) for relation in tree.relations}


def _present(ctx: StepContext, session: Session, manifest: ArtifactManifest, wanted: RecordSet) -> bool:
    """Whether a row version of these records of a sidecar is in the source."""
    identity = manifest.export.identity
    relation = f"{'ONLY ' if identity.only else ''}{identity.relation}"
    number = 0
    if manifest.identity_file is None:
        return False
    with open_stored(ctx.archive, manifest.identity_file, ctx.keyring) as stream:
        for bucket, raw in read_buckets(stream, identity):
            lines = [line for n, line in enumerate(raw.splitlines(), start=number) if n in wanted]
            number += bucket.rows
            lines = [line.rsplit(b",", 2)[0] if identity.mode == "key" else line for line in lines]

            def select(condition: str, columns: str) -> str:
                return f"SELECT {columns} FROM {relation} AS t WHERE {condition}"

            for condition in conditions("t", identity.tableoid, lines):
                if not set(lines).isdisjoint(identities_by(session, select, "t", identity.tableoid, condition)):
                    return True
    return False
