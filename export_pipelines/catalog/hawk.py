"""Clients that sign their calls (HAWK), and which of their nonces were seen, by whatever process.

Whoever checks a signature needs the key itself: keys are kept encrypted by a secret which the catalog has not.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from export_pipelines.catalog.audit import Actor, AuditEntry, write_audit
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import CatalogError, RequestError

KEEP_NONCES_SECONDS = 300
"""A nonce is remembered for longer than its time is accepted, so that clocks of several machines may differ."""

_SWEEP_SECONDS = 60
_SALT = 12
_COLUMNS = "id, name, tables, created_at, rotated_at, previous_until, revoked_at, used_at"


@dataclass(frozen=True)
class HawkClient:
    """A program that may read tables. Times are zone-aware."""

    id: str
    name: str
    tables: tuple[str, ...]
    """Patterns of `schema.table`, as in a shell."""
    created_at: datetime
    rotated_at: datetime | None
    previous_until: datetime | None
    """How long the key before the newest one still opens; None if there is none."""
    revoked_at: datetime | None
    used_at: datetime | None


@dataclass(frozen=True)
class HawkKeys:
    """A client with the keys that open now, newest first."""

    client: HawkClient
    keys: tuple[bytes, ...] = field(repr=False)


class HawkClients:
    """The clients of the catalog. Safe for threads; one transaction a call. `secret`: 32 bytes that seal the keys."""

    def __init__(self, pool: CatalogPool, secret: bytes) -> None:
        self._pool = pool
        self._secret = secret
        self._swept = 0.0
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def create(self, name: str, tables: Sequence[str], actor: Actor) -> tuple[HawkClient, str]:
        """Make a client; its key is told to nobody but the caller."""
        client, key = secrets.token_hex(8), _new_key()
        with self._pool.transaction() as cursor:
            cursor.execute(
                "INSERT INTO hawk_client (id, name, tables, key) VALUES (%s, %s, %s, %s) RETURNING " + _COLUMNS,
                (client, name, list(tables), self._seal(client, key)),
            )
            made = _client(cursor.fetchone())
            detail = {"name": name, "tables": list(tables)}
            write_audit(cursor, actor, AuditEntry("client.created", client, detail=detail))
        return made, key

    def rotate(self, client: str, actor: Actor, keep: timedelta) -> tuple[HawkClient, str]:
        """Make a new key. The one before opens for `keep` longer; one that is older still opens nothing any more.

        Raises:
            RequestError: there is no such client, or it was revoked.
        """
        key = _new_key()
        with self._pool.transaction() as cursor:
            cursor.execute(
                "UPDATE hawk_client SET previous_key = key, previous_until = clock_timestamp() + %s, key = %s, "
                f"rotated_at = clock_timestamp() WHERE id = %s AND revoked_at IS NULL RETURNING {_COLUMNS}",
                (keep, self._seal(client, key), client),
            )
            found = self._known(cursor.fetchone(), client)
            write_audit(cursor, actor, AuditEntry("client.rotated", client, detail={"name": found.name}))
        return found, key

    def revoke(self, client: str, actor: Actor) -> HawkClient:
        """Let a client's keys open nothing, from its next call on.

        Raises:
            RequestError: there is no such client, or it was revoked before.
        """
        with self._pool.transaction() as cursor:
            cursor.execute(
                "UPDATE hawk_client SET revoked_at = clock_timestamp() WHERE id = %s AND revoked_at IS NULL "
                f"RETURNING {_COLUMNS}",
                (client,),
            )
            found = self._known(cursor.fetchone(), client)
            write_audit(cursor, actor, AuditEntry("client.revoked", client, detail={"name": found.name}))
        return found

    def _known(self, row: dict[str, Any] | None, client: str) -> HawkClient:
        if row is None:
            raise RequestError(f"there is no valid client {client[:100]!r}", hint="see `export-pipelines client list`")
        return _client(row)

    def all(self, *, revoked: bool = False) -> list[HawkClient]:
        """All clients, oldest first; revoked ones only if asked for."""
        found = self._pool.rows(
            f"SELECT {_COLUMNS} FROM hawk_client WHERE %(all)s OR revoked_at IS NULL ORDER BY created_at, id",
            {"all": revoked},
        )
        return [_client(each) for each in found]

    def find(self, client: str) -> HawkKeys | None:
        """A client that is not revoked, with its keys.

        Raises:
            CatalogError: its keys were sealed by another secret.
        """
        found = self._pool.rows(
            f"SELECT {_COLUMNS}, key, previous_key FROM hawk_client WHERE id = %(id)s AND revoked_at IS NULL",
            {"id": client},
        )
        if not found:
            return None
        row = found[0]
        sealed = [row.pop("key")]
        previous, until = row.pop("previous_key"), row["previous_until"]
        if previous is not None and until > datetime.now(UTC):
            sealed.append(previous)
        return HawkKeys(_client(row), tuple(self._open(client, bytes(each)) for each in sealed))

    def first_time(self, client: str, moment: int, nonce: str) -> bool:
        """Whether a nonce of a time (seconds since 1970) is seen for the first time, by any process. Notes it."""
        self._sweep()
        # A crash of the database's machine may forget the last half second; a wait for its disk a call is worse.
        found = self._pool.rows(
            "SET LOCAL synchronous_commit TO off; INSERT INTO hawk_nonce (client, ts, nonce) "
            "VALUES (%(client)s, %(ts)s, %(nonce)s) ON CONFLICT DO NOTHING RETURNING true AS first",
            {"client": client, "ts": moment, "nonce": nonce},
        )
        return bool(found)

    def used(self, client: str) -> None:
        """Note that a client called, at most once a minute."""
        now = time.monotonic()
        with self._lock:
            if self._used.get(client, -_SWEEP_SECONDS) + _SWEEP_SECONDS > now:
                return
            self._used[client] = now
        self._pool.rows("UPDATE hawk_client SET used_at = clock_timestamp() WHERE id = %(id)s", {"id": client})

    def _sweep(self) -> None:
        """Forget nonces that are too old to be accepted, once a minute."""
        now = time.monotonic()
        with self._lock:
            if self._swept and now - self._swept < _SWEEP_SECONDS:
                return
            self._swept = now
        self._pool.rows(
            "DELETE FROM hawk_nonce WHERE ts < extract(epoch FROM now())::bigint - %(keep)s",
            {"keep": KEEP_NONCES_SECONDS},
        )

    def _seal(self, client: str, key: str) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        salt = secrets.token_bytes(_SALT)
        return salt + AESGCM(self._secret).encrypt(salt, key.encode(), client.encode())

    def _open(self, client: str, sealed: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(self._secret).decrypt(sealed[:_SALT], sealed[_SALT:], client.encode())
        except InvalidTag:
            raise CatalogError(
                f"the key of client {client} was sealed by another secret",
                hint="all processes of a service need the same EXPORT_PIPELINES_SECRET; or rotate the client's key",
            ) from None


def _new_key() -> str:
    return secrets.token_urlsafe(48)


def _client(row: dict[str, Any]) -> HawkClient:
    return HawkClient(**{**row, "tables": tuple(row["tables"])})
