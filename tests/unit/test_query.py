"""A question has one form, however it was written, and what is wrong with it is told all at once."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export_pipelines.errors import RequestError
from export_pipelines.specs.dataset import OPERATORS, DataSetDefinition, DataSetSpec, FilterType, Operator
from export_pipelines.specs.query import (
    MAX_LENGTH,
    Query,
    QueryError,
    RawFilter,
    canonical,
    describe,
    filter_from_text,
    filters_from_parameters,
    parse_query,
)

FILTERS: dict[str, Any] = {
    "carrier": {"type": "text"},
    "delay": {"type": "integer"},
    "price": {"type": "decimal"},
    "ok": {"type": "boolean"},
    "day": {"type": "date"},
    "at": {"type": "timestamp"},
    "uid": {"type": "uuid"},
    "origin": {"type": "text", "values": ["EWR", "JFK"]},
}


def dataset(**spec: Any) -> DataSetDefinition:
    made = DataSetSpec.model_validate({"table": "t", "columns": ["a", "b", "c"], "filters": FILTERS, **spec})
    return DataSetDefinition(name="t", group="g", folder=Path(), spec=made)


def query(*filters: RawFilter, **options: Any) -> Query:
    return parse_query(dataset(), filters=filters, **options)


def problems(*filters: RawFilter, spec: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    with pytest.raises(QueryError) as told:
        parse_query(dataset(**(spec or {})), filters=filters, **options)
    return {each.field: each.message for each in told.value.problems}


# One form


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("delay", "10", 10),
        ("delay", " +010 ", "10"),
        ("delay", "-0", "0"),
        ("price", "1.50", Decimal("1.5")),
        ("price", "15e-1", "1.5"),
        ("price", "-0.0", "0"),
        ("ok", "TRUE", True),
        ("ok", "0", False),
        ("day", "2025-01-31", "20250131"),
        ("at", "2025-01-31T12:00:00+02:00", "2025-01-31T10:00:00Z"),
        ("at", "2025-01-31", "2025-01-31T00:00:00Z"),
        ("uid", "{12345678-1234-5678-1234-56781234567A}", "12345678123456781234567812345 67a".replace(" ", "")),
    ],
)
def test_a_value_is_the_same_question_however_it_was_written(name: str, one: Any, other: Any) -> None:
    assert query(RawFilter(name, "eq", one)).sha256 == query(RawFilter(name, "eq", other)).sha256


def test_filters_and_values_of_a_list_have_no_order() -> None:
    one = query(RawFilter("delay", "in", "3,1,2,1"), RawFilter("carrier", "eq", "UA"))
    other = query(RawFilter("carrier", "eq", "UA"), RawFilter("delay", "in", [1, 2, 3]))
    assert one == other


def test_columns_have_an_order_and_all_of_them_are_none() -> None:
    assert query(columns=["a", "b"]).sha256 != query(columns=["b", "a"]).sha256
    assert query(columns=["a", "b", "c"]) == query()


def test_what_does_not_count_for_a_format_makes_no_other_question() -> None:
    assert query(format="json", bom=True, delimiter=";", neutralise_formulas=False) == query(format="json")
    assert query(format="csv", bom=True) != query(format="csv")


def test_environments_have_questions_of_their_own() -> None:
    assert query(environment="one").sha256 != query(environment="two").sha256


@pytest.mark.parametrize("digits", ["12345678901234567890.0000000001", "0." + "1" * 60, "9" * 300])
def test_a_decimal_keeps_all_of_its_digits(digits: str) -> None:
    assert canonical(FilterType.DECIMAL, digits, "UTC") == digits


VALUES: dict[FilterType, st.SearchStrategy[Any]] = {
    FilterType.TEXT: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    FilterType.INTEGER: st.integers(-(10**29), 10**29),
    FilterType.DECIMAL: st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20),
    FilterType.BOOLEAN: st.booleans(),
    FilterType.DATE: st.dates(),
    FilterType.TIMESTAMP: st.datetimes(timezones=st.timezones())
    .map(lambda at: at.isoformat())
    .filter(lambda t: "+" in t),
    FilterType.UUID: st.uuids(),
}


@settings(deadline=None)
@given(st.sampled_from(list(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])))
def test_a_canonical_value_is_its_own_canonical_value(case: tuple[FilterType, Any]) -> None:
    kind, value = case
    try:
        once = canonical(kind, value, "UTC")
    except ValueError:
        assert kind is FilterType.TIMESTAMP  # before the year 1 in UTC
        return
    assert canonical(kind, once, "UTC") == once


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(FILTERS)), st.sampled_from(list(Operator)), st.text(max_size=8) | st.integers()),
        max_size=4,
    )
)
def test_anything_is_a_question_or_told(raw: list[tuple[str, Operator, Any]]) -> None:
    filters = [RawFilter(name, operator.value, value) for name, operator, value in raw]
    try:
        found = query(*filters)
    except QueryError as error:
        assert all(each.field and each.message for each in error.problems)
        return
    assert found == query(*reversed(filters))
    assert Query.model_validate(found.model_dump(mode="json")) == found
    assert describe(found)


def test_sql_in_a_value_stays_a_value() -> None:
    value = "'; DROP TABLE t; --"
    assert query(RawFilter("carrier", "eq", value)).filters[0].values == (value,)


# What is wrong


@pytest.mark.parametrize(
    ("name", "operator", "value", "message"),
    [
        ("carier", "eq", "UA", "g/t has no filter 'carier'"),
        ("carrier", "like", "UA", "filter 'carrier' has no operator 'like'"),
        ("ok", "lt", "true", "filter 'ok' has no operator 'lt'"),
        ("delay", "eq", "ten", "'ten' is no integer"),
        ("delay", "eq", "1.5", "'1.5' is no integer"),
        ("delay", "eq", "१०", "'१०' is no integer"),
        ("price", "eq", "NaN", "'NaN' is no decimal"),
        ("price", "eq", "1e5000", "'1e5000' is no decimal"),
        ("price", "eq", "1_0", "'1_0' is no decimal"),
        ("day", "eq", "2025-02-30", "'2025-02-30' is no date; write 2013-01-31"),
        ("at", "eq", "noon", "'noon' is no timestamp"),
        ("uid", "eq", "x", "'x' is no uuid"),
        ("ok", "eq", "yes", "'yes' is no boolean; write true or false"),
        ("carrier", "eq", "a\0b", "this is no text"),
        ("carrier", "eq", "x" * (MAX_LENGTH + 1), "this is no text"),
        ("carrier", "eq", {"a": 1}, "this is no text"),
        ("carrier", "eq", None, "this is no text"),
        ("carrier", "in", [], "0 values"),
        ("carrier", "in", ["x"] * 1001, "1001 values"),
        ("origin", "eq", "LGA", "'LGA' is not among the values of this filter"),
        ("carrier", "is_null", "maybe", "'maybe' is no boolean"),
    ],
)
def test_a_wrong_filter_is_told(name: str, operator: str, value: Any, message: str) -> None:
    assert problems(RawFilter(name, operator, value))[f"filters.{name}"].startswith(message)


def test_all_that_is_wrong_is_told_at_once() -> None:
    found = problems(
        RawFilter("delay", "eq", "x"),
        columns=["a", "x", "a"],
        format="pdf",
        compression="rar",
        limit=0,
        delimiter='"',
    )
    assert set(found) == {"filters.delay", "columns", "format", "compression", "limit", "delimiter"}


def test_a_limit_is_at_most_the_row_limit() -> None:
    assert "limit" in problems(limit=11, spec={"row_limit": 10})


def test_a_required_filter_must_be_there() -> None:
    needed = {"filters": {"day": {"type": "date", "required": True}}}
    assert problems(spec=needed) == {"filters.day": "filter 'day' is required"}


def test_the_same_filter_twice_is_told() -> None:
    assert "twice" in problems(RawFilter("delay", "ge", 1), RawFilter("delay", "ge", 2))["filters.delay"]


def test_a_hint_names_what_was_meant() -> None:
    with pytest.raises(QueryError) as told:
        query(RawFilter("carier", "eq", "UA"))
    assert told.value.hint == "did you mean 'carrier'?"


# Ways to write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("carrier=UA", RawFilter("carrier", "eq", "UA")),
        ("carrier = a=b", RawFilter("carrier", "eq", " a=b")),
        ("delay>=10", RawFilter("delay", "ge", "10")),
        ("delay!=10", RawFilter("delay", "ne", "10")),
        ("carrier:in=UA,AA", RawFilter("carrier", "in", "UA,AA")),
        ("at>=2025-01-01T00:00:00", RawFilter("at", "ge", "2025-01-01T00:00:00")),
    ],
)
def test_a_filter_of_a_shell(text: str, expected: RawFilter) -> None:
    assert filter_from_text(text) == expected


@pytest.mark.parametrize("text", ["", "carrier", "=UA", "a b=1"])
def test_what_is_no_filter_of_a_shell_is_told(text: str) -> None:
    with pytest.raises(RequestError, match="is no filter"):
        filter_from_text(text)


def test_filters_of_a_url() -> None:
    found = filters_from_parameters([("carrier", "UA"), ("delay__ge", "10"), ("dep__in", "1,2")])
    assert found == [RawFilter("carrier", "eq", "UA"), RawFilter("delay", "ge", "10"), RawFilter("dep", "in", "1,2")]


def test_a_question_is_described_in_one_line() -> None:
    found = query(RawFilter("delay", "ge", 10), RawFilter("carrier", "is_null", True), columns=["a"])
    assert describe(found) == "a of g/t where carrier is null and delay ≥ 10"
    assert describe(query(limit=1)) == "g/t, the first row"
    assert describe(query(limit=1500)) == "g/t, the first 1,500 rows"


# Definitions


@pytest.mark.parametrize("kind", list(FilterType))
def test_each_type_has_operators(kind: FilterType) -> None:
    assert Operator.EQ in OPERATORS[kind]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"filters": {"a__b": {}}}, "cannot be named"),
        ({"filters": {"format": {}}}, "cannot be named"),
        ({"filters": {"a": {"type": "boolean", "operators": ["lt"]}}}, "do not fit"),
        ({"columns": ["a", "a"]}, "twice"),
        ({"formats": []}, "at least one"),
        ({"timezone": "Mars/Base"}, "unknown time zone"),
        ({"index": "x"}, "not both"),
        ({"fields": {"a": "long"}}, "of an `index`"),
        ({"exclude_columns": ["a"], "mask_columns": {"a": "1"}}, "both excluded and masked"),
    ],
)
def test_a_definition_that_cannot_be_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(**spec)
