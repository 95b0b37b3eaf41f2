"""Which files retention wants to keep: pure rules, without a store, a catalog or a clock of their own.

Classes go from the newest file to the oldest and keep the last one of each period, for as many periods as have one. So
a file that was dropped is never wanted again, the newest is wanted always, and when exports stop, nothing expires by
class. Which of two snapshots is newer is told by their generations, not by clocks.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from export_pipelines.specs.table import OnlyCopies, RetentionSpec


@dataclass(frozen=True)
class Artifact:
    """What is known of an archived file, all copies of one attempt together. Bytes are stored ones, with all that lies
    beside the file."""

    attempt: str
    partition: str
    generation: int
    moment: datetime
    """From which its age counts: the end of its partition, of a snapshot when it was exported."""
    rows: int
    bytes: int
    deleted: int = 0
    """Rows of it that cleanups deleted from the source."""
    only: str = ""
    """Why it has the only copy of some rows; empty if it has not."""
    stays: str = ""
    """Why it stays whatever the settings say: a hold, say; empty if nothing is in the way."""


@dataclass(frozen=True)
class Verdict:
    """Whether a file is kept, and why. `classes` are the rules that want it."""

    artifact: Artifact
    kept: bool
    reason: str
    classes: tuple[str, ...] = ()


def judge(artifacts: Sequence[Artifact], spec: RetentionSpec, now: datetime, *, whole: bool) -> list[Verdict]:
    """Decide about all files of a table, oldest first. `whole` says that each has the whole table, as it was."""
    ordered = sorted(artifacts, key=lambda each: each.generation) if whole else sorted(artifacts, key=_by_window)
    wanted = _wanted(ordered, spec, now, whole=whole)
    return [_verdict(each, spec, rules) for each, rules in zip(ordered, wanted, strict=True)]


def _by_window(each: Artifact) -> tuple[datetime, str, int]:
    return (each.moment, each.partition, each.generation)


def _verdict(each: Artifact, spec: RetentionSpec, rules: tuple[str, ...]) -> Verdict:
    if each.stays:
        return Verdict(each, True, each.stays, rules)
    if rules:
        return Verdict(each, True, ", ".join(rules), rules)
    if each.only and spec.only_copies is OnlyCopies.KEEP:
        return Verdict(each, True, f"the only copy: {each.only}")
    return Verdict(each, False, f"wanted by none of {described(spec)}")


def described(spec: RetentionSpec) -> str:
    """The settings in a few words."""
    parts = [f"keep {spec.keep}"] if spec.keep else []
    parts += [f"newest {spec.newest}"] if spec.newest else []
    return ", ".join(parts + [f"{name} {number}" for name, number in spec.classes.items()])


def _wanted(ordered: Sequence[Artifact], spec: RetentionSpec, now: datetime, *, whole: bool) -> list[tuple[str, ...]]:
    zone = ZoneInfo(spec.timezone)
    found: list[list[str]] = [[] for _ in ordered]
    if spec.keep:
        limit = before(now, spec.keep, zone)
        for each, rules in zip(ordered, found, strict=True):
            rules += [f"keep {spec.keep}"] if each.moment > limit else []
    if spec.newest:
        groups = [each.attempt if whole else each.partition for each in ordered]
        newest = set(list(dict.fromkeys(reversed(groups)))[: spec.newest])
        for group, rules in zip(groups, found, strict=True):
            rules += [f"newest {spec.newest}"] if group in newest else []
    if whole:
        for name, chosen in by_class([each.moment for each in ordered], spec.classes, zone).items():
            for index in chosen:
                found[index].append(name)
        if found and not found[-1]:
            found[-1].append("the newest")
    return [tuple(rules) for rules in found]


_PERIODS: Mapping[str, Callable[[datetime], Hashable]] = {
    "daily": lambda local: (local.year, local.month, local.day),
    "weekly": lambda local: tuple(local.isocalendar())[:2],
    "monthly": lambda local: (local.year, local.month),
    "yearly": lambda local: local.year,
}


def by_class(moments: Sequence[datetime], classes: Mapping[str, int], zone: ZoneInfo) -> dict[str, set[int]]:
    """Of the moments of files, oldest first, the places of those that each class keeps."""
    return {name: _last_of_periods(moments, _PERIODS[name], number, zone) for name, number in classes.items()}


def _last_of_periods(
    moments: Sequence[datetime], period: Callable[[datetime], Hashable], number: int, zone: ZoneInfo
) -> set[int]:
    last: dict[Hashable, int] = {}
    for index in reversed(range(len(moments))):
        last.setdefault(period(moments[index].astimezone(zone)), index)
    return set(sorted(last.values())[-number:])


def before(now: datetime, age: str, zone: ZoneInfo) -> datetime:
    """The moment that was so long ago (`90 days`, `7 years`) by the calendar of a zone; the beginning of time if the
    calendar does not reach back so far."""
    amount, _, unit = age.partition(" ")
    number, unit = int(amount), unit.removesuffix("s")
    local = now.astimezone(zone)
    try:
        if unit in ("day", "week"):
            return local - timedelta(days=number * (7 if unit == "week" else 1))
        months = local.year * 12 + local.month - 1 - number * (12 if unit == "year" else 1)
        year, month = divmod(months, 12)
        day = min(local.day, monthrange(year, month + 1)[1])
        return local.replace(year=year, month=month + 1, day=day)
    except (ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)
