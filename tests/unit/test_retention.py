"""The rules of retention by themselves: age, count, classes, and the only copies of rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from export_pipelines.specs.table import RetentionSpec, TableSpec
from export_pipelines.steps.retention import Artifact, Verdict, before, by_class, described, judge

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
ZONES = [ZoneInfo(name) for name in ("UTC", "America/New_York", "Pacific/Apia", "America/Sao_Paulo")]

hours = st.lists(st.integers(0, 24 * 800), max_size=60).map(sorted)
counts = st.dictionaries(
    st.sampled_from(["daily", "weekly", "monthly", "yearly"]), st.integers(1, 40), min_size=1, max_size=4
)
zones = st.sampled_from(ZONES)


def moments(offsets: list[int]) -> list[datetime]:
    return [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=offset) for offset in offsets]


def kept(found: list[datetime], classes: dict[str, int], zone: ZoneInfo) -> set[int]:
    return set().union(*by_class(found, classes, zone).values())


@given(hours.filter(bool), counts, zones)
def test_classes_always_keep_the_newest(offsets: list[int], classes: dict[str, int], zone: ZoneInfo) -> None:
    found = moments(offsets)
    assert all(len(found) - 1 in chosen for chosen in by_class(found, classes, zone).values())


@given(hours, counts, zones, st.sampled_from(["daily", "weekly", "monthly", "yearly"]), st.integers(1, 5))
def test_asking_for_more_never_drops_what_was_kept(
    offsets: list[int], classes: dict[str, int], zone: ZoneInfo, name: str, more: int
) -> None:
    found = moments(offsets)
    assert kept(found, classes, zone) <= kept(found, {**classes, name: classes.get(name, 0) + more}, zone)


@given(hours, counts, zones)
def test_what_was_dropped_is_never_wanted_again(offsets: list[int], classes: dict[str, int], zone: ZoneInfo) -> None:
    """Expiring after each new snapshot leaves what expiring once at the end leaves."""
    found = moments(offsets)
    there: list[int] = []
    for index in range(len(found)):
        there.append(index)
        chosen = kept([found[each] for each in there], classes, zone)
        there = [each for place, each in enumerate(there) if place in chosen]
    assert set(there) == kept(found, classes, zone)


@given(hours, counts, zones)
def test_a_class_keeps_as_many_periods_as_it_says_and_there_are(
    offsets: list[int], classes: dict[str, int], zone: ZoneInfo
) -> None:
    found = moments(offsets)
    days = {moment.astimezone(zone).date() for moment in found}
    chosen = by_class(found, classes, zone)
    if "daily" in classes:
        assert len(chosen["daily"]) == min(classes["daily"], len(days))
        assert len({found[index].astimezone(zone).date() for index in chosen["daily"]}) == len(chosen["daily"])
    for name, number in classes.items():
        assert len(chosen[name]) <= number


def test_a_year_of_daily_snapshots_leaves_days_months_and_years() -> None:
    found = [datetime(2024, 1, 1, 6, tzinfo=UTC) + timedelta(days=day) for day in range(731)]
    chosen = by_class(found, {"daily": 30, "monthly": 12, "yearly": 7}, ZoneInfo("UTC"))
    monthly = [found[index].date().isoformat() for index in sorted(chosen["monthly"])]
    assert monthly[:2] == ["2025-01-31", "2025-02-28"]
    assert monthly[-1] == "2025-12-31"
    assert [found[index].date().isoformat() for index in sorted(chosen["yearly"])] == ["2024-12-31", "2025-12-31"]
    assert len(chosen["daily"] | chosen["monthly"] | chosen["yearly"]) == 30 + 12 - 1 + 1


def test_the_zone_decides_what_a_day_is() -> None:
    found = [datetime(2025, 1, 1, 22, tzinfo=UTC), datetime(2025, 1, 1, 23, tzinfo=UTC)]
    assert by_class(found, {"daily": 5}, ZoneInfo("UTC")) == {"daily": {1}}
    assert by_class(found, {"daily": 5}, ZoneInfo("Europe/Berlin")) == {"daily": {0, 1}}


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("1 day", "2026-03-30"),
        ("2 weeks", "2026-03-17"),
        ("1 month", "2026-02-28"),
        ("13 months", "2025-02-28"),
        ("7 years", "2019-03-31"),
        ("99999 years", "0001-01-01"),
        ("99999 months", "0001-01-01"),
    ],
)
def test_ages_follow_the_calendar(age: str, expected: str) -> None:
    assert before(NOW, age, ZoneInfo("UTC")).date().isoformat() == expected


def test_a_day_has_the_hours_that_the_clocks_give_it() -> None:
    noon = datetime(2025, 3, 30, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert before(noon, "1 day", ZoneInfo("Europe/Berlin")).astimezone(UTC).hour == 11


# Verdicts


def artifact(day: int, generation: int = 1, *, only: str = "", stays: str = "") -> Artifact:
    partition = f"2026-01-{day:02}"
    moment = datetime(2026, 1, day, tzinfo=UTC) + timedelta(days=1)
    return Artifact(f"{partition}/{generation}", partition, generation, moment, 10, 100, only=only, stays=stays)


def snapshot(generation: int, moment: datetime, *, only: str = "") -> Artifact:
    return Artifact(f"s/{generation}", "snapshot", generation, moment, 10, 100, only=only)


def gone(verdicts: list[Verdict]) -> list[str]:
    return [each.artifact.attempt for each in verdicts if not each.kept]


def spec(**given: object) -> RetentionSpec:
    return RetentionSpec.model_validate(given)


def test_what_is_older_goes_and_says_what_would_have_kept_it() -> None:
    verdicts = judge([artifact(1), artifact(20)], spec(keep="80 days"), NOW, whole=False)
    assert gone(verdicts) == ["2026-01-01/1"]
    assert verdicts[0].reason == "wanted by none of keep 80 days"
    assert verdicts[1].classes == ("keep 80 days",)


def test_a_count_counts_partitions_with_all_their_generations() -> None:
    files = [artifact(1), artifact(2), artifact(2, 2), artifact(3)]
    assert gone(judge(files, spec(newest=2), NOW, whole=False)) == ["2026-01-01/1"]


def test_a_count_of_snapshots_counts_files() -> None:
    files = [snapshot(number, NOW - timedelta(days=90 - number)) for number in range(1, 6)]
    assert gone(judge(files, spec(newest=2), NOW, whole=True)) == ["s/1", "s/2", "s/3"]


def test_any_rule_that_wants_a_file_keeps_it() -> None:
    files = [artifact(1), artifact(2), artifact(31)]
    assert gone(judge(files, spec(keep="60 days", newest=2), NOW, whole=False)) == ["2026-01-01/1"]


def test_an_only_copy_stays_until_the_setting_says_otherwise_in_words() -> None:
    files = [artifact(1, only="it is the newest of its partition"), artifact(1, 2)]
    assert gone(judge(files, spec(keep="1 day"), NOW, whole=False)) == ["2026-01-01/2"]
    words = spec(keep="1 day", only_copies="give_up_for_good")
    assert gone(judge(files, words, NOW, whole=False)) == ["2026-01-01/1", "2026-01-01/2"]


def test_what_is_held_stays_whatever_the_setting_says() -> None:
    files = [artifact(1, stays="held by ann"), artifact(2)]
    words = spec(keep="1 day", only_copies="give_up_for_good")
    verdicts = judge(files, words, NOW, whole=False)
    assert gone(verdicts) == ["2026-01-02/1"]
    assert verdicts[0].reason == "held by ann"


def test_the_newest_snapshot_stays_however_old_it_is() -> None:
    files = [snapshot(number, NOW - timedelta(days=900 - number)) for number in range(1, 4)]
    words = spec(keep="1 day", only_copies="give_up_for_good")
    assert gone(judge(files, words, NOW, whole=True)) == ["s/1", "s/2"]


def test_a_clock_that_was_wrong_does_not_make_an_older_snapshot_the_newest() -> None:
    files = [snapshot(1, NOW + timedelta(days=400)), snapshot(2, NOW)]
    assert gone(judge(files, spec(newest=1), NOW, whole=True)) == ["s/1"]


@given(st.lists(st.tuples(st.integers(1, 28), st.integers(1, 3), st.booleans()), max_size=30))
def test_a_later_look_never_keeps_what_an_earlier_one_dropped(found: list[tuple[int, int, bool]]) -> None:
    files = {(day, number): artifact(day, number, only="x" * only) for day, number, only in found}
    setting = spec(keep="40 days", newest=3)
    first = judge(list(files.values()), setting, NOW - timedelta(days=30), whole=False)
    later = judge(list(files.values()), setting, NOW, whole=False)
    assert set(gone(first)) <= set(gone(later))
    assert not {each.artifact.attempt for each in later if not each.kept and each.artifact.only}


# What defs.yaml may say


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing says what stays"),
        ({"only_copies": "give_up_for_good"}, "nothing says what stays"),
        ({"keep": "soon"}, "is no age"),
        ({"keep": "0 days"}, "is no age"),
        ({"newest": 0}, "greater than or equal to 1"),
        ({"daily": 0}, "greater than or equal to 1"),
        ({"daily": 1, "timezone": "Mars/Olympus"}, "unknown time zone"),
        ({"newest": 1, "only_copies": True}, "only_copies"),
    ],
)
def test_a_retention_that_says_nothing_clear_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RetentionSpec.model_validate(given)


def test_classes_are_for_whole_snapshots_only() -> None:
    partitions = {"every": "day", "start": "2025-01-01"}
    with pytest.raises(ValidationError, match="daily, monthly in retention are for whole snapshots"):
        TableSpec.model_validate({"partitions": partitions, "retention": {"daily": 1, "monthly": 2}})
    assert TableSpec.model_validate({"retention": {"daily": 1}}).retention is not None
    assert TableSpec.model_validate({"partitions": partitions, "retention": {"newest": 3}}).retention is not None


def test_settings_are_told_in_a_few_words() -> None:
    assert described(spec(keep="7 years", newest=3, monthly=12)) == "keep 7 years, newest 3, monthly 12"
