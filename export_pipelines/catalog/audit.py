"""The audit log: who did what, when, from where. Append-only and hash-chained by the database itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from psycopg2.extras import Json

from export_pipelines.errors import IntegrityError, RequestError

if TYPE_CHECKING:
    from export_pipelines.catalog.pool import CatalogPool

_PAGE = 5_000

_TEXT = (
    "jsonb_build_array(id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), who, action, subject, "
    "outcome, address, detail, previous)::text"
)
"""What the digest of an entry is of, as the database's trigger has it."""


@dataclass(frozen=True)
class Actor:
    """Who does something, and from where. The programs of this project are `system`."""

    who: str
    address: str = ""


SYSTEM = Actor("system")


@dataclass(frozen=True)
class AuditEntry:
    """One thing that was done, or refused."""

    action: str
    """request.created, request.joined, request.processing, request.succeeded, request.failed, request.cancelled,
    request.left, request.expired, notice.delivered, notice.given_up, download.started, download.finished, login,
    logout, token.created, token.revoked, upload.received, upload.load, upload.dropped, upload.restored,
    refused, audit.keep, audit.pruned …"""
    subject: str
    """Id of the request, the data set, the token or the user that it was done to."""
    outcome: str = "ok"
    """ok, refused or failed."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What else is known. No secrets."""


def write_audit(cursor: Any, actor: Actor, *entries: AuditEntry) -> None:
    """Write entries as the last thing of a transaction: until its end nobody else can write any."""
    for each in entries:
        cursor.execute(
            "INSERT INTO audit (who, action, subject, outcome, address, detail) VALUES (%s, %s, %s, %s, %s, %s)",
            (actor.who, each.action, each.subject, each.outcome, actor.address, Json(dict(each.detail))),
        )


@dataclass(frozen=True)
class AuditRow:
    """An entry as it stands in the log. Times are zone-aware."""

    id: int
    """Counts all entries, without a gap."""
    at: datetime
    who: str
    action: str
    subject: str
    outcome: str
    address: str
    detail: dict[str, Any]
    previous: str
    """Digest of the entry before; empty for the very first."""
    sha256: str
    """Digest of `text`."""
    text: str
    """A JSON array of all the rest."""


