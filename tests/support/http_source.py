"""A local HTTP server that answers as a script says: lists, ETags, errors, cut bodies, pages of errors with 200."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from export_pipelines.sources.http_client import Client
from tests.support.threads import in_background


@dataclass(frozen=True)
class Asked:
    """A call that the server got."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """An answer. `cut` sends so many bytes of the body only, and closes the connection. `ranges` honours Range."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    ranges: bool = False


Handler = Callable[[Asked], Answer]


class HttpSourceServer:
    """Paths and what they answer: an answer, a list of them (the last one stays), or a function of the call."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | list[Answer] | Handler] = {}
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def put(self, path: str, body: bytes | str, content_type: str = "text/csv", **headers: str) -> None:
        """Serve a body at a path. Headers are written with underscores."""
        data = body.encode() if isinstance(body, str) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = Answer(data, headers={"Content-Type": content_type, **named}, ranges=True)

    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [each.path for each in self.asked]

    def run(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            found = self.answers.get(asked.path)
            if isinstance(found, list):
                found = found.pop(0) if len(found) > 1 else found[0]
        if found is None:
            return Answer(b"not here", 404)
        if callable(found):
            return found(asked)
        return _conditional(found, asked)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                query = {name: values[-1] for name, values in parse_qs(parts.query, True).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = server.answer(Asked(self.command, parts.path, query, headers, body))
                with suppress(OSError):
                    self._send(answer)

            do_POST = do_GET

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _conditional(answer: Answer, asked: Asked) -> Answer:
    """Honour If-None-Match, Range and If-Range of an answer that has an ETag."""
    etag = answer.headers.get("ETag", "")
    if etag and asked.headers.get("if-none-match") == etag:
        return Answer(b"", 304, answer.headers)
    wanted = asked.headers.get("range", "")
    if answer.ranges and wanted.startswith("bytes=") and asked.headers.get("if-range", etag) == etag:
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        total = len(answer.body)
        headers = {**answer.headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"}
        return Answer(answer.body[start:], 206, headers, answer.cut)
    return answer


@contextmanager
def http_source_server() -> Iterator[HttpSourceServer]:
    """A server on a free port of 127.0.0.1 until the block is left."""
    server = HttpSourceServer()
    with in_background(server):
        yield server


def noted_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between the tries of a call, which are noted from now on instead of waited for."""
    noted: list[float] = []
    monkeypatch.setattr(Client.__init__, "__defaults__", (noted.append,))
    return noted
