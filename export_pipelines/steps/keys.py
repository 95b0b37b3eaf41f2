"""Proof by key, for exports whose rows are not rows of one table (joins, GROUP BY, opaque queries).

While the file is written, the keys of its records are collected on disk. Then, in the same snapshot, the rows that
delete.sql matches are read with their identity, and those whose key is in the file go to the sidecar, with the MD5 of
the whole row: enough to know the row version again, even after the table was rewritten.
"""

from __future__ import annotations

import csv
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from export_pipelines.formats.csv import copy_options
from export_pipelines.manifest import IdentityProof
from export_pipelines.scratch import scratch_database
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.table import CsvSpec
from export_pipelines.sql import Delete, RelationName, identity_columns, quote_identifier
from export_pipelines.steps.identity import IdentityPlan
from export_pipelines.steps.sidecar import SidecarWriter

_BATCH = 2000
# A value may be as long as PostgreSQL's, not only 128 KiB. The limit is one for the whole process; raising it harms
# nobody.
csv.field_size_limit(2**31 - 1)
PLAIN = CsvSpec(header=False)


class KeyCollector:
    """Keys of a file's records, in a scratch database on disk. Memory: some thousand records."""

    def __init__(self, database: sqlite3.Connection, positions: Sequence[int], dialect: CsvSpec) -> None:
        self._database = database
        self._positions = positions
        self._dialect = dialect
        self._header_pending = dialect.header
        self._records: list[bytes] = []
        database.execute("CREATE TABLE file_key (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def tee(self, write: Callable[[bytes], object]) -> Callable[[bytes], None]:
        """A `write` that passes each record on and takes note of its key."""

        def both(record: bytes) -> None:
            write(record)
            self._records.append(record)
            if len(self._records) >= _BATCH:
                self._flush()

        return both

    def write_sidecar(self, session: Session, plan: IdentityPlan, delete: Delete, sidecar: SidecarWriter) -> None:
        """Read the rows that delete.sql matches, in the session's snapshot, and write those that are in the file."""
        self._flush()

        def take(records: list[bytes]) -> None:
            lines = [line for line, key in sidecar_lines(records) if self._has(key)]
            if lines:
                sidecar.add(lines)

        with batched(take) as write:
            session.copy_out(
                delete.selection(selected(plan.relation, plan.tableoid, plan.key)), copy_options(PLAIN), write
            )

    def _has(self, key: bytes | None) -> bool:
        if key is None:
            return False
        return self._database.execute("SELECT 1 FROM file_key WHERE digest = ?", (key,)).fetchone() is not None

    def _flush(self) -> None:
        records, self._records = self._records, []
        if self._header_pending and records:
            self._header_pending = False
            records.pop(0)
        rows = parse(records, self._dialect)
        keys = (key_digest([row[i] for i in self._positions], self._dialect.null) for row in rows)
        self._database.executemany(
            "INSERT OR IGNORE INTO file_key VALUES (?)", ((key,) for key in keys if key is not None)
        )


@contextmanager
def collector(plan: IdentityPlan, dialect: CsvSpec) -> Iterator[KeyCollector]:
    """A collector for an export; its scratch database goes with it."""
    names = [column.name for column in plan.columns]
    with scratch_database() as database:
        yield KeyCollector(database, [names.index(name) for name in plan.key], dialect)


@contextmanager
def batched(take: Callable[[list[bytes]], None]) -> Iterator[Callable[[bytes], None]]:
    """A `write` for COPY that hands records on in lists; what is left is handed on at the end."""
    records: list[bytes] = []

    def write(record: bytes) -> None:
        records.append(record)
        if len(records) >= _BATCH:
            take(records[:])
            records.clear()

    yield write
    if records:
        take(records)


def selected(relation: RelationName | None, tableoid: bool, key: Sequence[str]) -> str:
    """The columns by which rows are known: identity, MD5 of the whole row, key."""
    assert relation is not None
    name = relation.qualifier
    identity = identity_columns(name, tableoid=tableoid)
    return ", ".join([identity, f"md5(ROW({name}.*)::text)", *(f"{name}.{quote_identifier(k)}" for k in key)])


def sidecar_lines(records: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """From records of `selected`: the sidecar's line, and the digest of the key (None if a part of it is NULL)."""
    for record in records:
        # `xmin,"(block,offset)",md5,key…`, perhaps with a tableoid in front.
        cut = record.index(b'",') + 34
        head, text = record[:cut], record[cut + 1 : -1].decode()
        # Quotes are rare in keys; splitting takes a third of the time of the parser.
        values = next(parse([record[cut + 1 :]], PLAIN)) if '"' in text else text.split(",")
        key = key_digest(values, "")
        yield head + b"," + (key.hex().encode() if key else b""), key


def parse(records: Iterable[bytes], dialect: CsvSpec) -> Iterator[list[str]]:
    """Records as lists of text; NULL and the empty string look the same when `null` is empty."""
    text = (record.decode() for record in records)
    rows = csv.reader(text, delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True)
    # A record of one NULL is an empty line, which the reader takes for no value at all.
    return (row or [""] for row in rows)


def key_digest(values: Sequence[str], null: str) -> bytes | None:
    """A key as 16 bytes; None when a part of it is NULL or may be, since NULL proves nothing."""
    if any(value in ("", null) for value in values):
        return None
    # With their lengths, or ("a", "bc") and ("ab", "c") would be one key.
    joined = "".join(f"{len(value)}:{value}" for value in values)
    return hashlib.blake2b(joined.encode(), digest_size=16).digest()


def identity_fields(identity: IdentityProof) -> int:
    """Number of comma-separated pieces that a line's identity has (the ctid has a comma inside)."""
    return 4 if identity.tableoid else 3
