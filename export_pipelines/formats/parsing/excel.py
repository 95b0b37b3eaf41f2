"""A sheet of a workbook as records: values as they are stored, dates as ISO 8601."""

from __future__ import annotations

import datetime
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, BinaryIO
from xml.etree.ElementTree import ParseError

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.parsing.base import (
    BadRecord,
    Batches,
    Collector,
    Parsed,
    checked_columns,
    encode,
    shown,
    too_many_columns,
)
from export_pipelines.formats.parsing.unpacking import Member, as_file
from export_pipelines.specs.load import FileSpec

_SHARED_BYTES = 256 << 20
_HARMLESS = 1 << 30
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
_DAMAGES = (zipfile.BadZipFile, zlib.error, ParseError, KeyError, ValueError, EOFError, TypeError, AttributeError)


def parse_excel(spec: FileSpec, columns: Sequence[str] | None, member: Member) -> Parsed:
    """See `parsing.parse`. Rows without any value are left out; what is missing at the end of a row is NULL. Of a
    formula its last result is taken."""
    with _rows(spec, member) as rows:
        first = next(rows, None)
    if first is None:
        raise RequestError(f"{member.name}: the sheet is empty", hint="correct `sheet` or `skip_rows`")
    if len(first[1]) > spec.max_columns:
        raise too_many_columns(spec.max_columns)
    if spec.header:
        names = checked_columns(first[1], spec.max_columns)
    else:
        names = tuple(columns or (f"column_{number}" for number in range(1, len(first[1]) + 1)))
    return Parsed(names, _batches(spec, member, len(names)))


def _batches(spec: FileSpec, member: Member, width: int) -> Batches:
    collected = Collector()
    with _rows(spec, member) as rows:
        for number, values in islice(rows, 1 if spec.header else 0, None):
            bad = _take(collected, number, values, width, spec)
            if bad:
                yield from collected.batches()
                yield bad
            elif collected.full:
                yield from collected.batches()
        yield from collected.batches()


def _take(collected: Collector, number: int, values: list[str | None], width: int, spec: FileSpec) -> BadRecord | None:
    if len(values) > width:
        reason = f"it has a value in column {len(values)}, and there are {width} columns"
        return BadRecord(number, reason, shown(repr(values[:50])))
    if any("\0" in value for value in values if value):
        return BadRecord(number, "a text has a NUL", shown(repr(values[:50])))
    cleaned = [_cleaned(value, spec) for value in values]
    try:
        collected.add(encode([*cleaned, *[None] * (width - len(values))]), number)
    except UnicodeEncodeError:
        return BadRecord(number, "a text is not valid Unicode", shown(ascii(values[:50])))
    return None


def _cleaned(value: str | None, spec: FileSpec) -> str | None:
    if value is None:
        return None
    value = value.strip() if spec.trim else value
    return None if value in spec.null_words or not value else value


@contextmanager
def _rows(spec: FileSpec, member: Member) -> Iterator[Iterator[tuple[int, list[str | None]]]]:
    """Rows with any value, with their number in the sheet, from the header on."""
    import openpyxl

    with as_file(member) as file:
        try:
            _refuse_bomb(file, spec, member.name)
            with closing(openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)) as book:
                yield _guarded(_values(_sheet(book, spec, member.name), spec), member.name)
        except _DAMAGES as error:
            raise _damaged(member.name, error) from error


def _guarded(rows: Iterator[Any], name: str) -> Iterator[Any]:
    try:
        yield from rows
    except _DAMAGES as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> IntegrityError:
    what = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    hint = "an .xls of the old kind must be saved as .xlsx" if isinstance(error, zipfile.BadZipFile) else ""
    return IntegrityError(f"{name} is not an intact workbook (.xlsx): {what}", hint=hint)


def _refuse_bomb(file: BinaryIO, spec: FileSpec, name: str) -> None:
    """What openpyxl would unpack into memory, or for ever. Beyond the sizes that the ZIP tells nothing is unpacked."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    packed, unpacked = sum(i.compress_size for i in infos), sum(i.file_size for i in infos)
    if unpacked > _HARMLESS and unpacked > spec.max_expansion * packed:
        raise RequestError(f"{name} unpacks to {unpacked} bytes: it may be a bomb", hint="see `max_expansion`")
    in_memory = sum(i.file_size for i in infos if "worksheets/" not in i.filename and "media/" not in i.filename)
    if in_memory > _SHARED_BYTES:
        raise RequestError(f"{name} has {in_memory} bytes of shared texts and styles, too many to read")
    file.seek(0)


def _sheet(book: Any, spec: FileSpec, name: str) -> Any:
    names = [sheet.title for sheet in book.worksheets]
    if isinstance(spec.sheet, int):
        if 0 <= spec.sheet < len(names):
            return book.worksheets[spec.sheet]
    elif spec.sheet in names:
        return book[spec.sheet]
    known = ", ".join(repr(each) for each in names[:20])
    raise RequestError(f"{name} has no sheet {spec.sheet!r}; it has {known}", hint="correct `sheet`")


def _values(sheet: Any, spec: FileSpec) -> Iterator[tuple[int, list[str | None]]]:
    # What the file says of its size may be wrong, and is not needed.
    sheet.reset_dimensions()
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        if number <= spec.skip_rows:
            continue
        values = [_text(value) for value in row]
        while values and values[-1] is None:
            values.pop()
        if values:
            yield number, values


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)
    if isinstance(value, float):
        # Excel has no integers: what is whole was meant to be.
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(sep=" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + " seconds"
    return str(value)
