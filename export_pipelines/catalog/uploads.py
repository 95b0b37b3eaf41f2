"""Uploads in the catalog: what has come of each file, and what became of it. The bytes are in the landing store."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from export_pipelines.catalog.audit import Actor, AuditEntry, write_audit
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import RequestError

_COLUMNS = (
    "id, area, organisation, dataset, file_name, fingerprint, size, received, state, username, created_at, "
    "updated_at, attempts, run_id, landed"
)


@dataclass(frozen=True)
class UploadRow:
    """An upload. Sizes in bytes, times zone-aware."""

    id: str
    area: str
    """Id of the definition that it is sent to."""
    organisation: str
    dataset: str
    file_name: str
    fingerprint: str
    """By which the same file is known again after a break."""
    size: int
    received: int
    state: str
    """receiving, received (all of it is here), loading (a run was started), dropped."""
    username: str
    created_at: datetime
    updated_at: datetime
    attempts: int
    """Loads that were started."""
    run_id: str | None
    landed: str | None
    """Name under which the last attempt landed."""


class Misplaced(RequestError):
    """A piece does not go on where the one before ended. `received` is where it has to."""

    def __init__(self, received: int) -> None:
        super().__init__("the piece does not begin where the last one ended", hint=f"go on at byte {received}")
        self.received = received


class Uploads:
    """The uploads of the catalog. Safe for threads; one transaction a call."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

    def begin(self, values: Mapping[str, Any], most: int) -> UploadRow:
        """A new upload, or the unfinished one of the same user, place and file, which then goes on.

        Raises:
            RequestError: the user has `most` unfinished ones.
        """
        same = " AND ".join(f"{name} = %({name})s" for name in values)
        with self._pool.transaction() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 3))", (values["username"],))
            cursor.execute(f"SELECT id FROM upload WHERE state = 'receiving' AND {same} LIMIT 1 FOR UPDATE", values)
            if found := cursor.fetchone():
                # Somebody goes on with it: it is not given up for its age now.
                return _update(cursor, found["id"], state="receiving")
            cursor.execute(
                "SELECT count(*) AS n FROM upload WHERE state IN ('receiving', 'received') AND username = %s",
                (values["username"],),
            )
            if cursor.fetchone()["n"] >= most:
                raise RequestError(f"you have {most} uploads that wait", hint="load or drop some of them first")
            given = {"id": secrets.token_hex(12), **values}
            cursor.execute(
                f"INSERT INTO upload ({', '.join(given)}) VALUES ({', '.join(f'%({each})s' for each in given)}) "
                f"RETURNING {_COLUMNS}",
                given,
            )
            return UploadRow(**cursor.fetchone())

    def get(self, upload: str) -> UploadRow | None:
        """An upload by its id."""
        return _one(self._pool.rows(f"SELECT {_COLUMNS} FROM upload WHERE id = %(id)s", {"id": upload}))

    def of(self, areas: Collection[str], organisation: str, dataset: str, limit: int = 50) -> list[UploadRow]:
        """Those of a data set, newest first. `areas` are ids of its definition, those of before it was moved, too."""
        rows = self._pool.rows(
            f"SELECT {_COLUMNS} FROM upload WHERE area = ANY(%(a)s::text[]) AND organisation = %(o)s "
            "AND dataset = %(d)s ORDER BY created_at DESC LIMIT %(n)s",
            {"a": list(areas), "o": organisation, "d": dataset, "n": limit},
        )
        return [UploadRow(**each) for each in rows]

    def waiting(self, username: str) -> list[UploadRow]:
        """A user's unfinished ones, newest first."""
        rows = self._pool.rows(
            f"SELECT {_COLUMNS} FROM upload WHERE username = %(u)s AND state IN ('receiving', 'received') "
            "ORDER BY created_at DESC",
            {"u": username},
        )
        return [UploadRow(**each) for each in rows]

    def sets(self, areas: Collection[str]) -> list[tuple[str, str]]:
        """Organisation and name of each data set of which a load was started; `areas` as of `of`."""
        rows = self._pool.rows(
            "SELECT DISTINCT organisation, dataset FROM upload WHERE area = ANY(%(a)s::text[]) AND attempts > 0 "
            "ORDER BY 1, 2",
            {"a": list(areas)},
        )
        return [(each["organisation"], each["dataset"]) for each in rows]

    def receive(self, upload: str, offset: int, length: int, actor: Actor, store: Callable[[], None]) -> UploadRow:
        """Take in a piece: `store` puts its bytes away. Two at once: the second finds that it is misplaced.

        Crash: it counts, or it is sent again.

        Raises:
            Misplaced: it does not begin where the last one ended.
            RequestError: there would be more than was said, or the upload was given up.
        """
        with self._pool.transaction() as cursor:
            row = _locked(cursor, upload)
            if row.state == "dropped":
                raise RequestError("this upload was given up", hint="begin it anew")
            if row.state != "receiving" or offset != row.received:
                raise Misplaced(row.received)
            if offset + length > row.size:
                raise RequestError(f"the file is longer than the {row.size} bytes that were announced")
            store()
            done = offset + length == row.size
            found = _update(cursor, upload, received=offset + length, state="received" if done else "receiving")
            if done:
                detail = {"file": row.file_name, "bytes": row.size, "data_set": f"{row.organisation}/{row.dataset}"}
                write_audit(cursor, actor, AuditEntry("upload.received", upload, "ok", detail))
            return found

    def load(self, upload: str, actor: Actor, start: Callable[[UploadRow], tuple[str, str]]) -> UploadRow:
        """Begin a load: `start` lands the file and starts the run; it gives the name that it landed under, and the run.

        Crash: nothing is noted; the next try lands the same again.
        """
        with self._pool.transaction() as cursor:
            row = _locked(cursor, upload)
            if row.state not in ("received", "loading"):
                raise RequestError("the file is not here as a whole", hint="send the rest of it first")
            landed, run_id = start(row)
            found = _update(cursor, upload, state="loading", landed=landed, run_id=run_id, attempts=row.attempts + 1)
            detail = {"run": run_id, "data_set": f"{row.organisation}/{row.dataset}", "landed": landed}
            write_audit(cursor, actor, AuditEntry("upload.load", upload, "ok", detail))
            return found

    def forget(self, days: int) -> None:
        """Give up what has waited for so many days."""
        self._pool.rows(
            "UPDATE upload SET state = 'dropped', updated_at = clock_timestamp() "
            "WHERE state IN ('receiving', 'received') AND updated_at < now() - make_interval(days => %(d)s) "
            "RETURNING id",
            {"d": days},
        )

    def unneeded(self, uploads: Collection[str], days: int) -> list[str]:
        """Those of some ids whose bytes nobody needs any more: given up, or not loaded again for so many days. One that
        is not here may be another catalog's."""
        rows = self._pool.rows(
            "SELECT id FROM upload WHERE id = ANY(%(ids)s::text[]) AND (state = 'dropped' "
            "OR (state = 'loading' AND updated_at < now() - make_interval(days => %(d)s)))",
            {"ids": list(uploads), "d": days},
        )
        return [each["id"] for each in rows]

    def drop(self, upload: str, actor: Actor) -> None:
        """Give an upload up. Raises RequestError if a load of it was started."""
        with self._pool.transaction() as cursor:
            state = _locked(cursor, upload).state
            if state == "loading":
                raise RequestError("there is nothing to give up: a load of it was started")
            if state != "dropped":
                _update(cursor, upload, state="dropped")
                write_audit(cursor, actor, AuditEntry("upload.dropped", upload))


def _one(rows: list[dict[str, Any]]) -> UploadRow | None:
    return UploadRow(**rows[0]) if rows else None


def _locked(cursor: Any, upload: str) -> UploadRow:
    cursor.execute(f"SELECT {_COLUMNS} FROM upload WHERE id = %s FOR UPDATE", (upload,))
    found = cursor.fetchone()
    if found is None:
        raise RequestError("there is no such upload")
    return UploadRow(**found)


def _update(cursor: Any, upload: str, **values: object) -> UploadRow:
    given = ", ".join(f"{name} = %({name})s" for name in values)
    cursor.execute(
        f"UPDATE upload SET {given}, updated_at = clock_timestamp() WHERE id = %(id)s RETURNING {_COLUMNS}",
        {**values, "id": upload},
    )
    return UploadRow(**cursor.fetchone())
