"""Requests as the worker and its runs see them: taken, worked on, ended, put back, expired, forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg2.extras import Json

from export_pipelines.catalog.audit import SYSTEM, Actor, AuditEntry, write_audit
from export_pipelines.catalog.deliveries import enqueue_deliveries
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.request_rows import COLUMNS, LIVE, SELECT, Fault, RequestFile, RequestRow, row_of


class RequestWork:
    """The part of `Requests` that the worker uses."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

    def unsubmitted(self, limit: int = 100, *, without: Sequence[str] = ()) -> list[RequestRow]:
        """Requests that wait and have no run yet, in the order of the queue; not those of some users."""
        found = self._pool.rows(
            SELECT + "WHERE state = 'pending' AND submitted_at IS NULL AND cancel_at IS NULL "
            "AND NOT created_by = ANY(%(without)s) ORDER BY turn, number LIMIT %(n)s",
            {"n": limit, "without": list(without)},
        )
        return [row_of(each) for each in found]

    def unfinished(self) -> list[RequestRow]:
        """Requests that have a run and have not ended."""
        found = self._pool.rows(
            SELECT + "WHERE state IN ('pending', 'processing') AND submitted_at IS NOT NULL ORDER BY number"
        )
        return [row_of(each) for each in found]

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

    def fail(self, request: str, error: str, hint: str, fault: Fault = Fault.INSIDE) -> RequestRow | None:
        """End a request with its reason. None if it had ended."""
        return self._change(
            request,
            "state = 'failed', error = %(error)s, hint = %(hint)s, fault = %(fault)s, finished_at = clock_timestamp()",
            {"error": error[:4000], "hint": hint[:1000], "fault": fault.value},
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
        return [row_of(e) for e in self._pool.rows(SELECT + "WHERE state = 'processing' AND cancel_at IS NOT NULL")]

    def many(self, requests: Sequence[str]) -> list[RequestRow]:
        """Those of some ids that there are."""
        found = self._pool.rows(SELECT + "WHERE id = ANY(%(ids)s)", {"ids": list(requests)}) if requests else []
        return [row_of(each) for each in found]

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
            SELECT + "WHERE state = 'succeeded' AND expired_at IS NULL AND expires_at <= now() "
            "AND NOT EXISTS (SELECT FROM download d WHERE d.request_id = request.id AND d.finished_at IS NULL "
            "AND d.beat_at > now() - make_interval(secs => %(idle)s)) ORDER BY expires_at",
            {"idle": idle_seconds},
        )
        return [row_of(each) for each in found]

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

    def _tell(self, cursor: Any, request: str) -> None:
        cursor.execute("SELECT pg_notify(%s, %s)", (self._pool.channel, request))

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
                f"RETURNING {COLUMNS}",
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
            return row_of(found)
