"""A JSON column becomes columns: each value where it belongs, with its very digits."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export_pipelines.errors import FormatError
from export_pipelines.formats.widen import Widener
from tests.support.formats import fields

KEYS = ["a", "b", "long key", "ü", "x,y", 'q"t', ", ", "null"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from('ab, ":{}[]\\\n1é'), max_size=6)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from(KEYS), SCALARS, max_size=2)
OBJECTS = st.none() | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=len(KEYS))


def record(text: str | None, before: str = "1", after: str = "z") -> bytes:
    quoted = "" if text is None else '"' + text.replace('"', '""') + '"'
    return f"{before},{quoted},{after}\n".encode()


def rows_of(records: list[bytes]) -> list[list[str]]:
    return list(csv.reader(io.StringIO(b"".join(records).decode(), newline="")))


def told(value: Any, separators: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=separators)


@given(objects=st.lists(OBJECTS, max_size=8), compact=st.booleans())
@example(objects=[{"a": "é,"}], compact=True)
@settings(max_examples=80, deadline=None)
def test_each_value_goes_into_the_column_of_its_key(objects: list[Any], compact: bool) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    texts = [None if each is None else json.dumps(each, ensure_ascii=False, separators=separators) for each in objects]
    found = rows_of(Widener(3, 1, KEYS).encode([record(text) for text in texts]))
    assert found == [["1", "z", *(told((each or {}).get(key), separators) for key in KEYS)] for each in objects]


def test_numbers_keep_their_digits_and_empty_strings_are_not_null() -> None:
    text = '{"a": 1.10, "b": 123456789012345678901234567890.5, "c": "", "d": null, "e": 1e400, "f": true}'
    assert Widener(3, 1, list("abcdefg")).encode([record(text)]) == [
        b'1,z,1.10,123456789012345678901234567890.5,"",,1e400,true,\n'
    ]


def test_nested_values_stand_as_they_are() -> None:
    text = '{"a": {"x":  [1.50, "y, \\"z"]}, "b": [], "c": 2.0}'
    assert rows_of(Widener(3, 1, ["c", "a"], others="drop").encode([record(text), record('{"c": 1}')])) == [
        ["1", "z", "2.0", '{"x":  [1.50, "y, \\"z"]}'],
        ["1", "z", "1", ""],
    ]


def test_other_values_of_the_record_stay_as_they_are() -> None:
    widener = Widener(3, 1, ["a"])
    assert widener.encode([b',"{""a"": 1}",""\n', b'"x,""y",,"p\nq"\n']) == [b',"",1\n', b'"x,""y","p\nq",\n']
    assert [field.name for field in Widener(3, 1, ["a"], "j_").fields(fields(i="integer", j="jsonb", t="text"))] == [
        "i",
        "t",
        "j_a",
    ]


def test_a_key_that_was_not_declared_is_an_error_dropped_or_kept_in_a_column() -> None:
    given = [record('{"a": 1, "zz": "2, 3", "y": {"k": 1.0}}'), record('{"a": 5}')]
    with pytest.raises(FormatError, match="key 'zz'"):
        Widener(3, 1, ["a"]).encode(given)
    assert rows_of(Widener(3, 1, ["a"], others="drop").encode(given)) == [["1", "z", "1"], ["1", "z", "5"]]
    widener = Widener(3, 1, ["a"], others="column")
    assert rows_of(widener.encode(given)) == [["1", "z", "1", '{"zz": "2, 3", "y": {"k": 1.0}}'], ["1", "z", "5", ""]]
    assert widener.fields(fields(i="integer", j="jsonb", t="text"))[-1].name == "others"


@pytest.mark.parametrize("text", ["[1]", "1", '"a"', '{"a": 1', '{"a" 1}'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not a JSON object"):
        Widener(3, 1, ["a"]).encode([record(text)])


def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    for text in ('{"a": 1, "a": 2}', '{"a": [1], "a": 2}'):
        assert rows_of(Widener(3, 1, ["a"]).encode([record(text)])) == [["1", "z", "2"]]


def test_nothing_makes_no_columns() -> None:
    assert Widener(3, 1, []).encode([record("{}"), record(None)]) == [b"1,z\n", b"1,z\n"]
    assert Widener(3, 1, ["a", "b"]).encode([record("{}"), record("null"), record(None)]) == [b"1,z,,\n"] * 3
    assert Widener(3, 1, ["a"]).encode([]) == []
