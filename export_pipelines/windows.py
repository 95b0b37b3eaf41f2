"""Partition keys and their windows.

Dagster's own `TimeWindowPartitionsDefinition` is the engine, so that keys and windows agree with what its UI shows,
also on the days when the clocks change; nothing here needs a run, an instance or a database. What Dagster's cron cannot
say (every N hours or days where N does not divide a day or a week) is counted from `start` here, and given to Dagster
as static keys. The first window starts at `start`; with `cron`, at the first tick at or after it. Only whole windows
exist: one that would reach beyond `end` does not.

Keys (local time of the start in the partition's zone): day, week, month and every_days `2013-01-31`; all others
`2013-01-31-17:00`, with the UTC offset appended in the second of two equal hours (`2013-11-03-01:00-0500`).

Two datetimes of one zone compare by their wall clocks in Python, which is wrong when clocks go back: compare
`.timestamp()`, as is done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count, takewhile
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from export_pipelines.errors import BadRange, RequestError
from export_pipelines.specs.table import Cadence, PartitionsSpec

if TYPE_CHECKING:
    from dagster import PartitionsDefinition, TimeWindowPartitionsDefinition

SNAPSHOT = "snapshot"
"""The one partition key of a table without partitions."""

HORIZON = timedelta(days=366)
"""How far ahead the static keys of an open, counted cadence reach when Dagster loads the definitions. A code server
that runs for longer than that needs a reload."""

_DAY_FORMAT = "%Y-%m-%d"
_TIME_FORMAT = "%Y-%m-%d-%H:%M"


@dataclass(frozen=True)
class Window:
    """One partition: the half-open interval `[start, end)` of zone-aware times; both None for a snapshot."""

    partition: str
    start: datetime | None = None
    end: datetime | None = None

    @property
    def is_snapshot(self) -> bool:
        return self.end is None

    def closed(self, now: datetime) -> bool:
        """Whether it has ended at `now` (zone-aware). A snapshot is never open."""
        return self.end is None or self.end.timestamp() <= now.timestamp()

    @property
    def duration(self) -> timedelta:
        """Time that passes from start to end (23 h on a spring day); zero for a snapshot."""
        if self.start is None or self.end is None:
            return timedelta()
        return timedelta(seconds=self.end.timestamp() - self.start.timestamp())


def closed_windows(spec: PartitionsSpec | None, now: datetime) -> list[Window]:
    """All windows that have ended at `now`, oldest first; the snapshot alone for a table without partitions."""
    if spec is None:
        return [Window(SNAPSHOT)]
    return _windows_until(spec, now)


def all_windows(spec: PartitionsSpec | None, now: datetime) -> list[Window]:
    """All windows that have begun at `now`, oldest first: the closed ones, and the one `now` is in."""
    windows = closed_windows(spec, now)
    if spec is None:
        return windows
    current = _next_window(spec, windows[-1] if windows else None)
    if current and current.start and current.start.timestamp() <= now.timestamp():
        windows.append(current)
    return windows


def first_windows(spec: PartitionsSpec, number: int) -> list[Window]:
    """The first windows, closed or not; fewer when `end` comes before."""
    windows: list[Window] = []
    while len(windows) < number and (window := _next_window(spec, windows[-1] if windows else None)):
        windows.append(window)
    return windows


def window_of(spec: PartitionsSpec | None, key: str, now: datetime | None = None) -> Window:
    """The window of a key, which need not be closed yet: ask `Window.closed`. `now` is used for the hint only.

    Raises:
        RequestError: there is no such partition; the hint names the first and the last closed one.
    """
    if spec is None:
        if key != SNAPSHOT:
            raise RequestError(
                f"partition {key!r} does not exist", hint=f"the table has no partitions; its only key is {SNAPSHOT!r}"
            )
        return Window(SNAPSHOT)
    near = _window_near(spec, key)
    if near is None or near.partition != key or not _within(spec, near):
        raise RequestError(f"partition {key!r} does not exist", hint=_hint(spec, near, now or datetime.now(UTC)))
    return near


def window_starting(spec: PartitionsSpec, start: datetime) -> Window | None:
    """The window that starts at a moment (zone-aware), closed or not; None if none does."""
    local = start.astimezone(ZoneInfo(spec.timezone))
    key = local.strftime(key_format(spec))
    # The second of two equal hours has its offset in its key.
    for each in (key, key + local.strftime("%z")):
        near = _window_near(spec, each)
        if near and near.start and near.start.timestamp() == start.timestamp() and _within(spec, near):
            return near
    return None


def windows_between(spec: PartitionsSpec | None, first_key: str, last_key: str) -> list[Window]:
    """The windows from one key to another, both included, oldest first, closed or not.

    Raises:
        RequestError: a key does not exist. BadRange: they are the wrong way round.
    """
    first, last = window_of(spec, first_key), window_of(spec, last_key)
    if spec is None or first.start is None or last.start is None or last.end is None:
        return [first]
    if first.start.timestamp() > last.start.timestamp():
        raise BadRange(f"partition {first_key!r} is later than {last_key!r}", hint="give the earlier one first")
    begin = first.start.timestamp()
    return [w for w in _windows_until(spec, last.end) if w.start and w.start.timestamp() >= begin]


def key_format(spec: PartitionsSpec) -> str:
    """The strftime format of the keys."""
    by_day = spec.every in (Cadence.DAY, Cadence.WEEK, Cadence.MONTH) or spec.every_days
    return _DAY_FORMAT if by_day else _TIME_FORMAT


def partitions_definition(spec: PartitionsSpec, now: datetime | None = None) -> PartitionsDefinition:
    """The same partitions for Dagster.

    A counted cadence becomes static keys from `start` to `end`; to HORIZON after `now` when it is open. Those keys
    include windows that are not closed yet, which a step refuses.
    """
    if engine := _engine(spec):
        return engine
    import dagster as dg

    until = (now or datetime.now(UTC)) + HORIZON
    return dg.StaticPartitionsDefinition([window.partition for window in _windows_until(spec, until)])


def problems(spec: PartitionsSpec) -> list[tuple[str, str]]:
    """What the model itself cannot see, as (field, message): a cron that is none, a start that does not fit."""
    found: list[tuple[str, str]] = []
    if spec.start.second or spec.start.microsecond:
        found.append(("start", f"partitions begin at full minutes; start is {spec.start}"))
    if spec.every is Cadence.MONTH and spec.start.day > 28:
        found.append(("start", f"monthly partitions begin on day 1 to 28 of a month; start is on day {spec.start.day}"))
    if spec.cron is not None and not re.fullmatch(r"\s*(\S+\s+){4}\S+\s*", spec.cron):
        found.append(("cron", f"{spec.cron!r} is not a cron expression of five fields"))
    if found:
        return found
    try:
        if not first_windows(spec, 1):
            return [("end", f"no whole partition fits between start {spec.start} and end {spec.end}")]
    except Exception as error:  # Dagster and croniter raise many kinds; all mean that the expression is unfit
        field = next(name for name in ("cron", "every", "every_hours", "every_days") if getattr(spec, name) is not None)
        return [(field, f"{getattr(spec, field)!r} gives no partitions: {str(error).splitlines()[0]}")]
    return []


def _cron(spec: PartitionsSpec) -> str | None:
    """The cron whose ticks bound the windows; None when they must be counted."""
    minute, hour = spec.start.minute, spec.start.hour
    if spec.cron is not None:
        return " ".join(spec.cron.split())
    if spec.every is Cadence.MONTH:
        return f"{minute} {hour} {spec.start.day} * *"
    if spec.every is Cadence.WEEK or spec.every_days == 7:
        return f"{minute} {hour} * * {spec.start.isoweekday() % 7}"
    hours = {Cadence.HOUR: 1, Cadence.DAY: 24}[spec.every] if spec.every else spec.every_hours or 24 * _days(spec)
    if hours == 1:
        return f"{minute} * * * *"
    ticks = ",".join(str(each) for each in range(hour % hours, 24, hours))
    return f"{minute} {ticks} * * *" if 24 % hours == 0 else None


def _days(spec: PartitionsSpec) -> int:
    return spec.every_days or 1


@lru_cache(maxsize=1024)
def _engine(spec: PartitionsSpec) -> TimeWindowPartitionsDefinition | None:
    cron = _cron(spec)
    if cron is None:
        return None
    import dagster as dg

    return dg.TimeWindowPartitionsDefinition(
        start=spec.start, end=spec.end, cron_schedule=cron, fmt=key_format(spec), timezone=spec.timezone
    )


def _windows_until(spec: PartitionsSpec, until: datetime) -> list[Window]:
    """Windows that end at or before `until`, and at or before the spec's end."""
    engine = _engine(spec)
    if engine is None:
        limit = until.timestamp()
        return list(takewhile(lambda w: _within(spec, w) and _end(w) <= limit, _counted(spec)))
    keys = engine.get_partition_keys(current_time=until)
    spans = engine.time_windows_for_partition_keys(frozenset(keys), validate=False)
    windows = [_window(spec, key, span.start, span.end) for key, span in zip(keys, spans, strict=True)]
    return [window for window in windows if _within(spec, window)]


