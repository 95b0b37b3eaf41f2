"""Proof by key, for exports whose rows are not rows of one table (joins, GROUP BY, opaque queries).

While the file is written, the keys of its records are collected on disk. Then, in the same snapshot, the rows that
delete.sql matches are read with their identity, and those whose key is in the file go to the sidecar, with a digest of
the whole row: enough to know the row version again.
"""

from __future__ import annotations

import csv
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from export_pipelines.manifest import Column
from export_pipelines.scratch import scratch_database
from export_pipelines.specs.table import CsvSpec

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
            self.add([record])

        return both

    def add(self, records: list[bytes]) -> None:
        """Take note of the keys of records."""
        self._records += records
        if len(self._records) >= _BATCH:
            self._flush()

    def has(self, key: bytes | None) -> bool:
        """Whether a record of the file has the key."""
        self._flush()
        if key is None:
            return False
        return self._database.execute("SELECT 1 FROM file_key WHERE digest = ?", (key,)).fetchone() is not None

    def _flush(self) -> None:
        if not self._records:
            return
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
def collector(columns: Sequence[Column], key: Sequence[str], dialect: CsvSpec) -> Iterator[KeyCollector]:
    """A collector for an export; its scratch database goes with it."""
    names = [column.name for column in columns]
    with scratch_database() as database:
        yield KeyCollector(database, [names.index(name) for name in key], dialect)


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
