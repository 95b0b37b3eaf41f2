"""What verify asks of the catalog: where chains end, and when each archived file was last found intact or not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class VerificationRow:
    """The last verification of an artifact, by the number of its manifest."""

    sequence: int
    verified_at: datetime
    intact: bool
    problem: str = ""


class Verifications:
    """The part of the catalog that verify uses."""

    def _transaction(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def heads(self, archive_url: str) -> dict[str, tuple[int, str]]:
        """Sequence and SHA-256 of the last entry of each chain in an archive, as far as the catalog knows, by table."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT table_id, sequence, sha256 FROM chain_head WHERE archive_url = %s ORDER BY table_id",
                (archive_url,),
            )
            return {table_id: (sequence, sha256) for table_id, sequence, sha256 in cursor.fetchall()}

    def verifications(self, table_id: str, archive_url: str) -> dict[int, VerificationRow]:
        """The last verification of each artifact of a table, by the number of its manifest."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT sequence, verified_at, intact, problem FROM verification "
                "WHERE table_id = %s AND archive_url = %s",
                (table_id, archive_url),
            )
            return {row[0]: VerificationRow(*row) for row in cursor.fetchall()}

    def note_verifications(
        self, table_id: str, archive_url: str, found: Sequence[VerificationRow], run_id: str
    ) -> None:
        """Note verifications, in place of older ones of the same artifacts; one that is older changes nothing."""
        with self._transaction() as cursor:
            for each in found:
                cursor.execute(
                    "INSERT INTO verification (table_id, archive_url, sequence, verified_at, intact, problem, run_id) "
                    "VALUES (%s, %s, %s, %s, %s, %s, %s) "
                    "ON CONFLICT (table_id, archive_url, sequence) DO UPDATE SET verified_at = excluded.verified_at, "
                    "intact = excluded.intact, problem = excluded.problem, run_id = excluded.run_id "
                    "WHERE verification.verified_at <= excluded.verified_at",
                    (table_id, archive_url, each.sequence, each.verified_at, each.intact, each.problem[:2000], run_id),
                )
