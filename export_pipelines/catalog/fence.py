"""The fence between cleanup and expire: rows of `export`, locked in the transaction that decides.

A cleanup may delete rows only while the file that proves them is `archived`; an expire may give a file up only while
no batch that it proves is under way. Each is decided with the same row locked, in one transaction of the catalog that
ends with the decision written down, so that neither relies on a lock that dies with its connection.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from export_pipelines.catalog.holds import first_on, in_force
from export_pipelines.errors import CleanupRefused, ExpireRefused, Held, PartitionBusy

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class _Locked:
    """An export whose row is locked until the transaction ends."""

    table_id: str
    partition: str
    generation: int
    state: str
    start: datetime | None
    end: datetime | None

    def __str__(self) -> str:
        return f"partition {self.partition} of {self.table_id!r}"


class Fence:
    """The part of the catalog that begins batches and expires."""

    def _transaction(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def begin_batch(
        self,
        export_id: int,
        bucket: int,
        source_xid: int,
        deleted: Ranges,
        proof: str,
        run_id: str,
        *,
        cumulative: bool = False,
    ) -> int:
        """Register, before the source's commit, what its transaction has deleted; return the batch's id.

        Raises:
            CleanupRefused: the export is no longer archived but expired, or about to be.
            Held: a hold concerns it. Rows of a partition of a `cumulative` table may be of any time before its end.
        """
        with self._transaction() as cursor:
            export = _locked(cursor, export_id, "SHARE", cumulative=cumulative)
            if export.state != "archived":
                raise CleanupRefused(
                    f"generation {export.generation} of {export} is {export.state}, so it proves nothing any more",
                    hint="export and archive the partition again; what is still in the source is taken then",
                )
            if hold := first_on(in_force(cursor, export.table_id), export.partition, export.start, export.end):
                raise Held(f"{export} is {hold}", hint="`export-pipelines unhold` releases it")
            cursor.execute(
                "INSERT INTO cleanup_batch (export_id, bucket, state, source_xid, rows, deleted, proof, run_id) "
                "VALUES (%s, %s, 'committing', %s, %s, %s, %s, %s) RETURNING id",
                (export_id, bucket, source_xid, count(deleted), json.dumps(deleted), proof, run_id),
            )
            return int(cursor.fetchone()[0])

    def begin_expire(self, export_id: int, deleted: int, *, cumulative: bool = False) -> None:
        """Fence an export off: from now on no cleanup takes it for a proof. `deleted` is how many of its rows were
        known to be deleted from the source when it was decided.

        Crash: it stays `expiring`; the next expire goes on if it decides the same.

        Raises:
            PartitionBusy: a batch of a cleanup is not settled.
            ExpireRefused: it is held, not archived, or a cleanup has deleted more of its rows meanwhile.
        """
        with self._transaction() as cursor:
            # No hold may come between our look and our decision: whoever places it must see what was decided.
            cursor.execute("LOCK TABLE hold IN SHARE MODE")
            export = _locked(cursor, export_id, "UPDATE", cumulative=cumulative)
            if export.state not in ("archived", "expiring"):
                raise ExpireRefused(f"generation {export.generation} of {export} is {export.state}, and not archived")
            cursor.execute(
                "SELECT count(*) FILTER (WHERE state = 'committing'), "
                "coalesce(sum(rows) FILTER (WHERE state = 'committed'), 0) FROM cleanup_batch WHERE export_id = %s",
                (export_id,),
            )
            unsettled, committed = cursor.fetchone()
            if unsettled:
                raise PartitionBusy(f"{export} is being cleaned up, so nothing of it was expired")
            if committed != deleted:
                raise ExpireRefused(f"a cleanup has deleted rows of {export} meanwhile", hint="run the expire again")
            if hold := first_on(in_force(cursor, export.table_id), export.partition, export.start, export.end):
                raise ExpireRefused(f"{export} is {hold}", hint="`export-pipelines unhold` releases it")
            cursor.execute("UPDATE export SET state = 'expiring' WHERE id = %s", (export_id,))

    def deletions(self, table_id: str) -> dict[int, int]:
        """Rows that cleanups are known to have deleted, by the id of the export that proved them."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT export_id, sum(cleanup_batch.rows) FROM cleanup_batch JOIN export ON export.id = export_id "
                "WHERE table_id = %s AND cleanup_batch.state = 'committed' GROUP BY export_id",
                (table_id,),
            )
            return {export_id: int(rows) for export_id, rows in cursor.fetchall()}

    def unsettled(self, table_id: str) -> list[str]:
        """Partitions with a batch whose commit is not confirmed."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT DISTINCT partition FROM cleanup_batch JOIN export ON export.id = export_id "
                "WHERE table_id = %s AND cleanup_batch.state = 'committing' ORDER BY partition",
                (table_id,),
            )
            return [row[0] for row in cursor.fetchall()]

    def damaged(self, table_id: str, archive_url: str) -> set[int]:
        """Numbers of the manifests whose files the last verification found damaged."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT sequence FROM verification WHERE table_id = %s AND archive_url = %s AND NOT intact",
                (table_id, archive_url),
            )
            return {row[0] for row in cursor.fetchall()}

    def finish_expire(self, export_id: int, sequence: int) -> None:
        """Note that the files of an export are gone, and the number of its tombstone in the chain."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE export SET state = 'expired', expire_sequence = %s WHERE id = %s", (sequence, export_id)
            )


def _locked(cursor: Any, export_id: int, mode: str, *, cumulative: bool) -> _Locked:
    cursor.execute(
        "SELECT table_id, partition, generation, state, (record->>'window_start')::timestamptz, "
        f"(record->>'window_end')::timestamptz FROM export WHERE id = %s FOR {mode}",
        (export_id,),
    )
    table_id, partition, generation, state, start, end = cursor.fetchone()
    return _Locked(table_id, partition, generation, state, None if cumulative else start, end)


def count(ranges: Ranges) -> int:
    """Number of records in inclusive ranges."""
    return sum(last - first + 1 for first, last in ranges)
