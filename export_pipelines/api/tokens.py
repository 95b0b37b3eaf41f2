"""Tokens that were seen a moment ago, so that most calls ask the catalog once less."""

from __future__ import annotations

import threading
import time

from export_pipelines.catalog.tokens import Token, Tokens, digest

_SECONDS = 10.0
_MOST = 10_000
_USED_SECONDS = 60.0


class TokenCache:
    """Remembers valid tokens by digest for some seconds; forgets all when one is revoked anywhere."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._known: dict[str, tuple[Token, float]] = {}
        self._used: dict[str, float] = {}
        self._generation = 0
        self._lock = threading.Lock()

    def known(self, text: str) -> Token | None:
        """The token, if it was seen a moment ago. Never blocks."""
        found = self._known.get(digest(text))
        if found is None or found[1] < time.monotonic():
            return None
        token = found[0]
        if token.expires_at is not None and token.expires_at.timestamp() <= time.time():
            return None
        return token

    def verify(self, text: str) -> Token | None:
        """The token, if it is valid; the catalog is asked."""
        generation = self._generation
        token = self._tokens.verify(text)
        if token is None:
            return None
        with self._lock:
            if len(self._known) > _MOST:
                self._known.clear()
            # One that was revoked while we asked is not remembered.
            if generation == self._generation:
                self._known[digest(text)] = (token, time.monotonic() + _SECONDS)
        return token

    def is_news(self, token: Token) -> bool:
        """Whether it was not used within the last minute, as far as this process knows."""
        now = time.monotonic()
        with self._lock:
            if self._used.get(token.id, -_USED_SECONDS) + _USED_SECONDS > now:
                return False
            self._used[token.id] = now
            return True

    def forget(self) -> None:
        """Forget all."""
        with self._lock:
            self._generation += 1
            self._known.clear()
