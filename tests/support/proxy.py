"""A TCP proxy in front of a database, which cuts or stalls the connection at a chosen statement."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from psycopg2.extensions import make_dsn, parse_dsn

Fault = Literal["none", "before", "after", "stall"]


@dataclass
class DatabaseProxy:
    """`url` goes through the proxy. When a client sends `statement`, for the `skip`-th time and then no more, the
    connection is cut `before` the server has it, or `after`, so that its answer is lost; or all is held back: `stall`.
    """

    url: str
    fault: Fault = "none"
    statement: bytes = b"COMMIT"
    skip: int = 0
    hit: threading.Event = field(default_factory=threading.Event)


@contextmanager
def database_proxy(url: str) -> Iterator[DatabaseProxy]:
    """Run a proxy for that database until the block is left."""
    target = parse_dsn(url)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    through = {**target, "host": "127.0.0.1", "port": str(port), "sslmode": "disable", "gssencmode": "disable"}
    proxy = DatabaseProxy(make_dsn(**through))
    open_sockets: list[socket.socket] = [listener]

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((target["host"], int(target["port"])))
                open_sockets.extend((client, server))
                for pump in (_to_server, _to_client):
                    threading.Thread(target=pump, args=(proxy, client, server), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield proxy
    finally:
        for each in open_sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        acceptor.join(timeout=5)
        for each in open_sockets:
            each.close()


def _to_server(proxy: DatabaseProxy, client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while data := client.recv(1 << 16):
            # A message of the simple protocol: Q, its length, its text, a zero byte.
            if proxy.fault != "none" and proxy.statement + b"\0" in data and data[:1] == b"Q":
                proxy.skip -= 1
                if proxy.skip < 0:
                    _do(proxy, client, server, data)
                    return
            if proxy.fault == "stall" and proxy.hit.is_set():
                return
            server.sendall(data)
    _end(server)


def _do(proxy: DatabaseProxy, client: socket.socket, server: socket.socket, data: bytes) -> None:
    fault = proxy.fault
    if fault != "stall":
        proxy.fault = "none"
    proxy.hit.set()
    if fault == "after":
        _end(client)
        server.sendall(data)
        # The server does what it was asked, then finds that nobody listens.
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)
    elif fault == "before":
        _end(server)
        _end(client)


def _to_client(proxy: DatabaseProxy, client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while data := server.recv(1 << 16):
            if proxy.fault == "stall" and proxy.hit.is_set():
                return
            client.sendall(data)
    _end(client)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
