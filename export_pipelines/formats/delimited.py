"""CSV in dialects that servers do not write: with a mark of UTF-8, other line ends, or formulas made harmless."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.batching import BatchWriter
from export_pipelines.formats.csv import records, split_header
from export_pipelines.formats.fields import NUMBERS, Field, Kind
from export_pipelines.formats.texts import columns_of, encoded, joined, records_of
from export_pipelines.specs.format import CsvSpec

# What begins like a formula, or like one that was made harmless before: the second, so that it can be undone.
_FORMULA = r"^'*[=+\-@\t\r\n]"
_HARMLESS = r"^'+[=+\-@\t\r\n]"
_NUMBER = r"^'*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_NEVER = NUMBERS | {Kind.BOOLEAN, Kind.UUID, Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ, Kind.BINARY}


class DelimitedWriter(BatchWriter):
    """See `formats.writers.FormatWriter`."""

    def __init__(self, dialect: CsvSpec, fields: Sequence[Field]) -> None:
        super().__init__(fields)
        self._dialect = dialect

    def begin(self) -> bytes:
        mark = codecs.BOM_UTF8 if self._dialect.bom else b""
        return mark + (self._header() if self._dialect.header else b"")

    def _header(self) -> bytes:
        import pyarrow as pa

        names = [pa.array([field.name], pa.string()) for field in self.fields]
        if self._dialect.neutralise_formulas:
            names = [_neutralised(name) for name in names]
        return encoded(names, self.fields, self._dialect)

    def take(self, columns: list[Any]) -> bytes:
        if self._dialect.neutralise_formulas:
            pairs = zip(columns, self.fields, strict=True)
            columns = [column if field.kind in _NEVER else _neutralised(column) for column, field in pairs]
        return encoded(columns, self.fields, self._dialect)


def read_delimited(dialect: CsvSpec, fields: Sequence[Field], raw: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The records of a file of DelimitedWriter, plain. Raises IntegrityError."""
    stream = iter(raw)
    if dialect.bom:
        stream = _without_mark(stream)
    if dialect.header:
        stream = split_header(stream, dialect)[1]
    for found in records(stream, dialect):
        if not found:
            continue
        columns = columns_of(found, len(fields), dialect)
        if dialect.neutralise_formulas:
            pairs = zip(columns, fields, strict=True)
            columns = [column if field.kind in _NEVER else _as_it_was(column) for column, field in pairs]
        yield records_of(columns, fields)


def _without_mark(stream: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for piece in stream:
        head += piece
        if len(head) >= len(codecs.BOM_UTF8):
            break
    if not head.startswith(codecs.BOM_UTF8):
        raise IntegrityError("the CSV does not begin with the mark of UTF-8")
    yield head.removeprefix(codecs.BOM_UTF8)
    yield from stream


def _neutralised(column: Any) -> Any:
    from pyarrow import compute

    mask = _is_text(column, _FORMULA)
    return compute.if_else(mask, joined(["'", column]), column) if compute.any(mask).as_py() else column


def _as_it_was(column: Any) -> Any:
    from pyarrow import compute

    mask = _is_text(column, _HARMLESS)
    if not compute.any(mask).as_py():
        return column
    return compute.if_else(mask, compute.utf8_slice_codeunits(column, 1), column)


def _is_text(column: Any, pattern: str) -> Any:
    """Where a pattern matches that may also begin a number, and it is none."""
    from pyarrow import compute

    number = compute.match_substring_regex(column, _NUMBER)
    return compute.and_(compute.match_substring_regex(column, pattern), compute.invert(number))
