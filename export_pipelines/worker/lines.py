"""Messages between the worker and its warm process: JSON, one a line, over a socket."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

_CHUNK = 65_536


class Lines:
    """One end. For one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._rest = b""

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; where the other end is gone, `receive` says so."""
        with suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """All messages that are there, without waiting; None when the other end is gone."""
        gone = False
        while True:
            try:
                chunk = self.socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                gone = True
                break
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return None if gone and not lines else [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close this end: the other one is told."""
        self.socket.close()
