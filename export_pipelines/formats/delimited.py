"""CSV in dialects that servers do not write: with a mark of UTF-8, other line ends, or formulas made harmless."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.batching import BatchWriter
from export_pipelines.formats.csv import records, split_header
from export_pipelines.formats.fields import Field
from export_pipelines.formats.formulas import NEVER, as_they_were, harmless, harmless_names
from export_pipelines.formats.texts import columns_of, encoded, joined, records_of
from export_pipelines.specs.format import PLAIN, CsvSpec

# What begins like a formula, or like one that was made harmless before: the second, so that it can be undone.
_FORMULA = r"^'*[=+\-@\t\r\n]"
_HARMLESS = r"^'+[=+\-@\t\r\n]"
_NUMBER = r"^'*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"


class DelimitedWriter(BatchWriter):
    """See `formats.writers.FormatWriter`."""

    def __init__(self, dialect: CsvSpec, fields: Sequence[Field]) -> None:
        super().__init__(fields)
        self._dialect = dialect
        self._plain = _is_plain(dialect)

    def begin(self) -> bytes:
        mark = codecs.BOM_UTF8 if self._dialect.bom else b""
        return mark + (self._header() if self._dialect.header else b"")

    def _header(self) -> bytes:
        if self._plain and self._dialect.neutralise_formulas:
            return harmless_names([field.name for field in self.fields])
        import pyarrow as pa

        names = [pa.array([field.name], pa.string()) for field in self.fields]
        if self._dialect.neutralise_formulas:
            names = [_neutralised(name) for name in names]
        return encoded(names, self.fields, self._dialect)

    def encode(self, records: list[bytes]) -> bytes:
        """Records of the plain dialect need no work but where there are formulas."""
        if not self._plain:
            return super().encode(records)
        return b"".join(harmless(records, self.fields) if self._dialect.neutralise_formulas else records)

    def take(self, columns: list[Any]) -> bytes:
        if self._dialect.neutralise_formulas:
            pairs = zip(columns, self.fields, strict=True)
            columns = [column if field.kind in NEVER else _neutralised(column) for column, field in pairs]
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
        if _is_plain(dialect):
            yield as_they_were(found, fields) if dialect.neutralise_formulas else found
            continue
        columns = columns_of(found, len(fields), dialect)
        if dialect.neutralise_formulas:
            pairs = zip(columns, fields, strict=True)
            columns = [column if field.kind in NEVER else _as_it_was(column) for column, field in pairs]
        yield records_of(columns, fields)


def _is_plain(dialect: CsvSpec) -> bool:
    """Whether records are plain but for their formulas."""
    return dialect.model_copy(update={"bom": False, "header": False, "neutralise_formulas": False}) == PLAIN


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
