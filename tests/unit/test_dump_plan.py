"""How a dump's range is cut into batches, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from export_pipelines.errors import RequestError
from export_pipelines.specs.dump import Container, Interval, parse_interval
from export_pipelines.specs.table import TableDefinition, TableSpec
from export_pipelines.steps.dump_plan import DumpPlan, DumpRequest, parse_moment, plan_dump

NOW = datetime(2024, 12, 1, tzinfo=UTC)
SELECT = "SELECT * FROM t WHERE at >= %(window_start)s AND at < %(window_end)s"


def table(select: str = SELECT, **spec: Any) -> TableDefinition:
    spec.setdefault("partitions", {"every": "week", "start": "2024-01-01", "timezone": "Europe/Tallinn"})
    spec = {name: value for name, value in spec.items() if value is not None}
    return TableDefinition(
        name="zm", group="health", folder=Path(), spec=TableSpec.model_validate(spec), select_sql=select
    )


def planned(start: str | None, end: str | None, batch: str = "", spec: Any = None, **more: Any) -> DumpPlan:
    request = DumpRequest(start, end, parse_interval(batch) if batch else None, **more)
    return plan_dump(spec or table(), request, NOW)


def names(plan: DumpPlan) -> list[str]:
    return [each.window.partition for each in plan.batches]


def test_a_range_is_cut_into_weeks_by_default_and_whole_partitions_are_known() -> None:
    plan = planned("2024-01-01", "2024-01-17")
    assert names(plan) == ["2024-01-01", "2024-01-08", "2024-01-15..2024-01-17"]
    assert [each.whole for each in plan.batches] == [True, True, False]
    assert plan.shorter == plan.batches[-1].window


def test_a_range_that_divides_has_no_shorter_batch() -> None:
    assert planned("2024-01-01", "2024-01-15").shorter is None


def test_batches_of_hours_have_times_of_day_in_their_names() -> None:
    plan = planned("2024-01-01 08:00", "2024-01-01 18:00", "4 hours")
    assert names(plan) == [
        "2024-01-01-08:00..2024-01-01-12:00",
        "2024-01-01-12:00..2024-01-01-16:00",
        "2024-01-01-16:00..2024-01-01-18:00",
    ]
    assert plan.batches[0].window.start == datetime(2024, 1, 1, 8, tzinfo=ZoneInfo("Europe/Tallinn"))
    assert plan.shorter == plan.batches[-1].window


def test_hours_pass_and_days_keep_their_time_of_day_when_clocks_change() -> None:
    spring = planned("2024-03-30", "2024-04-01", "1 day")
    assert [each.window.duration.total_seconds() / 3600 for each in spring.batches] == [24, 23]
    autumn = planned("2024-10-27", "2024-10-27 06:00", "1 hour")
    assert len(autumn.batches) == 7
    assert len(set(names(autumn))) == 7
    assert all(each.window.duration.total_seconds() == 3600 for each in autumn.batches)


def test_months_end_on_the_last_day_of_a_short_one() -> None:
    plan = planned("2024-01-31", "2024-04-30", "1 month")
    assert names(plan) == ["2024-01-31..2024-02-29", "2024-02-29..2024-03-31", "2024-03-31..2024-04-30"]


def test_times_are_of_the_zone_that_is_asked_for_and_names_of_the_tables_own() -> None:
    plan = planned("2024-06-03", "2024-06-04", "1 day", timezone="UTC")
    assert names(plan) == ["2024-06-03-03:00..2024-06-04-03:00"]
    assert not plan.batches[0].whole
    exact = planned("2024-06-02T21:00:00+00:00", "2024-06-09T21:00:00Z")
    assert names(exact) == ["2024-06-03"]
    assert exact.batches[0].whole


@settings(deadline=None)
@given(
    st.integers(0, 300 * 24 * 60),
    st.integers(1, 60 * 24 * 60),
    st.sampled_from(["90 minutes", "5 hours", "1 day", "9 days", "1 month"]),
)
def test_batches_meet_and_cover_the_range_whatever_it_is(start: int, length: int, batch: str) -> None:
    first = datetime.fromtimestamp(1704060000 + 60 * start, UTC)
    last = datetime.fromtimestamp(first.timestamp() + 60 * length, UTC)
    if last > NOW:
        return
    plan = planned(first.isoformat(), last.isoformat(), batch)
    found = [each.window for each in plan.batches]
    assert found[0].start is not None and found[-1].end is not None
    assert (found[0].start.timestamp(), found[-1].end.timestamp()) == (first.timestamp(), last.timestamp())
    for one, two in pairwise(found):
        assert one.end is not None and two.start is not None and one.start is not None
        assert one.start.timestamp() < one.end.timestamp() == two.start.timestamp()
    assert len({each.partition for each in found}) == len(found)


def test_an_end_of_now_is_the_moment_to_the_second() -> None:
    now = datetime(2024, 5, 6, 7, 8, 9, 123, tzinfo=UTC)
    plan = plan_dump(table(), DumpRequest("2024-05-06", "now"), now)
    assert plan.batches[-1].window.end == now.replace(microsecond=0)
    assert names(plan) == ["2024-05-06-00:00:00..2024-05-06-10:08:09"]


def test_an_optional_range_is_everything_that_has_ended() -> None:
    spec = table(dump={"range": "optional", "batch": "1 month"}, partitions={"every": "week", "start": "2024-11-04"})
    plan = plan_dump(spec, DumpRequest(), NOW)
    assert (plan.batches[0].window.start, plan.batches[-1].window.end) == (
        datetime(2024, 11, 4, tzinfo=UTC),
        datetime(2024, 11, 25, tzinfo=UTC),
    )


def test_a_snapshot_is_one_batch_and_whole_unless_it_has_pages() -> None:
    spec = table("SELECT * FROM t", partitions=None)
    assert [each.whole for each in plan_dump(spec, DumpRequest(), NOW).batches] == [True]
    assert [each.whole for each in plan_dump(spec, DumpRequest(page_rows=5), NOW).batches] == [False]


@pytest.mark.parametrize("more", [{"page_rows": 10}, {"container": Container.ZIP}, {"folder": "/tmp/x"}])
def test_pages_a_zip_and_a_folder_are_never_partitions(more: dict[str, Any]) -> None:
    assert not any(each.whole for each in planned("2024-01-01", "2024-01-15", **more).batches)


def test_a_folder_may_be_named_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = table(dump={"folder": {"env": "ZM_FOLDER"}})
    with pytest.raises(RequestError, match="ZM_FOLDER, which is not set"):
        planned("2024-01-01", "2024-01-08", spec=spec)
    monkeypatch.setenv("ZM_FOLDER", "/data/zm")
    assert planned("2024-01-01", "2024-01-08", spec=spec).output.folder == "/data/zm"


REFUSED = [
    ((None, None, ""), {}, "needs a range"),
    (("2024-01-01", None, ""), {}, "has no end"),
    ((None, "2024-01-01", ""), {}, "has no start"),
    (("2024-01-02", "2024-01-01", ""), {}, "which is not later"),
    (("2024-01-01", "2024-01-01", ""), {}, "which is not later"),
    (("yesterday", "2024-01-01", ""), {}, "is no time"),
    (("2024-02-30", "2024-03-01", ""), {}, "is no time"),
    (("2024-01-01 00:00:00.5", "2024-03-01", ""), {}, "finer than a second"),
    (("2024-11-01", "2025-01-01", ""), {}, "is open until"),
    (("2024-01-01", "2024-01-02", ""), {"timezone": "Mars/Base"}, "unknown time zone"),
    (("2024-01-01", "2024-02-01", "1 minute"), {}, "more than 10,000 batches"),
    (("2024-01-01", "2024-01-02", ""), {"folder": "somewhere"}, "no absolute path"),
]


@pytest.mark.parametrize(("given", "more", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_a_bad_range_is_one_error_with_a_hint(given: tuple[Any, ...], more: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        planned(*given, **more)
    assert error.value.hint


def test_a_range_of_a_snapshot_is_an_error() -> None:
    with pytest.raises(RequestError, match="takes no range"):
        planned("2024-01-01", "2024-01-02", spec=table("SELECT * FROM t", partitions=None))


def test_a_cumulative_table_cannot_be_dumped_by_range() -> None:
    with pytest.raises(RequestError, match="is cumulative"):
        planned("2024-01-01", "2024-01-08", spec=table(cumulative=True))


def test_partition_key_has_no_value_in_a_range_of_ones_own() -> None:
    spec = table("SELECT * FROM t WHERE week = %(partition_key)s")
    assert planned("2024-01-01", "2024-01-15", spec=spec).batches[0].whole
    with pytest.raises(RequestError, match="uses partition_key"):
        planned("2024-01-01", "2024-01-10", spec=spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dump": {"batch_days": 1, "batch_hours": 2}}, "give one of"),
        ({"dump": {"batch": "often"}}, "no length of a batch"),
        ({"dump": {"range": "prohibited"}}, "prohibited is for tables without"),
        ({"dump": {"range": "required"}, "partitions": None}, "needs `partitions`"),
        ({"dump": {"report": {"table": "r"}}, "keep_export": False}, "keep_export: false"),
        ({"dump": {"report": {"table": "r", "columns": {"pth": "x"}}}}, "pth"),
    ],
)
def test_what_does_not_fit_in_a_definition_is_an_error(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        table(**spec)


def test_lengths_are_read_as_people_write_them() -> None:
    assert parse_interval("90 minutes") == Interval(seconds=5400)
    assert parse_interval("2 Weeks") == Interval(days=14)
    assert parse_interval("1month") == Interval(months=1)
    for wrong in ("0 days", "1.5 hours", "", "3", "2 years"):
        with pytest.raises(ValueError, match="no length"):
            parse_interval(wrong)


def test_a_local_time_that_the_clocks_skip_is_moved_on() -> None:
    zone = ZoneInfo("Europe/Tallinn")
    assert parse_moment("2024-03-31 03:30", zone, NOW) == datetime(2024, 3, 31, 1, 30, tzinfo=UTC)
