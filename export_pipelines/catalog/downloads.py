"""Downloads of requests' files: who, how much, and whether one is under way, so that its file stays."""

from __future__ import annotations

from export_pipelines.catalog.audit import Actor, AuditEntry, write_audit
from export_pipelines.catalog.pool import CatalogPool


class Downloads:
    """The downloads in the catalog. Safe for threads; one transaction a call."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

    def begin(self, request: str, actor: Actor, *, what: str = "all") -> int | None:
        """Note that a download begins; from now on the file does not expire while it moves. Its id; None if the file is
        not there (any more)."""
        with self._pool.transaction() as cursor:
            # The lock puts it before or after `Requests.expired`, never beside.
            cursor.execute(
                "SELECT id FROM request WHERE id = %s AND state = 'succeeded' AND expired_at IS NULL FOR SHARE",
                (request,),
            )
            if cursor.fetchone() is None:
                return None
            cursor.execute(
                "INSERT INTO download (request_id, username, address) VALUES (%s, %s, %s) RETURNING id",
                (request, actor.who, actor.address or None),
            )
            number = int(cursor.fetchone()["id"])
            detail = {"download": number, "bytes": what}
            write_audit(cursor, actor, AuditEntry("download.started", request, detail=detail))
            return number

    def beat(self, download: int, size: int) -> None:
        """Note that it moves: `size` bytes were sent so far."""
        self._pool.rows(
            "UPDATE download SET bytes = %(size)s, beat_at = clock_timestamp() WHERE id = %(id)s",
            {"size": size, "id": download},
        )

    def finish(self, download: int, request: str, actor: Actor, size: int, *, complete: bool, reason: str = "") -> None:
        """Note its end: all was sent, or it was broken off after `size` bytes."""
        with self._pool.transaction() as cursor:
            cursor.execute(
                "UPDATE download SET bytes = %s, beat_at = clock_timestamp(), finished_at = clock_timestamp() "
                "WHERE id = %s AND finished_at IS NULL",
                (size, download),
            )
            detail = {"download": download, "bytes": size, **({"reason": reason} if reason else {})}
            outcome = "ok" if complete else "failed"
            write_audit(cursor, actor, AuditEntry("download.finished", request, outcome, detail))

    def active(self) -> int:
        """How many are under way."""
        found = self._pool.rows(
            "SELECT count(*) AS n FROM download WHERE finished_at IS NULL AND beat_at > now() - interval '5 minutes'"
        )
        return int(found[0]["n"])
