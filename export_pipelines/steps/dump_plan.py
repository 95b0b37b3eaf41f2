"""Which batches a dump of a range is cut into, and which of them are whole partitions. Nothing is connected to."""

from __future__ import annotations

import calendar
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from export_pipelines import windows
from export_pipelines.errors import BadRange, RequestError
from export_pipelines.specs.dump import Container, DumpRange, FolderFromEnvironment, Interval
from export_pipelines.specs.table import PartitionsSpec, TableDefinition
from export_pipelines.windows import SNAPSHOT, Window

MAX_BATCHES = 10_000
NOW = "now"
DEFAULT_BATCH_ROWS = 10_000
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class DumpRequest:
    """What somebody asks for; what is None is as the table's `dump` says."""

    start: str | None = None
    """`2024-01-01` (midnight), `2024-01-01 08:00` or with an offset: local to `timezone`, or to the table's zone."""
    end: str | None = None
    """The same, exclusive; or `now`."""
    batch: Interval | None = None
    timezone: str | None = None
    page_rows: int | None = None
    container: Container | None = None
    folder: str | None = None
    batch_rows: int = DEFAULT_BATCH_ROWS
    """Rows after which progress is told. Rows are streamed, so memory does not depend on it."""


@dataclass(frozen=True)
class Output:
    """How the files of a dump are written."""

    page_rows: int | None = None
    container: Container = Container.NONE
    folder: str | None = None
    """An absolute path; the table's store of exports when None."""
    batch_rows: int = DEFAULT_BATCH_ROWS

    @property
    def plain(self) -> bool:
        """Whether a file is as an export would write it, at its place."""
        return self.page_rows is None and self.container is Container.NONE and self.folder is None


@dataclass(frozen=True)
class Batch:
    """One file (or more, in pages) of a dump. A `whole` one is a partition, and is exported as that."""

    window: Window
    whole: bool


@dataclass(frozen=True)
class DumpPlan:
    """All batches, oldest first. `shorter` is the last one if the range does not divide evenly."""

    batches: tuple[Batch, ...]
    output: Output
    shorter: Window | None = None


def plan_dump(table: TableDefinition, request: DumpRequest, now: datetime) -> DumpPlan:
    """Cut the range of a request into batches.

    Raises:
        BadRange: a range is missing or not wanted, the wrong way round, or no range at all.
        RequestError: it is not over yet, or the table cannot be dumped by ranges.
    """
    output = _output(table, request)
    ranged = request.start is not None or request.end is not None
    _check_range(table, request, ranged)
    partitions = table.spec.partitions
    if partitions is None:
        return DumpPlan((Batch(Window(SNAPSHOT), output.plain),), output)
    if table.spec.cumulative:
        raise RequestError(
            f"{table.id} is cumulative, so each batch would hold everything before its end",
            hint="use window_start in select.sql, or export its partitions: `export-pipelines run`",
        )
    start, end = _bounds(partitions, request, now) if ranged else _everything(table, partitions, now)
    zone = _zone(request.timezone or partitions.timezone)
    interval = request.batch or table.spec.dump.interval
    found = list(_cut(start, end, interval, zone, ZoneInfo(partitions.timezone)))
    batches = tuple(_batch(table, partitions, window, output) for window in found)
    return DumpPlan(batches, output, found[-1] if _ends_early(found, end, interval, zone) else None)


def range_name(start: datetime, end: datetime, zone: ZoneInfo) -> str:
    """Name of a range: `2024-01-01..2024-01-08`, with times where one is not midnight, in the table's zone."""
    bounds = [moment.astimezone(zone) for moment in (start, end)]
    midnights = all((each.hour, each.minute, each.second) == (0, 0, 0) for each in bounds)
    exact = any(each.second for each in bounds)
    fmt = "%Y-%m-%d" if midnights else "%Y-%m-%d-%H:%M:%S" if exact else "%Y-%m-%d-%H:%M"
    # The second of two equal hours carries its offset, as a partition's key does.
    return "..".join(each.strftime(fmt) + (each.strftime("%z") if each.fold else "") for each in bounds)


def parse_moment(text: str, zone: ZoneInfo, now: datetime) -> datetime:
    """A time as people write it, local to `zone` unless it has an offset; a date is its midnight.

    A local time that the clocks skip is moved on; of one that comes twice it is the first.

    Raises:
        BadRange: it is no time, or finer than a second.
    """
    if text.strip().lower() == NOW:
        return now.replace(microsecond=0)
    try:
        given = datetime.fromisoformat(text.strip())
    except ValueError:
        raise BadRange(
            f"{text!r} is no time", hint="write 2024-01-01, 2024-01-01 08:00 or 2024-01-01T08:00:00+02:00"
        ) from None
    if given.microsecond:
        raise BadRange(f"{text!r} is finer than a second", hint="ranges begin and end at full seconds")
    return (given if given.tzinfo else given.replace(tzinfo=zone)).astimezone(UTC)


def is_date(text: str) -> bool:
    """Whether it is a date without a time."""
    return bool(_DATE.fullmatch(text.strip()))


def output_folder(given: str | FolderFromEnvironment | None) -> str | None:
    """The folder that a definition or an option names.

    Raises:
        RequestError: its variable is not set, or it is no absolute path.
    """
    if isinstance(given, FolderFromEnvironment):
        found = os.environ.get(given.env) or given.default
        if not found:
            raise RequestError(
                f"the folder of a dump is in {given.env}, which is not set", hint="set it in the environment or in .env"
            )
        given = found
    if given is None:
        return None
    folder = Path(given).expanduser()
    if not folder.is_absolute():
        raise RequestError(f"the folder of a dump, {given!r}, is no absolute path", hint="begin it with / or ~")
    return str(folder)


