"""Deletion from tables without a key: rows are known by their content alone, and equal rows stand for each other.

A pass reads and locks rows that delete.sql matches, some at a time, and looks their contents up among those of the
archived file, each of which serves for one row. The DELETE selects by the MD5 of the content, as often as contents were
proved: which of several equal rows it takes makes no difference.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from hashlib import md5
from typing import TYPE_CHECKING

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import CleanupRefused
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.scratch import scratch_database
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_inspect import BaseTable
from export_pipelines.sources.mysql_types import quoted
from export_pipelines.sources.mysql_wire import Columns
from export_pipelines.steps.batches import batches
from export_pipelines.steps.chain import artifact_at
from export_pipelines.steps.engine import Deleted, Seen
from export_pipelines.steps.keys import PLAIN
from export_pipelines.steps.mysql.reading import content_digests, described, text_of
from export_pipelines.steps.receipts import RecordSet

if TYPE_CHECKING:
    from export_pipelines.steps.mysql.deletion import MysqlDeletion

_MODE = "record"


def delete_keyless(
    deletion: MysqlDeletion, session: MysqlSession, row: ExportRow, manifest: ArtifactManifest, done: RecordSet
) -> Iterator[Deleted]:
    """Delete, some rows at a time, those whose content the file has. Rows that it has not are read again in each
    transaction; where they are many, more are read at once."""
    limit = deletion.ctx.table.spec.cleanup.batch_rows
    number = 0
    with scratch_database() as database:
        _remember(deletion, row, manifest, done, database)
        while True:
            outcome = _Pass(deletion, session, row, manifest, database, limit, number)
            rows = deletion.patiently(session, outcome.run)
            number += 1
            yield Deleted(rows, _MODE)
            if outcome.read < limit:
                return
            if rows * 2 < limit:
                limit *= 2


class _Pass:
    """One transaction."""

    def __init__(
        self,
        deletion: MysqlDeletion,
        session: MysqlSession,
        row: ExportRow,
        manifest: ArtifactManifest,
        database: sqlite3.Connection,
        limit: int,
        number: int,
    ) -> None:
        self.deletion = deletion
        self.session = session
        self.row = row
        self.manifest = manifest
        self.database = database
        self.limit = limit
        self.number = number
        self.read = 0

    def run(self) -> int:
        session, deletion = self.session, self.deletion
        session.begin()
        table = deletion.table(session, self.manifest)
        deletion.refuse_side_effects(session, table)
        content = _content(session, table)
        query = f"{deletion.statement.selection(content)} LIMIT {self.limit} FOR UPDATE"
        found = Counter(_marks(session, query))
        self.read = found.total()
        wanted: dict[str, int] = {}
        ordinals: list[int] = []
        for (digest, mark), rows in found.items():
            if numbers := self._records(digest, rows):
                wanted[mark] = len(numbers)
                ordinals += numbers
        if not ordinals:
            session.rollback()
            return 0
        deleted = sum(self._delete(table, content, wanted))
        if deleted != len(ordinals):
            raise CleanupRefused(
                f"the deletion from {table.sql} took {deleted} rows where {len(ordinals)} were proved, and was rolled "
                "back",
                hint="a trigger may redirect it; this is a reason to look closely",
            )
        deletion.commit(session, self.row, self.number, sorted(ordinals), _MODE)
        self.database.executemany("DELETE FROM content WHERE ordinal = ?", ((n,) for n in ordinals))
        return len(ordinals)

    def _records(self, digest: bytes, rows: int) -> list[int]:
        """Records of the file that say the same, at most so many."""
        query = "SELECT ordinal FROM content WHERE digest = ? LIMIT ?"
        return [n for (n,) in self.database.execute(query, (digest, rows))]

    def _delete(self, table: BaseTable, content: str, marks: dict[str, int]) -> Iterator[int]:
        """Delete so many rows of each content. Those of which all rows go together are deleted by one statement."""
        there = dict(self._copies(table, content, marks))
        whole = [mark for mark, rows in marks.items() if there.get(mark) == rows]
        if whole:
            listed = ", ".join(f"'{mark}'" for mark in whole)
            yield self.session.change(f"DELETE FROM {table.sql} WHERE MD5({content}) IN ({listed})")
        for mark in marks.keys() - set(whole):
            query = f"DELETE FROM {table.sql} WHERE MD5({content}) = '{mark}' LIMIT {marks[mark]}"
            yield self.session.change(query)

    def _copies(self, table: BaseTable, content: str, marks: dict[str, int]) -> Iterator[tuple[str, int]]:
        """How many rows the table has of each content, all of them locked."""
        listed = ", ".join(f"'{mark}'" for mark in marks)
        query = f"SELECT MD5({content}) FROM {table.sql} WHERE MD5({content}) IN ({listed}) FOR UPDATE"
        yield from Counter(text.decode() for text in _contents(self.session, query)).items()


def match_keyless(
    deletion: MysqlDeletion,
    session: MysqlSession,
    table: BaseTable,
    row: ExportRow,
    manifest: ArtifactManifest,
    done: RecordSet,
    seen: Seen,
) -> int:
    """How many rows would be deleted that are not in `seen`, where copies of a row have numbers."""
    rows = 0
    copies: Counter[bytes] = Counter()
    with scratch_database() as database:
        _remember(deletion, row, manifest, done, database)
        query = "DELETE FROM content WHERE ordinal = (SELECT ordinal FROM content WHERE digest = ? LIMIT 1)"
        for digest, _ in _marks(session, deletion.statement.selection(_content(session, table))):
            copy = b"%s#%d" % (digest, copies[digest])
            copies[digest] += 1
            if copy not in seen.identities and database.execute(query, (digest,)).rowcount:
                rows += len(seen.new({copy}))
    return rows


def copies_there(session: MysqlSession, table: BaseTable, wanted: set[bytes]) -> Counter[bytes]:
    """How many rows the table has of each of these contents."""
    found = _marks(session, f"SELECT {_content(session, table)} FROM {table.sql}")
    return Counter(digest for digest, _ in found if digest in wanted)


def _remember(
    deletion: MysqlDeletion, row: ExportRow, manifest: ArtifactManifest, done: RecordSet, database: sqlite3.Connection
) -> None:
    """Note the records of a file that prove a row. Of an earlier generation these are no records that stand in the
    latest one as well: they are of the same rows, and would take an equal one that came late for one of these."""
    database.execute("CREATE TABLE content (ordinal INTEGER PRIMARY KEY, digest BLOB)")
    with batches(deletion.ctx, manifest, done, repeats=False) as found:
        for batch in found:
            pairs = zip(batch.ordinals, batch.identities, strict=True)
            database.executemany("INSERT INTO content VALUES (?, ?)", pairs)
    database.execute("CREATE INDEX by_digest ON content (digest)")
    latest = _latest(deletion, row)
    if latest is None or latest.identity_file is None or latest.export.identity.key:
        return
    with batches(deletion.ctx, latest, RecordSet(), repeats=False) as found:
        for batch in found:
            database.executemany("DELETE FROM content WHERE digest = ?", ((each,) for each in batch.identities))


def _latest(deletion: MysqlDeletion, row: ExportRow) -> ArtifactManifest | None:
    """The latest generation of the partition of a file, if that is another."""
    ctx = deletion.ctx
    archived = [each for each in ctx.catalog.exports(ctx.table.id, row.partition) if each.state == "archived"]
    if not archived or archived[-1].id == row.id or archived[-1].sequence is None:
        return None
    return artifact_at(ctx.archive, ctx.table.id, archived[-1].sequence)


def _content(session: MysqlSession, table: BaseTable) -> str:
    return text_of(list(described(session, table).values()), PLAIN)


def _marks(session: MysqlSession, query: str) -> list[tuple[bytes, str]]:
    """Of each content that a query gives its digest, and its MD5 as the server has it. The texts themselves may be
    large, and are not kept."""
    found: list[tuple[bytes, str]] = []

    def take(columns: Columns) -> None:
        texts = columns[-1]
        marks = [md5(text, usedforsecurity=False).hexdigest() for text in texts]
        found.extend(zip(content_digests(quoted(texts, PLAIN.quote)), marks, strict=True))

    session.stream(query, take, raw=True)
    return found


def _contents(session: MysqlSession, query: str) -> list[bytes]:
    found: list[bytes] = []
    session.stream(query, lambda columns: found.extend(columns[-1]))
    return found
