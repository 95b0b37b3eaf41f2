"""What writers of formats have in common: records wait until there are enough of them to be worth the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from export_pipelines.formats.fields import Field
from export_pipelines.formats.texts import columns_of

# Each column of a batch costs some 20 µs, however few the rows.
_BYTES_A_COLUMN = 1 << 16
_LEAST, _MOST = 1 << 18, 1 << 24


class BatchWriter:
    """A `formats.writers.FormatWriter` whose subclass turns columns of text into bytes.

    Memory: a batch of 64 KiB a column, between a quarter of a mebibyte and 16 MiB, some times over.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.exact = True
        self._enough = min(max(_BYTES_A_COLUMN * len(fields), _LEAST), _MOST)
        self._waiting: list[bytes] = []
        self._bytes = 0

    def begin(self) -> bytes:
        """The first bytes."""
        return b""

    def encode(self, records: list[bytes]) -> bytes:
        """Take records; the bytes of those that waited, once they are enough."""
        self._waiting += records
        self._bytes += sum(map(len, records))
        return self._flush() if self._bytes >= self._enough else b""

    def finish(self) -> Iterator[bytes]:
        """What is left, and the end of the file."""
        if self._waiting:
            yield self._flush()
        yield from self.end()

    def close(self) -> None:
        """Nothing to let go of."""

    def end(self) -> Iterator[bytes]:
        """The last bytes."""
        yield b""

    def take(self, columns: list[Any]) -> bytes:
        """Bytes of a batch of at least one row."""
        raise NotImplementedError

    def _flush(self) -> bytes:
        records, self._waiting, self._bytes = self._waiting, [], 0
        return self.take(columns_of(records, len(self.fields)))
