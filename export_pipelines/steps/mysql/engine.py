"""MySQL and MariaDB as an engine: records written by the server, rows known by key and content, deletion by locking
reads."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from export_pipelines.catalog import BatchRow, ExportRow, Ranges
from export_pipelines.errors import ObjectMissing
from export_pipelines.manifest import Column
from export_pipelines.scratch import scratch_database
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_wire import Columns
from export_pipelines.specs.table import CsvSpec
from export_pipelines.steps import keys
from export_pipelines.steps.chain import artifact_at
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Deletion, Reading
from export_pipelines.steps.keys import PLAIN, KeyCollector, key_digest, parse
from export_pipelines.steps.mysql.deletion import MysqlDeletion
from export_pipelines.steps.mysql.reading import Plan, described, plan, sidecar_lines, text_of
from export_pipelines.steps.mysql.settling import records_gone
from export_pipelines.steps.mysql.statements import MysqlStatements, statements
from export_pipelines.steps.mysql.transactions import lock, table_session, try_lock
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.receipts import deleted_records
from export_pipelines.steps.rows import Keep, RowWriter
from export_pipelines.steps.sidecar import SidecarWriter, read_buckets
from export_pipelines.windows import Window


class MysqlEngine:
    """See `steps.engine.Engine`."""

    @contextmanager
    def reading(self, ctx: StepContext, window: Window) -> Iterator[Reading]:
        """One READ ONLY transaction WITH CONSISTENT SNAPSHOT at REPEATABLE READ."""
        with table_session(ctx, read_only=True) as session, ExitStack() as stack:
            # Cumulative partitions overlap: what one of them writes the others must know first.
            lock(session, ctx.table, "*exports" if ctx.table.spec.cumulative else window.partition, "exported")
            session.begin()
            parts = statements(ctx.table, window, session)
            planned = plan(session, parts, ctx.table.spec.key)
            view = mysql_inspect.snapshot(session)
            if planned.table is not None:
                view = view.model_copy(update={"fingerprint": planned.table.fingerprint})
            yield Reading(
                columns=planned.columns,
                csv=parts.csv,
                select_sql=parts.select.query,
                sha256=parts.sha256,
                source=view,
                identity=planned.identity,
                rows=MysqlRows(session, parts, planned),
                keep=stack.enter_context(_not_yet_archived(ctx, window, planned)),
            )

    def deletion(self, ctx: StepContext, window: Window) -> Deletion | None:
        """The statements are read, and nothing else."""
        with table_session(ctx, read_only=True) as session:
            parts = statements(ctx.table, window, session)
        return MysqlDeletion(ctx, window, parts, parts.delete) if parts.delete else None

    @contextmanager
    def locked(self, ctx: StepContext, window: Window) -> Iterator[None]:
        """By the lock that an export takes."""
        with table_session(ctx, read_only=True) as session:
            lock(session, ctx.table, window.partition, "exported")
            yield

    def deleted(self, ctx: StepContext, batch: BatchRow, row: ExportRow) -> Ranges | None:
        """By the rows: MySQL does not tell how a transaction ended."""
        with table_session(ctx, read_only=True) as session:
            # Its session has the lock for as long as it lives.
            if not try_lock(session, ctx.table, "*"):
                return None
            session.begin()
            return records_gone(ctx, session, batch, row)


@dataclass(frozen=True)
class MysqlRows:
    """See `steps.engine.Rows`."""

    session: MysqlSession
    parts: MysqlStatements
    plan: Plan

    def write(self, rows: RowWriter, sidecar: SidecarWriter | None) -> None:
        """The records, in the order in which the server gives them; then, in mode `key`, what delete.sql matches."""
        quote = self.parts.csv.quote
        if self.parts.csv.header:
            rows.header(header(self.plan.columns, self.parts.csv))
        if self.plan.identity.mode == "key" and sidecar is not None:
            dialect = self.parts.csv.model_copy(update={"header": False})
            with keys.collector(self.plan.columns, self.plan.identity.key, dialect) as collected:
                self.session.stream(self.plan.query, lambda found: self._take(found, rows, collected), quote=quote)
                self._write_sidecar(collected, sidecar)
            return
        take = self._take_lines if self.plan.identity.mode == "record" else self._take
        self.session.stream(self.plan.query, lambda found: take(found, rows), quote=quote)

    def _take(self, found: Columns, rows: RowWriter, collected: KeyCollector | None = None) -> None:
        records = [record + b"\n" for record in found[-1]]
        if collected is not None:
            collected.add(records)
        rows.add(None, records)

    def _take_lines(self, found: Columns, rows: RowWriter) -> None:
        # Where the record is the content, it stands in its place.
        lines = sidecar_lines(found, keyed=bool(self.plan.identity.key))
        rows.add(lines, [record + b"\n" for record in found[-1]])

    def _write_sidecar(self, collected: KeyCollector, sidecar: SidecarWriter) -> None:
        """Read the rows that delete.sql matches, in the session's snapshot, and write those that are in the file."""
        delete, table = self.parts.delete, self.plan.table
        assert delete is not None and table is not None
        columns = described(self.session, table)
        key = text_of([columns[name.lower()] for name in self.plan.identity.key], PLAIN)
        content = text_of(list(columns.values()), PLAIN)

        def take(found: Columns) -> None:
            lines = sidecar_lines(found, keyed=True)
            digests = [key_digest(values, "") for values in parse([key + b"\n" for key in found[0]], PLAIN)]
            pairs = zip(lines, digests, strict=True)
            if wanted := [b"%s,%s" % (line, d.hex().encode()) for line, d in pairs if d and collected.has(d)]:
                sidecar.add(wanted)

        self.session.stream(delete.selection(f"{key}, {content}"), take)


