"""The worker's Unix socket: Dagster's launcher asks there (components/warm_launcher.py), one line of JSON a call."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any]]
_SECONDS = 2.0
_MOST_BYTES = 65_536


class Door:
    """Listens. For one thread; callers are of this machine and this user, and quick."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One worker a project holds the lock: whatever is there is of one that is gone.
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(before)
        self._socket.listen(64)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def open(self) -> None:
        """Let in who stands there."""
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError):
            connection.settimeout(_SECONDS)
            with connection.makefile("rb") as stream:
                question = json.loads(stream.readline(_MOST_BYTES))
            connection.sendall(json.dumps(self._answer(question)).encode() + b"\n")

    def close(self) -> None:
        """Nobody gets in any more."""
        self._socket.close()
        self._path.unlink(missing_ok=True)
