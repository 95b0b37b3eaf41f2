"""Rows of another database as records of CSV: of PostgreSQL by COPY, of all others by SQLAlchemy."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource, Session, redact
from export_pipelines.sql import quote_identifier

_PARAMETER = re.compile(r"%\((\w+)\)s|%%|%")
_ROWS = 2_000

Encode = Callable[[Sequence[Any]], bytes]
"""A row as a record of CSV."""
Values = Mapping[str, Any]

_OPEN_SINCE = """
SELECT clock_timestamp(),
  (SELECT min(xact_start) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'),
  (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
    AND query = '<insufficient privilege>' AND pid <> pg_backend_pid())
  + (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
  pg_snapshot_xmin(pg_current_snapshot()) = pg_snapshot_xmax(pg_current_snapshot())
"""


@dataclass(frozen=True)
class Horizon:
    """When transactions began that may still commit. `known` is false where the database does not tell all of them."""

    now: datetime
    oldest: datetime | None
    """None if none is open."""
    known: bool


class Reader(Protocol):
    """A connection that reads. All queries are in one snapshot, as far as the database has such a thing."""

    def columns(self, query: str, values: Values) -> list[str]:
        """Names of the columns of a query."""

    def value(self, query: str, values: Values) -> Any:
        """The one value of a query."""

    def records(self, query: str, values: Values, take: Callable[[bytes], object]) -> int:
        """All rows of a query, each as a record with its line end; how many."""

    def quoted(self, name: str) -> str:
        """A name as an identifier."""


# PostgreSQL


@dataclass
class PostgresReader:
    """See Reader."""

    session: Session

    def columns(self, query: str, values: Values) -> list[str]:
        names: list[bytes] = []
        query = f"SELECT * FROM ({_percent(query)}\n) AS described LIMIT 0"
        self.session.copy_out(query, "FORMAT csv, HEADER, ENCODING 'UTF8'", names.append, dict(values))
        return next(csv.reader(io.StringIO(b"".join(names).decode(), newline="")))

    def value(self, query: str, values: Values) -> Any:
        return self.session.one(_percent(query), dict(values))[0]

    def records(self, query: str, values: Values, take: Callable[[bytes], object]) -> int:
        return self.session.copy_out(_percent(query), "FORMAT csv, ENCODING 'UTF8'", take, dict(values))

    def quoted(self, name: str) -> str:
        return quote_identifier(name)


@contextmanager
def postgres_reader(source: PostgresSource) -> Iterator[PostgresReader]:
    """A transaction that only reads, in one snapshot."""
    with source.session() as session:
        session.begin()
        yield PostgresReader(session)
        session.rollback()


def horizon(source: PostgresSource) -> Horizon:
    """Which transactions are open now. To be asked before the snapshot that is read: what is open at that snapshot, and
    is not told here, began after `now`."""
    with source.session() as session:
        session.begin()
        now, oldest, hidden, quiet = session.one(_OPEN_SINCE)
        session.rollback()
    return Horizon(now, oldest, known=bool(quiet) or not hidden)


def _percent(query: str) -> str:
    """The text with its named parameters for the driver: any other `%` is one of the text."""
    return _PARAMETER.sub(lambda found: found[0] if found[1] else "%%", query)


# Others


class AlchemyReader:
    """See Reader. Rows come as a stream, some thousands in memory."""

    def __init__(self, connection: Any, encode: Encode) -> None:
        self._connection = connection
        self._encode = encode

    def columns(self, query: str, values: Values) -> list[str]:
        with self._explained(), self._result(f"SELECT * FROM ({query}\n) q WHERE 1 = 0", values) as result:
            return list(map(str, result.keys()))

    def value(self, query: str, values: Values) -> Any:
        with self._explained(), self._result(query, values) as result:
            return result.scalar()

    def records(self, query: str, values: Values, take: Callable[[bytes], object]) -> int:
        count = 0
        with self._explained(), self._result(query, values) as result:
            for rows in result.partitions(_ROWS):
                for row in rows:
                    take(self._encode(row))
                count += len(rows)
        return count

    def quoted(self, name: str) -> str:
        return str(self._connection.dialect.identifier_preparer.quote_identifier(name))

    @contextmanager
    def _result(self, query: str, values: Values) -> Iterator[Any]:
        import sqlalchemy as sa

        used = {match[1] for match in _PARAMETER.finditer(query) if match[1]}
        text = _PARAMETER.sub(lambda found: f":{found[1]}" if found[1] else "%", query.replace(":", "\\:"))
        result = self._connection.execute(sa.text(text), {name: values[name] for name in used})
        try:
            yield result
        finally:
            result.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import sqlalchemy as sa

        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise alchemy_error(error, "query failed") from error
        except KeyError as error:
            raise RequestError(f"parameter %({error.args[0]})s has no value here", hint="see `select.sql`") from error


@contextmanager
def alchemy_reader(source: str | MysqlSource, encode: Encode) -> Iterator[AlchemyReader]:
    """A connection by a SQLAlchemy URL, or to a MySQL or MariaDB of ours.

    Raises:
        RequestError: the URL is not valid, or its driver is not installed.
        SourceError: the database does not answer.
    """
    import sqlalchemy as sa

    engine = _engine(source)
    try:
        with engine.connect() as connection:
            if engine.dialect.name in ("mysql", "mariadb"):
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield AlchemyReader(connection.execution_options(stream_results=True), encode)
    except sa.exc.SQLAlchemyError as error:
        raise alchemy_error(error, "cannot connect") from error
    finally:
        engine.dispose()


def _engine(source: str | MysqlSource) -> Any:
    import sqlalchemy as sa

    if isinstance(source, MysqlSource):
        return sa.create_engine("mysql+pymysql://", creator=source.connect, poolclass=sa.pool.NullPool)
    try:
        url = sa.make_url(source)
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
            # SQLite would make an empty one.
            raise SourceError(f"there is no database {url.database!r}", hint="check the path in the URL")
        return sa.create_engine(url, poolclass=sa.pool.NullPool)
    except (sa.exc.ArgumentError, ValueError):
        raise RequestError("the URL of a database is not valid", hint="engine+driver://user:password@host/db") from None
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise RequestError(f"the driver of a database is not installed: {error}", hint="pip install it") from None


def alchemy_error(error: Exception, doing: str) -> SourceError:
    """Our error for SQLAlchemy's, without passwords and without the statement's values."""
    cause = getattr(error, "orig", None) or error
    text = redact((str(cause).splitlines() or [type(cause).__name__])[0][:500])
    lost = bool(getattr(error, "connection_invalidated", False)) or "OperationalError" in type(error).__name__
    return SourceError(f"{doing}: {text}", hint="check URL, rights and names", transient=lost)


def utc(moment: datetime | None, *, naive: bool) -> datetime | None:
    """A time for a driver; naive ones are in UTC."""
    if moment is None or not naive:
        return moment
    return moment.astimezone(UTC).replace(tzinfo=None)
