"""COPY of pieces of bytes into a table of PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from export_pipelines.errors import SourceError
from export_pipelines.sources.postgres import Session


def _ignore(size: int) -> None:
    """For those who want no progress."""


def copy_in(
    session: Session, target: str, options: str, pieces: Iterator[bytes], report: Callable[[int], None] = _ignore
) -> int:
    """`COPY target FROM STDIN` of some pieces, which are closed afterwards; the number of rows that the server took.
    `report` is given the size of each piece.

    Raises:
        SourceError: the server refused it. What `pieces` raised: the driver would only tell its text.
    """
    feed = _Feed(pieces, report)
    try:
        return session.copy_in(target, options, feed.read)
    except SourceError:
        if feed.error is not None:
            raise feed.error from None
        raise
    finally:
        feed.close()


class _Feed:
    """What COPY reads from. Its error is kept."""

    def __init__(self, pieces: Iterator[bytes], report: Callable[[int], None]) -> None:
        self._pieces = pieces
        self._report = report
        self._rest: bytes | memoryview = b""
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            # An empty piece is not the end.
            while not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    return b""
                self._report(len(piece))
                self._rest = piece
        except BaseException as error:
            self.error = error
            raise
        if len(self._rest) <= size:
            data, self._rest = self._rest, b""
        else:
            self._rest = memoryview(self._rest)
            data, self._rest = self._rest[:size], self._rest[size:]
        return data if isinstance(data, bytes) else bytes(data)

    def close(self) -> None:
        """Let go of the file."""
        # A thread that was interrupted may still be at it: it ends by itself when the connection is cut.
        with suppress(ValueError, AttributeError):
            self._pieces.close()  # type: ignore[attr-defined]  # of a generator
