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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2.extras import Json

from export_pipelines.catalog.audit import SYSTEM, Actor, AuditEntry, write_audit
from export_pipelines.catalog.deliveries import enqueue_deliveries
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import RequestError
from export_pipelines.manifest import FileProof
from export_pipelines.specs.model import SpecModel
from export_pipelines.specs.query import Query, describe

LIVE = ("pending", "processing")


class RequestFile(SpecModel):
    """The file of a request that succeeded."""

    proof: FileProof
    """As it is stored: key, sizes, digests. Raw is what is downloaded: the file after its compression, before its
    encryption, so that `raw_sha256` is the digest that people check."""
    name: str
    """File name for people."""
    media_type: str
    columns: tuple[str, ...]
    row_digest: str = ""


@dataclass(frozen=True)
class RequestRow:
    """A request. Times are zone-aware."""

    id: str
    number: int
    """Counts all requests, in the order in which they came."""
    environment: str
    dataset: str
    query: Query
    data_version: str
    summary: str
    state: str
    created_by: str
    origin: str
    turn: int
    """What the queue sorts by before `number`; 0 unless users take turns."""
    estimate: int | None
    """Rows that were expected before the work began."""
    rows: int
    bytes: int
    """Bytes of the format, before compression, so far."""
    attempts: int
    run_id: str | None
    error: str | None
    hint: str | None
    store_url: str | None
    file: RequestFile | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    beat_at: datetime | None
    cancel_at: datetime | None
    """When its cancellation was asked for."""
    expires_at: datetime | None
    expired_at: datetime | None

    @property
    def live(self) -> bool:
        """Whether it waits or is at work."""
        return self.state in LIVE


@dataclass(frozen=True)
class Asked:
    """Somebody asks: who, from where, and how they want to be told of the end."""

    actor: Actor
    origin: str = "api"
    """api, page, client or exports."""
    email: str | None = None
    webhook: str | None = None


@dataclass(frozen=True)
class Subscriber:
    """Somebody who wants a request's answer."""

    username: str
    email: str | None
    webhook: str | None


@dataclass(frozen=True)
class Queue:
    """Requests under way."""

    pending: int
    processing: int
    oldest_seconds: float
    """Since the oldest that waits was asked; 0 when none does."""
    typical_seconds: float | None
    """Median run time of the last ones that succeeded."""


_COLUMNS = ", ".join(name for name in RequestRow.__dataclass_fields__)
_SELECT = f"SELECT {_COLUMNS} FROM request "


