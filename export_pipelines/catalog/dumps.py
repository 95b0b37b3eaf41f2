"""What the catalog knows of dumps, which are beside a table's partitions: nothing of them is archived or cleaned up.

A dump's files are noted before the first is published (`publishing`), so that after a crash each is known for what it
is: all of them there, or none wanted. `report_entry` has the files that were entered in a table of reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from export_pipelines.errors import PartitionBusy
from export_pipelines.manifest import Column, ExportRecord, FileProof, Snapshot
from export_pipelines.specs.dump import Container
from export_pipelines.specs.format import CsvSpec, FormatSpec
from export_pipelines.specs.model import SpecModel


class DumpPage(SpecModel):
    """One CSV of a dump: the whole of it, a page in a file, or an entry of its ZIP. Raw is before compression."""

    name: str
    rows: int
    row_digest: str
    raw_size: int
    raw_sha256: str


class DumpRecord(SpecModel):
    """What one batch of a dump wrote. Of a ZIP, the raw size and digest of its file are those before encryption."""

    table: str
    range: str
    window_start: datetime | None
    window_end: datetime | None
    rows: int
    row_digest: str
    columns: tuple[Column, ...]
    csv: CsvSpec
    """Dialect of the records."""
    layout: FormatSpec | None = None
    """What the records were turned into; absent where they are the files."""
    compression: str
    container: Container
    files: tuple[FileProof, ...]
    """In the order of their rows."""
    pages: tuple[DumpPage, ...]
    """One a file, or the entries of the one ZIP."""
    source: Snapshot
    select_sql: str
    select_sha256: str
    definition_version: str
    software: dict[str, str]
    recipients: tuple[str, ...] = ()
    run_id: str
    started: datetime
    finished: datetime
    unchanged: bool = False
    """True when the files would be those of the last dump of the range; nothing new was published."""

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(file.size for file in self.files)

    @property
    def raw_size(self) -> int:
        """Bytes of CSV."""
        return sum(page.raw_size for page in self.pages)


@dataclass(frozen=True)
class DumpRow:
    """A dump of one range, or an attempt at it."""

    id: int
    table_id: str
    range: str
    state: str
    """running, publishing (its files may be there or not), published or failed."""
    store_url: str
    record: DumpRecord | None


@dataclass(frozen=True)
class PublishedFile:
    """A published file, as an entry in a table of reports tells of it."""

    store_url: str
    key: str
    size: int
    rows: int
    start: datetime | None
    end: datetime | None
    finished: datetime


_DUMP = "SELECT id, table_id, range, state, store_url, record FROM dump "
_NOT_ENTERED = "NOT EXISTS (SELECT FROM report_entry r WHERE r.store_url = f.store_url AND r.file_key = f.key)"


class Dumps:
    """The part of the catalog that dumps and reports use."""

    def _transaction(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def begin_dump(self, table_id: str, name: str, store_url: str, run_id: str) -> int:
        """Register an attempt at a range; its id."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO dump (table_id, range, state, store_url, run_id) VALUES (%s, %s, 'running', %s, %s) "
                "RETURNING id",
                (table_id, name, store_url, run_id),
            )
            return int(cursor.fetchone()[0])

    def publishing_dump(self, dump_id: int, record: DumpRecord) -> None:
        """Note the files that are about to be published. Raises PartitionBusy: the attempt was taken for dead."""
        self._move(
            dump_id,
            "UPDATE dump SET state = 'publishing', record = %s WHERE id = %s AND state = 'running' RETURNING id",
            (record.model_dump_json(), dump_id),
        )

    def finish_dump(self, dump_id: int) -> None:
        """Note that all files are published. Raises PartitionBusy: the attempt was taken for dead, and given up."""
        self._move(
            dump_id,
            "UPDATE dump SET state = 'published', finished_at = coalesce(finished_at, now()) "
            "WHERE id = %s AND state IN ('publishing', 'published') RETURNING id",
            (dump_id,),
        )

    def _move(self, dump_id: int, statement: str, values: tuple[Any, ...]) -> None:
        with self._transaction() as cursor:
            cursor.execute(statement, values)
            if cursor.fetchone() is None:
                raise PartitionBusy(f"dump {dump_id} was taken over by another run")

    def fail_dump(self, dump_id: int, error: str, *, publishing: bool = False) -> None:
        """Note that an attempt came to nothing; with `publishing`, one too whose files were being published, and of
        which none is there any more."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE dump SET state = 'failed', error = %s, finished_at = now() "
                "WHERE id = %s AND (state = 'running' OR (%s AND state = 'publishing'))",
                (error[:2000], dump_id, publishing),
            )

    def dumps(self, table_id: str, *states: str, name: str | None = None) -> list[DumpRow]:
        """Dumps of a table in some states (all without any), of one range if it is given, oldest first."""
        with self._transaction() as cursor:
            cursor.execute(
                _DUMP + "WHERE table_id = %s AND (%s::text IS NULL OR range = %s) "
                "AND (cardinality(%s::text[]) = 0 OR state = ANY(%s)) ORDER BY id",
                (table_id, name, name, list(states), list(states)),
            )
            return [_dump_row(row) for row in cursor.fetchall()]

    def not_entered(self, table_id: str) -> list[PublishedFile]:
        """Published files of a table's exports and dumps that no table of reports is known to have, oldest first."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT f.store_url, f.record FROM (SELECT store_url, file_key AS key, record, id FROM export "
                f"WHERE table_id = %s AND state IN ('exported', 'archived') AND record IS NOT NULL) f "
                f"WHERE {_NOT_ENTERED} ORDER BY f.id",
                (table_id,),
            )
            found = [_of_export(url, ExportRecord.model_validate(record)) for url, record in cursor.fetchall()]
            cursor.execute(
                "SELECT DISTINCT f.store_url, f.record, f.id FROM (SELECT d.store_url, d.record, d.id, "
                "file->>'key' AS key FROM dump d, jsonb_array_elements(d.record->'files') file "
                f"WHERE table_id = %s AND state = 'published') f WHERE {_NOT_ENTERED} ORDER BY f.id",
                (table_id,),
            )
            rows = [(url, DumpRecord.model_validate(record)) for url, record, _ in cursor.fetchall()]
            return found + [each for url, record in rows for each in files_of(url, record)]

    def note_entered(self, table_id: str, files: Iterable[PublishedFile]) -> None:
        """Note that a table of reports has these files."""
        with self._transaction() as cursor:
            for each in files:
                cursor.execute(
                    "INSERT INTO report_entry (store_url, file_key, table_id) VALUES (%s, %s, %s) "
                    "ON CONFLICT DO NOTHING",
                    (each.store_url, each.key, table_id),
                )


def files_of(store_url: str, record: DumpRecord) -> list[PublishedFile]:
    """The files of a dump."""
    rows = [record.rows] if record.container is Container.ZIP else [page.rows for page in record.pages]
    return [
        PublishedFile(store_url, file.key, file.size, number, record.window_start, record.window_end, record.finished)
        for file, number in zip(record.files, rows, strict=True)
    ]


def _of_export(store_url: str, record: ExportRecord) -> PublishedFile:
    file = record.file
    return PublishedFile(
        store_url, file.key, file.size, record.rows, record.window_start, record.window_end, record.finished
    )


def _dump_row(row: tuple[Any, ...]) -> DumpRow:
    dump_id, table_id, name, state, url, record = row
    return DumpRow(dump_id, table_id, name, state, url, DumpRecord.model_validate(record) if record else None)
