"""CSV of others: every kind of line end, quote, encoding and mistake; nothing is guessed at, nothing is lost."""

from __future__ import annotations

import csv
import gzip
import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.delimited import DelimitedWriter
from export_pipelines.formats.fields import Field, Kind
from export_pipelines.formats.parsing import BadRecord, NotPlain, csv_scanner
from export_pipelines.formats.parsing.base import encode
from export_pipelines.formats.texts import columns_of
from export_pipelines.specs.format import CsvSpec
from tests.support.parsing import bad, batch_records, numbered, opened, rows


def test_null_and_the_empty_string_stay_apart() -> None:
    assert rows(opened(b'a,b\n1,\n2,""\n')) == [("1", None), ("2", "")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_line_ends_are_taken(end: bytes) -> None:
    found = numbered(opened(end.join([b"a,b", b"1,2", b'3,"x"', b"5,6"]), size=1))
    assert found == [(("1", "2"), 2), (("3", "x"), 3), (("5", "6"), 4)]


def test_line_ends_may_be_mixed() -> None:
    found = numbered(opened(b"a,b\r\n1,2\n3,4\r5,6\r\n\r\n7,8"))
    assert found == [(("1", "2"), 2), (("3", "4"), 3), (("5", "6"), 4), (("7", "8"), 6)]


def test_a_line_end_within_quotes_is_part_of_the_value_and_counts_as_a_line() -> None:
    found = numbered(opened(b'a,b\n1,"x\r\ny"\n2,"\r"\n3,z\n'))
    assert found == [(("1", "x\r\ny"), 2), (("2", "\r"), 4), (("3", "z"), 6)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str) -> None:
    parsed = opened("õ,b\n1,ž\n".encode(encoding), size=3)
    assert parsed.columns == ("õ", "b")
    assert rows(parsed) == [("1", "ž")]


def test_another_encoding_is_read_as_it_was_declared() -> None:
    parsed = opened("nimi;x\nÕun;1\n".encode("cp1257"), encoding="cp1257", delimiter=";")
    assert rows(parsed) == [("Õun", "1")]
    assert not parsed.passthrough


def test_a_wrong_encoding_is_told_with_record_and_byte() -> None:
    found = bad(opened("a,b\n1,2\nä,4\n".encode("latin-1")))
    assert [(each.line, "0xe4" in each.reason) for each in found] == [(3, True)]


def test_what_is_not_of_a_declared_encoding_is_told_with_its_line() -> None:
    with pytest.raises(IntegrityError, match="about line 3"):
        rows(opened(b"a,b\n1,2\n\x81,4\n", encoding="cp1252"))


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(RequestError, match="no encoding 'klingon'"):
        opened(b"a\n", encoding="klingon")


def test_ragged_records_are_bad_and_the_others_good() -> None:
    parsed = opened(b"a,b,c\n1,2,3\n1,2\n1,2,3,4\n,,\n")
    found = list(parsed.batches)
    assert [(e.line, e.reason) for e in found if isinstance(e, BadRecord)] == [
        (3, "it has 2 values, and there are 3 columns"),
        (4, "it has 4 values, and there are 3 columns"),
    ]
    assert b"".join(e.records for e in found if not isinstance(e, BadRecord)) == b"1,2,3\n,,\n"


def test_a_nul_makes_a_record_bad() -> None:
    found = bad(opened(b"a,b\n1,2\n3,\0\n"))
    assert [(each.line, each.reason) for each in found] == [(3, "it has a NUL byte")]


def test_a_quote_within_a_value_makes_that_line_bad_only() -> None:
    parsed = opened(b'a,b\n1,5" pipe\n2,6" pipe\n3,ok\n4,"x"y\n')
    found = list(parsed.batches)
    assert [e.line for e in found if isinstance(e, BadRecord)] == [2, 3, 5]
    assert [e.records for e in found if not isinstance(e, BadRecord)] == [b"3,ok\n"]


@pytest.mark.parametrize("size", [1, 2, 5, 1 << 20])
def test_an_unclosed_quote_is_told_with_the_line_of_its_beginning(size: int) -> None:
    with pytest.raises(IntegrityError, match="line 4: value 2 begins with a quote that is never closed"):
        rows(opened(b'a,b\n1,"x\ny"\n2,"never\n3,4\n', size=size))


def test_duplicate_headers_are_refused_by_number() -> None:
    with pytest.raises(RequestError, match="two columns are named 'a': number 1 and number 3"):
        opened(b"a,b,a\n")


def test_columns_without_a_name_get_one() -> None:
    assert opened(b",b,\n").columns == ("column_1", "b", "column_3")


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(RequestError, match="not even a header"):
        opened(b"\n\n")


def test_a_header_of_very_many_columns_is_refused_before_it_is_taken_apart() -> None:
    with pytest.raises(RequestError, match="more than 1600 columns"):
        opened(b"," * 5_000_000 + b"\n")
    with pytest.raises(RequestError, match="more than 3 columns"):
        opened(b'"a",b,c,d\n', max_columns=3)


def test_a_record_of_very_many_values_is_bad() -> None:
    assert [each.line for each in bad(opened(b"a,b\n" + b"," * 5_000_000 + b'"x"\n1,2\n'))] == [2]


def test_a_line_beyond_the_limit_fails_the_file() -> None:
    with pytest.raises(RequestError, match="line 3 is longer than 1000 bytes"):
        rows(opened(b"a,b\n1,2\n" + b"x" * 5_000 + b",2\n", size=100, max_line_bytes=1000))
    with pytest.raises(RequestError, match="line 2 is longer than 1000 bytes"):
        rows(opened(b'a,b\n1,"' + b"x\n" * 5_000, size=100, max_line_bytes=1000))


def test_null_words_and_trim_apply_to_whole_values() -> None:
    data = b'a,b,c\n NULL , x ,-\nn/a," q ", NULL2\n'
    expected = [(None, "x", None), (None, "q", "NULL2")]
    assert rows(opened(data, null_words=("NULL", "n/a", "-"), trim=True)) == expected
    assert rows(opened(data.replace(b'" q "', b"q"), null_words=("NULL", "n/a", "-"), trim=True)) == expected


@pytest.mark.usefixtures("worth")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(*[st.sampled_from(["NULL", '"NULL"', "x", '"x"', "", '""', "-", "1,5", '"a;b"', "'"])] * 2),
        max_size=6,
    )
)
def test_null_words_count_in_every_dialect(lines: list[tuple[str, str]]) -> None:
    meaning = {"NULL": None, '"NULL"': None, "-": None, "": None, '""': "", '"x"': "x", '"a;b"': "a;b"}
    expected = [tuple(meaning.get(value, value) for value in line) for line in lines]
    data = "a;b\n" + "".join(f"{left};{right}\n" for left, right in lines)
    assert rows(opened(data.encode(), delimiter=";", null_words=("NULL", "-"))) == expected