def _next_window(spec: PartitionsSpec, previous: Window | None) -> Window | None:
    """The window after `previous`, or the first; None when the spec's end comes before its end."""
    after = previous.end if previous and previous.end else _instant(spec, spec.start)
    engine = _engine(spec)
    if engine is None:
        window = next(_counted(spec, _index(spec, after)))
    else:
        span = engine.get_next_partition_window(after, respect_bounds=False)
        if span is None:
            return None
        key = engine.get_partition_key_for_timestamp(span.start.timestamp())
        window = _window(spec, key, span.start, span.end)
    return window if _within(spec, window) else None


def _window_near(spec: PartitionsSpec, key: str) -> Window | None:
    """The window that a key, read leniently, belongs to; None when it is no time at all."""
    engine = _engine(spec)
    try:
        if engine is None:
            return next(_counted(spec, _index(spec, _key_time(spec, key))), None)
        span = engine.time_window_for_partition_key(key)
        return _window(spec, engine.get_partition_key_for_timestamp(span.start.timestamp()), span.start, span.end)
    except (ValueError, OverflowError):
        return None


def _key_time(spec: PartitionsSpec, key: str) -> datetime:
    local = re.sub(r"[+-]\d{4}$", "", key) if key_format(spec) == _TIME_FORMAT else key
    return _instant(spec, datetime.strptime(local, key_format(spec)).replace(fold=int(local != key)))


