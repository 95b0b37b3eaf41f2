"""Cells that a spreadsheet would take for formulas are made harmless, and nothing else is touched."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export_pipelines.formats.fields import Field, Kind
from export_pipelines.formats.formulas import as_they_were, harmless
from export_pipelines.formats.readers import read_records
from export_pipelines.formats.writers import open_writer
from export_pipelines.specs.format import CsvSpec, FormatSpec

TEXT, NUMBER = Field("text", Kind.TEXT, "text"), Field("n", Kind.NUMERIC, "numeric")


def cell(value: str | None) -> str:
    """As PostgreSQL writes it."""
    if value is None:
        return ""
    if value == "" or any(sign in value for sign in ',"\r\n'):
        return '"' + value.replace('"', '""') + '"'
    return value


def record(*values: str | None) -> bytes:
    return (",".join(map(cell, values)) + "\n").encode()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("@a", "'@a"),
        ("-a", "'-a"),
        ("+372 555", "'+372 555"),
        ("\ta", "'\ta"),
        ("\na", "'\na"),
        ("\ra", "'\ra"),
        ('=HYPERLINK("x","y")', '\'=HYPERLINK("x","y")'),
        ("'=1", "''=1"),
        ("-1.5", "-1.5"),
        ("+3e5", "+3e5"),
        ("-1.2.3", "'-1.2.3"),
        ("-1,5", "'-1,5"),
        ("a=1", "a=1"),
        ("x,=1", "x,=1"),
        ("x\n=1", "x\n=1"),
        ("'a", "'a"),
        ("", ""),
        ("'-5", "'-5"),
    ],
)
def test_a_text_is_made_harmless_only_if_it_begins_like_a_formula(value: str, written: str) -> None:
    fields = (TEXT, NUMBER, TEXT)
    plain = [record("first", "-1", "last"), record(value, "-5", value), record(None, None, None)]
    found = harmless(plain, fields)
    rows = list(csv.reader(io.StringIO(b"".join(found).decode(), newline="")))
    assert rows[1] == [written, "-5", written]
    assert [found[0], found[2]] == [plain[0], plain[2]]
    assert as_they_were(found, fields) == plain


VALUES = st.none() | st.text(st.sampled_from("=+-@\t\r\n'\",.a15e;\\ñ"), max_size=8)
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=12)


@settings(deadline=None)
@given(ROWS, st.booleans(), st.sampled_from([",", ";"]))
def test_what_was_made_harmless_reads_back_as_it_was(rows: list[tuple[str | None, ...]], bom: bool, sign: str) -> None:
    spec = FormatSpec(csv=CsvSpec(neutralise_formulas=True, bom=bom, delimiter=sign))
    fields = tuple(Field(name, Kind.TEXT, "text") for name in ("a", "b", "c"))
    plain = [record(*row) for row in rows]
    writer = open_writer(spec, fields)
    raw = writer.begin() + writer.encode(plain[:5]) + writer.encode(plain[5:]) + b"".join(writer.finish())
    assert [each for some in read_records(spec, fields, [raw]) for each in some] == plain
    found = list(csv.reader(io.StringIO(raw.decode("utf-8-sig" if bom else "utf-8"), newline=""), delimiter=sign))
    for cells in found[1:]:
        assert not any(text[:1] in ("=", "@", "\t", "\r", "\n") for text in cells)
