"""Notices of ended requests, in an outbox: made in the transaction that ends a request, delivered by the worker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from export_pipelines.catalog.audit import SYSTEM, AuditEntry, write_audit
from export_pipelines.catalog.pool import CatalogPool

RETRY_SECONDS = (10, 60, 300, 1_800, 7_200)
"""Waits before each further attempt; after the last one it is given up."""

LEASE_SECONDS = 300
"""For so long a delivery is its taker's; if that is gone by then, another one takes it."""


@dataclass(frozen=True)
class Delivery:
    """A notice to one subscriber."""

    id: int
    request_id: str
    username: str
    kind: str
    """mail or webhook."""
    event: str
    """request.succeeded or request.failed."""
    target: str
    """Address, or URL, which may be a secret."""
    state: str
    """waiting, delivered or given up."""
    attempts: int
    next_at: datetime
    error: str | None
    created_at: datetime
    delivered_at: datetime | None

    @property
    def place(self) -> str:
        """The target without what may be secret: an address, or a URL's scheme and host."""
        return self.target if self.kind == "mail" else "/".join(self.target.split("/")[:3])


_COLUMNS = ", ".join(Delivery.__dataclass_fields__)


def enqueue_deliveries(cursor: Any, request: str, state: str, username: str | None = None) -> None:
    """Within the transaction that ended a request: a delivery for each subscriber (or for that one) who wants to be
    told. There is never more than one for a subscriber, a way and an end."""
    cursor.execute(
        "INSERT INTO delivery (request_id, username, kind, event, target) "
        "SELECT s.request_id, s.username, way.kind, %(event)s, way.target FROM subscription s "
        "CROSS JOIN LATERAL (VALUES ('mail', s.email), ('webhook', s.webhook)) AS way (kind, target) "
        "WHERE s.request_id = %(request)s AND s.cancelled_at IS NULL AND way.target IS NOT NULL "
        "AND (%(user)s::text IS NULL OR s.username = %(user)s) ON CONFLICT DO NOTHING",
        {"event": f"request.{state}", "request": request, "user": username},
    )


class Deliveries:
    """The outbox. Safe for threads; one transaction a call."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

    def claim(self, limit: int = 10, lease_seconds: float = LEASE_SECONDS) -> list[Delivery]:
        """Take deliveries that are due, for so long; each counts as an attempt. No two processes take the same one."""
        found = self._pool.rows(
            "UPDATE delivery SET attempts = attempts + 1, "
            "next_at = clock_timestamp() + make_interval(secs => %(lease)s) "
            "WHERE id IN (SELECT id FROM delivery WHERE state = 'waiting' AND next_at <= clock_timestamp() "
            f"ORDER BY next_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED) RETURNING {_COLUMNS}",
            {"lease": lease_seconds, "limit": limit},
        )
        return [Delivery(**each) for each in found]

    def delivered(self, delivery: Delivery) -> None:
        """Note that it arrived."""
        self._settle(delivery, "state = 'delivered', delivered_at = clock_timestamp(), error = NULL", {}, "ok")

    def failed(self, delivery: Delivery, error: str, *, for_good: bool = False) -> bool:
        """Note that an attempt failed; whether it is given up, at once if `for_good`."""
        if for_good or delivery.attempts > len(RETRY_SECONDS):
            self._settle(delivery, "state = 'given up', error = %(error)s", {"error": error[:1000]}, "failed")
            return True
        self._settle(
            delivery,
            "error = %(error)s, next_at = clock_timestamp() + make_interval(secs => %(wait)s)",
            {"error": error[:1000], "wait": RETRY_SECONDS[delivery.attempts - 1]},
            None,
        )
        return False

    def again(self, number: int) -> bool:
        """Begin anew with one that was given up; whether there is such a one."""
        found = self._pool.rows(
            "UPDATE delivery SET state = 'waiting', attempts = 0, next_at = clock_timestamp() "
            "WHERE id = %(id)s AND state = 'given up' RETURNING id",
            {"id": number},
        )
        return bool(found)

    def _settle(self, delivery: Delivery, assignments: str, values: dict[str, object], outcome: str | None) -> None:
        with self._pool.transaction() as cursor:
            cursor.execute(
                # Who comes back after its lease has nothing to say any more, unless that it has arrived.
                f"UPDATE delivery SET {assignments} WHERE id = %(id)s AND state = 'waiting' "
                "AND (attempts = %(attempts)s OR %(arrived)s)",
                {**values, "id": delivery.id, "attempts": delivery.attempts, "arrived": outcome == "ok"},
            )
            if cursor.rowcount and outcome is not None:
                detail = {"to": delivery.place, "user": delivery.username, "attempts": delivery.attempts}
                error = {"error": values["error"]} if outcome == "failed" else {}
                action = f"notice.{'delivered' if outcome == 'ok' else 'given_up'}"
                entry = AuditEntry(action, delivery.request_id, outcome, {"event": delivery.event, **detail, **error})
                write_audit(cursor, SYSTEM, entry)

    def find(self, *, states: tuple[str, ...] = (), request: str | None = None, limit: int = 100) -> list[Delivery]:
        """Deliveries, newest first; all states when none is named."""
        found = self._pool.rows(
            f"SELECT {_COLUMNS} FROM delivery WHERE (cardinality(%(states)s::text[]) = 0 OR state = ANY(%(states)s)) "
            "AND (%(request)s::text IS NULL OR request_id = %(request)s) ORDER BY id DESC LIMIT %(limit)s",
            {"states": list(states), "request": request, "limit": limit},
        )
        return [Delivery(**each) for each in found]
