"""The audit log: who did what, when, from where. Append-only and hash-chained by the database itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg2.extras import Json


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
    request.left, request.expired, download.started, download.finished, login, logout, token.created, token.revoked,
    refused …"""
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