def _output(table: TableDefinition, request: DumpRequest) -> Output:
    spec = table.spec.dump
    return Output(
        request.page_rows or spec.page_rows,
        request.container or spec.container,
        output_folder(request.folder or spec.folder),
        request.batch_rows,
    )


def _check_range(table: TableDefinition, request: DumpRequest, ranged: bool) -> None:
    wanted = table.spec.dump.range_of(partitioned=table.spec.partitions is not None)
    if ranged and wanted is DumpRange.PROHIBITED:
        raise BadRange(
            f"a dump of {table.id} takes no range: it is a snapshot of the whole table",
            hint="leave out start and end, or give the table `partitions`",
        )
    if ranged and (request.start is None or request.end is None):
        missing = "start" if request.start is None else "end"
        raise BadRange(f"the range of {table.id} has no {missing}", hint="give start and end")
    if not ranged and wanted is DumpRange.REQUIRED:
        raise BadRange(
            f"a dump of {table.id} needs a range", hint="give start and end, such as 2024-01-01 and 2024-01-08"
        )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadRange(f"unknown time zone {name!r}", hint="use an IANA name such as Europe/Tallinn") from None


def _bounds(partitions: PartitionsSpec, request: DumpRequest, now: datetime) -> tuple[datetime, datetime]:
    zone = _zone(request.timezone or partitions.timezone)
    start, end = (parse_moment(text or "", zone, now) for text in (request.start, request.end))
    if start >= end:
        raise BadRange(
            f"the range starts at {request.start} and ends at {request.end}, which is not later",
            hint=_one_day(request) or "give the earlier one as start; the end is excluded",
        )
    if end > now:
        raise RequestError(
            f"the range is open until {end.astimezone(zone).isoformat()}",
            hint="the end is excluded, and must be past, since rows may still arrive; `now` takes what is there",
        )
    return start, end


def _one_day(request: DumpRequest) -> str:
    """What to give for a single day; empty if no single day was given."""
    if request.start is None or request.start != request.end or not is_date(request.start):
        return ""
    following = datetime.fromisoformat(request.start.strip()) + timedelta(days=1)
    return f"the end is excluded: for that day alone, end at {following:%Y-%m-%d}"


def _everything(table: TableDefinition, partitions: PartitionsSpec, now: datetime) -> tuple[datetime, datetime]:
    closed = windows.closed_windows(partitions, now)
    if not closed or closed[0].start is None or closed[-1].end is None:
        raise RequestError(f"no partition of {table.id} has ended yet", hint="give start and end")
    return closed[0].start.astimezone(UTC), closed[-1].end.astimezone(UTC)


def _cut(start: datetime, end: datetime, interval: Interval, zone: ZoneInfo, own: ZoneInfo) -> Iterator[Window]:
    """Windows of that length from start on; the last ends at `end`, earlier perhaps than its length. Calendar lengths
    are those of `zone`; names and windows are in the table's own."""
    before = start
    for number in count(1):
        bound = min(_bound(start, number, interval, zone), end)
        yield Window(range_name(before, bound, own), before.astimezone(own), bound.astimezone(own))
        if bound >= end:
            return
        if number >= MAX_BATCHES:
            raise BadRange(f"the range gives more than {MAX_BATCHES:,} batches", hint="make the batches longer")
        before = bound


def _bound(start: datetime, number: int, interval: Interval, zone: ZoneInfo) -> datetime:
    """The end of the batch of that number, counted from 1, in UTC. Hours are hours that pass; days and months keep
    their time of day, and a month that is too short ends on its last day."""
    if interval.seconds:
        return start + timedelta(seconds=interval.seconds * number)
    local = start.astimezone(zone).replace(tzinfo=None)
    if interval.months:
        year, month = divmod(local.year * 12 + local.month - 1 + interval.months * number, 12)
        day = min(local.day, calendar.monthrange(year, month + 1)[1])
        local = local.replace(year=year, month=month + 1, day=day)
    return (local + timedelta(days=interval.days * number)).replace(tzinfo=zone).astimezone(UTC)


def _ends_early(found: list[Window], end: datetime, interval: Interval, zone: ZoneInfo) -> bool:
    first = found[0].start
    assert first is not None
    return _bound(first.astimezone(UTC), len(found), interval, zone) > end


def _batch(table: TableDefinition, partitions: PartitionsSpec, window: Window, output: Output) -> Batch:
    whole = _partition(partitions, window) if output.plain else None
    if whole is not None:
        return Batch(whole, True)
    if "%(partition_key)s" in (table.select_sql or ""):
        raise RequestError(
            f"select.sql of {table.id} uses partition_key, and {window.partition} is no partition of it",
            hint="give the bounds of whole partitions as range and as batches, or use window_start and window_end",
        )
    return Batch(window, False)


def _partition(partitions: PartitionsSpec, window: Window) -> Window | None:
    """The partition of exactly this window."""
    assert window.start is not None and window.end is not None
    found = windows.window_starting(partitions, window.start)
    same = found is not None and found.end is not None and found.end.timestamp() == window.end.timestamp()
    return found if same else None
