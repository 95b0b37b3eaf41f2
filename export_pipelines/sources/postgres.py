"""PostgreSQL as a source: connections that survive proxies, sessions with pinned settings, interruptible statements.

psycopg2 is used in blocking mode, since COPY is not possible with its wait callback. Each statement runs in a thread of
its own while the caller's thread waits: a signal (Dagster's termination, Ctrl-C) then reaches the caller at once, which
ends the statement on the server.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import psycopg2
import psycopg2.extensions

from export_pipelines.errors import SourceError

T = TypeVar("T")
Values = Sequence[object] | Mapping[str, object] | None

DEFAULTS = {
    "connect_timeout": "10",
    "keepalives": "1",
    # Below the usual idle limits of proxies and load balancers (60 s to 350 s).
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    # A peer that is gone is noticed in the middle of sending, too.
    "tcp_user_timeout": "60000",
    "application_name": "export_pipelines",
    "client_encoding": "UTF8",
}

PINNED = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "row_security": "on",
}
"""Settings on which the text of values depends; recorded in each manifest."""

_STOP_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_WATCH_SECONDS = 0.2
_CHECKS_CLIENTS = 140000
_CHECK_INTERVAL = "client_connection_check_interval"
_KEEP = 2
# Well below the idle limits of proxies, so that a kept connection is hardly ever one that was cut.
_KEEP_SECONDS = 20

_TRANSIENT = ("08", "40", "53", "57P", "55P03", "57014", "58")
_HINTS = {
    "28P01": "check the password of the connection",
    "28000": "check the user of the connection, and the server's pg_hba.conf",
    "3D000": "check the database name of the connection",
    "42501": "grant the role what it lacks: SELECT to export, DELETE and SELECT to clean up, INSERT into a report",
    "42P01": "check the name of the table and its schema (search_path of the role)",
    "42703": "check the column names against the table",
    "57014": "the statement was cancelled or ran into statement_timeout; see `statement_timeout` in defs.yaml",
    "55P03": "another session holds a lock; see `lock_timeout` in defs.yaml",
    "53100": "the disk of the database server is full",
    "25006": "the statement writes; select.sql only reads",
}


def redact(text: str) -> str:
    """The text without the passwords of connection URLs and key=value strings."""
    # Up to the last @: one within the password is a mistake, but it must not give the rest away.
    text = re.sub(r"(\w+://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password\s*=\s*)('[^']*'|\S+)", r"\1***", text, flags=re.IGNORECASE)


def source_error(error: psycopg2.Error, doing: str) -> SourceError:
    """Our error for the driver's: one sentence, a hint, and whether it may go away by itself."""
    code = error.pgcode or ""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = redact(lines[0].removeprefix("ERROR:  "))
    detail = next((redact(line.strip()) for line in lines if line.startswith(("DETAIL:", "HINT:"))), "")
    hint = _HINTS.get(code) or _HINTS.get(code[:2]) or detail
    lost = not code and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    authentication = "authentication failed" in message or "does not exist" in message
    if lost and not hint:
        hint = (
            "check the user, password and database of the connection"
            if authentication
            else ("is the server running and reachable? `export-pipelines doctor` tries every connection")
        )
    transient = (lost and not authentication) or (code.startswith(_TRANSIENT) and code != "53100")
    return SourceError(f"{doing}: {message}", hint=hint, transient=transient, code=code)