class Requests:
    """The part of the catalog that exports on demand use. Safe for threads; one transaction a call."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

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
            + _SELECT
            + "WHERE query_sha256 = %(digest)s AND ((state IN ('pending', 'processing') AND cancel_at IS NULL "
            "AND (data_version = %(version)s OR %(since)s::timestamptz IS NOT NULL)) "
            "OR (state = 'succeeded' AND expired_at IS NULL AND expires_at > now() + interval '1 minute' "
            "AND CASE WHEN %(since)s::timestamptz IS NULL THEN data_version = %(version)s "
            "ELSE started_at >= %(since)s END)) ORDER BY number DESC LIMIT 1",
            {"digest": query.sha256, "since": fresh_since, "version": data_version},
        )
        found = cursor.fetchone()
        return _row(found) if found else None

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
        cursor.execute(f"INSERT INTO request ({names}) VALUES ({places}) RETURNING {_COLUMNS}", values)
        return _row(cursor.fetchone())

    def _subscribe(self, cursor: Any, row: RequestRow, asked: Asked) -> None:
        cursor.execute(
            "INSERT INTO subscription (request_id, username, email, webhook) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (request_id, username) DO UPDATE SET cancelled_at = NULL, "
            "email = coalesce(excluded.email, subscription.email), "
            "webhook = coalesce(excluded.webhook, subscription.webhook)",
            (row.id, asked.actor.who, asked.email, asked.webhook),
        )

    def _tell(self, cursor: Any, request: str) -> None:
        cursor.execute("SELECT pg_notify(%s, %s)", (self._pool.channel, request))

    # Looking

    def get(self, request: str) -> RequestRow | None:
        """A request, None if there is none."""
        found = self._pool.rows(_SELECT + "WHERE id = %(id)s", {"id": request})
        return _row(found[0]) if found else None

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
            _SELECT + "WHERE (%(before)s::bigint IS NULL OR number < %(before)s) "
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
        return [_row(each) for each in found]

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

    # The worker's side

    def unsubmitted(self, limit: int = 100, *, without: Sequence[str] = ()) -> list[RequestRow]:
        """Requests that wait and have no run yet, in the order of the queue; not those of some users."""
        found = self._pool.rows(
            _SELECT + "WHERE state = 'pending' AND submitted_at IS NULL AND cancel_at IS NULL "
            "AND NOT created_by = ANY(%(without)s) ORDER BY turn, number LIMIT %(n)s",
            {"n": limit, "without": list(without)},
        )
        return [_row(each) for each in found]

    def unfinished(self) -> list[RequestRow]:
        """Requests that have a run and have not ended."""
        found = self._pool.rows(
            _SELECT + "WHERE state IN ('pending', 'processing') AND submitted_at IS NOT NULL ORDER BY number"
        )
        return [_row(each) for each in found]

    def submitted(self, request: str, run_id: str) -> RequestRow | None:
        """Give a request that waits the run that is about to be made for it. None if it has one already, was cancelled,
        or has ended: then no run may be made.

        Crash before the run is made: the worker misses the run, and puts the request back into the queue."""
        return self._change(
            request,
            "run_id = %(run)s, submitted_at = clock_timestamp()",
            {"run": run_id},
            ("pending",),
            None,
            extra="AND run_id IS NULL AND cancel_at IS NULL",
        )

    def begin(self, request: str, run_id: str, *, retry: int = 0) -> RequestRow | None:
        """Begin to work on a request: by one run only, and not on one that is cancelled or has ended; None then.

        `retry` counts the attempts of the same run before this one. The first begins only what waits: a run that is
        executed twice at once, by an accident of its launchers, works once.
        """
        return self._change(
            request,
            "state = 'processing', attempts = attempts + 1, started_at = clock_timestamp(), "
            "beat_at = clock_timestamp(), rows = 0, bytes = 0, run_id = coalesce(run_id, %(run)s)",
            {"run": run_id},
            LIVE if retry else ("pending",),
            AuditEntry("request.processing", request, detail={"run": run_id}),
            extra="AND cancel_at IS NULL AND (run_id IS NULL OR run_id = %(run)s)",
        )

    def beat(self, request: str, rows: int, size: int, run_id: str | None = None) -> bool:
        """Note how far a request is; whether it is to go on: not if it was cancelled, or taken for stuck and begun anew
        by another run than the one that is named."""
        found = self._change(
            request,
            "rows = %(rows)s, bytes = %(size)s, beat_at = clock_timestamp()",
            {"rows": rows, "size": size, "run": run_id},
            ("processing",),
            None,
            extra="AND (%(run)s::text IS NULL OR run_id = %(run)s)",
        )
        return found is not None and found.cancel_at is None

    def succeed(
        self, request: str, run_id: str, store_url: str, file: RequestFile, rows: int, size: int, keep_hours: float
    ) -> RequestRow | None:
        """Note the file of a request: from now on it can be downloaded. None if it had been cancelled meanwhile: then
        the file is nobody's."""
        return self._change(
            request,
            "state = 'succeeded', store_url = %(url)s, file = %(file)s, rows = %(rows)s, bytes = %(size)s, "
            "error = NULL, hint = NULL, finished_at = clock_timestamp(), "
            "expires_at = clock_timestamp() + make_interval(secs => %(keep)s)",
            {
                "url": store_url,
                "file": Json(file.model_dump(mode="json")),
                "rows": rows,
                "size": size,
                "keep": keep_hours * 3600,
                "run": run_id,
            },
            ("processing",),
            AuditEntry("request.succeeded", request, detail={"run": run_id, "rows": rows, "bytes": size}),
            extra="AND cancel_at IS NULL AND run_id = %(run)s",
            notices=True,
        )

    def note_error(self, request: str, error: str, hint: str) -> None:
        """Note why an attempt failed that will be made again."""
        self._change(request, "error = %(error)s, hint = %(hint)s", {"error": error, "hint": hint}, LIVE, None)

    def fail(self, request: str, error: str, hint: str) -> RequestRow | None:
        """End a request with its reason. None if it had ended."""
        return self._change(
            request,
            "state = 'failed', error = %(error)s, hint = %(hint)s, finished_at = clock_timestamp()",
            {"error": error[:4000], "hint": hint[:1000]},
            LIVE,
            AuditEntry("request.failed", request, "failed", {"error": error[:500]}),
            notices=True,
        )

    def again(self, request: str, run_id: str) -> RequestRow | None:
        """Put a request back into the queue whose run ended without a word. None if it had ended, has another run, or
        is being cancelled."""
        return self._change(
            request,
            "state = 'pending', run_id = NULL, submitted_at = NULL",
            {"run": run_id},
            LIVE,
            AuditEntry("request.again", request, detail={"lost run": run_id}),
            extra="AND run_id = %(run)s AND cancel_at IS NULL",
        )

    def cancelled(self, request: str) -> RequestRow | None:
        """Note that the work on a request has stopped. None if it had ended."""
        return self._change(
            request,
            "state = 'cancelled', finished_at = clock_timestamp(), cancel_at = coalesce(cancel_at, clock_timestamp())",
            {},
            LIVE,
            AuditEntry("request.cancelled", request),
        )

    def cancelling(self) -> list[RequestRow]:
        """Requests at work whose cancellation was asked for."""
        return [_row(e) for e in self._pool.rows(_SELECT + "WHERE state = 'processing' AND cancel_at IS NOT NULL")]

    def many(self, requests: Sequence[str]) -> list[RequestRow]:
        """Those of some ids that there are."""
        found = self._pool.rows(_SELECT + "WHERE id = ANY(%(ids)s)", {"ids": list(requests)}) if requests else []
        return [_row(each) for each in found]

    def forget(self, keep_days: int) -> int:
        """Delete what ended so many days ago and has no file any more, with its deliveries and downloads; how many.
        The audit log has a retention of its own."""
        found = self._pool.rows(
            "DELETE FROM request WHERE finished_at < now() - make_interval(days => %(days)s) "
            "AND (state IN ('failed', 'cancelled') OR expired_at IS NOT NULL) RETURNING id",
            {"days": keep_days},
        )
        return len(found)

    def expiring(self, idle_seconds: float = 300) -> list[RequestRow]:
        """Requests whose files are to go, and that nobody is downloading: a download that has not moved for
        `idle_seconds` counts as broken off."""
        found = self._pool.rows(
            _SELECT + "WHERE state = 'succeeded' AND expired_at IS NULL AND expires_at <= now() "
            "AND NOT EXISTS (SELECT FROM download d WHERE d.request_id = request.id AND d.finished_at IS NULL "
            "AND d.beat_at > now() - make_interval(secs => %(idle)s)) ORDER BY expires_at",
            {"idle": idle_seconds},
        )
        return [_row(each) for each in found]

    def expired(self, request: str) -> RequestRow | None:
        """Note that a file goes, before it does: no download begins any more. None if one has begun meanwhile."""
        return self._change(
            request,
            "expired_at = clock_timestamp()",
            {},
            ("succeeded",),
            AuditEntry("request.expired", request),
            extra="AND expired_at IS NULL AND NOT EXISTS (SELECT FROM download d WHERE d.request_id = request.id "
            "AND d.finished_at IS NULL AND d.beat_at > now() - interval '5 minutes')",
            locked=True,
        )

    # Cancelling

    def leave(self, request: str, actor: Actor, *, operator: bool = False) -> RequestRow | None:
        """Somebody does not want the answer any more: they are no subscriber from now on, and when nobody is left, the
        request is cancelled, at once if it waits. An operator ends it for all. None if there is no such request, or
        the user has no part in it. What has ended stays as it is.
        """
        with self._pool.transaction() as cursor:
            cursor.execute(_SELECT + "WHERE id = %s FOR UPDATE", (request,))
            found = cursor.fetchone()
            if found is None:
                return None
            row = _row(found)
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
                f"WHERE id = %s RETURNING {_COLUMNS}",
                (request,),
            )
            row = _row(cursor.fetchone())
            self._tell(cursor, request)
            action = "request.cancelled" if row.state == "cancelled" else "request.cancelling"
            write_audit(cursor, actor, AuditEntry(action, request))
            return row

    def _change(
        self,
        request: str,
        assignments: str,
        values: dict[str, Any],
        states: tuple[str, ...],
        entry: AuditEntry | None,
        *,
        extra: str = "",
        actor: Actor = SYSTEM,
        notices: bool = False,
        locked: bool = False,
    ) -> RequestRow | None:
        """Change a request that is in some states, and with `notices` tell its subscribers; None if it is not."""
        with self._pool.transaction() as cursor:
            if locked:
                # The statement after it sees what others did who had the row before.
                cursor.execute("SELECT 1 FROM request WHERE id = %s FOR UPDATE", (request,))
            cursor.execute(
                f"UPDATE request SET {assignments} WHERE id = %(id)s AND state = ANY(%(states)s) {extra} "
                f"RETURNING {_COLUMNS}",
                {**values, "id": request, "states": list(states)},
            )
            found = cursor.fetchone()
            if found is None:
                return None
            if notices:
                enqueue_deliveries(cursor, request, found["state"])
            self._tell(cursor, request)
            if entry is not None:
                write_audit(cursor, actor, entry)
            return _row(found)


def request_id(secret: bytes, query: Query, data_version: str, number: int) -> str:
    """Id of the answer to a question: 26 characters that nobody can guess without the secret, the same for the same
    question, data version and `number` of earlier answers to it (cancelled, failed or expired ones)."""
    text = f"{query.sha256}\n{data_version}\n{number}".encode()
    return base64.b32encode(hmac.digest(secret, text, hashlib.sha256)[:16]).decode().rstrip("=").lower()


def _row(found: dict[str, Any]) -> RequestRow:
    values = dict(found)
    values["query"] = Query.model_validate(values["query"])
    values["file"] = RequestFile.model_validate(values["file"]) if values["file"] else None
    return RequestRow(**values)
