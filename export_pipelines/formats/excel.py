"""Excel: a workbook of one sheet, its header in the first row, streamed.

Numbers stand in the file in the digits of the source, dates and times as Excel has them. All else is text, which
is never taken for a formula, a link or markup. NULL is no cell at all, an empty string a cell of text.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from export_pipelines.errors import FormatError
from export_pipelines.formats import excel_parts
from export_pipelines.formats.batching import BatchWriter
from export_pipelines.formats.excel_types import MOST_CHARACTERS, MOST_ROWS, Held, held, letters, serials
from export_pipelines.formats.fields import Field, Kind
from export_pipelines.formats.json import booleans
from export_pipelines.formats.sink import Sink
from export_pipelines.formats.texts import bytes_of, joined
from export_pipelines.specs.format import FormatSpec

# Beyond it a ZIP needs a form that not all programs read.
_MOST_BYTES = (1 << 31) - 1
_LEVEL = 3
_ODD = r"[\x00-\x08\x0b-\x1f\x{fffe}\x{ffff}]"


class ExcelWriter(BatchWriter):
    """See `formats.writers.FormatWriter`."""

    def __init__(self, spec: FormatSpec, fields: Sequence[Field]) -> None:
        super().__init__(fields)
        self._sheet_name = spec.excel.sheet
        self._held = [held(spec, field) for field in fields]
        self._letters = [letters(number) for number in range(len(fields))]
        self._rows = 1
        self._size = 0
        self._sink = Sink()
        self._zip: zipfile.ZipFile | None = None
        self._sheet: Any = None

    def begin(self) -> bytes:
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL)
        styles = excel_parts.Styles()
        self._styles = [styles.of(each) for each in self._held]
        for name, text in excel_parts.parts(self._sheet_name, styles).items():
            self._zip.writestr(excel_parts.entry(name), text)
        self._sheet = self._zip.open(excel_parts.entry(excel_parts.SHEET), "w")
        widths = [min(max(len(field.name) + 3, 11), 40) for field in self.fields]
        self._put(excel_parts.sheet_head(widths).encode())
        self._put(self._header().encode())
        return self._sink.taken()

    def _header(self) -> str:
        cells = [
            f'<c r="{letter}1" s="1" t="inlineStr"><is><t xml:space="preserve">{_markup(field.name)}</t></is></c>'
            for letter, field in zip(self._letters, self.fields, strict=True)
        ]
        return f'<row r="1">{"".join(cells)}</row>'

    def take(self, columns: list[Any]) -> bytes:
        import pyarrow as pa
        from pyarrow import compute

        first, self._rows = self._rows + 1, self._rows + len(columns[0])
        if self._rows > MOST_ROWS:
            raise FormatError(
                f"Excel holds {MOST_ROWS - 1:,} rows beside the header, and there are more",
                hint="take another format, or ask for fewer rows",
            )
        numbers = compute.cast(pa.array(range(first, self._rows + 1)), pa.string())
        parts: list[Any] = ['<row r="', numbers, '">']
        for column, field, how, letter, style in zip(
            columns, self.fields, self._held, self._letters, self._styles, strict=True
        ):
            parts.append(self._cells(column, field, how, (f'<c r="{letter}', numbers, style)))
        self._put(bytes_of(joined([*parts, "</row>"], null="")))
        return self._sink.taken()

    def _cells(self, column: Any, field: Field, how: Held, head: tuple[Any, ...]) -> Any:
        if how is Held.TEXT:
            text = _texts(column, field)
            return joined([*head, ' t="inlineStr"><is><t xml:space="preserve">', text, "</t></is></c>"])
        if how is Held.BOOLEAN:
            from pyarrow import compute

            digits = compute.if_else(compute.equal(booleans(column, field), "true"), "1", "0")
            return joined([*head, ' t="b"><v>', digits, "</v></c>"])
        values, same = serials(column, field, how)
        self.exact &= same
        return joined([*head, "><v>", values, "</v></c>"])

    def end(self) -> Iterator[bytes]:
        self._put(excel_parts.SHEET_END.encode())
        self._sheet.close()
        assert self._zip is not None
        self._zip.close()
        yield self._sink.taken()

    def close(self) -> None:
        """Let go of a workbook that is not finished: what it would still write goes nowhere."""
        self._sink.open = False
        if self._sheet is not None:
            self._sheet.close()
        if self._zip is not None:
            self._zip.close()

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _MOST_BYTES:
            raise FormatError("the workbook is larger than Excel reads", hint="take another format, or fewer rows")
        self._sheet.write(data)


def _texts(column: Any, field: Field) -> Any:
    """Texts as they stand in the XML of a sheet: with `_xHHHH_` for what XML has not."""
    from pyarrow import compute

    _refuse_long(column, field)
    column = compute.replace_substring_regex(column, r"_(x[0-9a-fA-F]{4}_)", r"_x005F_\1")
    if compute.any(compute.match_substring_regex(column, _ODD)).as_py():
        for code in (*range(9), *range(11, 32), 0xFFFE, 0xFFFF):
            column = compute.replace_substring(column, chr(code), f"_x{code:04X}_")
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        column = compute.replace_substring(column, sign, entity)
    return column


def _refuse_long(column: Any, field: Field) -> None:
    """Excel counts in units of UTF-16."""
    from pyarrow import compute

    long = compute.fill_null(compute.greater(compute.utf8_length(column), MOST_CHARACTERS // 2), False)
    if not compute.any(long).as_py():
        return
    if any(len(text.encode("utf-16-le")) > 2 * MOST_CHARACTERS for text in compute.filter(column, long).to_pylist()):
        raise FormatError(
            f"column {field.name!r} has a text of more than {MOST_CHARACTERS:,} characters, too long for Excel",
            hint="take another format, or leave the column out",
        )


def _markup(text: str) -> str:
    import pyarrow as pa

    return str(_texts(pa.array([text], pa.string()), Field(text, Kind.TEXT, "text"))[0].as_py())
