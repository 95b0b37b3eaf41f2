"""Records go into every format and come back byte for byte, whatever is in them."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export_pipelines.errors import FormatError, IntegrityError
from export_pipelines.formats.fields import Kind
from export_pipelines.formats.writers import extension, media_type, problems
from export_pipelines.specs.format import CsvSpec, FormatName
from tests.support.formats import fields, layout, read_back, written

FORMATS = ["csv", "json", "jsonl", "parquet", "excel"]
SIX = fields(i="integer", b="boolean", n="numeric(12,3)", t="text", d="date", o="int4range")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def cell(text: str | None) -> str:
    """As COPY writes a value."""
    if text is None:
        return ""
    if not text or any(sign in text for sign in '",\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


ROW = st.tuples(
    st.none() | st.integers(-(2**31), 2**31 - 1).map(str),
    st.none() | st.sampled_from("tf"),
    st.none() | st.decimals(1 - 10**9, 10**9 - 1, places=3, allow_nan=False).map(lambda value: f"{value:.3f}"),
    st.none() | TEXT,
    st.none() | st.dates(min_value=date(1900, 3, 1)).map(str),
    st.none() | TEXT,
).map(lambda row: (",".join(map(cell, row)) + "\n").encode())


@pytest.mark.parametrize("name", FORMATS)
@given(rows=st.lists(ROW, max_size=12), cut=st.integers(0, 12), size=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_records_come_back_byte_for_byte(name: str, rows: list[bytes], cut: int, size: int) -> None:
    spec = layout(name)
    data, exact = written(spec, SIX, rows[:cut], rows[cut:])
    assert read_back(spec, SIX, data, size) == rows
    assert exact
    assert written(spec, SIX, rows)[0] == data


DIALECTS = st.builds(
    CsvSpec,
    delimiter=st.sampled_from(",;|\t"),
    quote=st.sampled_from("\"'`"),
    null=st.sampled_from(["", "NULL", "\\N"]),
    header=st.booleans(),
    bom=st.booleans(),
    line_end=st.sampled_from(["lf", "crlf"]),
    neutralise_formulas=st.booleans(),
)
FORMULAS = st.text(st.sampled_from("'=+-@\t\r\n1.e;,\"\\x"), max_size=6)


@given(texts=st.lists(st.tuples(st.none() | FORMULAS, st.none() | FORMULAS), max_size=10), dialect=DIALECTS)
@settings(max_examples=150, deadline=None)
def test_every_dialect_of_csv_gives_its_records_back(texts: list[Any], dialect: CsvSpec) -> None:
    spec, of = layout("csv", csv=dialect), fields(a="text", b="text")
    rows = [(",".join(map(cell, row)) + "\n").encode() for row in texts]
    assert read_back(spec, of, written(spec, of, rows)[0], 7) == rows


@given(texts=st.lists(st.none() | FORMULAS, max_size=8), dialect=DIALECTS)
@settings(max_examples=60, deadline=None)
def test_a_reader_of_csv_finds_the_values(texts: list[str | None], dialect: CsvSpec) -> None:
    dialect = dialect.model_copy(update={"neutralise_formulas": False})
    spec, of = layout("csv", csv=dialect), fields(a="text", b="integer")
    data = written(spec, of, [f"{cell(text)},1\n".encode() for text in texts])[0]
    found = csv.reader(
        io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=dialect.delimiter, quotechar=dialect.quote
    )
    rows = list(found)[1 if dialect.header else 0 :]
    assert rows == [[dialect.null if text is None else text, "1"] for text in texts]


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_alone_may_be_null_empty_or_look_like_an_end(name: str) -> None:
    spec, of = layout(name), fields(t="text")
    rows = [b"\n", b'""\n', b'"\\."\n', b"x\n", b"\n"]
    assert read_back(spec, of, written(spec, of, rows)[0]) == rows


@pytest.mark.parametrize("name", FORMATS)
def test_no_rows_make_a_file_that_can_be_read(name: str) -> None:
    spec = layout(name)
    data, exact = written(spec, SIX)
    assert read_back(spec, SIX, data) == [] and exact


@pytest.mark.parametrize("name", FORMATS)
def test_as_many_columns_as_a_table_may_have_go_into_a_file(name: str) -> None:
    of = fields(**{f"c{number}": "integer" if number % 2 else "text" for number in range(1600)})
    rows = [(",".join(str(number) for number in range(1600)) + "\n").encode()] * 3
    assert read_back(layout(name), of, written(layout(name), of, rows)[0]) == rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csv", "json", "jsonl", "parquet"])
def test_a_cell_may_have_a_hundred_megabytes(name: str) -> None:
    spec = layout(name, csv={"line_end": "crlf"})
    rows = [b'1,"' + b'a ""b""\n' * 12_500_000 + b'"\n', b"2,\n"]
    of = fields(i="integer", t="text")
    # Of these, pytest would need minutes to say in what they differ.
    assert bool(read_back(spec, of, written(spec, of, rows)[0], 1 << 20) == rows)


@pytest.mark.parametrize("name", ["json", "jsonl", "parquet", "excel"])
def test_a_damaged_file_is_an_error_that_says_so(name: str) -> None:
    spec = layout(name)
    data = written(spec, SIX, [b"1,t,0.100,a,2025-01-01,b\n"] * 51)[0]
    middle = len(data) // 2
    # Two of its bytes, and not of a value that may have any.
    changed = data[:middle] + b"\0{" + data[middle + 2 :]
    for damaged in (data[:middle], data[:-2], changed):
        with pytest.raises(IntegrityError):
            read_back(spec, SIX, damaged)


@pytest.mark.parametrize("name", ["json", "jsonl", "parquet", "excel"])
def test_a_file_with_other_columns_is_an_error(name: str) -> None:
    spec = layout(name)
    data = written(spec, fields(a="integer"), [b"1\n"])[0]
    with pytest.raises(IntegrityError):
        read_back(spec, fields(b="integer"), data)


@pytest.mark.parametrize("name", ["json", "jsonl", "parquet"])
def test_columns_of_one_name_are_refused_where_one_would_hide_the_other(name: str) -> None:
    of = (*fields(a="integer"), *fields(a="text"))
    assert "['a'] come more than once" in problems(layout(name), of)[0]
    with pytest.raises(FormatError, match="more than once"):
        written(layout(name), of)
    assert read_back(layout("excel"), of, written(layout("excel"), of, [b"1,x\n"])[0]) == [b"1,x\n"]


def test_what_is_no_csv_is_refused() -> None:
    for wrong in (b"1,2\n", b"\xff\n", b'a"b,\n1\n'):
        with pytest.raises(IntegrityError):
            written(layout("jsonl"), fields(t="text"), [wrong])


def test_formats_have_their_own_extensions_and_media_types() -> None:
    assert [extension(layout(name)) for name in FormatName] == [".csv", ".json", ".jsonl", ".parquet", ".xlsx"]
    assert media_type(layout("jsonl")) == "application/x-ndjson"


@pytest.mark.parametrize(
    ("value", "safe"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\tx", "'\tx"),
        ("-5", "-5"),
        ("+1.5e3", "+1.5e3"),
        ("'=1", "''=1"),
        ("'x", "'x"),
        ("a=1", "a=1"),
    ],
)
def test_formulas_are_made_harmless_and_numbers_are_not(value: str, safe: str) -> None:
    spec = layout("csv", csv={"neutralise_formulas": True, "header": False})
    data = written(spec, fields(t="text"), [f"{cell(value)}\n".encode()])[0]
    assert data.decode() == f"{safe}\n"


def test_a_column_named_like_a_formula_is_made_harmless_too() -> None:
    spec = layout("csv", csv={"neutralise_formulas": True})
    assert written(spec, fields(**{"=1": "text"}))[0] == b"'=1\n"


def test_types_are_known_by_the_names_that_servers_give_them() -> None:
    known = fields(
        a="timestamp(3) with time zone", b="numeric(5,-2)", c="integer[]", d="interval day to second(3)", e="mood"
    )
    assert [field.kind for field in known] == [
        Kind.TIMESTAMPTZ,
        Kind.DECIMAL,
        Kind.OTHER,
        Kind.INTERVAL,
        Kind.OTHER,
    ]
    mysql = fields("mysql", a="bigint(20) unsigned", b="enum('a')", c="bit(3)", d="time(2)", e="longblob")
    assert [(field.kind, field.signed, field.quoted) for field in mysql] == [
        (Kind.INTEGER, False, False),
        (Kind.TEXT, True, True),
        (Kind.OTHER, True, False),
        (Kind.INTERVAL, True, False),
        (Kind.BINARY, True, False),
    ]
    assert fields("opensearch", a="nested", b="long")[0].kind is Kind.JSON


# -- JSON


@pytest.mark.parametrize("name", ["json", "jsonl"])
@given(rows=st.lists(ROW, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_parser_of_json_finds_the_values(name: str, rows: list[bytes]) -> None:
    data = written(layout(name), SIX, rows)[0].decode()
    lines = [data] if name == "json" else data.split("\n")[:-1]
    found = [json.loads(line, parse_float=str) for line in lines]
    texts = csv.reader(io.StringIO(b"".join(rows).decode(), newline=""))
    for row, values in zip(found[0] if name == "json" else found, texts, strict=True):
        assert list(row) == ["i", "b", "n", "t", "d", "o"]
        assert [told(value) for value in row.values()] == values


def told(value: Any) -> str:
    """As COPY spells it, without quotes."""
    if isinstance(value, bool):
        return "t" if value else "f"
    return "" if value is None else str(value)


def test_numbers_of_json_have_the_digits_of_the_source() -> None:
    of = fields(n="numeric", b="bigint", y="double precision")
    digits = "9" * 60 + ".10"
    data = written(layout("jsonl"), of, [f"{digits},9223372036854775807,1e-300\n".encode()])[0]
    assert data.decode() == f'{{"n":{digits},"b":9223372036854775807,"y":1e-300}}\n'


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_refused_or_written_as_text(value: str) -> None:
    of, rows = fields(f="double precision"), [f"{value}\n".encode()]
    with pytest.raises(FormatError, match=f"column 'f' has '{value}'") as caught:
        written(layout("json"), of, rows)
    assert "conversions: {f: text}" in caught.value.hint
    for declared in ("f", "*"):
        spec = layout("jsonl", conversions={declared: "text"})
        data, exact = written(spec, of, rows)
        assert data.decode() == f'{{"f":"{value}"}}\n' and exact
        assert read_back(spec, of, data) == rows


def test_json_is_embedded_on_one_line() -> None:
    of = fields(j="json", t="text")
    rows = [b'"{""a"":  [1.50, null]}",x\n', b",x\n", b'"[1,\n2]",x\n']
    data, exact = written(layout("jsonl"), of, rows)
    assert data.decode().split("\n")[:-1] == [
        '{"j":{"a":  [1.50, null]},"t":"x"}',
        '{"j":null,"t":"x"}',
        '{"j":[1, 2],"t":"x"}',
    ]
    assert not exact
    assert read_back(layout("jsonl"), of, data) == [*rows[:2], b'"[1, 2]",x\n']


def test_a_null_of_json_is_refused_since_it_could_not_be_told_from_null() -> None:
    of = fields(j="jsonb")
    with pytest.raises(FormatError, match="could not be told from NULL"):
        written(layout("jsonl"), of, [b"null\n"])
    spec = layout("jsonl", conversions={"j": "text"})
    data, _ = written(spec, of, [b"null\n", b"\n"])
    assert read_back(spec, of, data) == [b"null\n", b"\n"]
