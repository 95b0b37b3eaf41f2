"""Windows tile time without gaps, and their keys are Dagster's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export_pipelines.errors import RequestError
from export_pipelines.specs.table import PartitionsSpec
from export_pipelines.windows import (
    SNAPSHOT,
    Window,
    all_windows,
    closed_windows,
    first_windows,
    partitions_definition,
    problems,
    window_of,
    windows_between,
)

NEW_YORK = "America/New_York"
LATE = datetime(2030, 1, 1, tzinfo=UTC)


def spec(**fields: Any) -> PartitionsSpec:
    return PartitionsSpec(**{"start": "2013-01-01", **fields})


def keys(windows: list[Window]) -> list[str]:
    return [window.partition for window in windows]


def assert_tiles(windows: list[Window]) -> None:
    assert len({window.partition for window in windows}) == len(windows)
    for before, after in pairwise(windows):
        assert before.end and after.start and before.end.timestamp() == after.start.timestamp()
    assert all(window.duration > timedelta() for window in windows)


def test_a_year_of_days_has_365_windows_two_of_which_are_not_24_hours_long() -> None:
    windows = closed_windows(spec(every="day", end="2014-01-01", timezone=NEW_YORK), LATE)
    assert len(windows) == 365
    assert_tiles(windows)
    odd = {window.partition: window.duration / timedelta(hours=1) for window in windows}
    assert {key: hours for key, hours in odd.items() if hours != 24} == {"2013-03-10": 23, "2013-11-03": 25}


def test_the_second_of_two_equal_hours_has_its_offset_in_its_key() -> None:
    windows = closed_windows(spec(every="hour", start="2013-11-03", end="2013-11-04", timezone=NEW_YORK), LATE)
    assert keys(windows)[:4] == ["2013-11-03-00:00", "2013-11-03-01:00", "2013-11-03-01:00-0500", "2013-11-03-02:00"]
    assert len(windows) == 25
    assert_tiles(windows)


def test_an_hour_that_the_clocks_skip_has_no_window() -> None:
    windows = closed_windows(spec(every="hour", start="2013-03-10", end="2013-03-11", timezone=NEW_YORK), LATE)
    assert "2013-03-10-02:00" not in keys(windows)
    assert len(windows) == 23


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ({"every": "hour", "start": "2013-01-01T05:30:00"}, "2013-01-01-05:30", "2013-01-01-06:30"),
        ({"every": "day", "start": "2013-01-01T06:00:00"}, "2013-01-01", "2013-01-02"),
        ({"every": "week"}, "2013-01-01", "2013-01-08"),
        ({"every": "month", "start": "2013-01-15"}, "2013-01-15", "2013-02-15"),
        ({"every_hours": 6, "start": "2013-01-01T08:00:00"}, "2013-01-01-08:00", "2013-01-01-14:00"),
        ({"every_hours": 5}, "2013-01-01-00:00", "2013-01-01-05:00"),
        ({"every_days": 7}, "2013-01-01", "2013-01-08"),
        ({"every_days": 10}, "2013-01-01", "2013-01-11"),
        ({"cron": "0 17 * * *"}, "2013-01-01-17:00", "2013-01-02-17:00"),
        ({"cron": "0 0 1 1,7 *"}, "2013-01-01-00:00", "2013-07-01-00:00"),
    ],
)
def test_the_first_window_starts_at_start_or_at_the_first_tick_of_its_cron(
    fields: dict[str, Any], first: str, second: str
) -> None:
    assert keys(first_windows(spec(timezone="Europe/Tallinn", **fields), 2)) == [first, second]


@pytest.mark.parametrize(
    "fields",
    [{"every": "day"}, {"every": "hour"}, {"every": "week"}, {"every": "month"}, {"cron": "30 */4 * * *"}]
    + [{"every_hours": n} for n in (1, 2, 5, 24)]
    + [{"every_days": n} for n in (1, 7, 9)],
)
def test_dagster_shows_the_same_keys_and_windows(fields: dict[str, Any]) -> None:
    given = spec(end="2013-12-01", timezone=NEW_YORK, start="2013-03-01", **fields)
    windows = closed_windows(given, LATE)
    definition = partitions_definition(given)
    assert list(definition.get_partition_keys(current_time=LATE)) == keys(windows)
    if isinstance(definition, dg.TimeWindowPartitionsDefinition):
        for window in windows:
            shown = definition.time_window_for_partition_key(window.partition)
            assert window.start and window.end
            assert (shown.start.timestamp(), shown.end.timestamp()) == (
                window.start.timestamp(),
                window.end.timestamp(),
            )


cadences = st.one_of(
    st.sampled_from([{"every": each} for each in ("hour", "day", "week", "month")]),
    st.integers(1, 30).map(lambda n: {"every_hours": n}),
    st.integers(1, 10).map(lambda n: {"every_days": n}),
    st.sampled_from([{"cron": each} for each in ("*/15 * * * *", "30 1 * * *", "0 2 * * MON-FRI", "15 0,1,2,3 * * *")]),
)
zones = st.sampled_from([NEW_YORK, "Europe/Tallinn", "UTC", "Asia/Kolkata", "America/Sao_Paulo", "Australia/Lord_Howe"])
# The weeks in which the clocks of New York (10 March, 3 November 2013) and Tallinn (31 March, 27 October) change.
starts = st.builds(
    lambda day, minutes: day + timedelta(minutes=minutes),
    st.sampled_from([datetime(2013, 3, 8), datetime(2013, 3, 28), datetime(2013, 10, 18), datetime(2013, 11, 1)]),
    st.integers(0, 60 * 24 * 3),
)


@settings(deadline=None, max_examples=150)
@given(cadence=cadences, zone=zones, start=starts, days=st.integers(1, 20))
def test_windows_tile_time_and_their_keys_lead_back_to_them(
    cadence: dict[str, Any], zone: str, start: datetime, days: int
) -> None:
    if cadence.get("every") == "month":
        start = start.replace(day=min(start.day, 28))
    given = PartitionsSpec(**cadence, start=start, timezone=zone)
    now = (start + timedelta(days=days)).replace(tzinfo=UTC)
    windows = closed_windows(given, now)
    assert_tiles(windows)
    assert all(window.closed(now) for window in windows)
    for window in windows[:: max(1, len(windows) // 50)]:
        assert window_of(given, window.partition) == window
    begun = all_windows(given, now)
    assert begun[: len(windows)] == windows
    assert_tiles(begun)
    assert len(begun) - len(windows) <= 1
    assert all(not window.closed(now) for window in begun[len(windows) :])


def test_a_window_is_closed_from_the_moment_of_its_end() -> None:
    daily = spec(every="day", timezone=NEW_YORK)
    window = window_of(daily, "2013-03-10")
    assert window.end
    assert window.closed(window.end)
    assert not window.closed(window.end - timedelta(seconds=1))
    assert keys(closed_windows(daily, window.end))[-1] == "2013-03-10"
    assert keys(closed_windows(daily, window.end - timedelta(seconds=1)))[-1] == "2013-03-09"


def test_a_window_that_has_not_ended_is_known_but_not_closed() -> None:
    now = datetime(2013, 1, 2, 12, tzinfo=UTC)
    assert not window_of(spec(every="day"), "2013-01-02").closed(now)
    assert keys(all_windows(spec(every="day"), now)) == ["2013-01-01", "2013-01-02"]
    assert keys(closed_windows(spec(every="day"), now)) == ["2013-01-01"]


@pytest.mark.parametrize("cadence", [{"every": "day"}, {"every_days": 3}, {"every_hours": 7}, {"every_hours": 12}])
@pytest.mark.parametrize(
    "key", ["2012-12-31", "2014-01-01", "2013-1-1", "tomorrow", "", "9999-12-31", "2013-02-30", "\0"]
)
def test_an_unknown_key_is_refused_and_the_hint_names_the_first_and_last(cadence: dict[str, Any], key: str) -> None:
    given = spec(**cadence, end="2014-01-01")
    with pytest.raises(RequestError, match="does not exist") as refused:
        window_of(given, key, LATE)
    closed = closed_windows(given, LATE)
    assert closed[0].partition in refused.value.hint
    assert closed[-1].partition in refused.value.hint


def test_the_hint_names_the_partition_that_a_time_lies_next_to() -> None:
    with pytest.raises(RequestError) as refused:
        window_of(spec(every="month"), "2013-02-28", LATE)
    assert "nearest is 2013-03-01" in refused.value.hint


def test_a_range_includes_both_of_its_ends() -> None:
    between = windows_between(spec(every="day"), "2013-01-30", "2013-02-02")
    assert keys(between) == ["2013-01-30", "2013-01-31", "2013-02-01", "2013-02-02"]
    assert keys(windows_between(spec(every_hours=5), "2013-01-01-05:00", "2013-01-01-10:00")) == [
        "2013-01-01-05:00",
        "2013-01-01-10:00",
    ]


def test_a_range_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(RequestError, match="later than"):
        windows_between(spec(every="day"), "2013-02-02", "2013-01-30")


def test_a_table_without_partitions_has_one_window_without_bounds() -> None:
    assert closed_windows(None, LATE) == all_windows(None, LATE) == [Window(SNAPSHOT)]
    assert window_of(None, SNAPSHOT).closed(LATE)
    assert windows_between(None, SNAPSHOT, SNAPSHOT) == [Window(SNAPSHOT)]
    with pytest.raises(RequestError):
        window_of(None, "2013-01-01")


def test_a_window_that_would_reach_beyond_the_end_does_not_exist() -> None:
    given = spec(every="week", end="2013-01-20")
    assert keys(closed_windows(given, LATE)) == ["2013-01-01", "2013-01-08"]
    with pytest.raises(RequestError):
        window_of(given, "2013-01-15")


def test_static_keys_of_an_open_cadence_reach_a_year_ahead() -> None:
    now = datetime(2013, 6, 1, tzinfo=UTC)
    shown = partitions_definition(spec(every_days=10), now).get_partition_keys()
    assert "2014-05-16" in shown
    assert "2014-06-05" not in shown


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "nonsense"}, "cron"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "* * * * * *"}, "cron"),
        ({"every": "month", "start": "2013-01-31"}, "start"),
        ({"every": "day", "start": "2013-01-01T00:00:30"}, "start"),
        ({"every": "month", "end": "2013-01-20"}, "end"),
        ({"every_days": 10, "end": "2013-01-05"}, "end"),
    ],
)
def test_partitions_that_cannot_be_are_told_by_field(fields: dict[str, Any], field: str) -> None:
    assert [name for name, _ in problems(spec(**fields))] == [field]


def test_good_partitions_have_no_problems() -> None:
    assert problems(spec(every="day")) == []
    assert problems(spec(cron="0 7 * * MON-FRI")) == []
