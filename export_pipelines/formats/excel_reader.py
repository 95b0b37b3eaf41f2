"""Excel back into records: of the workbooks that `formats.excel` writes."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.excel_parts import SHEET
from export_pipelines.formats.excel_types import Held, held, letters, text_of_serial
from export_pipelines.formats.fields import Field
from export_pipelines.formats.texts import records_of
from export_pipelines.scratch import scratch_copy
from export_pipelines.specs.format import FormatSpec

_ROWS = 2000
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")


def read_excel(spec: FormatSpec, fields: Sequence[Field], raw: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The records, plain. Memory: some thousand rows.

    Raises:
        IntegrityError: it is no such workbook, or has other columns.
    """
    places = {letters(number): number for number in range(len(fields))}
    how = [held(spec, field) for field in fields]
    with scratch_copy(raw) as path:
        try:
            with zipfile.ZipFile(path) as book, book.open(SHEET) as sheet:
                rows = _rows(sheet, places)
                header = next(rows, None)
                if header != [field.name for field in fields]:
                    raise IntegrityError("the workbook has other columns than the export")
                yield from _batches(rows, fields, how)
        except (zipfile.BadZipFile, zlib.error, ElementTree.ParseError, KeyError, ValueError, EOFError) as error:
            raise IntegrityError(f"the workbook cannot be read: {error}") from error


def _rows(sheet: Any, places: dict[str, int]) -> Iterator[list[str | None]]:
    data = None
    for event, element in ElementTree.iterparse(sheet, ("start", "end")):
        if event == "start":
            data = element if element.tag == f"{_MAIN}sheetData" else data
        elif element.tag == f"{_MAIN}row":
            values: list[str | None] = [None] * len(places)
            for cell in element:
                values[places[cell.attrib["r"].rstrip("0123456789")]] = _value(cell)
            yield values
            # Without it, the rows that were read would stay in the tree.
            if data is not None:
                data.clear()


def _value(cell: Any) -> str:
    if cell.attrib.get("t") == "inlineStr":
        return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), "".join(cell.itertext()))
    return "".join(cell.itertext())


def _batches(rows: Iterator[list[str | None]], fields: Sequence[Field], how: Sequence[Held]) -> Iterator[list[bytes]]:
    waiting: list[list[str | None]] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) >= _ROWS:
            yield _records(waiting, fields, how)
            waiting = []
    if waiting:
        yield _records(waiting, fields, how)


def _records(rows: list[list[str | None]], fields: Sequence[Field], how: Sequence[Held]) -> list[bytes]:
    import pyarrow as pa
    from pyarrow import compute

    columns = []
    for values, field, each in zip(zip(*rows, strict=True), fields, how, strict=True):
        column = pa.array(values, pa.string())
        if each is Held.BOOLEAN:
            column = compute.if_else(compute.equal(column, "1"), "t", "f")
        elif each in (Held.DATE, Held.TIME, Held.ROUNDED_TIME):
            column = text_of_serial(column, field, each)
        columns.append(column)
    return records_of(columns, fields)
