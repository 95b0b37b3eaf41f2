"""Pull rows of a database: all, those behind the last seen value, or those that are new by their digest."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, BinaryIO

from export_pipelines.errors import RequestError
from export_pipelines.formats.parsing.base import encode
from export_pipelines.sources.database import (
    Horizon,
    Reader,
    alchemy_reader,
    horizon,
    postgres_reader,
    utc,
)
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load_sources import DatabaseSource
from export_pipelines.specs.service import resolve
from export_pipelines.steps.land_digests import Seen, Sieve, Write, digests_seen, keep_sorted
from export_pipelines.steps.land_texts import row_texts
from export_pipelines.windows import Window

State = dict[str, str]


@dataclass(frozen=True)
class Before:
    """What earlier pulls of a table left."""

    state: State = field(default_factory=dict)
    digests: Callable[[], BinaryIO] = io.BytesIO
    """Opens the digests of rows that may be met again."""
    history: tuple[tuple[datetime, State], ...] = ()
    """Time and state of each landing, oldest first."""


@dataclass
class Pulled:
    """What a pull gave."""

    rows: int = 0
    state: State = field(default_factory=dict)
    changed: bool = True
    """Whether there is anything to land."""


@dataclass
class Pull:
    """One pull. `write` of `run` gets CSV in COPY's plain dialect, header first."""

    spec: DatabaseSource
    database: PostgresSource | MysqlSource | None
    select_sql: str | None
    window: Window | None
    before: Before

    def run(self, write: Write, keep: Write) -> Pulled:
        """Read what is new. `keep` gets the digests that the next pull needs, sorted.

        Raises:
            SourceError: the database failed.
            RequestError: the definition asks for what cannot be done.
        """
        source = self._source()
        if self.spec.mode == "full":
            with self._reader(source) as reader:
                return _full(reader, self._query(reader), self._values(source), write)
        if self.spec.mode == "changes":
            with self._reader(source) as reader:
                return self._changes(reader, self._values(source), write, keep)
        return self._incremental(source, write, keep)

    def _source(self) -> PostgresSource | MysqlSource | str:
        if self.database is not None:
            return self.database
        url = resolve(self.spec.url) or ""
        if url.startswith(("postgresql:", "postgres:", "postgresql+psycopg2:")):
            return PostgresSource(url.replace("postgresql+psycopg2:", "postgresql:"))
        return url

    def _reader(self, source: PostgresSource | MysqlSource | str) -> AbstractContextManager[Reader]:
        if isinstance(source, PostgresSource):
            return postgres_reader(source)
        return alchemy_reader(source, lambda row: encode(row_texts(row)))

    def _values(self, source: object) -> dict[str, Any]:
        naive = not isinstance(source, PostgresSource)
        values: dict[str, Any] = {}
        if self.window is not None and not self.window.is_snapshot:
            values = {
                "window_start": utc(self.window.start, naive=naive),
                "window_end": utc(self.window.end, naive=naive),
            }
        # For a statement that uses it itself; NULL at the first pull.
        values["since"] = _value(self.before.state.get("since"), self.before.state.get("kind", ""))
        return values

    def _query(self, reader: Reader) -> str:
        if self.select_sql is not None:
            return self.select_sql.strip().rstrip(";")
        if not self.spec.table:
            raise RequestError("a database source needs `table`, or a select.sql beside", hint="add one of them")
        return "SELECT * FROM " + ".".join(reader.quoted(part) for part in self.spec.table.split("."))

    # Changes

    def _changes(self, reader: Reader, values: dict[str, Any], write: Write, keep: Write) -> Pulled:
        query = self._query(reader)
        pulled = Pulled(state={"mode": "changes"})
        with digests_seen(self.before.digests) as (seen, now):
            write(encode(reader.columns(query, values)))
            with now.open("wb") as file:
                sieve = Sieve(seen, write, file)
                reader.records(query, values, sieve.take)
                sieve.flush()
            pulled.rows = sieve.written
            pulled.changed = keep_sorted(now, keep, seen) or not self.before.history
        return pulled

    # Incremental

    def _incremental(self, source: PostgresSource | MysqlSource | str, write: Write, keep: Write) -> Pulled:
        column = self.spec.column or ""
        before = self._top(source, column) if isinstance(source, PostgresSource) else None
        seen = horizon(source) if isinstance(source, PostgresSource) else None
        with self._reader(source) as reader:
            zone = _Zone(reader, self._query(reader), column, self._values(source), self.before.state)
            top = zone.top()
            if top is None:
                return Pulled(changed=False)
            with digests_seen(self.before.digests) as (known, _):
                rows = zone.late(known, write) + zone.new(top, write)
            following = self._following(top, before, seen, zone.since)
            zone.digests(following, top, keep)
        state = {"mode": "incremental", "seen": _text(top), "kind": _kind(top), "at": datetime.now(UTC).isoformat()}
        if following is not None:
            state["since"] = _text(following)
        return Pulled(rows, state, changed=rows > 0)

    def _top(self, source: PostgresSource, column: str) -> Any:
        """The greatest value before it was asked which transactions are open."""
        with postgres_reader(source) as reader:
            query = f"SELECT max({reader.quoted(column)}) FROM ({self._query(reader)}\n) q"
            return reader.value(query, self._values(source))

    def _following(self, top: Any, before: Any, seen: Horizon | None, since: Any) -> Any:
        """What the next pull reads from: behind it, no row can come any more. None: from the beginning."""
        if seen is not None and not seen.known:
            # Somebody's transaction is open, and we may not know since when.
            return since
        if isinstance(top, datetime | date):
            found = self._time_following(top, seen)
        elif seen is not None and seen.oldest is None:
            # Whoever took a smaller key before has committed, or never will.
            found = before
        else:
            limit = (
                seen.oldest if seen and seen.oldest else datetime.now(UTC) - timedelta(seconds=self.spec.lag_seconds)
            )
            found = self._key_following(limit)
        return since if found is None or (since is not None and found < since) else found

    def _time_following(self, top: date, seen: Horizon | None) -> Any:
        moments: list[datetime] = []
        if seen is not None:
            moments = [moment for moment in (seen.now, seen.oldest) if moment]
        lag = timedelta(seconds=self.spec.lag_seconds)
        if not isinstance(top, datetime):
            days = [moment.date() for moment in moments]
            return min([top, *days]) - timedelta(days=1) - lag
        # A time without a zone may be up to 14 hours behind that of UTC: reading from earlier on is safe.
        comparable = [m if top.tzinfo else m.replace(tzinfo=None) - timedelta(hours=14) for m in moments]
        # now() of a transaction is the very time of its beginning, and a column may have whole seconds only.
        return min([top, *comparable]) - lag - timedelta(seconds=1)

    def _key_following(self, limit: datetime) -> Any:
        """The greatest key of the newest pull that ended before a time: later ones of it took greater keys."""
        for fetched, state in reversed(self.before.history):
            if fetched < limit and "seen" in state:
                return _value(state["seen"], state.get("kind", ""))
        return None


