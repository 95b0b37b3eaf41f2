"""The outermost layer: where a call comes from, how big it may be and how often, and what every answer carries."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from export_pipelines.api import addresses
from export_pipelines.api.problems import Problem, problem_of, render

if TYPE_CHECKING:
    from export_pipelines.api.metrics import Metrics
    from export_pipelines.api.service import Service

log = logging.getLogger("export_pipelines.api")

MAX_HEADER_BYTES = 16 * 1024
MAX_PATH_BYTES = 16 * 1024
BODY_SECONDS = 20.0
"""For a whole body to come."""

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

UNCOUNTED = ("/health/live", "/health/ready", "/healthcheck")
"""Asked by machines that watch over this one; they count for no limit."""


UPLOADS = "/uploads/"
UPLOAD_BYTES = (1 << 20) + 16 * 1024
"""A piece of a file that is uploaded, or a small file with its form."""

PAGES = "/api/v1/"
"""Pages of tables, of which a reader takes thousands, have rates of their own."""


class Guard:
    """Wraps the application. An error that nobody has caught becomes a problem here, without what is inside it."""

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics
        self._trusted = addresses.networks(service.spec.trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        addresses.apply_forwarded(scope, self._trusted)
        answer = _Answer(scope, send, self._service)
        begun = time.perf_counter()
        try:
            await self._guarded(scope, receive, answer)
        finally:
            self._metrics.answered(scope, answer.status, time.perf_counter() - begun)

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            self._check(scope)
            body = await self._body(scope, receive)
            await self._app(scope, body, answer)
        except Exception as error:
            problem = problem_of(error)
            if answer.status:
                raise  # half an answer is out: the connection is broken off, so that nobody takes it for whole
            await render(Request(scope), problem)(scope, receive, answer)

    def _check(self, scope: Scope) -> None:
        """Raises Problem: the call is too big in some way. Raises Refused: one too many."""
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise Problem(431, f"the headers are over {MAX_HEADER_BYTES} bytes")
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if host and not addresses.is_host(host.decode("latin-1")):
            raise Problem(400, "the header Host is no name of a host")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_PATH_BYTES:
            raise Problem(414, f"the address is over {MAX_PATH_BYTES} bytes", hint="POST /requests takes longer ones")
        if "\0" in scope["path"] or "\\" in scope["path"]:
            raise Problem(404, "there is nothing at this address")
        if scope["path"] not in UNCOUNTED:
            rate = "pages_per_address" if scope["path"].startswith(PAGES) else "requests_per_address"
            left = self._service.limits.take(rate, scope["client"][0])
            scope.setdefault("state", {})["left"] = left

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """A receive that gives the body, which is here whole: it is small, or refused."""
        most = self._service.spec.max_body_bytes
        if scope["path"].startswith(UPLOADS):
            most = max(most, UPLOAD_BYTES)
        refused = Problem(413, f"the body is over {most} bytes", headers={"connection": "close"})
        given = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if given.isdigit() and int(given) > most:
            raise refused
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return _replayed(message, receive)
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise refused
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Problem(408, "the body did not come in time", headers={"connection": "close"}) from None
        return _replayed({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def _replayed(first: Message, receive: Receive) -> Receive:
    """A receive that gives a message first, and then what comes."""
    waiting = [first]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


class _Answer:
    """A send that puts our headers on the answer, and notes its status. Refusals go to the audit log."""

    def __init__(self, scope: Scope, send: Send, service: Service) -> None:
        self._scope = scope
        self._send = send
        self._service = service
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {**SECURITY_HEADERS, "cache-control": "no-store"}
            if left := self._scope.get("state", {}).get("left"):
                own |= left.headers()
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in own.items() if name.encode() not in present),
            ]
            if self.status in (401, 403, 429):
                self._refused()
        await self._send(message)

    def _refused(self) -> None:
        from export_pipelines.catalog.audit import Actor, AuditEntry

        state: dict[str, Any] = self._scope.get("state", {})
        address = self._scope["client"][0]
        if state.get("login_redirect") or not self._service.limits.to_be_audited(address):
            return
        user = state.get("user")
        entry = AuditEntry(
            "refused",
            self._scope["path"][:200],
            "refused",
            {"method": self._scope["method"], "status": self.status},
        )
        actor = Actor(user.name if user else "unknown", address)
        self._service.later(lambda: self._service.audit(actor, entry))