@dataclass(frozen=True)
class PostgresSource:
    """A PostgreSQL database to read from, clean up in, or restore into. Connects only when used.

    `url` is a libpq URL or key=value string; `parameters` are more libpq parameters (sslmode, sslrootcert,
    application_name …), which override those of DEFAULTS. pgbouncer's session and transaction pool modes work:
    every setting is local to one transaction; its statement mode cannot.

    A connection whose session ended well is kept for the next one for some seconds: of a year of small partitions, half
    of the time went into connecting and into the server's cold caches. Each session begins with DISCARD ALL, so
    nothing but the server's caches passes from one to another.
    """

    url: str = field(repr=False)
    parameters: dict[str, str] = field(default_factory=dict)
    engine: ClassVar[Literal["postgresql"]] = "postgresql"
    _idle: list[_Idle] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The connection without its password, for people."""
        try:
            psycopg2.extensions.parse_dsn(self.url)
        except psycopg2.Error:
            return "a connection whose URL is not valid"
        return redact(self.url)

    def connect(self) -> Any:
        """A new psycopg2 connection. Raises SourceError."""
        try:
            given = psycopg2.extensions.parse_dsn(self.url) if self.url else {}
        except psycopg2.Error:
            # What libpq says of it may quote the password.
            raise SourceError(
                "the URL of a connection is not valid",
                hint="postgresql://user:password@host:port/database; write @ : / % of a password as %40 %3A %2F %25",
            ) from None
        if "@" in given.get("host", ""):
            raise SourceError("the URL of a connection is not valid", hint="write the @ in its password as %40")
        try:
            return psycopg2.connect(
                self.url, **{**{k: v for k, v in DEFAULTS.items() if k not in given}, **self.parameters}
            )
        except psycopg2.Error as error:
            raise source_error(error, f"cannot connect to {self.name}") from None

    @contextmanager
    def session(
        self,
        *,
        read_only: bool = True,
        timezone: str = "UTC",
        statement_timeout: str = "0",
        lock_timeout: str = "0",
        watch: Callable[[], None] | None = None,
    ) -> Iterator[Session]:
        """A connection for one transaction after another, each REPEATABLE READ with all text settings pinned.

        Leaving it rolls back what was not committed; by an error it also closes the connection, which ends what still
        runs. `watch` is called every now and then in the caller's thread while a statement runs; what it raises ends
        the statement.
        """
        settings = {
            **PINNED,
            "TimeZone": timezone,
            "statement_timeout": statement_timeout,
            "lock_timeout": lock_timeout,
            "idle_in_transaction_session_timeout": "0",
        }
        session = Session(self._idle_connection() or self.connect(), settings, read_only, watch)
        try:
            yield session
            connection = session.release()
        except BaseException:
            session.close()
            raise
        if len(self._idle) < _KEEP and not connection.closed:
            self._idle.append(_Idle(connection, os.getpid(), time.monotonic()))
        else:
            connection.close()

    def _idle_connection(self) -> Any:
        """A kept connection that still answers, as good as new; None if there is none."""
        while self._idle:
            idle = self._idle.pop()
            # One that was opened before a fork is the parent's; psycopg2 leaves its socket alone.
            if idle.process != os.getpid():
                continue
            with suppress(psycopg2.Error):
                if time.monotonic() - idle.since < _KEEP_SECONDS:
                    with idle.connection.cursor() as cursor:
                        cursor.execute("DISCARD ALL")
                    return idle.connection
                idle.connection.close()
        return None


@dataclass(frozen=True)
class _Idle:
    """A connection without a transaction, the process that opened it, and since when nobody uses it."""

    connection: Any
    process: int
    since: float


class Session:
    """One connection. Not to be shared between threads."""

    def __init__(
        self, connection: Any, settings: dict[str, str], read_only: bool, watch: Callable[[], None] | None = None
    ) -> None:
        self._watch = watch
        self._connection = connection
        self._connection.autocommit = True
        self._settings = settings
        if connection.server_version >= _CHECKS_CLIENTS:
            # A statement ends soon after its client is gone: interrupted, killed, or cut off by the network.
            self._settings = {**settings, _CHECK_INTERVAL: "1s"}
        self._read_only = read_only
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="postgres")
        self.server_version: int = connection.server_version

    def begin(self) -> None:
        """Start a transaction; its snapshot is taken by its first query, not here."""
        mode = "READ ONLY" if self._read_only else "READ WRITE"
        local = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in self._settings.items())
        try:
            # One round trip; all of it local to the transaction, as a transaction pooler needs.
            self.execute(f"BEGIN ISOLATION LEVEL REPEATABLE READ {mode}; {local}")
        except SourceError as error:
            # A server on Windows cannot do that.
            if _CHECK_INTERVAL not in error.message or not self._settings.pop(_CHECK_INTERVAL, None):
                raise
            self.rollback()
            self.begin()

    def commit(self) -> None:
        """Commit. A lost connection leaves the outcome unknown: ask pg_xact_status() with the transaction's id."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """Give up the transaction."""
        self.execute("ROLLBACK")

    def execute(self, sql: str, values: Values = None) -> list[tuple[Any, ...]]:
        """Run one statement (or several without results); return its rows, all in memory."""

        def run() -> list[tuple[Any, ...]]:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, values)
                return cursor.fetchall() if cursor.description else []

        return self._interruptible(run, "query failed")

    def change(self, sql: str) -> int:
        """Run one INSERT, UPDATE or DELETE; the number of rows that it changed."""

        def run() -> int:
            with self._connection.cursor() as cursor:
                cursor.execute(sql)
                return int(cursor.rowcount)

        return self._interruptible(run, "query failed")

    def one(self, sql: str, values: Values = None) -> tuple[Any, ...]:
        """The one row of a query."""
        return self.execute(sql, values)[0]

    def describe(self, query: str) -> list[tuple[str, int, int]]:
        """Name, type OID and type modifier of each column of a query, without running it."""

        def run() -> list[tuple[str, int, int]]:
            with self._connection.cursor() as cursor:
                cursor.execute(f"SELECT * FROM ({query}\n) AS described LIMIT 0")
                return [(c.name, c.type_code, _typmod(c)) for c in cursor.description]

        return self._interruptible(run, "query failed")

    def origins(self, query: str) -> list[tuple[int, int]]:
        """OID of the relation and number of the column that each column of a query comes from; 0 where it is computed.

        That is what the server says of plain references, through subqueries, views excepted.
        """

        def run() -> list[tuple[int, int]]:
            with self._connection.cursor() as cursor:
                cursor.execute(f"SELECT * FROM ({query}\n) AS described LIMIT 0")
                return [(c.table_oid or 0, c.table_column or 0) for c in cursor.description]

        return self._interruptible(run, "query failed")

    def copy_out(self, query: str, options: str, write: Callable[[bytes], object], values: Values = None) -> int:
        """`COPY (query) TO STDOUT`; `write` gets one record a call, in a thread of its own. How many there were."""

        def run() -> int:
            nonlocal query
            with self._connection.cursor() as cursor:
                if values is not None:
                    # COPY takes no parameters; the driver binds those of other statements in the same way.
                    query = cursor.mogrify(query, values).decode()
                cursor.copy_expert(f"COPY ({query}\n) TO STDOUT WITH ({options})", _Writer(write))
                return int(cursor.rowcount)

        return self._interruptible(run, "export failed")

    def copy_in(self, target: str, options: str, read: Callable[[int], bytes]) -> int:
        """`COPY target FROM STDIN`; returns the number of rows."""

        def run() -> int:
            with self._connection.cursor() as cursor:
                cursor.copy_expert(f"COPY {target} FROM STDIN WITH ({options})", _Reader(read), size=1 << 20)
                return int(cursor.rowcount)

        return self._interruptible(run, "loading failed")

    def release(self) -> Any:
        """Give up the transaction, if there is one, and hand over the connection; the session is over.

        A connection that was lost meanwhile is closed: nobody needs it any more, so it is no error.
        """
        try:
            if self._connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_IDLE:
                self.rollback()
            self._worker.shutdown(wait=False)
        except SourceError:
            self.close()
        return self._connection

    def close(self) -> None:
        """Close the connection; the server ends the transaction and what still runs."""
        with suppress(psycopg2.Error):
            self._connection.close()
        self._worker.shutdown(wait=False)

    def _interruptible(self, run: Callable[[], T], doing: str) -> T:
        future = self._worker.submit(run)
        try:
            # A signal that comes just before the wait begins would not end it: look again every now and then.
            while not wait([future], _WATCH_SECONDS if self._watch else _LOOK_SECONDS).done:
                if self._watch:
                    self._watch()
            return future.result()
        except psycopg2.Error as error:
            raise source_error(error, doing) from error
        except BaseException:
            # Either `run` failed by itself, or a signal came: then the statement must end on the server too.
            self._stop(future)
            raise

    def _stop(self, future: Future[T]) -> None:
        """End a statement that still runs, and wait until its thread has let go of the connection.

        The connection is cut, which the server notices within a second. One that would not is asked to cancel first:
        that needs another connection, and until it is made or fails the driver stops all threads of the process.
        """
        if not future.done() and _CHECK_INTERVAL not in self._settings:
            with suppress(psycopg2.Error):
                self._connection.cancel()
            wait([future], _STOP_SECONDS)
        if not future.done():
            self._cut()
            wait([future], _STOP_SECONDS)

    def _cut(self) -> None:
        with suppress(psycopg2.Error, OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


class _Writer:
    """What copy_expert takes for a file to write to."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


class _Reader:
    """What copy_expert takes for a file to read from."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


_NUMERIC = 1700


def _typmod(column: Any) -> int:
    """The type modifier of a column of variable size, rebuilt from the driver's description; -1 when not known.

    Meaningless for types of fixed size, whose values need none to be restored.
    """
    if column.type_code == _NUMERIC:
        return -1 if column.precision == 0xFFFF else int(column.precision << 16 | column.scale) + 4
    # The driver takes 4 off, which leaves -1 for bit(3), too.
    return -1 if column.internal_size == -1 else min(column.internal_size + 4, 0x7FFFFFFF)