def header(columns: tuple[Column, ...], dialect: CsvSpec) -> bytes:
    """The names of the columns as a record."""
    text = io.StringIO()
    csv.writer(text, delimiter=dialect.delimiter, quotechar=dialect.quote, lineterminator="\n").writerow(
        [column.name for column in columns]
    )
    return text.getvalue().encode()


@contextmanager
def _not_yet_archived(ctx: StepContext, window: Window, planned: Plan) -> Iterator[Keep | None]:
    """Cumulative partitions overlap: a filter for rows that an earlier one holds, by key and content; None for other
    tables. Without a key each record that an earlier one holds stands for one row."""
    if not ctx.table.spec.cumulative or planned.identity.mode != "record":
        yield None
        return
    with scratch_database() as database:
        database.execute("CREATE TABLE seen (identity BLOB PRIMARY KEY, rows INTEGER) WITHOUT ROWID")
        latest = {row.partition: row for row in ctx.catalog.exports(ctx.table.id) if not row.given_up}
        for row in latest.values():
            if row.partition != window.partition and row.record is not None and row.record.identity.mode == "record":
                _remember(ctx, row, database)
        query = "SELECT 1 FROM seen WHERE identity = ?"
        if not planned.identity.key:
            query = "UPDATE seen SET rows = rows - 1 WHERE identity = ? AND rows > 0 RETURNING 1"

        def keep(identities: list[bytes], records: list[bytes]) -> list[bool]:
            return [database.execute(query, (identity,)).fetchone() is None for identity in identities]

        yield keep


def _remember(ctx: StepContext, row: ExportRow, database: sqlite3.Connection) -> None:
    """Note the rows of a file that no cleanup has deleted: one that was, and came again, is a new row."""
    assert row.record is not None
    store, proof = ctx.exports, row.record.identity.file
    if row.state == "archived" and row.sequence is not None:
        store, proof = ctx.archive, artifact_at(ctx.archive, ctx.table.id, row.sequence).identity_file
    if proof is None:
        return
    done = deleted_records(ctx, row)
    number = 0
    add = "INSERT INTO seen VALUES (?, 1) ON CONFLICT (identity) DO UPDATE SET rows = rows + 1"
    try:
        with open_stored(store, proof, ctx.keyring) as stream:
            for bucket, raw in read_buckets(stream, row.record.identity):
                lines = [(line,) for n, line in enumerate(raw.splitlines(), start=number) if n not in done]
                number += bucket.rows
                database.executemany(add, lines)
    except ObjectMissing:
        now = ctx.catalog.exports(ctx.table.id, row.partition, expired=True)
        if not any(each.id == row.id and each.given_up for each in now):
            raise