def test_rows_before_the_header_are_left_out() -> None:
    assert numbered(opened(b'Report "x\n\na,b\n1,2\n', skip_rows=2)) == [(("1", "2"), 4)]


def test_without_a_header_the_columns_are_those_asked_for() -> None:
    parsed = opened(b"1,2\n", columns=["x", "y"], header=False)
    assert (parsed.columns, rows(parsed)) == (("x", "y"), [("1", "2")])
    parsed = opened(b"1,2\n3,4\n", header=False)
    assert (parsed.columns, rows(parsed)) == (("column_1", "column_2"), [("1", "2"), ("3", "4")])


def test_a_file_of_tabs_is_known_by_its_name() -> None:
    assert rows(opened(b"a\tb\n1\tx,y\n", name="a.tsv")) == [("1", "x,y")]


def test_a_comma_is_part_of_a_value_where_the_delimiter_is_another() -> None:
    assert rows(opened(b"a;b\n1,5;2\n3;4\n", delimiter=";")) == [("1,5", "2"), ("3", "4")]


def test_what_ends_copys_data_is_a_value() -> None:
    assert b"".join(b.records for b in opened(b"a\n\\.\nx\n").batches if not isinstance(b, BadRecord)) == b'"\\."\nx\n'


def test_plain_files_pass_through_as_they_are() -> None:
    data = b'a,b\n1,"x\ny"\n2,\n'
    parsed = opened(gzip.compress(data), name="a.csv.gz")
    assert parsed.passthrough
    assert b"".join(parsed.raw()) == data
    assert b"".join(opened(b"\xef\xbb\xbf" + data).raw()) == data


