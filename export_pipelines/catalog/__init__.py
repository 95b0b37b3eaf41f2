"""The metadata database: what was exported, archived, cleaned up and held.

The archive's manifests are the proof; the catalog is the index that people and sensors ask, and the register of
attempts under way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from time import monotonic
from typing import Any

import psycopg2

from export_pipelines.catalog.dumps import Dumps
from export_pipelines.catalog.failures import catalog_error
from export_pipelines.catalog.fence import Fence, Ranges, count
from export_pipelines.catalog.holds import HoldRow, Holds
from export_pipelines.catalog.verifications import VerificationRow, Verifications
from export_pipelines.errors import CatalogError, PartitionBusy, SourceError
from export_pipelines.manifest import ExportRecord
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sql import quote_identifier

__all__ = ["BatchRow", "Catalog", "CleanupRow", "ExportRow", "HoldRow", "Ranges", "VerificationRow", "count"]

_PING_AFTER_SECONDS = 20


@dataclass(frozen=True)
class ExportRow:
    """One generation of a partition, or an attempt at it."""

    id: int
    table_id: str
    partition: str
    generation: int
    attempt: str
    state: str
    """running, failed, exported (published, not yet archived), archived (its manifest is written), expiring (to be
    given up by retention: its files may be there or not) or expired (they are gone)."""
    store_url: str
    file_key: str
    record: ExportRecord | None
    archive_url: str | None
    sequence: int | None
    run_id: str
    started_at: datetime
    finished_at: datetime | None
    error: str | None
    expire_sequence: int | None = None
    """Number of its tombstone in the chain, once it is expired."""

    @property
    def given_up(self) -> bool:
        """Whether it proves nothing any more."""
        return self.state in ("expiring", "expired")


@dataclass(frozen=True)
class BatchRow:
    """One transaction of a cleanup: which record numbers of an export's sidecar it deleted, inclusive ranges."""

    id: int
    export_id: int
    bucket: int
    state: str
    source_xid: int
    rows: int
    deleted: Ranges
    proof: str
    receipt_sequence: int | None


@dataclass(frozen=True)
class CleanupRow:
    """The last cleanup of a partition."""

    table_id: str
    partition: str
    complete: bool
    result: dict[str, Any]
    run_id: str
    at: datetime


_EXPORT = (
    "SELECT id, table_id, partition, generation, attempt, state, store_url, file_key, record, archive_url, sequence, "
    "run_id, started_at, finished_at, error, expire_sequence FROM export "
)
_PUBLISHED = ("exported", "archived", "expiring")
_BATCH = "SELECT id, export_id, bucket, state, source_xid, rows, deleted, proof, receipt_sequence FROM cleanup_batch "


# Of a deletion whose note a crash of the server took back, a restore would not know.
_DURABLE = "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"


