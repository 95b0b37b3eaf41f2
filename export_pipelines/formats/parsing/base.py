"""What parsers give: records as PostgreSQL's COPY reads them, with the line of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from export_pipelines.errors import RequestError


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records, in the order of the file.

    `records` are CSV in PostgreSQL's plain dialect, UTF-8, each ended by a newline: nothing is NULL, `""` is the empty
    string. `lines` has the line in the file of each record's beginning (of JSON without line ends, Parquet and Excel
    the number of the record or row, from 1); None where record n begins at line `first_line` + n.
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


class Raw(Protocol):
    """Gives the decompressed bytes of the whole file."""

    def __call__(self) -> Iterator[bytes]: ...


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
    """Whether the file's own bytes are what COPY reads with the dialect of the definition: then `raw` gives them. COPY
    must find the same mistakes that the parser would: it fails at the first, and the parser tells all of them."""
    raw: Raw = field(default=_no_raw)
    """The decompressed bytes of the whole file, with its header line if the definition says that it has one."""

    def close(self) -> None:
        """Let go of the file."""
        close: Any = getattr(self.batches, "close", None)
        if close:
            close()
