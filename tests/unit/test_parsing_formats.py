"""JSON, Parquet, Excel, GML and packed files of others."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.parsing import unpacking
from tests.support.parsing import bad, numbered, opened, rows

# JSON


def test_numbers_of_json_stay_exact() -> None:
    numbers = ["12345678901234567890123", "0.10", "1.0", "-3", "123456789.123456789123456789"]
    for number in numbers:
        data = f'[{{"n": {number}}}]'
        assert rows(opened(data.encode(), "a.json")) == [(number,)]
        assert rows(opened(data[1:-1].encode(), "a.jsonl")) == [(number,)]


def test_the_columns_of_json_are_the_keys_of_all_records() -> None:
    parsed = opened(b'[{"a": 1}, {"b": null, "a": ""}, {"c": [1, {"x": 2.50}], "a": true}]', "a.json")
    assert parsed.columns == ("a", "b", "c")
    assert rows(parsed) == [("1", None, None), ("", None, None), ("true", None, '[1,{"x":2.50}]')]


def test_columns_may_be_jmespaths_or_names_that_look_like_none() -> None:
    data = b'[{"a": {"b": [7, 8]}, "Average price": 3, "x.y": 4}]'
    parsed = opened(data, "a.json", ["a.b[1]", "Average price", "x.y", "gone"])
    assert rows(parsed) == [("8", "3", "4", None)]


@pytest.mark.parametrize("path", ["data.items", "data.items[]", "data.items[*]", "data.items[?a > `0`]"])
def test_records_are_found_by_names_or_by_any_path(path: str) -> None:
    data = b'{"n": 2, "data": {"items": [{"a": 1}, {"a": 2}]}}'
    assert rows(opened(data, "a.json", records=path)) == [("1",), ("2",)]


def test_one_object_is_one_record() -> None:
    assert rows(opened(b' {"a": 1} ', "a.json")) == [("1",)]
    assert rows(opened(b'{"data": {"a": 1}}', "a.json", records="data")) == [("1",)]
    assert rows(opened(b'{"data": null}', "a.json", ["a"], records="data")) == []


def test_a_path_without_records_is_an_error() -> None:
    with pytest.raises(IntegrityError, match="no list at 'rows'"):
        rows(opened(b'{"error": "not today"}', "a.json", records="rows"))


def test_broken_json_is_told_with_line_and_column() -> None:
    with pytest.raises(IntegrityError, match=r"line 3, column 1"):
        rows(opened(b'[{"a": 1},\n{"a": 2}\n{"a": 3}]', "a.json", ["a"]))


def test_json_that_was_cut_off_is_an_error() -> None:
    with pytest.raises(IntegrityError, match="no JSON"):
        rows(opened(b'[{"a": 1}, {"a": 2', "a.json", ["a"]))


def test_what_json_cannot_say_in_postgresql_is_a_bad_record() -> None:
    data = rb'[{"a": "x\u0000"}, 5, null, [1], {"a": "good"}]'
    assert [each.line for each in bad(opened(data, "a.json", ["a"]))] == [1, 2, 3, 4]
    assert [each.line for each in bad(opened(rb'{"a": "\ud800"}', "a.jsonl", ["a"]))] == [1]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_half_of_a_surrogate_pair_is_an_error_and_a_whole_one_is_not(size: int) -> None:
    whole = rb'[{"a": "\ud83d\ude00 \\ud83d"}]'
    assert rows(opened(whole, "a.json", size=size)) == [("\U0001f600 \\ud83d",)]
    for half in (rb'[{"a": "\ud83d "}, {}, {}, {}]', rb'[{"a": "\uDE00 "}, {}, {}, {}]'):
        with pytest.raises(IntegrityError, match=r"half of a surrogate pair|no JSON"):
            rows(opened(half, "a.json", size=size))


def test_json_nested_very_deep_is_told_and_kills_nothing() -> None:
    deep = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for name, data in [("a.json", b"[" + deep + b"]"), ("a.jsonl", deep)]:
        with suppress(IntegrityError):
            assert [each.line for each in bad(opened(data, name, ["a"]))] == [1]


def test_a_record_of_json_beyond_the_limit_fails_the_file() -> None:
    data = b'[{"a": "' + b"x" * 400_000 + b'"}]'
    with pytest.raises(RequestError, match="longer than 1000"):
        rows(opened(data, "a.json", ["a"], size=1000, max_line_bytes=1000))
    with pytest.raises(RequestError, match="line 1 is longer than 1000"):
        rows(opened(data, "a.jsonl", ["a"], size=1000, max_line_bytes=1000))


def test_too_many_keys_fail_the_file() -> None:
    data = json.dumps([{f"k{n}": 1} for n in range(20)]).encode()
    with pytest.raises(RequestError, match="more than 10 columns"):
        opened(data, "a.json", max_columns=10)


def test_json_lines_have_their_lines_and_bad_ones_are_told() -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": }\n{"a": NaN}\n{"a": 5}'
    assert [each.line for each in bad(opened(data, "a.ndjson", ["a"]))] == [3, 4]
    good = data.replace(b'{"a": }\n{"a": NaN}\n', b"")
    assert numbered(opened(good, "a.ndjson", ["a"], size=2)) == [(("1",), 1), (("5",), 3)]


def test_json_of_utf_16_is_read() -> None:
    assert rows(opened('[{"a": "õ"}]'.encode("utf-16"), "a.json")) == [("õ",)]


def test_features_of_geojson_are_flat_records() -> None:
    data = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": "w.1",
                "properties": {"n": 1},
                "geometry": {"type": "Point", "coordinates": [1, 2]},
            },
            {"type": "Feature", "id": "w.2", "properties": None, "geometry": None},
        ],
    }
    parsed = opened(json.dumps(data).encode(), "a.geojson")
    assert parsed.columns == ("id", "n", "geometry")
    assert rows(parsed) == [("w.1", "1", '{"type":"Point","coordinates":[1,2]}'), ("w.2", None, None)]


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(_json, st.integers(1, 50))
def test_nested_json_comes_out_as_it_went_in(value: Any, size: int) -> None:
    from export_pipelines.formats.parsing.json_text import dumps, loads

    try:
        data = dumps([{"a": {"x": value}}]).encode()
    except (ValueError, UnicodeEncodeError):
        return
    for name, text in [("a.json", data), ("a.jsonl", data[1:-1])]:
        found = rows(opened(text, name, ["a"], size=size))
        assert loads(str(found[0][0])) == {"x": value}


# Parquet


def test_parquet_is_read_exactly() -> None:
    table = pa.table(
        {
            "big": pa.array([2**63 - 1, None], pa.int64()),
            "exact": pa.array([Decimal("1234567890.10"), None], pa.decimal128(20, 2)),
            "f32": pa.array([0.1, None], pa.float32()),
            "f64": pa.array([0.1, float("inf")], pa.float64()),
            "day": pa.array([datetime.date(2024, 2, 29), None]),
            "at": pa.array([datetime.datetime(2024, 2, 29, 1, 2, 3, 4), None], pa.timestamp("us")),
            "zoned": pa.array(
                [datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC), None], pa.timestamp("us", "Europe/Tallinn")
            ),
            "raw": pa.array([b"\x00\xff", None]),
            "yes": pa.array([True, None]),
            "word": pa.array(["", None]).dictionary_encode(),
            "list": pa.array([[1, 2], None]),
        }
    )
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    parsed = opened(sink.getvalue(), "a.parquet", size=1000)
    assert parsed.columns == tuple(table.column_names)
    first, second = rows(parsed)
    assert first == (
        *("9223372036854775807", "1234567890.10", "0.1", "0.1", "2024-02-29", "2024-02-29 01:02:03.000004"),
        *("2024-02-29 00:00:00.000000+00", "\\x00ff", "true", "", "[1,2]"),
    )
    assert second == (None, None, None, "Infinity", *[None] * 7)


def test_parquet_that_was_cut_off_is_an_error() -> None:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(IntegrityError, match="not intact Parquet"):
        opened(sink.getvalue()[:-20], "a.parquet")


# Excel


def _workbook(*sheets: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    for number, lines in enumerate(sheets):
        sheet = book.active if not number else book.create_sheet(f"Sheet {number}")
        for line in lines:
            sheet.append(line)
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def test_a_sheet_is_read_with_its_dates_and_whole_numbers() -> None:
    data = _workbook(
        [
            ["title"],
            ["n", "x", "day", "at", "ok", None],
            [5.0, 0.1, datetime.date(2024, 2, 29), None, True],
            [None, ""],
        ],
    )
    parsed = opened(data, "a.xlsx", skip_rows=1)
    assert parsed.columns == ("n", "x", "day", "at", "ok")
    assert numbered(parsed) == [(("5", "0.1", "2024-02-29", None, "true"), 3)]


def test_a_sheet_is_chosen_by_name_or_number() -> None:
    data = _workbook([["a"], [1]], [["b"], [2]])
    assert rows(opened(data, "a.xlsx", sheet="Sheet 1")) == [("2",)]
    assert rows(opened(data, "a.xlsx", sheet=1)) == [("2",)]
    with pytest.raises(RequestError, match="no sheet 'Gone'; it has 'Sheet', 'Sheet 1'"):
        opened(data, "a.xlsx", sheet="Gone")


def test_a_row_that_is_wider_than_the_header_is_bad() -> None:
    assert [each.line for each in bad(opened(_workbook([["a"], [1], [2, 3]]), "a.xlsx"))] == [3]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04nothing", b"\xd0\xcf\x11\xe0 an old workbook", b"<html>"])
def test_what_is_no_workbook_is_an_error(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not an intact workbook"):
        opened(data, "a.xlsx")


def test_a_damaged_workbook_is_an_error() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_workbook([["a"], [1]]))) as old, zipfile.ZipFile(sink, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:200] if "sheet1" in name else old.read(name))
    with pytest.raises(IntegrityError, match="not an intact workbook"):
        rows(opened(sink.getvalue(), "a.xlsx"))


# GML

_GML = b"""<?xml version="1.0" encoding="UTF-8"?>
<wfs:FeatureCollection xmlns:wfs="http://www.opengis.net/wfs/2.0" xmlns:gml="http://www.opengis.net/gml/3.2"
  xmlns:t="urn:t"><wfs:boundedBy><gml:Envelope/></wfs:boundedBy>
 <wfs:member><t:well gml:id="well.1"><gml:boundedBy><gml:Null>x</gml:Null></gml:boundedBy>
  <t:name>A &amp; B</t:name><t:depth>5.10</t:depth><t:tag>x</t:tag><t:tag>y</t:tag>
  <t:place><gml:Point srsName="EPSG:3301"><gml:pos>1 2</gml:pos></gml:Point></t:place></t:well></wfs:member>
 <wfs:member><t:well gml:id="well.2"><t:name/></t:well></wfs:member>
