"""The form of a data set: what comes from a browser is the query that was meant, and leads back to the same form."""

from __future__ import annotations

import json
import re
import shlex
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export_pipelines.api.pages import charts, questions, texts
from export_pipelines.api.pages.questions import Condition
from export_pipelines.api.pages.render import STATIC
from export_pipelines.cli import request
from export_pipelines.cli.request import request_command
from export_pipelines.specs.dataset import DataSetDefinition, DataSetSpec, FilterSpec, FilterType, Operator
from export_pipelines.specs.query import (
    Query,
    QueryError,
    RawFilter,
    filters_from_parameters,
    parse_query,
)

FILTERS = {
    "carrier": FilterSpec(values=("AA", "B6", "UA")),
    "dep_delay": FilterSpec(type=FilterType.INTEGER),
    "price": FilterSpec(type=FilterType.DECIMAL),
    "departure": FilterSpec(type=FilterType.TIMESTAMP),
    "day": FilterSpec(type=FilterType.DATE),
    "note": FilterSpec(),
    "cancelled": FilterSpec(type=FilterType.BOOLEAN),
}
COLUMNS = ("id", "carrier", "a, b", "note")
SET = DataSetDefinition(
    name="flights",
    group="demo",
    folder=Path(),
    spec=DataSetSpec(table="public.flights", columns=COLUMNS, filters=FILTERS, timezone="America/New_York"),
)


def asked(*pairs: tuple[str, str]) -> Query:
    return questions.query_of(SET, questions.read_form(SET, pairs), COLUMNS, "default")


def wrong(*pairs: tuple[str, str]) -> set[str]:
    with pytest.raises(QueryError) as error:
        asked(*pairs)
    return {each.field for each in error.value.problems}


def test_untouched_fields_ask_for_nothing() -> None:
    pairs = [("form", "1"), ("neutralise_formulas", "true"), *(("columns", name) for name in COLUMNS)]
    for name in FILTERS:
        pairs += [(f"op.{name}", "eq"), (f"v.{name}", "")]
    assert asked(*pairs) == parse_query(SET)


def test_fields_of_the_form_are_filters() -> None:
    query = asked(
        ("neutralise_formulas", "true"),
        *(("form", "1"), ("columns", "id"), ("any.carrier", "UA"), ("any.carrier", "AA")),
        *(("op.dep_delay", "ge"), ("v.dep_delay", " 10 "), ("op.dep_delay", "lt"), ("v.dep_delay", "60")),
        *(("op.note", "null"), ("v.note", "left over"), ("op.day", "in"), ("v.day", "2013-01-01, 2013-01-02")),
    )
    assert query == parse_query(
        SET,
        columns=["id"],
        filters=[
            *(RawFilter("carrier", "in", ["AA", "UA"]), RawFilter("note", "is_null", True)),
            *(RawFilter("dep_delay", "ge", 10), RawFilter("dep_delay", "lt", 60)),
            RawFilter("day", "in", ["2013-01-01", "2013-01-02"]),
        ],
    )


def test_addresses_of_the_api_fill_the_form() -> None:
    given = [("carrier__in", "UA,AA"), ("dep_delay__ge", "10"), ("note__is_null", "false"), ("columns", "id,note")]
    assert asked(*given) == parse_query(SET, columns=["id", "note"], filters=filters_from_parameters(given[:3]))


def test_what_is_wrong_is_named_by_its_field() -> None:
    assert wrong(("carier", "UA")) == {"filters.carier"}
    assert wrong(("form", "1"), ("op.dep_delay", "ge"), ("v.dep_delay", "soon")) == {"columns", "filters.dep_delay"}
    assert wrong(("limit", "many"), ("columns", "salary"), ("format", "exe")) == {"limit", "columns", "format"}
    assert wrong(("limit", "٣")) == {"limit"}
    assert wrong(("limit", "9" * 18)) == {"limit"}


