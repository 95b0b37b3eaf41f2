"""Calls of webhooks: signed, to allowed hosts only, never redirected, and over within seconds.

The signature is that of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, so that a receiver knows who sent it,
that it was not changed, and when; the id is the same at each attempt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from urllib.parse import SplitResult

from export_pipelines.errors import RequestError
from export_pipelines.specs.notice import allowed_by, port_of, split_url
from export_pipelines.specs.service import ServiceSpec

SECONDS = 10.0
"""A call takes no longer, whatever the receiver does."""

_PREFIX = "whsec_"


class WebhookRefused(Exception):
    """The receiver did not answer with 2xx, or may not be called. `for_good`: it wants no further call."""

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


def signing_key(secret: str | None, own: bytes) -> bytes:
    """The key: of a secret `whsec_<base64>`, or of any other text its bytes; without a secret the service's own.

    Raises:
        RequestError: what follows `whsec_` is no base64.
    """
    if secret is None:
        return own
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise RequestError("the secret of the webhooks is no base64", hint="write whsec_… or any other text") from None


def secret_text(key: bytes) -> str:
    """A key as receivers' libraries take it."""
    return _PREFIX + base64.b64encode(key).decode()


def signed(key: bytes, identifier: str, body: bytes, now: float | None = None) -> dict[str, str]:
    """The headers that prove a body."""
    timestamp = str(int(time.time() if now is None else now))
    digest = hmac.digest(key, f"{identifier}.{timestamp}.".encode() + body, hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": identifier, "webhook-timestamp": timestamp, "webhook-signature": signature}


def post(service: ServiceSpec, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float = SECONDS) -> None:
    """Send a body, if its host may be called now.

    Raises:
        WebhookRefused: it may not, or answered with something else than 2xx.
        OSError: it cannot be reached, or took too long.
    """
    target = split_url(url)
    entry = allowed_by(service, target) if target else None
    if target is None or entry is None:
        raise WebhookRefused("the host is not among the allowed ones any more", for_good=True)
    with _connected(target, seconds, private=not entry.startswith("*.")) as connection:
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        try:
            connection.request(
                "POST", path, body, {**headers, "Content-Type": "application/json", "Host": target.netloc}
            )
            status = connection.getresponse().status
        except HTTPException as error:
            raise WebhookRefused(f"no answer of HTTP: {type(error).__name__}") from None
    if not 200 <= status < 300:
        told = f"{status}, and redirects are not followed" if 300 <= status < 400 else f"{status}"
        raise WebhookRefused(f"answered with {told}", for_good=status == 410)


@contextmanager
def _connected(target: SplitResult, seconds: float, *, private: bool) -> Iterator[HTTPConnection]:
    """A connection that ends after so many seconds. The address that was checked is the one that is used."""
    host, port = target.hostname or "", port_of(target)
    address = _address(host, port, private=private)
    end = time.monotonic() + seconds
    with socket.create_connection(address, timeout=seconds) as plain:
        stream = _secured(plain, host) if target.scheme == "https" else plain
        # A time-out of a socket is for one piece at a time: who drips would hold us for ever.
        watch = threading.Timer(max(0.0, end - time.monotonic()), _shut, (stream,))
        watch.daemon = True
        watch.start()
        try:
            with stream:
                if isinstance(stream, ssl.SSLSocket):
                    stream.do_handshake()
                connection = HTTPConnection(host, port)
                connection.sock = stream
                yield connection
        except (OSError, WebhookRefused):
            if time.monotonic() >= end:
                raise TimeoutError(f"took longer than {seconds:g} s") from None
            raise
        finally:
            watch.cancel()


def _secured(plain: socket.socket, host: str) -> ssl.SSLSocket:
    """The socket with TLS around it, before its handshake."""
    context = ssl.create_default_context()
    return context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _address(host: str, port: int, *, private: bool) -> tuple[str, int]:
    """Where a host is, all of whose addresses must be public unless it may be private."""
    found = [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    inner = [each for each in found if not ipaddress.ip_address(each.partition("%")[0]).is_global]
    if inner and not private:
        raise WebhookRefused("the host has a private address, and is not allowed by its exact name", for_good=True)
    return found[0], port
