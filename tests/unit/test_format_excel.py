"""Excel: what it holds exactly, what must be declared, and that text is never anything else."""

from __future__ import annotations

import io
import zipfile
from datetime import datetime
from typing import Any

import openpyxl
import pytest

from export_pipelines.errors import FormatError
from export_pipelines.formats import excel
from export_pipelines.formats.writers import problems
from tests.support.formats import fields, layout, read_back, written

CHECKED = {"conversions": {"*": "checked"}}


def cells(data: bytes) -> list[list[Any]]:
    book = openpyxl.load_workbook(io.BytesIO(data))
    return [[cell.value for cell in row] for row in book.active.iter_rows()]


def test_values_have_the_types_of_excel() -> None:
    kinds = ("integer", "boolean", "numeric(10,2)", "double precision", "date", "timestamp(3) without time zone")
    of = fields(**{f"c{number}": kind for number, kind in enumerate(kinds)})
    rows = [b",,,,,\n", b"1,t,1.50,0.1,2025-02-03,2025-02-03 04:05:06.789\n"]
    data, exact = written(layout("excel"), of, rows)
    assert exact and read_back(layout("excel"), of, data) == rows
    assert cells(data)[1] == [None] * 6
    assert cells(data)[2] == [1, True, 1.5, 0.1, datetime(2025, 2, 3), datetime(2025, 2, 3, 4, 5, 6, 789000)]


TEXTS = ["=1+1", "http://a.b/c", "<r><t>x</t></r>", "0123", "{=SUM(A1)}", " x ", "_x0041_", "a<&>'"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_never_a_formula_a_link_or_markup(text: str) -> None:
    of = fields(t="text")
    data, _ = written(layout("excel"), of, [f'"{text}"\n'.encode()])
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
    assert "<f>" not in sheet and "hyperlink" not in sheet and sheet.count("<t ") == 2
    if "_x" not in text:
        assert cells(data)[1] == [text]
    assert b"".join(read_back(layout("excel"), of, data)).decode().strip("\n") == text


@pytest.mark.parametrize("kind", ["bigint", "numeric", "numeric(16,2)", "timestamp without time zone"])
def test_a_type_that_excel_does_not_hold_exactly_must_be_declared(kind: str) -> None:
    of = fields(c=kind)
    assert "column 'c'" in problems(layout("excel"), of)[0]
    with pytest.raises(FormatError, match="declare"):
        written(layout("excel"), of)
    for how in ("text", "checked", "float"):
        for name in ("c", "*"):
            assert problems(layout("excel", conversions={name: how}), of) == []


@pytest.mark.parametrize(
    ("kind", "fits", "too_much"),
    [
        ("bigint", "-999999999999999", "9007199254740993"),
        ("numeric", "0.00012345678901234", "1.2345678901234567"),
        ("timestamp without time zone", "2025-01-01 00:00:00.001", "2025-01-01 00:00:00.0001"),
        ("date", "1900-03-01", "1900-02-28"),
        ("double precision", "0.30000000000000004", "NaN"),
    ],
)
def test_a_value_with_more_than_excel_holds_is_refused(kind: str, fits: str, too_much: str) -> None:
    of, spec = fields(c=kind), layout("excel", **CHECKED)
    data, exact = written(spec, of, [f"{fits}\n".encode()])
    assert exact and read_back(spec, of, data) == [f"{fits}\n".encode()]
    with pytest.raises(FormatError, match="column 'c' has") as caught:
        written(spec, of, [f"{too_much}\n".encode()])
    assert "conversions: {c: text}" in caught.value.hint
    spec = layout("excel", conversions={"c": "text"})
    data, exact = written(spec, of, [f"{too_much}\n".encode()])
    assert exact and cells(data)[1] == [too_much]


def test_a_time_may_be_rounded_if_that_is_declared() -> None:
    of, spec = fields(c="timestamp with time zone"), layout("excel", conversions={"c": "datetime"})
    data, exact = written(spec, of, [b"2025-01-01 12:00:00.0016+02\n"])
    assert not exact and cells(data)[1] == [datetime(2025, 1, 1, 10, 0, 0, 2000)]


def test_more_rows_columns_or_characters_than_excel_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    of = fields(t="text")
    with pytest.raises(FormatError, match="32,767"):
        written(layout("excel"), of, ["\U0001f600".encode() * 16_384 + b"\n"])
    assert cells(written(layout("excel"), of, [b"x" * 32_767 + b"\n"])[0])[1] == ["x" * 32_767]
    many = fields(**{f"c{number}": "text" for number in range(16_385)})
    assert "16,384 columns" in problems(layout("excel"), many)[0]
    monkeypatch.setattr(excel, "MOST_ROWS", 3)
    assert len(cells(written(layout("excel"), of, [b"x\n"] * 2)[0])) == 3
    with pytest.raises(FormatError, match="rows beside the header"):
        written(layout("excel"), of, [b"x\n"] * 3)


def test_the_sheet_has_the_name_that_was_given() -> None:
    data, _ = written(layout("excel", excel={"sheet": "a & 'b'c"}), fields(t="text"))
    assert openpyxl.load_workbook(io.BytesIO(data)).sheetnames == ["a & 'b'c"]
    for wrong in ("a/b", "'a", "x" * 32, ""):
        with pytest.raises(ValueError, match="sheet"):
            layout("excel", excel={"sheet": wrong})
