"""What parsers give: records as PostgreSQL's COPY reads them, with the line of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from export_pipelines.errors import ExportPipelinesError, RequestError

SHOWN = 2_000
"""Characters of a bad record that are kept."""

BATCH_BYTES = 1 << 20
"""About so many bytes of records are in a batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records, in the order of the file.

    `records` are CSV in PostgreSQL's plain dialect, UTF-8, each ended by a newline: nothing is NULL, `""` is the empty
    string. `lines` has the line in the file of each record's beginning (of JSON, Parquet and GML the number of the
    record, of Excel that of the row, all from 1); None where each record is a line, the first at `first_line`.
    """

    first_line: int
    lines: Sequence[int] | None
    records: bytes


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be taken apart. `text` is what it is made of, cut to some thousand characters."""

    line: int
    reason: str
    text: str


Batches = Iterator[Batch | BadRecord]
Open = Callable[[], BinaryIO]
"""Opens the file at its beginning."""


class NotPlain(ExportPipelinesError):
    """`Parsed.raw` met what COPY would read in another way than the parser: take the records instead."""


def _no_raw() -> Iterator[bytes]:
    raise RequestError("this file is not what COPY reads; take its records")


@dataclass
class Parsed:
    """A file that is being read: its columns are known, its records come as they are asked for."""

    columns: tuple[str, ...]
    """Names in the file, in its order, unique and not empty; those that were asked for, where records have names of
    their own (JSON)."""
    batches: Batches
    """All records, once."""
    passthrough: bool = False
    """Whether the file's own bytes are what COPY reads with the dialect of the definition: then `raw` gives them. What
    is wrong with a record makes COPY fail, or `raw` raise NotPlain; then `batches` tells all that is wrong."""
    raw: Callable[[], Iterator[bytes]] = field(default=_no_raw)
    """The decompressed bytes of the whole file, with its header line if the definition says that it has one."""

    def close(self) -> None:
        """Let go of the file."""
        close: Any = getattr(self.batches, "close", None)
        if close:
            close()


def shown(data: bytes | str) -> str:
    """The beginning of a bad record as text."""
    text = data[: SHOWN * 4].decode("utf-8", "replace") if isinstance(data, bytes) else data
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def checked_columns(names: Sequence[str | None], limit: int) -> tuple[str, ...]:
    """The names of a header: trimmed, an empty one becomes `column_<number>`.

    Raises:
        RequestError: one is there twice, or there are too many.
    """
    if len(names) > limit:
        raise too_many_columns(limit)
    found: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        name = (name or "").strip() or f"column_{number}"
        if "\0" in name:
            raise RequestError(f"the name of column {number} has a NUL byte", hint="is this a text file at all?")
        if name in found:
            raise RequestError(
                f"two columns are named {name[:80]!r}: number {found[name]} and number {number}",
                hint="give each column a name of its own",
            )
        found[name] = number
    return tuple(found)


def other_delimiter(columns: Sequence[str]) -> str | None:
    """The sign that cuts a header, read with commas, into more columns: then it is the file's delimiter, as a rule."""
    header = ",".join(columns)
    found = max(";\t|", key=header.count)
    return found if header.count(found) >= len(columns) else None


def too_many_columns(limit: int) -> RequestError:
    return RequestError(f"the file has more than {limit} columns", hint="set `max_columns`, if that is right")


class Collector:
    """Puts records together into batches."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._lines: list[int] = []
        self._size = 0

    def add(self, record: bytes, line: int) -> None:
        """A record with its line end."""
        self._records.append(record)
        self._lines.append(line)
        self._size += len(record)

    @property
    def full(self) -> bool:
        return self._size >= BATCH_BYTES

    def batches(self) -> Iterator[Batch]:
        """What was collected, as one batch or none."""
        if self._records:
            yield Batch(self._lines[0], self._lines, b"".join(self._records))
            self._records, self._lines, self._size = [], [], 0


def encode(values: Sequence[str | None]) -> bytes:
    """One plain record. Raises UnicodeEncodeError for what is no valid Unicode."""
    # Of a record of one field: what COPY would take for the end of the data.
    if len(values) == 1 and values[0] == "\\.":
        return b'"\\."\n'
    return (",".join(map(_field, values)) + "\n").encode()


def _field(value: str | None) -> str:
    if value is None:
        return ""
    if not value or '"' in value or "," in value or "\n" in value or "\r" in value:
        return '"' + value.replace('"', '""') + '"'
    return value
