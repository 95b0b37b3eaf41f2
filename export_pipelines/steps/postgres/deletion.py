"""Deletion of the rows that archived files are proved to hold, by the identities of their versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from export_pipelines.catalog import ExportRow
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sql import Delete
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Deleted, Matched, Seen
from export_pipelines.steps.postgres.batches import delete_batch, matching, refused_side_effects, size_of
from export_pipelines.steps.postgres.left import left
from export_pipelines.steps.postgres.proof import proof_of
from export_pipelines.steps.postgres.statements import Statements
from export_pipelines.steps.postgres.transactions import table_session
from export_pipelines.steps.receipts import RecordSet
from export_pipelines.windows import Window


@dataclass(frozen=True)
class PostgresDeletion:
    """See `steps.engine.Deletion`."""

    ctx: StepContext
    window: Window
    parts: Statements
    statement: Delete

    @property
    def sql(self) -> str:
        return self.statement.statement("<identity of an archived row>", "ctid, xmin")

    def delete(self, row: ExportRow, manifest: ArtifactManifest, done: RecordSet) -> Iterator[Deleted]:
        ctx = self.ctx
        with (
            proof_of(ctx, manifest, self.parts, done) as proof,
            table_session(ctx, read_only=False) as session,
        ):
            yield Deleted(0, proof.kind)
            for batch in proof.batches:
                yield Deleted(delete_batch(ctx, session, self.statement, row, proof, batch), proof.kind)

    def match(self, row: ExportRow, manifest: ArtifactManifest, done: RecordSet, seen: Seen) -> Iterator[Matched]:
        ctx, statement = self.ctx, self.statement
        with proof_of(ctx, manifest, self.parts, done) as proof:
            yield Matched(0, 0, proof.kind)
            for batch in proof.batches:
                with table_session(ctx, read_only=True) as session:
                    session.begin()
                    refusals = tuple(refused_side_effects(ctx, session, statement))
                    found = seen.new(matching(session, statement, proof, batch))
                    size = size_of(session, statement, proof, batch) if found else 0
                    yield Matched(len(found), size, proof.kind, refusals)

    def left(self, latest: ArtifactManifest) -> tuple[int, int]:
        return left(self.ctx, self.parts, self.statement, latest)