@pytest.mark.parametrize("spec", [{"null_words": ("-",)}, {"trim": True}, {"skip_rows": 1}, {"encoding": "latin-1"}])
def test_what_copy_would_read_in_another_way_does_not_pass_through(spec: dict[str, Any]) -> None:
    assert not opened(b"a,b\na,b\n", **spec).passthrough


def test_a_header_that_is_not_the_first_line_does_not_pass_through() -> None:
    parsed = opened(b"\na,b\n1,2\n")
    assert (rows(parsed), parsed.passthrough) == ([("1", "2")], False)


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_a_quote_that_copy_would_take_in_another_way_stops_what_passes_through(size: int) -> None:
    with pytest.raises(NotPlain):
        list(opened(b'a,b\n1,5" x\n2,6" y\n', size=size).raw())


_texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)
_values = st.one_of(st.none(), _texts, st.sampled_from(["", '"', ",", "\n", "\r\n", "a,b", '"",', "\\.", " x ", "'"]))


def _tables(least: int = 1) -> Any:
    width = st.integers(least, 4)
    return width.flatmap(lambda n: st.lists(st.tuples(*[_values] * n), min_size=1, max_size=8))


@pytest.fixture(params=[1, 1 << 10], ids=["many lines at a time", "record by record"])
def worth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """From how many bytes on lines are taken together."""
    monkeypatch.setattr(csv_scanner, "_WORTH", request.param)


_SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("worth")
@_SETTINGS
@given(_tables(), st.sampled_from([",", ";", "\t"]), st.sampled_from(['"', "'"]), st.booleans(), st.integers(1, 40))
def test_what_our_formats_write_is_read_as_the_same(
    table: list[tuple[str | None, ...]], delimiter: str, quote: str, crlf: bool, size: int
) -> None:
    names = [f"c{number}" for number in range(len(table[0]))]
    fields = [Field(name, Kind.TEXT, "text") for name in names]
    dialect = CsvSpec(delimiter=delimiter, quote=quote, line_end="crlf" if crlf else "lf", header=True)
    writer = DelimitedWriter(dialect, fields)
    data = writer.begin() + writer.encode([encode(row) for row in table]) + b"".join(writer.finish())
    for piece in (size, 1 << 20):
        parsed = opened(data, delimiter=delimiter, quote=quote, size=piece)
        assert parsed.columns == tuple(names)
        assert rows(parsed) == table
        assert parsed.passthrough
        assert b"".join(parsed.raw()) == data


@pytest.mark.usefixtures("worth")
@_SETTINGS
@given(_tables(2), st.integers(1, 40))
def test_what_pythons_writer_writes_is_read_as_the_same(table: list[tuple[str | None, ...]], size: int) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["h"] + ["h2"] * 0 + [f"k{n}" for n in range(len(table[0]) - 1)], *table])
    found = rows(opened(text.getvalue().encode(), size=size))
    # That writer does not tell NULL and "" apart.
    assert [[value or "" for value in row] for row in found] == [[value or "" for value in row] for row in table]


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(1, 60))
def test_any_bytes_are_records_or_told_as_bad_ones(data: bytes, size: int) -> None:
    try:
        parsed = opened(b"a,b\n" + data, size=size)
        found: list[Any] = list(parsed.batches)
    except (IntegrityError, RequestError):
        return
    for each in found:
        if not isinstance(each, BadRecord):
            columns_of(batch_records(each.records), 2)


@pytest.mark.usefixtures("worth")
@_SETTINGS
@given(st.text(st.sampled_from('a,"\r\n '), max_size=30), st.integers(1, 8))
def test_pieces_of_any_size_give_the_same(text: str, size: int) -> None:
    def outcome(piece: int) -> Any:
        found: list[Any] = []
        try:
            for each in opened(b"a,b\n" + text.encode(), size=piece).batches:
                found += [(each.line, each.reason)] if isinstance(each, BadRecord) else [each.records]
        except IntegrityError as error:
            return str(error)
        joined: list[Any] = []
        for one in found:
            if joined and isinstance(one, bytes) and isinstance(joined[-1], bytes):
                joined[-1] += one
            else:
                joined.append(one)
        return joined

    assert outcome(size) == outcome(1 << 20)
