"""Landing days of flights in `nycflights13.flights_inbox`, as a feed that delivers one day at a time would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from psycopg2 import sql

from export_pipelines.demo.flights import (
    SCHEMA,
    TIMEZONE,
    create_staging,
    header_columns,
    open_table,
    scheduled_departure_sql,
)
from export_pipelines.demo.loading import Cursor, copy_rows, transaction
from export_pipelines.errors import RequestError, TargetError

FIRST_DAY = date(2013, 1, 1)
END = date(2014, 1, 1)
"""The day after the last."""
TABLE = f"{SCHEMA}.flights_inbox"


@dataclass(frozen=True)
class Landed:
    """What landing a day did: flights of that day in the feed, and rows of the table that it wrote or deleted."""

    day: date
    rows: int
    written: int
    deleted: int


def land_days(url: str, days: Iterable[date]) -> Iterator[Landed]:
    """Land each of `days` (New York's) in the database at `url`, one transaction a day; tell of each when it is done.

    Rows that are there as they should be are left alone – the same row version, so that an export which saw them can
    still prove them –, others are written, and rows of the day that the feed has not got are deleted. Landing a day
    again does nothing, unless its rows were cleaned up since: then they are landed again, under the same ids. Two
    landings of one day at once: the second waits. A crash leaves whole days behind.

    Raises:
        RequestError: a day outside of 2013.
        SourceError: the database is unreachable or refuses.
        TargetError: the table does not exist.
    """
    wanted = sorted(set(days))
    for day in wanted:
        if not FIRST_DAY <= day < END:
            raise RequestError(f"there are no flights of {day}", hint=f"days from {FIRST_DAY} to {END} (exclusive)")
    columns, lines = _read_days(wanted)
    for day in wanted:
        with transaction(url) as cursor:
            landed = _land_day(cursor, day, columns, lines[day])
        yield landed


def _read_days(days: Iterable[date]) -> tuple[list[str], Mapping[date, list[bytes]]]:
    """Columns of the feed, and its lines by day; each line with its number in front, which is the flight's id."""
    prefixes = {f"{day.year},{day.month},{day.day}".encode(): day for day in days}
    lines: dict[date, list[bytes]] = {day: [] for day in prefixes.values()}
    with open_table("flights") as file:
        columns = header_columns(file.readline())
        for number, line in enumerate(file, start=1):
            day = prefixes.get(b",".join(line.split(b",", 3)[:3]))
            if day is not None:
                lines[day].append(b"%d,%b" % (number, line))
    return ["id", *columns], lines


def _land_day(cursor: Cursor, day: date, columns: list[str], lines: list[bytes]) -> Landed:
    _lock(cursor, day)
    create_staging(cursor)
    copy_rows(cursor, "flights_file", columns, iter(lines), options="WITH (FORMAT csv, NULL 'NA')")
    cursor.execute(_DELETE_ABSENT, {"day": day})
    deleted = int(cursor.rowcount)
    cursor.execute(_upsert(columns))
    return Landed(day, len(lines), int(cursor.rowcount), deleted)


def _lock(cursor: Cursor, day: date) -> None:
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"export_pipelines ingest {day}"])
    cursor.execute("SELECT to_regclass(%s) IS NULL", [TABLE])
    if cursor.fetchone()[0]:
        raise TargetError(f"table {TABLE} does not exist", hint="load the demo data first: make demo")


_DELETE_ABSENT = f"""
    DELETE FROM {TABLE} AS landed
    WHERE landed.scheduled_departure >= %(day)s::date::timestamp AT TIME ZONE '{TIMEZONE}'
      AND landed.scheduled_departure < (%(day)s::date + 1)::timestamp AT TIME ZONE '{TIMEZONE}'
      AND NOT EXISTS (SELECT FROM flights_file AS feed WHERE feed.id = landed.id)
"""


def _upsert(columns: list[str]) -> sql.Composed:
    changing = [sql.Identifier(column) for column in [*columns[1:], "scheduled_departure"]]
    return sql.SQL(
        "INSERT INTO {table} AS landed SELECT *, {departure} FROM flights_file "
        "ON CONFLICT (id) DO UPDATE SET ({columns}) = ROW ({new}) WHERE ({old}) IS DISTINCT FROM ({new})"
    ).format(
        table=sql.Identifier(*TABLE.split(".")),
        departure=sql.SQL(scheduled_departure_sql()),
        columns=sql.SQL(", ").join(changing),
        new=sql.SQL(", ").join(sql.SQL("excluded.{}").format(column) for column in changing),
        old=sql.SQL(", ").join(sql.SQL("landed.{}").format(column) for column in changing),
    )
