"""A TCP proxy in front of an HTTP server, which cuts connections, loses answers, or answers in the server's place."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) \S+ HTTP/1\.1\r\n")


@dataclass(frozen=True)
class Fault:
    """What befalls one request."""

    lose_answer: bool = False
    """The server does what it was asked; the connection ends before its answer of 200."""
    cut_after: int | None = None
    """Bytes of the answer that get through before the connection ends."""
    answer: bytes | None = None
    """Sent in the server's place, which never hears of the request."""


def error_answer(status: int, code: str) -> bytes:
    """A refusal as S3 words it."""
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return head.encode() + b"\r\n\r\n" + body


@dataclass
class FaultyProxy:
    """`choose` is given the first line of each request, and says what befalls it."""

    endpoint: str
    choose: Callable[[str], Fault | None] = lambda line: None
    requests: list[str] = field(default_factory=list)


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy for the server at that URL until the block is left."""
    target = urlsplit(upstream)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = FaultyProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                thread = threading.Thread(target=_serve, args=(proxy, client, (target.hostname, target.port)))
                threads.append(thread)
                thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield proxy
    finally:
        # close() alone would not wake the thread that waits in accept()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(timeout=5)


def _serve(proxy: FaultyProxy, client: socket.socket, address: tuple[str, int]) -> None:
    with client, socket.create_connection(address) as server:
        state: dict[str, Fault | None] = {"fault": None}
        back = threading.Thread(target=_answers, args=(client, server, state))
        back.start()
        with suppress(OSError):
            while chunk := client.recv(1 << 16):
                if match := _REQUEST.match(chunk):
                    line = match.group().decode().strip()
                    proxy.requests.append(line)
                    state["fault"] = fault = proxy.choose(line)
                    if fault and fault.answer is not None:
                        client.sendall(fault.answer)
                        break
                server.sendall(chunk)
        _end(server)
        back.join(timeout=10)


def _answers(client: socket.socket, server: socket.socket, state: dict[str, Fault | None]) -> None:
    passed, of = 0, None
    with suppress(OSError):
        while chunk := server.recv(1 << 16):
            fault = state["fault"]
            if fault is not of:
                passed, of = 0, fault
            if fault and fault.lose_answer and chunk.startswith(b"HTTP/1.1 200"):
                break
            if fault and fault.cut_after is not None:
                client.sendall(chunk[: fault.cut_after - passed])
                passed += len(chunk)
                if passed >= fault.cut_after:
                    break
                continue
            client.sendall(chunk)
    _end(client)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
