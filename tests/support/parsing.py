"""Files in memory for parsers, and what they make of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from export_pipelines.formats.parsing import BadRecord, Parsed, parse
from export_pipelines.formats.texts import columns_of
from export_pipelines.specs.load import FileSpec

Row = tuple[str | None, ...]


class Pieces(io.RawIOBase):
    """A stream that cannot be read in any order, and gives a few bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size, self._place = data, size, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        wanted = min(self._size, size) if size >= 0 else len(self._data)
        found = self._data[self._place : self._place + wanted]
        self._place += len(found)
        return found


def opened(
    data: bytes, name: str = "a.csv", columns: Sequence[str] | None = None, *, size: int = 1 << 20, **spec: Any
) -> Parsed:
    """A parser of these bytes."""

    def stream() -> Any:
        return Pieces(data, size)

    return parse(FileSpec(**spec), columns, stream, name)


def rows(parsed: Parsed) -> list[Row]:
    """The values of all records; a bad one fails."""
    return [row for row, _ in numbered(parsed)]


def numbered(parsed: Parsed) -> list[tuple[Row, int]]:
    """The values of all records with their lines; a bad one fails."""
    found: list[tuple[Row, int]] = []
    for batch in parsed.batches:
        assert not isinstance(batch, BadRecord), batch
        texts = columns_of(batch_records(batch.records), len(parsed.columns))
        values = list(zip(*(text.to_pylist() for text in texts), strict=True))
        lines = batch.lines or range(batch.first_line, batch.first_line + len(values))
        found += zip(values, lines, strict=True)
    return found


def batch_records(data: bytes) -> list[bytes]:
    """The records of a batch: those of an even number of quotes."""
    found: list[bytes] = []
    pending = b""
    for line in data.split(b"\n")[:-1]:
        pending += line + b"\n"
        if pending.count(b'"') % 2 == 0:
            found.append(pending)
            pending = b""
    assert not pending
    return found


def bad(parsed: Parsed) -> list[BadRecord]:
    """The records that cannot be taken apart."""
    return [each for each in parsed.batches if isinstance(each, BadRecord)]
