"""API tokens: only a digest of each is kept, so that nobody who reads the catalog can use one."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from export_pipelines.catalog.audit import Actor, AuditEntry, write_audit
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import RequestError

PREFIX = "ep_"
"""What every token starts with, so that scanners for leaked secrets find it."""

CHANGED = "tokens"
"""Told on the pool's channel when a token is revoked."""

_COLUMNS = "id, name, username, scopes, groups, environment, created_at, expires_at, revoked_at, used_at"


@dataclass(frozen=True)
class Token:
    """What is known of a token. Times are zone-aware."""

    id: str
    name: str
    username: str
    scopes: tuple[str, ...]
    groups: tuple[str, ...]
    environment: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None

    def valid_at(self, now: datetime) -> bool:
        """Whether it opens anything at that time."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


class Tokens:
    """The tokens of the catalog. Safe for threads; one transaction a call."""

    def __init__(self, pool: CatalogPool) -> None:
        self._pool = pool

    def create(
        self,
        name: str,
        username: str,
        scopes: Sequence[str],
        actor: Actor,
        *,
        groups: Sequence[str] = (),
        environment: str | None = None,
        expires_at: datetime | None = None,
        replace: bool = False,
    ) -> tuple[Token, str]:
        """Make a token; its text is known to nobody but the caller. With `replace`, others of the name are revoked."""
        text = PREFIX + secrets.token_urlsafe(32)
        values = {
            "id": secrets.token_hex(4),
            "sha256": digest(text),
            "name": name,
            "username": username,
            "scopes": list(scopes),
            "groups": list(groups),
            "environment": environment,
            "expires_at": expires_at,
        }
        with self._pool.transaction() as cursor:
            if replace:
                self._revoke(cursor, "name = %(key)s", name)
            cursor.execute(
                f"INSERT INTO api_token ({', '.join(values)}) "
                f"VALUES ({', '.join(f'%({each})s' for each in values)}) RETURNING {_COLUMNS}",
                values,
            )
            token = _token(cursor.fetchone())
            detail = {"name": name, "user": username, "scopes": list(scopes)}
            write_audit(cursor, actor, AuditEntry("token.created", token.id, detail=detail))
        return token, text

    def verify(self, text: str) -> Token | None:
        """The token of a text, if it is valid now. The catalog is asked by digest, which tells nothing of the text."""
        if not text.startswith(PREFIX) or len(text) > 200 or not text.isascii():
            return None
        own = digest(text)
        found = self._pool.rows(
            f"SELECT {_COLUMNS}, sha256 FROM api_token WHERE sha256 = %(sha256)s AND revoked_at IS NULL "
            "AND (expires_at IS NULL OR expires_at > now())",
            {"sha256": own},
        )
        if not found or not hmac.compare_digest(found[0].pop("sha256"), own):
            return None
        return _token(found[0])

    def get(self, token: str) -> Token | None:
        """The token of an id, revoked and expired ones too."""
        found = self._pool.rows(f"SELECT {_COLUMNS} FROM api_token WHERE id = %(id)s", {"id": token})
        return _token(found[0]) if found else None

    def all(self, *, revoked: bool = False) -> list[Token]:
        """All tokens, oldest first; revoked and expired ones only if asked for."""
        found = self._pool.rows(
            f"SELECT {_COLUMNS} FROM api_token WHERE %(all)s "
            "OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) ORDER BY created_at, id",
            {"all": revoked},
        )
        return [_token(each) for each in found]

    def revoke(self, key: str, actor: Actor) -> list[Token]:
        """Revoke the valid token of an id, or those of a name; services notice within a second.

        Raises:
            RequestError: there is none.
        """
        with self._pool.transaction() as cursor:
            found = self._revoke(cursor, "(id = %(key)s OR name = %(key)s)", key)
            if not found:
                raise RequestError(f"there is no valid token {key!r}", hint="see `export-pipelines token list`")
            for each in found:
                write_audit(cursor, actor, AuditEntry("token.revoked", each.id, detail={"name": each.name}))
        return found

    def _revoke(self, cursor: Any, which: str, key: str) -> list[Token]:
        cursor.execute(
            f"UPDATE api_token SET revoked_at = clock_timestamp() WHERE {which} AND revoked_at IS NULL "
            f"RETURNING {_COLUMNS}",
            {"key": key},
        )
        found = [_token(each) for each in cursor.fetchall()]
        if found:
            cursor.execute("SELECT pg_notify(%s, %s)", (self._pool.channel, CHANGED))
        return found

    def used(self, token: str) -> None:
        """Note that a token was used."""
        self._pool.rows("UPDATE api_token SET used_at = clock_timestamp() WHERE id = %(id)s", {"id": token})


def digest(text: str) -> str:
    """What is kept of a token: it has 256 random bits, so a plain SHA-256 cannot be guessed back."""
    return hashlib.sha256(text.encode()).hexdigest()


def _token(row: dict[str, Any]) -> Token:
    return Token(**{**row, "scopes": tuple(row["scopes"]), "groups": tuple(row["groups"])})
