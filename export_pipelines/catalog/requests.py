"""Requests for exports on demand: what the catalog knows of each, and how they change.

    pending → processing → succeeded | failed | cancelled
       ↓__________________________________________↑

A request is a question (specs/query.py) to one version of the data. Who asks the same while its answer is under way or
fresh joins it: a request has subscribers. Every change is one transaction with its entry in the audit log.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime
from typing import Any

from psycopg2.extras import Json

from export_pipelines.catalog.audit import Actor, AuditEntry, write_audit
from export_pipelines.catalog.deliveries import enqueue_deliveries
from export_pipelines.catalog.request_rows import (
    COLUMNS,
    LIVE,
    SELECT,
    Asked,
    Fault,
    Queue,
    RequestFile,
    RequestRow,
    Subscriber,
    fault_of,
    row_of,
)
from export_pipelines.catalog.request_work import RequestWork
from export_pipelines.errors import RequestError
from export_pipelines.specs.query import Query, describe

__all__ = [
    "LIVE",
    "Asked",
    "Fault",
    "Queue",
    "RequestFile",
    "RequestRow",
    "Requests",
    "Subscriber",
    "fault_of",
    "request_id",
]


class Requests(RequestWork):
    """The part of the catalog that exports on demand use. Safe for threads; one transaction a call."""

    # Asking

    def ask(
        self,
        query: Query,
        data_version: str,
        asked: Asked,
        *,
        secret: bytes,
        fresh_since: datetime | None = None,
        estimate: int | None = None,
        round_robin: bool = False,
        max_pending: int = 1_000,
    ) -> tuple[RequestRow, bool]:
        """The request that answers a question, and whether it was made just now. Who asks is subscribed to it.

        One that is under way is joined, and so is one that succeeded, whose file is there, of the same data version;
        with `fresh_since` it must have begun to read no earlier than that instead.

        Raises:
            RequestError: the user has `max_pending` requests under way already.
        """
        with self._pool.transaction() as cursor:
            row = self._reusable(cursor, query, data_version, fresh_since)
            made = row is None
            if row is None:
                self._refuse_flood(cursor, asked.actor.who, max_pending)
                turn = self._turn(cursor, asked.actor.who) if round_robin else 0
                row = self._insert(cursor, query, data_version, asked, secret, estimate, turn)
            self._subscribe(cursor, row, asked)
            if row.state == "succeeded":
                enqueue_deliveries(cursor, row.id, row.state, asked.actor.who)
            self._tell(cursor, row.id)
            detail = {"dataset": query.dataset, "summary": row.summary, "origin": asked.origin}
            write_audit(
                cursor, asked.actor, AuditEntry("request.created" if made else "request.joined", row.id, detail=detail)
            )
            return row, made

    def _reusable(
        self, cursor: Any, query: Query, data_version: str, fresh_since: datetime | None
    ) -> RequestRow | None:
        cursor.execute(
            # The same question asked a hundred times at once is one request.
            "SELECT pg_advisory_xact_lock(hashtextextended(%(digest)s, 1)); "
            + SELECT
            + "WHERE query_sha256 = %(digest)s AND ((state IN ('pending', 'processing') AND cancel_at IS NULL "
            "AND (data_version = %(version)s OR %(since)s::timestamptz IS NOT NULL)) "
            "OR (state = 'succeeded' AND expired_at IS NULL AND expires_at > now() + interval '1 minute' "
            "AND CASE WHEN %(since)s::timestamptz IS NULL THEN data_version = %(version)s "
            "ELSE started_at >= %(since)s END)) ORDER BY number DESC LIMIT 1",
            {"digest": query.sha256, "since": fresh_since, "version": data_version},
        )
        found = cursor.fetchone()
        return row_of(found) if found else None

    def _refuse_flood(self, cursor: Any, username: str, most: int) -> None:
        cursor.execute(
            "SELECT count(*) AS n FROM request WHERE created_by = %s AND state IN ('pending', 'processing')",
            (username,),
        )
        if (number := cursor.fetchone()["n"]) >= most:
            raise RequestError(
                f"{username} has {number} requests under way, and {most} are allowed",
                hint="wait until some have ended, or cancel some",
            )

    def _turn(self, cursor: Any, username: str) -> int:
        """How many of the user's own requests are before the next one: the first ones of all users come first."""
        cursor.execute(
            "SELECT greatest(coalesce((SELECT max(turn) + 1 FROM request WHERE created_by = %(user)s "
            "AND state IN ('pending', 'processing')), 0), "
            # Who comes later does not overtake what waits in this round already.
            "coalesce((SELECT min(turn) FROM request WHERE state = 'pending'), 0)) AS turn",
            {"user": username},
        )
        return int(cursor.fetchone()["turn"])

    def _insert(
        self,
        cursor: Any,
        query: Query,
        data_version: str,
        asked: Asked,
        secret: bytes,
        estimate: int | None,
        turn: int,
    ) -> RequestRow:
        # One that is being cancelled is let go of: its question may be asked anew at once.
        cursor.execute(
            "UPDATE request SET state = 'cancelled', finished_at = clock_timestamp() "
            "WHERE query_sha256 = %s AND data_version = %s AND state IN ('pending', 'processing')",
            (query.sha256, data_version),
        )
        cursor.execute(
            "SELECT count(*) AS n FROM request WHERE query_sha256 = %s AND data_version = %s",
            (query.sha256, data_version),
        )
        values = {
            "id": request_id(secret, query, data_version, cursor.fetchone()["n"]),
            "environment": query.environment,
            "dataset": query.dataset,
            "query": Json(query.model_dump(mode="json")),
            "query_sha256": query.sha256,
            "data_version": data_version,
            "summary": describe(query),
            "created_by": asked.actor.who,
            "origin": asked.origin,
            "turn": turn,
            "estimate": estimate,
        }
        names = ", ".join(values)
        places = ", ".join(f"%({name})s" for name in values)
        cursor.execute(f"INSERT INTO request ({names}) VALUES ({places}) RETURNING {COLUMNS}", values)
        return row_of(cursor.fetchone())

    def _subscribe(self, cursor: Any, row: RequestRow, asked: Asked) -> None:
        cursor.execute(
            "INSERT INTO subscription (request_id, username, email, webhook) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (request_id, username) DO UPDATE SET cancelled_at = NULL, "
            "email = coalesce(excluded.email, subscription.email), "
            "webhook = coalesce(excluded.webhook, subscription.webhook)",
            (row.id, asked.actor.who, asked.email, asked.webhook),
        )

    # Looking

    def get(self, request: str) -> RequestRow | None:
        """A request, None if there is none."""
        found = self._pool.rows(SELECT + "WHERE id = %(id)s", {"id": request})
        return row_of(found[0]) if found else None

    def subscribers(self, request: str) -> list[Subscriber]:
        """Those who still want the answer."""
        found = self._pool.rows(
            "SELECT username, email, webhook FROM subscription WHERE request_id = %(id)s AND cancelled_at IS NULL "
            "ORDER BY created_at",
            {"id": request},
        )
        return [Subscriber(**each) for each in found]

    def find(
        self,
        *,
        username: str | None = None,
        environment: str | None = None,
        dataset: str | None = None,
        states: tuple[str, ...] = (),
        before: int | None = None,
        limit: int = 50,
    ) -> list[RequestRow]:
        """Requests, newest first, those that a user is or was subscribed to if one is named. `before` is the number of
        the last one of the page before."""
        found = self._pool.rows(
            SELECT + "WHERE (%(before)s::bigint IS NULL OR number < %(before)s) "
            "AND (%(dataset)s::text IS NULL OR dataset = %(dataset)s) "
            "AND (%(environment)s::text IS NULL OR environment = %(environment)s) "
            "AND (cardinality(%(states)s::text[]) = 0 OR state = ANY(%(states)s)) "
            "AND (%(user)s::text IS NULL OR EXISTS (SELECT FROM subscription s "
            "WHERE s.request_id = request.id AND s.username = %(user)s)) ORDER BY number DESC LIMIT %(limit)s",
            {
                "before": before,
                "dataset": dataset,
                "environment": environment,
                "states": list(states),
                "user": username,
                "limit": limit,
            },
        )
        return [row_of(each) for each in found]

    def place(self, row: RequestRow) -> int:
        """How many requests are before one that waits, those at work included."""
        found = self._pool.rows(
            "SELECT count(*) AS n FROM request WHERE state = 'processing' "
            "OR (state = 'pending' AND (turn, number) < (%(turn)s, %(number)s))",
            {"turn": row.turn, "number": row.number},
        )
        return int(found[0]["n"])

    def places(self) -> dict[str, int]:
        """How many requests are before each that waits."""
        found = self._pool.rows(
            "SELECT id, state, row_number() OVER (ORDER BY state = 'pending', turn, number) - 1 AS place FROM request "
            "WHERE state IN ('pending', 'processing')"
        )
        return {each["id"]: int(each["place"]) for each in found if each["state"] == "pending"}

    def takes_part(self, request: str, username: str) -> bool:
        """Whether a user is or was a subscriber."""
        found = self._pool.rows(
            "SELECT 1 FROM subscription WHERE request_id = %(id)s AND username = %(user)s",
            {"id": request, "user": username},
        )
        return bool(found)

    def queue(self) -> Queue:
        """How long the queue is, and how long requests took of late."""
        found = self._pool.rows(
            "SELECT state, count(*) AS n, extract(epoch FROM now() - min(created_at))::float8 AS age FROM request "
            "WHERE state IN ('pending', 'processing') GROUP BY state"
        )
        states = {each["state"]: each for each in found}
        took = self._pool.rows(
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)) AS s "
            "FROM (SELECT started_at, finished_at FROM request WHERE state = 'succeeded' "
            "ORDER BY number DESC LIMIT 50) AS t"
        )
        waiting = states.get("pending")
        return Queue(
            pending=int(waiting["n"]) if waiting else 0,
            processing=int(states["processing"]["n"]) if "processing" in states else 0,
            oldest_seconds=max(0.0, float(waiting["age"])) if waiting else 0.0,
            typical_seconds=float(took[0]["s"]) if took[0]["s"] is not None else None,
        )

    def note_estimate(self, request: str, estimate: int) -> None:
        """Note how many rows are expected, where that was not known when it was asked."""
        self._change(
            request, "estimate = %(estimate)s", {"estimate": estimate}, LIVE, None, extra="AND estimate IS NULL"
        )

    # Cancelling

    def leave(self, request: str, actor: Actor, *, operator: bool = False) -> RequestRow | None:
        """Somebody does not want the answer any more: they are no subscriber from now on, and when nobody is left, the
        request is cancelled, at once if it waits. An operator ends it for all. None if there is no such request, or
        the user has no part in it. What has ended stays as it is.
        """
        with self._pool.transaction() as cursor:
            cursor.execute(SELECT + "WHERE id = %s FOR UPDATE", (request,))
            found = cursor.fetchone()
            if found is None:
                return None
            row = row_of(found)
            cursor.execute(
                "UPDATE subscription SET cancelled_at = coalesce(cancelled_at, clock_timestamp()) "
                "WHERE request_id = %s AND (username = %s OR %s) RETURNING username",
                (request, actor.who, operator and row.live),
            )
            mine = cursor.fetchall()
            if not mine and not operator:
                return None
            cursor.execute(
                "SELECT count(*) AS n FROM subscription WHERE request_id = %s AND cancelled_at IS NULL", (request,)
            )
            if not row.live or cursor.fetchone()["n"]:
                write_audit(cursor, actor, AuditEntry("request.left", request))
                return row
            cursor.execute(
                "UPDATE request SET cancel_at = coalesce(cancel_at, clock_timestamp()), "
                "finished_at = CASE WHEN state = 'pending' THEN clock_timestamp() END, "
                "state = CASE WHEN state = 'pending' THEN 'cancelled' ELSE state END "
                f"WHERE id = %s RETURNING {COLUMNS}",
                (request,),
            )
            row = row_of(cursor.fetchone())
            self._tell(cursor, request)
            action = "request.cancelled" if row.state == "cancelled" else "request.cancelling"
            write_audit(cursor, actor, AuditEntry(action, request))
            return row


def request_id(secret: bytes, query: Query, data_version: str, number: int) -> str:
    """Id of the answer to a question: 26 characters that nobody can guess without the secret, the same for the same
    question, data version and `number` of earlier answers to it (cancelled, failed or expired ones)."""
    text = f"{query.sha256}\n{data_version}\n{number}".encode()
    return base64.b32encode(hmac.digest(secret, text, hashlib.sha256)[:16]).decode().rstrip("=").lower()
