"""Signed links: whoever has one may do one thing until it expires, without a login."""

from __future__ import annotations

import hashlib
import hmac
import time
from urllib.parse import parse_qs, quote, urlencode, urlsplit

PUBLIC = 0
"""As the expiry of a link: it never expires."""


def sign(key: bytes, request: str, name: str, expires: int) -> str:
    """Path and query of a link to a request's file. `expires` in seconds since 1970, or `PUBLIC`."""
    query = urlencode({"expires": expires, "signature": _signature(key, request, expires)})
    return f"/files/{quote(request)}/{quote(name)}?{query}"


def is_valid(key: bytes, request: str, expires: int, signature: str, *, now: float | None = None) -> bool:
    """Whether a signature is ours and has not expired. Takes the same time for every wrong one."""
    own = hmac.compare_digest(_signature(key, request, expires).encode(), signature.encode("utf-8", "replace"))
    return own and (expires == PUBLIC or expires > (time.time() if now is None else now))


def expiry_of(path: str) -> int:
    """When a link expires, in seconds since 1970; `PUBLIC` for never."""
    return int(parse_qs(urlsplit(path).query)["expires"][0])


def _signature(key: bytes, request: str, expires: int) -> str:
    return hmac.digest(key, f"{request}\n{expires}".encode(), hashlib.sha256).hex()
