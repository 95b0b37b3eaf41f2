"""CSV of others as records of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.fields import Field, Kind
from export_pipelines.formats.parsing.base import (
    BadRecord,
    Batch,
    Batches,
    Collector,
    Parsed,
    checked_columns,
    encode,
    shown,
    too_many_columns,
)
from export_pipelines.formats.parsing.csv_scanner import Block, Dialect, Lines, Record, Scanner, checked_raw
from export_pipelines.formats.parsing.decoding import is_utf8, utf8, without_mark
from export_pipelines.formats.parsing.unpacking import Member
from export_pipelines.formats.texts import columns_of, encoded
from export_pipelines.specs.format import PLAIN, CsvSpec
from export_pipelines.specs.load import FileSpec


def parse_csv(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    """See `parsing.parse`."""
    dialect = Dialect.of(spec, member.name)
    scanner = Scanner(dialect, utf8(member.open(), spec.encoding), spec.max_line_bytes)
    scanner.skip_lines(spec.skip_rows)
    first: Record | None = None
    place = 1
    if spec.header:
        place, values = _header(scanner, dialect, spec, member.name)
        names = checked_columns(values, spec.max_columns)
    elif columns is not None:
        names = tuple(columns)
    else:
        first = _first(scanner, member.name)
        count = len(_split(dialect, first.data, spec)) if first else 0
        names = tuple(f"column_{number}" for number in range(1, count + 1))
    head = [first] if first else []
    batches = _Reader(dialect, len(names)).batches(chain(head, scanner.blocks(len(names))))
    # COPY takes the very first line for the header, an empty one, too.
    if place != 1 or not _is_plain(spec, dialect, member):
        return Parsed(names, batches)
    return Parsed(names, batches, True, lambda: _raw(spec, dialect, member))


def _is_plain(spec: FileSpec, dialect: Dialect, member: Member) -> bool:
    """Whether COPY, told delimiter and quote, reads what the parser does."""
    said = (spec.delimiter.encode(), spec.quote.encode()) == (dialect.delimiter, dialect.quote)
    if not said or not dialect.quote or dialect.trim or dialect.nulls or spec.skip_rows:
        return False
    pieces = member.open()
    try:
        return is_utf8(without_mark(pieces, spec.encoding)[1])
    finally:
        _close(pieces)


def _raw(spec: FileSpec, dialect: Dialect, member: Member) -> Iterator[bytes]:
    pieces, _ = without_mark(member.open(), spec.encoding)
    yield from checked_raw(dialect, pieces, spec.max_line_bytes)


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close:
        close()


def _header(scanner: Scanner, dialect: Dialect, spec: FileSpec, name: str) -> tuple[int, list[str | None]]:
    """Line and values of the header."""
    found = _first(scanner, name)
    if found is None:
        raise RequestError(f"{name} is empty: it has not even a header", hint="or set `header: false`")
    return found.line, [dialect.value(field) for field in _split(dialect, found.data, spec)]


def _first(scanner: Scanner, name: str) -> Record | None:
    """The first record that is not an empty line."""
    while (found := scanner.next()) is not None:
        if isinstance(found, BadRecord):
            hint = "write its encoding: `file: {encoding: cp1252}`, say" if found.reason.endswith("not UTF-8") else ""
            raise IntegrityError(
                f"{name}: the first record, at line {found.line}, is no CSV: {found.reason}", hint=hint
            )
        if found.data:
            return found
    return None


def _split(dialect: Dialect, record: bytes, spec: FileSpec) -> list[bytes]:
    # Before it is taken apart: a thousand million columns would not fit into memory.
    if dialect.count(record, spec.max_columns) > spec.max_columns:
        raise too_many_columns(spec.max_columns)
    return dialect.split(record)


class _Reader:
    """Turns what a scanner finds into batches of records with the right number of values."""

    def __init__(self, dialect: Dialect, count: int) -> None:
        self._dialect = dialect
        self._count = count
        self._collected = Collector()

    def batches(self, found: Iterator[Block | Lines | Record | BadRecord]) -> Batches:
        for each in found:
            if isinstance(each, Block):
                yield from self._collected.batches()
                yield from self._block(each)
                continue
            if isinstance(each, Lines):
                yield from self._collected.batches()
                yield Batch(each.line, None, self._plain(each.data))
                continue
            bad = each if isinstance(each, BadRecord) else self._take(each)
            if bad:
                yield from self._collected.batches()
                yield bad
            elif self._collected.full:
                yield from self._collected.batches()
        yield from self._collected.batches()

    def _block(self, block: Block) -> Batches:
        """As a whole if all its lines have as many values as there are columns, else line by line."""
        plain = self._dialect.plain_block(block.data)
        if plain is not None and self._count > 1:
            wanted = self._count - 1
            lines = plain.split(b"\n")
            lines.pop()
            if all(line.count(b",") == wanted for line in lines):
                yield Batch(block.line, None, plain)
                return
        lines = block.data.split(b"\n")
        lines.pop()
        for number, line in enumerate(lines, block.line):
            if bad := self._take(Record(number, line)):
                yield from self._collected.batches()
                yield bad
        yield from self._collected.batches()

    def _plain(self, data: bytes) -> bytes:
        """Well-formed lines in COPY's plain dialect, whole columns at a time."""
        if self._dialect.verbatim:
            return data
        from pyarrow import compute

        said = CsvSpec(delimiter=self._dialect.delimiter.decode(), quote=self._dialect.quote.decode() or '"')
        fields = [Field(str(number), Kind.TEXT, "text") for number in range(self._count)]
        columns = columns_of(data.splitlines(keepends=True), self._count, said)
        nulls = sorted(self._dialect.nulls)
        if nulls:
            import pyarrow as pa

            words = pa.array(nulls, columns[0].type)
            columns = [compute.if_else(compute.is_in(c, words), pa.scalar(None, c.type), c) for c in columns]
        return encoded(columns, fields, PLAIN)

    def _take(self, record: Record) -> BadRecord | None:
        """Note a record, or say what is wrong with it. An empty line is a record of one column only."""
        if not record.data and self._count != 1:
            return None
        count = self._dialect.count(record.data, self._count)
        if count != self._count:
            return self._ragged(record, count)
        if self._dialect.verbatim and record.data != b"\\.":
            self._collected.add(record.data + b"\n", record.line)
            return None
        values = [self._dialect.value(field) for field in self._dialect.split(record.data)]
        self._collected.add(encode(values), record.line)
        return None

    def _ragged(self, record: Record, count: int) -> BadRecord:
        values = "1 value" if count == 1 else f"{count} values"
        return BadRecord(record.line, f"it has {values}, and there are {self._count} columns", shown(record.data))