def _full(reader: Reader, query: str, values: dict[str, Any], write: Write) -> Pulled:
    pulled = Pulled(state={"mode": "full"})
    write(encode(reader.columns(query, values)))
    pulled.rows = reader.records(query, values, write)
    return pulled


class _Zone:
    """The rows of an incremental pull: `late` ones up to the last seen value, and `new` ones behind it."""

    def __init__(self, reader: Reader, query: str, column: str, values: dict[str, Any], state: State) -> None:
        self._reader = reader
        self._from = f"FROM ({query}\n) q"
        self._column = f"q.{reader.quoted(column)}"
        self._query = query
        self._values = values
        kind = state.get("kind", "")
        self.since = _value(state.get("since"), kind)
        self._seen = _value(state.get("seen"), kind)

    def top(self) -> Any:
        """The greatest value that there is behind where the last pull began; None if there is none."""
        where = f"WHERE {self._column} > %(low)s" if self.since is not None else ""
        return self._reader.value(f"SELECT max({self._column}) {self._from} {where}", self._with(low=self.since))

    def late(self, known: Seen, write: Write) -> int:
        """Write the header, and rows that the last pull could have seen and did not."""
        write(encode(self._reader.columns(self._query, self._values)))
        sieve = Sieve(known, write)
        if self._seen is not None:
            self._records(self.since, self._seen, sieve.take)
            sieve.flush()
        return sieve.written

    def new(self, top: Any, write: Write) -> int:
        return self._records(self._seen, top, write)

    def digests(self, low: Any, top: Any, keep: Write) -> None:
        """Keep the digests of rows that the next pull reads again."""
        if low is not None and low >= top:
            return
        with digests_seen(io.BytesIO) as (none, now):
            with now.open("wb") as file:
                sieve = Sieve(None, None, file)
                self._records(low, top, sieve.take)
                sieve.flush()
            keep_sorted(now, keep, none)

    def _records(self, low: Any, high: Any, take: Callable[[bytes], object]) -> int:
        where = f"WHERE {self._column} <= %(high)s"
        where += f" AND {self._column} > %(low)s" if low is not None else ""
        return self._reader.records(f"SELECT q.* {self._from} {where}", self._with(low=low, high=high), take)

    def _with(self, **more: Any) -> dict[str, Any]:
        return {**self._values, **more}


def _kind(value: Any) -> str:
    kinds: list[tuple[type, str]] = [(datetime, "datetime"), (date, "date"), (int, "int"), (Decimal, "decimal")]
    return next((name for kind, name in kinds if isinstance(value, kind)), "text")


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def _value(text: str | None, kind: str) -> Any:
    if text is None:
        return None
    match kind:
        case "datetime":
            return datetime.fromisoformat(text)
        case "date":
            return date.fromisoformat(text)
        case "int":
            return int(text)
        case "decimal":
            return Decimal(text)
    return text
