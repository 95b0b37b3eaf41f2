"""Records of CSV as columns of text, and back: what all formats are written from and read into.

All work on values is done by Arrow's kernels on whole columns; nothing is done for each value in Python.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.fields import Field
from export_pipelines.specs.format import PLAIN, CsvSpec

# Texts of more bytes than Arrow's 32-bit offsets reach, once each quote of them was doubled or escaped.
_LARGE = 1 << 28
_NEEDS_QUOTES = re.compile(r'[",\r\n]')


def columns_of(records: Sequence[bytes], count: int, dialect: CsvSpec = PLAIN) -> list[Any]:
    """The values of records with their line ends, as `count` Arrow arrays of text; NULL is null.

    Raises:
        IntegrityError: it is no CSV of that dialect in UTF-8, or a record has another number of fields.
    """
    import pyarrow as pa

    raw = b"".join(records)
    kind = pa.large_string() if len(raw) > _LARGE else pa.string()
    if not records:
        return [pa.array([], kind)] * count
    try:
        batch = _parsed(raw, [str(number) for number in range(count)], kind, dialect)
    except pa.ArrowInvalid as error:
        raise IntegrityError(f"a record is not CSV in UTF-8 with {count} fields: {_first_line(error)}") from error
    if batch.num_rows != len(records):
        raise IntegrityError(f"{len(records)} records were read as {batch.num_rows}")
    return [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in batch.columns]


def _parsed(raw: bytes, names: list[str], kind: Any, dialect: CsvSpec) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    # Arrow drops a mark of UTF-8 that the data begin with, though here it is part of a value.
    raw = codecs.BOM_UTF8 + raw if raw.startswith(codecs.BOM_UTF8) else raw
    return csv.read_csv(
        pa.BufferReader(raw),
        # One block, or a record longer than it would be an error.
        read_options=csv.ReadOptions(use_threads=False, block_size=len(raw) + 1, column_names=names),
        parse_options=csv.ParseOptions(
            delimiter=dialect.delimiter, quote_char=dialect.quote, newlines_in_values=True, ignore_empty_lines=False
        ),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, kind),
            null_values=[dialect.null],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def records_of(columns: Sequence[Any], fields: Sequence[Field], dialect: CsvSpec = PLAIN) -> list[bytes]:
    """Records of the columns, with their line ends, as the source of the fields spells them.

    In another dialect than PLAIN, values are in quotes only where they must be, and the empty string always.
    """
    import pyarrow as pa
    from pyarrow import compute

    return list(compute.cast(_lines(columns, fields, dialect), pa.large_binary()).to_pylist())


def encoded(columns: Sequence[Any], fields: Sequence[Field], dialect: CsvSpec) -> bytes:
    """The same as `records_of`, in one piece."""
    return bytes_of(_lines(columns, fields, dialect))


def _lines(columns: Sequence[Any], fields: Sequence[Field], dialect: CsvSpec) -> Any:
    from pyarrow import compute

    always = [field.quoted and dialect == PLAIN for field in fields]
    single = len(columns) == 1
    texts = [quoted_column(column, dialect, all_of, single) for column, all_of in zip(columns, always, strict=True)]
    end = "\r\n" if dialect.line_end == "crlf" else "\n"
    texts = [compute.fill_null(text, dialect.null) if text.null_count else text for text in texts]
    return joined([*[part for text in texts for part in (text, dialect.delimiter)][:-1], end])


def quoted_column(column: Any, dialect: CsvSpec, always: bool = False, single: bool = False) -> Any:
    """Texts as fields of a dialect, in quotes where they must be, or always."""
    from pyarrow import compute

    quote = dialect.quote
    if always:
        return joined([quote, compute.replace_substring(column, quote, quote * 2), quote])
    signs = "".join(re.escape(sign) for sign in (dialect.delimiter, quote))
    # The last is what COPY takes for the end of the data when it stands alone in a line.
    pattern = rf"[{signs}\r\n]" + (r"|^\\\.$" if single else "")
    needed = compute.or_(compute.match_substring_regex(column, pattern), compute.equal(column, dialect.null))
    if dialect.null:
        needed = compute.or_(needed, compute.equal(column, ""))
    if not compute.any(needed).as_py():
        return column
    inner = compute.replace_substring(column, quote, quote * 2)
    return compute.if_else(needed, joined([quote, inner, quote]), column)


def quoted(text: str, field: Field, *, single: bool = False) -> str:
    """One value as a field of a plain record. Of a record of one field, `single`."""
    if field.quoted or not text or _NEEDS_QUOTES.search(text) or (single and text == "\\."):
        return '"' + text.replace('"', '""') + '"'
    return text


def joined(parts: Sequence[Any], null: str | None = None) -> Any:
    """Columns and strings, put together row by row. A null makes the whole null, or is written as `null`."""
    import pyarrow as pa
    from pyarrow import compute

    kinds = {part.type for part in parts if not isinstance(part, str)}
    kind = pa.large_string() if pa.large_string() in kinds else pa.string()
    cast = [
        pa.scalar(part, kind) if isinstance(part, str) else part if part.type == kind else part.cast(kind)
        for part in parts
    ]
    if null is None:
        return compute.binary_join_element_wise(*cast, pa.scalar("", kind), null_handling="emit_null")
    empty = pa.scalar("", kind)
    return compute.binary_join_element_wise(*cast, empty, null_handling="replace", null_replacement=null)


def bytes_of(texts: Any) -> bytes:
    """All texts of a column, one after the other."""
    if not len(texts):
        return b""
    _, offsets, data = texts.buffers()
    import pyarrow as pa

    width = 8 if texts.type == pa.large_string() else 4
    first, last = (
        int.from_bytes(offsets[place * width : (place + 1) * width].to_pybytes(), "little")
        for place in (texts.offset, texts.offset + len(texts))
    )
    return data[first:last].to_pybytes() if data is not None else b""


def first_where(column: Any, mask: Any) -> str:
    """The first text of a column of which a mask is true, shortened for people."""
    from pyarrow import compute

    found = compute.filter(column, compute.fill_null(mask, False))
    text = str(found[0].as_py())
    return text if len(text) <= 40 else text[:39] + "…"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].split(" Row:")[0]