several = st.lists(st.sampled_from(["AA", "B6", "UA"]), min_size=2, unique=True)
texts_of = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0,"), min_size=1, max_size=12)
raw_filters = st.lists(
    st.one_of(
        st.builds(
            lambda v: RawFilter("carrier", "in", v),
            st.lists(st.sampled_from(["AA", "B6", "UA"]), min_size=2, unique=True),
        ),
        st.builds(lambda v: RawFilter("carrier", "eq", v), st.sampled_from(["AA", "B6"])),
        st.builds(lambda o, v: RawFilter("dep_delay", o, v), st.sampled_from(["ge", "lt", "ne"]), st.integers()),
        st.builds(lambda v: RawFilter("price", "eq", str(v)), st.decimals(-999, 999, places=3)),
        st.builds(lambda v: RawFilter("departure", "ge", v.isoformat()), st.datetimes(timezones=st.timezones())),
        st.builds(lambda o, v: RawFilter("day", o, v.isoformat()), st.sampled_from(["eq", "le"]), st.dates()),
        st.builds(lambda o, v: RawFilter("note", o, v.strip() or "x"), st.sampled_from(["eq", "contains"]), texts_of),
        st.builds(lambda n, v: RawFilter(n, "is_null", v), st.sampled_from(["note", "day"]), st.booleans()),
    ),
    max_size=5,
    unique_by=lambda each: (each.name, each.operator),
)


@given(raw_filters, st.lists(st.sampled_from(COLUMNS), unique=True), st.none() | st.integers(1, 80_000))
def test_every_query_leads_back_to_itself(filters: list[RawFilter], columns: list[str], limit: int | None) -> None:
    try:
        query = parse_query(SET, filters=filters, columns=columns, limit=limit, format="csv", delimiter=";", bom=True)
    except (QueryError, OverflowError):
        return
    address = urlsplit(questions.page_address(query))
    assert asked(*parse_qsl(address.query, keep_blank_values=True)).filters == query.filters
    again = questions.read_form(SET, parse_qsl(address.query, keep_blank_values=True))
    # What the form shows then, sent again, is still the same.
    sent = [("form", "1"), ("limit", again.limit), ("delimiter", again.delimiter), ("bom", "1" if again.bom else "")]
    sent += [("columns", name) for name in (COLUMNS if again.columns is None else again.columns)]
    sent += [("neutralise_formulas", "1"), ("format", again.format), ("compression", again.compression)]
    for name, spec in FILTERS.items():
        sent += [(f"any.{name}", value) for value in again.chosen.get(name, [])]
        for line in questions.lines_of(spec, again.conditions.get(name, []), SET.spec.timezone):
            sent += [(f"op.{name}", line.operator), (f"v.{name}", line.value)]
    assert set(asked(*sent).columns) == set(query.columns if set(query.columns) != set(COLUMNS) else ())
    assert asked(*sent).filters == query.filters
    assert (asked(*sent).limit, asked(*sent).delimiter, asked(*sent).bom) == (query.limit, ";", True)


options = st.fixed_dictionaries(
    {},
    optional={
        "columns": st.lists(st.sampled_from(["id", "carrier", "note"]), unique=True),
        "limit": st.integers(1, 80_000),
        "environment": st.sampled_from(["default", "lab"]),
        "delimiter": st.sampled_from([",", ";", "\t", "'"]),
        "bom": st.booleans(),
        "neutralise_formulas": st.booleans(),
        "format": st.sampled_from(["csv", "jsonl"]),
        "compression": st.sampled_from(["none", "zstd"]),
    },
)


def of_body(body: dict[str, Any]) -> Query:
    """The query of a body of POST /requests."""
    filters = [RawFilter(**each) for each in body.pop("filters", [])]
    assert body.pop("dataset") == SET.id
    return parse_query(SET, filters=filters, **body)


@given(raw_filters, options)
def test_the_lines_to_copy_ask_the_same(filters: list[RawFilter], options: dict[str, Any]) -> None:
    try:
        query = parse_query(SET, filters=filters, **options)
    except (QueryError, OverflowError):
        return
    url, more = "http://127.0.0.1:8080", questions.options_of(SET, query, "default")
    command = shlex.split(questions.command_line(query, url, ".csv", more))
    given = request_command.make_context("request", command[2:]).params
    assert of_body(request._question(**{**given, "email": None, "webhook": None})) == query
    address = dict(parse_qsl(urlsplit(questions.address_line(query, url, more)).query))
    found = {name: address.pop(name) for name in ("fileType", "compression", "columns", *options) if name in address}
    assert (
        parse_query(
            SET,
            filters=filters_from_parameters(address.items()),
            format=found["fileType"],
            columns=[name for name in found.get("columns", "").split(",") if name],
            limit=int(found["limit"]) if "limit" in found else None,
            **{name: found[name] == "true" for name in ("bom", "neutralise_formulas") if name in found},
            **{name: found[name] for name in ("compression", "delimiter", "environment") if name in found},
        )
        == query
    )
    assert of_body(json.loads(shlex.split(questions.curl_line(query, url, more).replace("\\\n", ""))[-1])) == query


