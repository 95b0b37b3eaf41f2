"""Where libraries write who want a file: the bytes are taken from it as they come."""

from __future__ import annotations

import io
from typing import Any


class Sink(io.RawIOBase):
    """Collects what is written; it cannot be sought in."""

    def __init__(self) -> None:
        self.open = True
        """Whether what is written counts."""
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.open:
            self._pieces.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        """What has come since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