@dataclass(frozen=True)
class Head:
    """An entry and its digest: whoever keeps it elsewhere can prove later that the log up to it is what it was."""

    id: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.id}:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Of its text. Raises RequestError: it is none."""
        number, _, digest = text.strip().partition(":")
        if not (number.isascii() and number.isdigit() and len(digest) == 64):
            raise RequestError(
                f"{text[:100]!r} is no head", hint="write it as `export-pipelines audit head` printed it"
            )
        return cls(int(number), digest.lower())


@dataclass(frozen=True)
class Verified:
    """What a verification found to be whole."""

    entries: int
    first: int
    """Id of the oldest entry; those before it were old enough to be given up."""
    head: Head | None
    """The newest entry; None of an empty log."""


class Wanted(TypedDict, total=False):
    """Which entries; what is absent or None does not count. `action` may end with `*`."""

    since: datetime | None
    until: datetime | None
    who: str | None
    action: str | None
    subject: str | None
    outcome: str | None


class AuditLog:
    """Reading and keeping the log. Safe for threads."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

    def entries(self, *, after: int = 0, **wanted: Unpack[Wanted]) -> Iterator[AuditRow]:
        """Entries, oldest first, read a page at a time."""
        while page := self._page(wanted, "id > %(after)s", "id", _PAGE, after):
            yield from page
            after = page[-1].id

    def newest(self, limit: int = 50, **wanted: Unpack[Wanted]) -> list[AuditRow]:
        """The newest entries, newest first."""
        return self._page(wanted, "true", "id DESC", limit, 0)

    def _page(self, wanted: Wanted, where: str, order: str, limit: int, after: int) -> list[AuditRow]:
        given = dict.fromkeys(Wanted.__annotations__) | wanted
        action = wanted.get("action")
        found = self._pool.rows(
            f"SELECT id, at, who, action, subject, outcome, address, detail, previous, sha256, {_TEXT} AS text "
            f"FROM audit WHERE {where} AND (%(since)s::timestamptz IS NULL OR at >= %(since)s) "
            "AND (%(until)s::timestamptz IS NULL OR at < %(until)s) AND (%(who)s::text IS NULL OR who = %(who)s) "
            "AND CASE WHEN %(wide)s THEN starts_with(action, %(action)s) "
            "ELSE %(action)s::text IS NULL OR action = %(action)s END "
            "AND (%(subject)s::text IS NULL OR subject = %(subject)s) "
            f"AND (%(outcome)s::text IS NULL OR outcome = %(outcome)s) ORDER BY {order} LIMIT %(limit)s",
            {
                **given,
                "wide": (action or "").endswith("*"),
                "action": action.removesuffix("*") if action else None,
                "limit": limit,
                "after": after,
            },
        )
        return [AuditRow(**each) for each in found]

    def head(self) -> Head | None:
        """The newest entry; None of an empty log."""
        found = self._pool.rows("SELECT id, sha256 FROM audit ORDER BY id DESC LIMIT 1")
        return Head(found[0]["id"], found[0]["sha256"]) if found else None

    def verify(self, expected: Head | None = None) -> Verified:
        """Recompute the whole chain: every entry is what was written, none is missing, none was put in between. With a
        head that was kept elsewhere, nothing up to it was exchanged either, and the end was not cut off before it.

        Raises:
            IntegrityError: the first entry that is wrong is named.
        """
        first, last, expected_found = None, None, expected is None
        pruned: set[tuple[object, object]] = set()
        for row in self.entries():
            _check(row, last)
            first, last = first or row, row
            if row.action == "audit.pruned":
                pruned.add((row.detail.get("through"), row.detail.get("sha256")))
            if expected is not None and row.id == expected.id:
                expected_found = row.sha256 == expected.sha256
        if first is not None and first.id > 1 and (first.id - 1, first.previous) not in pruned:
            raise IntegrityError(
                f"the audit log begins with entry {first.id}, and no entry says that those before were given up",
                hint="look for them in a snapshot of operations/audit",
            )
        if not expected_found and expected is not None:
            raise _unexpected(expected, first, last)
        entries = last.id - first.id + 1 if first and last else 0
        return Verified(entries, first.id if first else 0, Head(last.id, last.sha256) if last else None)

    def keep(self, days: int) -> bool:
        """Set for how many days no entry can be deleted; whether that is a change, which is an entry of its own.

        Raises:
            CatalogError: it would be shorter, and the role of the connection does not own the log.
        """
        with self._pool.transaction() as cursor:
            cursor.execute("SELECT audit_set_keep(%s) AS changed", (days,))
            return bool(cursor.fetchone()["changed"])

    def prune(self) -> int:
        """Delete what is older than it has to be kept; how many entries. That they went is an entry of its own."""
        with self._pool.transaction() as cursor:
            cursor.execute("SELECT audit_prune() AS gone")
            return int(cursor.fetchone()["gone"])


def _check(row: AuditRow, last: AuditRow | None) -> None:
    hint = "compare with a snapshot of operations/audit, and find out who may write to the catalog"
    if last is not None and row.id != last.id + 1:
        raise IntegrityError(f"entry {last.id + 1} of the audit log is missing", hint=hint)
    if last is not None and row.previous != last.sha256:
        raise IntegrityError(f"entry {row.id} of the audit log does not follow entry {last.id}", hint=hint)
    if hashlib.sha256(row.text.encode()).hexdigest() != row.sha256:
        raise IntegrityError(f"entry {row.id} of the audit log was changed", hint=hint)


def _unexpected(expected: Head, first: AuditRow | None, last: AuditRow | None) -> IntegrityError:
    if first is None or last is None or expected.id > last.id:
        end = f"ends with entry {last.id}" if last else "is empty"
        return IntegrityError(f"the audit log {end}, and entry {expected.id} was in it", hint="its end was cut off")
    if expected.id < first.id:
        return IntegrityError(
            f"entry {expected.id} was given up; the audit log begins with entry {first.id}",
            hint="expect a newer head, or compare with a snapshot of operations/audit",
        )
    return IntegrityError(
        f"entry {expected.id} of the audit log is not the one that was expected",
        hint="the log was written anew; compare with a snapshot of operations/audit",
    )