def test_lists_are_told_with_commas_only_if_nothing_in_them_has_one() -> None:
    assert questions.fits_commas(parse_query(SET, columns=["id"], filters=[RawFilter("note", "eq", "a,b")]))
    assert not questions.fits_commas(parse_query(SET, columns=["a, b"]))
    assert not questions.fits_commas(parse_query(SET, filters=[RawFilter("note", "in", ["a,b", "c"])]))


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        ("2013-01-01T13:00:00.000000+00:00", "datetime-local", "2013-01-01T08:00:00"),
        ("2013-07-01T12:00:00.000000+00:00", "datetime-local", "2013-07-01T08:00:00"),
        ("2013-01-01T13:00:00.000001+00:00", "text", "2013-01-01T13:00:00.000001+00:00"),
        # The second 01:30 of this night is none that an input can hold.
        ("2013-11-03T06:30:00.000000+00:00", "text", "2013-11-03T06:30:00.000000+00:00"),
        ("soon", "text", "soon"),
    ],
)
def test_times_are_shown_in_the_zone_of_the_data_set_and_never_as_another_time(
    value: str, kind: str, shown: str
) -> None:
    (line,) = questions.lines_of(FILTERS["departure"], [Condition("ge", value)], "America/New_York")
    assert (line.kind, line.value) == (kind, shown)


def test_every_operator_has_a_word() -> None:
    assert {each.value for each in Operator} - {"is_null"} <= questions.WORDS.keys()


def test_numbers_are_written_for_people() -> None:
    assert [texts.size(n) for n in (0, 999, 1000, 999_949, 36_600, 999_600_000, 12_345_678_901)] == [
        "0 B", "999 B", "1.0 kB", "1.0 MB", "36.6 kB", "1.0 GB", "12.3 GB",
    ]  # fmt: skip
    assert [texts.seconds(n) for n in (0.04, 9.9, 59.6, 60, 200, 7500, 3600 * 50)] == [
        "0.0 s", "9.9 s", "1 min", "1 min", "3 min 20 s", "2 h 5 min", "2 d",
    ]  # fmt: skip
    assert [texts.about(n) for n in (7, 12_345, 1_234_567, 2_900_000_000)] == [
        "about 7", "about 12,000", "about 1.2 million", "about 2.9 billion",
    ]  # fmt: skip
    assert texts.plural(1, "row") + texts.plural(1234, "row") == "1 row1,234 rows"


@given(st.lists(st.none() | st.floats(0, 1e12), min_size=1, max_size=40))
def test_plots_stay_in_their_frame(values: list[float | None]) -> None:
    days = [date(2025, 1, 1) + timedelta(n) for n in range(len(values))]
    series = [charts.Series("a", "s-good", values), charts.Series("b", "s-bad", values)]
    for plot in (charts.bars("x", days, series), charts.lines("x", days, series)):
        for each in [*plot.bars, *plot.points]:
            assert 0 <= each.y <= plot.base + 0.01 and plot.left <= each.x <= plot.right
            assert each.y + each.height <= plot.base + 0.01
        assert 2 <= len(plot.ticks) <= 6


def test_texts_can_be_read_in_light_and_in_dark() -> None:
    light, dark = _tokens()
    for tokens in (light, {**light, **dark}):
        pairs = [(ink, on) for ink in ("ink", "muted") for on in ("bg", "surface", "sunken")]
        pairs += [("accent", "bg"), ("accent", "surface"), ("on-accent", "accent"), ("on-accent", "accent-strong")]
        pairs += [(f"{tone}", f"{tone}-soft") for tone in ("good", "work", "wait", "bad", "off")]
        pairs += [("ink", f"{tone}-soft") for tone in ("good", "work", "wait", "bad")]
        pairs += [("muted", f"{tone}-soft") for tone in ("work", "wait", "bad")] + [("bad", "surface")]
        found = {pair: _contrast(tokens[pair[0]], tokens[pair[1]]) for pair in pairs}
        assert {pair: ratio for pair, ratio in found.items() if ratio < 4.5} == {}
        assert _contrast(tokens["line-strong"], tokens["surface"]) >= 3


def _tokens() -> tuple[dict[str, str], dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", (STATIC / "page.css").read_text(), re.DOTALL)
    first, second = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    return first, second


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