</wfs:FeatureCollection>"""


def test_features_of_gml_are_records_and_geometries_stay_xml() -> None:
    parsed = opened(_GML, "a.gml", size=50)
    assert parsed.columns == ("gml_id", "name", "depth", "tag", "place")
    point = '<Point xmlns="http://www.opengis.net/gml/3.2" srsName="EPSG:3301"><pos>1 2</pos></Point>'
    assert rows(parsed) == [
        ("well.1", "A & B", "5.10", '["x","y"]', point),
        ("well.2", None, None, None, None),
    ]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (_GML[:400], "no XML"),
        (b"<ExceptionReport><Exception>no such type</Exception></ExceptionReport>", "its root is 'ExceptionReport'"),
        (b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><a>&y;</a>', "DTD"),
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><FeatureCollection>&x;</FeatureCollection>', "DTD"),
        (b"<FeatureCollection>" + b"<a>" * 5000, "nested more than"),
    ],
)
def test_what_is_no_gml_is_an_error(data: bytes, match: str) -> None:
    with pytest.raises(IntegrityError, match=match):
        opened(data, "a.gml")


# Packed files


def _zip(**files: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return sink.getvalue()


def test_compression_is_known_by_the_content() -> None:
    for data in (gzip.compress(b"a\n1\n", mtime=0), zstandard.compress(b"a\n1\n"), _zip(**{"x.csv": "a\n1\n"})):
        assert rows(opened(data, "a.csv")) == [("1",)]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_packed_files_that_were_cut_off_are_errors(pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(IntegrityError):
        rows(opened(pack(b"a\n1\n" * 99)[:-3], "a.csv.gz"))


def test_packing_that_is_not_known_is_named() -> None:
    with pytest.raises(RequestError, match="packed by bzip2"):
        opened(b"BZh91AY", "a.csv.bz2")


def test_all_matching_files_of_a_zip_are_read_as_one() -> None:
    data = _zip(**{"../../b.csv": "a\n2\n", "/etc/a.csv": "a\n1\n", "readme.txt": "?", "__MACOSX/._b.csv": "\0"})
    parsed = opened(data, "a.zip", member="*.csv")
    assert rows(parsed) == [("2",), ("1",)]
    assert not parsed.passthrough


def test_files_of_a_zip_with_other_columns_are_an_error() -> None:
    with pytest.raises(IntegrityError, match=r"lacks \['a'\]; it adds \['b'\]"):
        rows(opened(_zip(**{"a.csv": "a\n1\n", "b.csv": "b\n2\n"}), "a.zip"))


def test_a_zip_without_a_matching_file_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"no file in a\.zip matches"):
        opened(_zip(**{"a.txt": "x"}), "a.zip", member="*.csv")


def test_a_damaged_zip_is_an_error() -> None:
    data = bytearray(_zip(**{"a.csv": "a\n" + "1\n" * 1000}))
    data[40] ^= 255
    with pytest.raises(IntegrityError, match="not an intact ZIP"):
        rows(opened(bytes(data), "a.zip"))


def test_a_bomb_is_noticed_while_it_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_HARMLESS", 1 << 20)
    text = "a,b\n" + "1,2\n" * 3_000_000
    for name, data in [("a.csv.gz", gzip.compress(text.encode())), ("a.zip", _zip(**{"a.csv": text}))]:
        with pytest.raises(RequestError, match="may be a bomb"):
            rows(opened(data, name, max_expansion=20))


def test_a_name_that_tells_nothing_is_an_error() -> None:
    with pytest.raises(RequestError, match="does not tell what the file is"):
        opened(b"a\n1\n", "download")
    assert rows(opened(b"a\n1\n", "download", format="csv")) == [("1",)]