def _index(spec: PartitionsSpec, moment: datetime) -> int:
    """The number, from 0, of the counted window that a moment (with every_days, its day) lies in; negative before
    the first."""
    if spec.every_days:
        return (moment.date() - spec.start.date()).days // spec.every_days
    return int((moment.timestamp() - _instant(spec, spec.start).timestamp()) // (3600 * (spec.every_hours or 1)))


def _counted(spec: PartitionsSpec, first: int = 0) -> Iterator[Window]:
    """Windows counted from start, without end. Hours are hours that pass; days keep their time of day."""
    fmt = key_format(spec)
    if first < 0:
        return
    start = _bound(spec, first)
    for number in count(first + 1):
        end = _bound(spec, number)
        key = start.strftime(fmt) + (start.strftime("%z") if start.fold and fmt == _TIME_FORMAT else "")
        yield Window(key, start, end)
        start = end


def _bound(spec: PartitionsSpec, number: int) -> datetime:
    """Where the counted window of that number starts."""
    if spec.every_days:
        return _instant(spec, spec.start + timedelta(days=spec.every_days * number))
    hours = timedelta(hours=(spec.every_hours or 1) * number)
    return (_instant(spec, spec.start).astimezone(UTC) + hours).astimezone(ZoneInfo(spec.timezone))


def _instant(spec: PartitionsSpec, local: datetime) -> datetime:
    """A local time as an instant: one that the clocks skip is moved on, of one that comes twice it is the first."""
    return local.replace(tzinfo=ZoneInfo(spec.timezone)).astimezone(UTC).astimezone(ZoneInfo(spec.timezone))


def _window(spec: PartitionsSpec, key: str, start: datetime, end: datetime) -> Window:
    zone = ZoneInfo(spec.timezone)
    return Window(key, datetime.fromtimestamp(start.timestamp(), zone), datetime.fromtimestamp(end.timestamp(), zone))


def _end(window: Window) -> float:
    return window.end.timestamp() if window.end else float("inf")


def _within(spec: PartitionsSpec, window: Window) -> bool:
    """Whether the window lies between the spec's start and end."""
    if window.start is None or window.start.timestamp() < _instant(spec, spec.start).timestamp():
        return False
    return spec.end is None or _end(window) <= _instant(spec, spec.end).timestamp()


def _hint(spec: PartitionsSpec, near: Window | None, now: datetime) -> str:
    closed = closed_windows(spec, now)
    if not closed:
        return f"no partition has ended yet; the first begins {spec.start} {spec.timezone}"
    nearest = f"the nearest is {near.partition}; " if near and _within(spec, near) else ""
    return f"{nearest}the first partition is {closed[0].partition}, the last that has ended {closed[-1].partition}"
