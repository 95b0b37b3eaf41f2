"""Parquet: types, row groups, metadata; what it cannot hold is refused."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from export_pipelines.errors import FormatError
from export_pipelines.formats.arrow import spelt
from tests.support.formats import fields, layout, read_back, written


def table_of(data: bytes) -> Any:
    return parquet.read_table(io.BytesIO(data))


def column(kind: str, *values: str, engine: str = "postgresql", **more: Any) -> tuple[Any, list[Any], bool]:
    """Type and values of a column in the file, and whether it gives back its text."""
    spec, of, rows = layout("parquet", **more), fields(engine, c=kind), [f"{value}\n".encode() for value in values]
    data, exact = written(spec, of, rows)
    if exact:
        assert read_back(spec, of, data) == rows
    found = table_of(data)
    return found.schema.field("c").type, found.column("c").to_pylist(), exact


@pytest.mark.parametrize(
    ("kind", "value", "arrow", "engine"),
    [
        ("smallint", "-32768", pa.int16(), "postgresql"),
        ("bigint", "9223372036854775807", pa.int64(), "postgresql"),
        ("bigint(20) unsigned", "18446744073709551615", pa.uint64(), "mysql"),
        ("year(4)", "0000", pa.uint16(), "mysql"),
        ("time", "-838:59:59", pa.string(), "mysql"),
        ("bit(3)", "011", pa.string(), "mysql"),
        ("datetime(3)", "2025-01-01 00:00:00.500", pa.timestamp("us"), "mysql"),
        ("numeric(38,10)", "0.0000000001", pa.decimal128(38, 10), "postgresql"),
        ("numeric(60,2)", "1.00", pa.decimal256(60, 2), "postgresql"),
        ("numeric(3,5)", "0.00123", pa.decimal128(5, 5), "postgresql"),
        ("numeric(5,-2)", "1234500", pa.decimal128(7, 0), "postgresql"),
        ("numeric(100,2)", "1.00", pa.string(), "postgresql"),
        ("numeric", "NaN", pa.string(), "postgresql"),
        ("real", "1e+06", pa.float32(), "postgresql"),
        ("double precision", "-Infinity", pa.float64(), "postgresql"),
        ("double precision", "1e-05", pa.float64(), "postgresql"),
        ("money", "$1.00", pa.string(), "postgresql"),
        ("interval", "1 mon", pa.string(), "postgresql"),
        ("time with time zone", "12:00:00+05:45", pa.string(), "postgresql"),
        ("time without time zone", "12:00:00.5", pa.time64("us"), "postgresql"),
        ("timestamp with time zone", "0001-01-01 00:00:00.000001+00", pa.timestamp("us", "UTC"), "postgresql"),
        ("date", "9999-12-31", pa.date32(), "postgresql"),
        ("bytea", "\\x00ff", pa.binary(), "postgresql"),
        ("character(5)", "ab   ", pa.string(), "postgresql"),
        ("integer[]", '"{{1,2},{3,4}}"', pa.string(), "postgresql"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", pa.string(), "postgresql"),
    ],
)
def test_a_type_is_held_exactly(kind: str, value: str, arrow: Any, engine: str) -> None:
    found, _, exact = column(kind, value, "", engine=engine)
    assert found == arrow and exact


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("numeric(10,2)", "NaN"),
        ("date", "infinity"),
        ("date", "0044-03-15 BC"),
        ("date", "12025-01-01"),
        ("timestamp without time zone", "-infinity"),
        ("timestamp with time zone", "2025-01-01 00:00:00+01:39:49"),
        ("time without time zone", "24:00:00"),
        ("boolean", "yes"),
        ("smallint", "32768"),
        ("bytea", "abc"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_a_hint(kind: str, value: str) -> None:
    with pytest.raises(FormatError, match="column 'c' has") as caught:
        column(kind, value)
    assert "conversions: {c: text}" in caught.value.hint and value in caught.value.message
    assert column(kind, value, conversions={"c": "text"})[1:] == ([value], True)


def test_an_instant_of_another_offset_is_the_same_instant() -> None:
    _, values, exact = column("timestamp with time zone", "2025-01-01 12:00:00+02")
    assert values[0].isoformat() == "2025-01-01T10:00:00+00:00" and not exact


def test_a_number_without_a_bound_is_held_by_the_digits_that_are_declared() -> None:
    found, values, exact = column("numeric", "1.5", conversions={"c": "decimal(10,2)"})
    assert (found, values, exact) == (pa.decimal128(10, 2), [Decimal("1.50")], False)
    with pytest.raises(FormatError, match=r"has '1\.555'"):
        column("numeric", "1", "1.555", conversions={"c": "decimal(10,2)"})
    assert column("numeric", "1.5", conversions={"*": "float"})[:2] == (pa.float64(), [1.5])


@given(st.lists(st.floats(), min_size=1, max_size=20))
@example([1e10, 123456789012.5, 99999999999999.9])
@settings(max_examples=100, deadline=None)
def test_every_double_of_postgresql_comes_back_in_its_spelling(values: list[float]) -> None:
    assert column("double precision", *(spelt(repr(value), 15) for value in values))[2]


@pytest.mark.parametrize(
    ("digits", "text"),
    [("1e+16", "1e+16"), ("123456.0", "123456"), ("1e-05", "1e-05"), ("0.0001", "0.0001"), ("1e+300", "1e+300"),
     ("1.5e-07", "1.5e-07"), ("nan", "NaN"), ("-0.0", "-0"), ("100000000000000.0", "100000000000000")],
)  # fmt: skip
def test_floats_are_spelt_as_postgresql_spells_them(digits: str, text: str) -> None:
    assert spelt(digits, 15) == text


def test_row_groups_have_as_many_rows_as_was_asked_for() -> None:
    spec, of = layout("parquet", parquet={"row_group_rows": 30}), fields(c="integer")
    rows = [f"{number}\n".encode() for number in range(100)]
    data, _ = written(spec, of, rows)
    found = parquet.ParquetFile(io.BytesIO(data)).metadata
    assert [found.row_group(n).num_rows for n in range(found.num_row_groups)] == [30, 30, 30, 10]
    assert found.row_group(0).column(0).compression == "ZSTD"
    assert read_back(spec, of, data) == rows


def test_the_data_dictionary_is_in_the_metadata() -> None:
    about = {"title": "Flights", "description": "Of 2013", "columns": {"c": "the number"}}
    data, _ = written(layout("parquet"), fields(c="integer", d="text"), dictionary=about)
    schema = table_of(data).schema
    assert schema.metadata[b"title"] == b"Flights"
    assert json.loads(schema.metadata[b"data_dictionary"]) == about
    assert schema.field("c").metadata[b"description"] == b"the number"
    assert schema.field("d").metadata[b"source_type"] == b"text"


def test_an_analyst_reads_the_values_with_pandas() -> None:
    import pandas as pd

    of = fields(i="integer", n="numeric(10,2)", t="text", z="timestamp with time zone", f="double precision")
    rows = [b'1,1.50,"a,b",2025-01-01 12:00:00+00,0.1\n', b",,,,\n"]
    frame = pd.read_parquet(io.BytesIO(written(layout("parquet"), of, rows)[0]))
    assert list(frame.columns) == ["i", "n", "t", "z", "f"]
    assert frame.n[0] == Decimal("1.50") and frame.t[0] == "a,b" and frame.f[0] == 0.1
    assert frame.z[0] == pd.Timestamp("2025-01-01 12:00", tz="UTC")
    lines = pd.read_json(io.BytesIO(written(layout("jsonl"), of, rows)[0]), lines=True)
    array = pd.read_json(io.BytesIO(written(layout("json"), of, rows)[0]))
    text = pd.read_csv(io.BytesIO(written(layout("csv", csv={"bom": True}), of, rows)[0]))
    for found in (lines, array, text):
        assert list(found.columns) == list(frame.columns)
        assert found.n[0] == 1.5 and found.t[0] == "a,b" and found.isna().iloc[1].all()
