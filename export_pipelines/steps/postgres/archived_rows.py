"""Cumulative partitions overlap: rows that an earlier partition holds, and that are still in the source, are known by
their identity and not written again.

Where identities no longer count (the table was rewritten, or the server is another), they are known by their content,
as a cleanup knows them then: each record of a file stands for one row. What a cleanup could not prove so is written
again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import ObjectMissing
from export_pipelines.formats.compression import decompressed
from export_pipelines.manifest import ExportRecord, FileProof
from export_pipelines.scratch import scratch_database
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.table import Compression
from export_pipelines.steps.chain import artifact_at
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Unprovable
from export_pipelines.steps.postgres.identity import IdentityPlan
from export_pipelines.steps.postgres.proof import place_now, place_of, refuse_vague_content
from export_pipelines.steps.postgres.statements import Statements
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.receipts import deleted_records
from export_pipelines.steps.records import records_in
from export_pipelines.steps.rows import Keep
from export_pipelines.steps.sidecar import read_buckets
from export_pipelines.stores.base import Store
from export_pipelines.windows import Window


@contextmanager
def not_yet_archived(
    ctx: StepContext, window: Window, session: Session, parts: Statements, plan: IdentityPlan
) -> Iterator[Keep | None]:
    """A filter that says which rows no other partition of a cumulative table holds; None for other tables."""
    if not ctx.table.spec.cumulative or plan.mode != "row" or plan.relation is None:
        yield None
        return
    now = place_now(session, plan.relation)
    moved = []
    with scratch_database() as database:
        known = _Known(database)
        for row in _latest_generations(ctx):
            record = row.record
            if row.partition == window.partition or record is None or not record.rows or record.identity.mode != "row":
                continue
            if record.identity.tableoid == plan.tableoid and place_of(record).holds(now):
                _remember_identities(ctx, row, record, known)
            else:
                moved.append((row, record))
        if moved and _content_tells(ctx, session, parts, plan):
            for row, record in moved:
                _remember_contents(ctx, row, record, parts, plan, known)
        yield known.keep


@dataclass
class _Known:
    """The rows of other partitions."""

    database: sqlite3.Connection
    by_content: bool = False

    def __post_init__(self) -> None:
        self.database.execute("CREATE TABLE seen (identity BLOB PRIMARY KEY) WITHOUT ROWID")
        self.database.execute("CREATE TABLE content (mark BLOB PRIMARY KEY, rows INTEGER) WITHOUT ROWID")

    def add_identities(self, lines: list[bytes]) -> None:
        self.database.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((line,) for line in lines))

    def add_contents(self, found: list[bytes]) -> None:
        self.by_content = True
        query = "INSERT INTO content VALUES (?, 1) ON CONFLICT (mark) DO UPDATE SET rows = rows + 1"
        self.database.executemany(query, ((_mark(record),) for record in found))

    def keep(self, identities: list[bytes], found: list[bytes]) -> list[bool]:
        if not self.by_content:
            return [not self._seen(identity) for identity in identities]
        pairs = zip(identities, found, strict=True)
        return [not self._seen(identity) and not self._used_up(record) for identity, record in pairs]

    def _seen(self, identity: bytes) -> bool:
        return self.database.execute("SELECT 1 FROM seen WHERE identity = ?", (identity,)).fetchone() is not None

    def _used_up(self, record: bytes) -> bool:
        """Whether a record of another partition stands for this row; each stands for one."""
        query = "UPDATE content SET rows = rows - 1 WHERE mark = ? AND rows > 0"
        return self.database.execute(query, (_mark(record),)).rowcount > 0


def _mark(record: bytes) -> bytes:
    return hashlib.blake2b(record, digest_size=16).digest()


def _latest_generations(ctx: StepContext) -> list[ExportRow]:
    """Of each partition the last file that is not given up. Rows of one that is, and that are still in the source, are
    written again: no file that a cleanup could rely on has them."""
    rows = [row for row in ctx.catalog.exports(ctx.table.id) if not row.given_up]
    return list({row.partition: row for row in rows}.values())


def _content_tells(ctx: StepContext, session: Session, parts: Statements, plan: IdentityPlan) -> bool:
    """Whether a cleanup could know rows by the content of their records."""
    if plan.relation is None:
        return False
    try:
        refuse_vague_content(ctx, session, parts, plan.relation)
    except Unprovable:
        return False
    return True


def _remember_identities(ctx: StepContext, row: ExportRow, record: ExportRecord, known: _Known) -> None:
    store, _, proof = _files(ctx, row, record)
    if proof is None:
        return
    with _unless_given_up(ctx, row), open_stored(store, proof, ctx.keyring) as stream:
        for _, lines in read_buckets(stream, record.identity):
            known.add_identities(lines.splitlines())


def _remember_contents(
    ctx: StepContext, row: ExportRow, record: ExportRecord, parts: Statements, plan: IdentityPlan, known: _Known
) -> None:
    """Remember the records of rows that no cleanup has deleted yet, if what the query gives now can be compared."""
    store, proof, _ = _files(ctx, row, record)
    unread = proof.encryption and not ctx.keyring.identities()
    same_dialect = record.csv.model_copy(update={"header": parts.csv.header}) == parts.csv
    same_columns = [column.name for column in record.columns] == [column.name for column in plan.columns]
    deleted = deleted_records(ctx, row)
    if unread or not record.exact or not same_dialect or not same_columns or len(deleted) == record.rows:
        return
    number = 0
    with _unless_given_up(ctx, row), open_stored(store, proof, ctx.keyring) as stream:
        for found in records_in(record, decompressed(stream, Compression(record.compression), name=proof.key)):
            numbered = enumerate(found, start=number)
            known.add_contents([each for n, each in numbered if n not in deleted])
            number += len(found)


def _files(ctx: StepContext, row: ExportRow, record: ExportRecord) -> tuple[Store, FileProof, FileProof | None]:
    """Where a file and its sidecar are: in the archive, or still in the store of the exports."""
    if row.state == "archived" and row.sequence is not None:
        manifest = artifact_at(ctx.archive, ctx.table.id, row.sequence)
        return ctx.archive, manifest.file, manifest.identity_file
    return ctx.exports, record.file, record.identity.file


@contextmanager
def _unless_given_up(ctx: StepContext, row: ExportRow) -> Iterator[None]:
    """Pass over a file that retention has given up since we asked for the generations."""
    try:
        yield
    except ObjectMissing:
        now = ctx.catalog.exports(ctx.table.id, row.partition, expired=True)
        if not any(each.id == row.id and each.given_up for each in now):
            raise
