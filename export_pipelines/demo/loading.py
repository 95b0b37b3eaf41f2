"""What both demo data sets share: one transaction, a marker that data were loaded, COPY with progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from typing import Any

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from export_pipelines.errors import SourceError, TargetError

LoadProgress = Callable[[str, int, int], None]
"""Called with a table, the rows sent so far, and the rows expected in all."""

Cursor = Any
"""psycopg2's cursor, which has no types of its own."""


def silent(table: str, rows: int, total: int) -> None:
    """Tell nobody."""


def load_once(url: str, schema: str, fill: Callable[[Cursor], dict[str, int]]) -> dict[str, int]:
    """Make `schema` from its DDL file and fill it, unless that was done before; the rows loaded by this call.

    The marker is a row of `<schema>.demo_state`, so rows which a cleanup has deleted since are not loaded again.
    Everything is one transaction: a crash leaves nothing behind. Two callers at once: the second waits, then does
    nothing.

    Raises:
        SourceError: the database is unreachable or refuses.
        TargetError: the schema holds tables of these names which this program did not make.
    """
    with transaction(url) as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"export_pipelines demo {schema}"])
        if _is_loaded(cursor, schema):
            return {}
        _create(cursor, schema)
        rows = fill(cursor)
        _mark(cursor, schema, rows)
    return rows


@contextmanager
def transaction(url: str) -> Iterator[Cursor]:
    """A cursor whose work is committed at the end of the block and rolled back on an error.

    Raises:
        SourceError: with what the server said; transient when the connection was the trouble.
    """
    with closing(_connect(url)) as connection:
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            transient = isinstance(error, psycopg2.OperationalError)
            raise SourceError(f"demo data: {str(error).strip()}", transient=transient) from error


def copy_rows(
    cursor: Cursor,
    target: str,
    columns: list[str],
    chunks: Iterator[bytes],
    *,
    options: str = "",
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """COPY `chunks` into the table `target` (`name` or `schema.name`); the rows that the server took.

    `progress` is told the lines sent so far, after each chunk.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN {}").format(
        sql.Identifier(*target.split(".")),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(options),
    )
    cursor.copy_expert(statement, _ChunkReader(chunks, progress))
    return int(cursor.rowcount)


def statements(name: str) -> str:
    """Text of the file `name` beside this module."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


class _ChunkReader:
    """The part of a file that COPY needs, over an iterator; psycopg2 takes chunks of any length."""

    def __init__(self, chunks: Iterator[bytes], progress: Callable[[int], None]) -> None:
        self._chunks = chunks
        self._progress = progress
        self._lines = 0

    def read(self, _size: int = -1) -> bytes:
        chunk = next(self._chunks, b"")
        if chunk:
            self._lines += chunk.count(b"\n")
            self._progress(self._lines)
        return chunk


def _connect(url: str) -> Any:
    try:
        connection = psycopg2.connect(url, connect_timeout=10, application_name="export-pipelines demo")
    except psycopg2.ProgrammingError:
        # libpq quotes what it could not parse, and with it the password.
        raise SourceError(
            "the database URL is not one that PostgreSQL understands",
            hint="it reads postgresql://user:password@host:5432/database",
        ) from None
    except psycopg2.OperationalError as error:
        raise SourceError(f"demo data: {str(error).strip()}", transient=True) from error
    connection.set_client_encoding("UTF8")
    return connection


def _is_loaded(cursor: Cursor, schema: str) -> bool:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{schema}.demo_state"])
    return bool(cursor.fetchone()[0])


def _create(cursor: Cursor, schema: str) -> None:
    try:
        cursor.execute(statements(f"{schema}.sql"))
    except (psycopg2.errors.DuplicateTable, psycopg2.errors.DuplicateObject) as error:
        raise TargetError(
            f"schema {schema!r} holds objects that the demo did not make: {error.diag.message_primary}",
            hint=f"load the demo into another database, or drop the schema {schema!r} if nobody needs it",
        ) from error


def _mark(cursor: Cursor, schema: str, rows: dict[str, int]) -> None:
    state = sql.Identifier(schema, "demo_state")
    cursor.execute(sql.SQL("CREATE TABLE {} (loaded_at timestamptz NOT NULL, rows jsonb NOT NULL)").format(state))
    cursor.execute(sql.SQL("INSERT INTO {} VALUES (now(), %s)").format(state), [json.dumps(rows)])