class Catalog(Holds, Fence, Verifications, Dumps):
    """Access to the catalog. Connects when first used, and again after a lost connection; one transaction a call."""

    def __init__(self, url: str, schema: str = "export_pipelines") -> None:
        self._source = PostgresSource(url)
        self._schema = schema
        self._connection: Any = None
        self._used = 0.0
        self._lock = Lock()

    # Exports

    def begin_export(self, table_id: str, partition: str, attempt: str, store_url: str, run_id: str) -> tuple[int, int]:
        """Register an attempt; return its id and its generation, one more than the last that was published.

        Raises:
            PartitionBusy: another attempt took the generation at the same moment.
        """
        with self._transaction() as cursor:
            # Numbers of attempts that came to nothing are used again.
            cursor.execute(
                "UPDATE export SET generation = -id WHERE table_id = %s AND partition = %s AND generation > 0 "
                "AND state IN ('running', 'failed')",
                (table_id, partition),
            )
            try:
                cursor.execute(
                    "INSERT INTO export (table_id, partition, generation, attempt, state, store_url, file_key, run_id) "
                    "SELECT %(t)s, %(p)s, coalesce(max(generation), 0) + 1, %(a)s, 'running', %(s)s, '', %(r)s "
                    "FROM export WHERE table_id = %(t)s AND partition = %(p)s AND generation > 0 "
                    "RETURNING id, generation",
                    {"t": table_id, "p": partition, "a": attempt, "s": store_url, "r": run_id},
                )
            except psycopg2.errors.UniqueViolation as error:
                raise PartitionBusy(f"{table_id} partition {partition} is being exported by another run") from error
            export_id, generation = cursor.fetchone()
            return export_id, generation

    def finish_export(self, export_id: int, record: ExportRecord) -> None:
        """Note that the file is published: the commit point of an export.

        Raises:
            PartitionBusy: the attempt was taken for dead, and another has begun.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE export SET state = 'exported', record = %s, rows = %s, file_key = %s, finished_at = now() "
                "WHERE id = %s AND state = 'running' AND generation = %s RETURNING id",
                (record.model_dump_json(), record.rows, record.file.key, export_id, record.generation),
            )
            if cursor.fetchone() is None:
                raise PartitionBusy(f"{record.table} partition {record.partition} was taken over by another run")

    def fail_export(self, export_id: int, error: str) -> None:
        """Note that an attempt came to nothing."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE export SET state = 'failed', error = %s, finished_at = now() "
                "WHERE id = %s AND state = 'running'",
                (error[:2000], export_id),
            )

    def give_up_export(self, export_id: int, reason: str) -> None:
        """Note that a published export will never be archived."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE export SET state = 'failed', error = %s WHERE id = %s AND state = 'exported'",
                (reason, export_id),
            )

    def exports(
        self, table_id: str, partition: str | None = None, *, published: bool = True, expired: bool = False
    ) -> list[ExportRow]:
        """Generations by partition and number; with `expired` those, too, whose files are gone; with `published=False`
        also attempts that run or failed."""
        with self._transaction() as cursor:
            cursor.execute(
                _EXPORT + "WHERE table_id = %s AND (%s::text IS NULL OR partition = %s) "
                "AND (NOT %s OR state = ANY(%s)) ORDER BY partition, generation, id",
                (table_id, partition, partition, published, [*_PUBLISHED, *(["expired"] if expired else [])]),
            )
            return [_export_row(row) for row in cursor.fetchall()]

    def latest_export(self, table_id: str, before: datetime | None = None) -> ExportRow | None:
        """The published generation of the newest partition, of those whose window ends by `before` if given."""
        with self._transaction() as cursor:
            cursor.execute(
                _EXPORT + "WHERE table_id = %s AND state IN ('exported', 'archived') "
                "AND (%s::timestamptz IS NULL OR (record->>'window_end')::timestamptz <= %s) "
                "ORDER BY (record->>'window_end')::timestamptz DESC NULLS LAST, generation DESC LIMIT 1",
                (table_id, before, before),
            )
            row = cursor.fetchone()
            return _export_row(row) if row else None

    def tables_of_file(self, store_url: str, file_key: str) -> set[str]:
        """Ids of the tables with a published export of that name in a store."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT DISTINCT table_id FROM export WHERE store_url = %s AND file_key = %s AND state = ANY(%s)",
                (store_url, file_key, list(_PUBLISHED)),
            )
            return {row[0] for row in cursor.fetchall()}

    def mark_archived(self, export_id: int, archive_url: str, sequence: int) -> None:
        """Note the place of an export's manifest in the chain."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE export SET state = 'archived', archive_url = %s, sequence = %s "
                "WHERE id = %s AND state IN ('exported', 'archived')",
                (archive_url, sequence, export_id),
            )

    # Chains

    def head(self, table_id: str, archive_url: str) -> tuple[int, str] | None:
        """Sequence and SHA-256 of the last entry that was written to a chain, as far as the catalog knows."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT sequence, sha256 FROM chain_head WHERE table_id = %s AND archive_url = %s",
                (table_id, archive_url),
            )
            row = cursor.fetchone()
            return (row[0], row[1]) if row else None

    def advance_head(self, table_id: str, archive_url: str, sequence: int, sha256: str) -> None:
        """Note a new last entry; an older one than is known changes nothing."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO chain_head VALUES (%s, %s, %s, %s) ON CONFLICT (table_id, archive_url) DO UPDATE "
                "SET sequence = excluded.sequence, sha256 = excluded.sha256 "
                "WHERE chain_head.sequence < excluded.sequence",
                (table_id, archive_url, sequence, sha256),
            )

    # Cleanups

    def settle_batch(self, batch_id: int, *, committed: bool, deleted: Ranges | None = None) -> None:
        """Note how the source's transaction ended, and what it `deleted` if that is less than was registered.

        Not durable at once: after a crash the batch is settled again.
        """
        with self._transaction() as cursor:
            cursor.execute("SET LOCAL synchronous_commit TO off")
            cursor.execute(
                "UPDATE cleanup_batch SET state = %s, deleted = coalesce(%s, deleted), rows = coalesce(%s, rows) "
                "WHERE id = %s",
                (
                    "committed" if committed else "rolled back",
                    json.dumps(deleted) if deleted else None,
                    count(deleted) if deleted else None,
                    batch_id,
                ),
            )

    def batches(self, table_id: str, partition: str, *, states: Sequence[str] = ("committed",)) -> list[BatchRow]:
        """Batches of a partition's cleanups, in their order."""
        with self._transaction() as cursor:
            cursor.execute(
                _BATCH + "WHERE export_id IN (SELECT id FROM export WHERE table_id = %s AND partition = %s) "
                "AND state = ANY(%s) ORDER BY id",
                (table_id, partition, list(states)),
            )
            return [_batch_row(row) for row in cursor.fetchall()]

    def note_receipt(self, batch_ids: Sequence[int], sequence: int) -> None:
        """Note that the archive has the receipt of these batches."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE cleanup_batch SET receipt_sequence = %s WHERE id = ANY(%s)", (sequence, list(batch_ids))
            )

    def save_cleanup(
        self, table_id: str, partition: str, *, complete: bool, result: Mapping[str, Any], run_id: str
    ) -> None:
        """Note the outcome of the last cleanup of a partition."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO cleanup (table_id, partition, complete, result, run_id) VALUES (%s, %s, %s, %s, %s) "
                "ON CONFLICT (table_id, partition) DO UPDATE SET complete = excluded.complete, "
                "result = excluded.result, run_id = excluded.run_id, at = now()",
                (table_id, partition, complete, json.dumps(result, default=str), run_id),
            )

    def cleanups(self, table_id: str) -> dict[str, CleanupRow]:
        """The last cleanup of each partition of a table."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT table_id, partition, complete, result, run_id, at FROM cleanup WHERE table_id = %s", (table_id,)
            )
            return {row[1]: CleanupRow(*row) for row in cursor.fetchall()}

    # Locks

    @contextmanager
    def lock(self, name: str, doing: str) -> Iterator[None]:
        """Hold a named lock in a transaction of its own, which frees it when it ends in whatever way.

        Raises:
            PartitionBusy: another holds it; `doing` says at what.
        """
        with self._source.session() as session:
            try:
                session.begin()
                free = session.one(
                    "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", (f"{self._schema} {name}",)
                )
            except SourceError as error:
                raise CatalogError(f"catalog: {error.message}", hint=error.hint, transient=error.transient) from error
            if not free[0]:
                raise PartitionBusy(
                    f"another run is {doing}, so this one did nothing", hint="see the runs in progress in Dagster"
                )
            yield

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        with self._lock, suppress(psycopg2.Error):
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._lock:
            try:
                with self._open() as connection, connection.cursor() as cursor:
                    # Local to the transaction, as a transaction pooler needs.
                    cursor.execute(f"SET LOCAL search_path TO {quote_identifier(self._schema)}; {_DURABLE}")
                    yield cursor
            except psycopg2.Error as error:
                lost = self._connection is None or self._connection.closed
                raise catalog_error(error, self._source.name, transient=bool(lost)) from error

    def _alive(self) -> bool:
        """Whether the connection still answers; asked only after a while, since proxies cut idle ones."""
        idle, self._used = monotonic() - self._used, monotonic()
        if self._connection.closed or idle < _PING_AFTER_SECONDS:
            return not self._connection.closed
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            self._connection.rollback()
        except psycopg2.Error:
            return False
        return True

    def _open(self) -> Any:
        if self._connection is not None and not self._alive():
            self._connection.close()
            self._connection = None
        if self._connection is None:
            try:
                self._connection = self._source.connect()
            except SourceError as error:
                raise CatalogError(f"catalog: {error.message}", hint=error.hint, transient=error.transient) from error
        return self._connection


def _export_row(row: Sequence[Any]) -> ExportRow:
    values = list(row)
    values[8] = ExportRecord.model_validate(row[8]) if row[8] else None
    return ExportRow(*values)


def _batch_row(row: Sequence[Any]) -> BatchRow:
    values = list(row)
    values[6] = [(first, last) for first, last in row[6]]
    return BatchRow(*values)
