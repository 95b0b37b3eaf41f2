"""MySQL and MariaDB as a source: connections, sessions with pinned settings, interruptible statements.

As with PostgreSQL each statement runs in a thread of its own while the caller's thread waits: a signal (Dagster's
termination, Ctrl-C) then reaches the caller at once, which ends the statement on the server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from export_pipelines.errors import SourceError
from export_pipelines.sources.mysql_errors import no_text, refuse_altered, source_error
from export_pipelines.sources.postgres import redact

if TYPE_CHECKING:
    from export_pipelines.sources.mysql_types import ResultColumn
    from export_pipelines.sources.mysql_wire import Columns

T = TypeVar("T")
Values = Sequence[object] | Mapping[str, object] | None

SCHEMES = ("mysql", "mariadb", "mysql+pymysql")
_STOP_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_WATCH_SECONDS = 0.2

PINNED = {
    "sql_mode": "'ONLY_FULL_GROUP_BY,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO'",
    # Without the first, an aggregate that the server alone knows would pass one row of many for all of them.
    # A limit that an administrator has set would cut results off in silence.
    "sql_select_limit": "18446744073709551615",
    "sql_safe_updates": "0",
    "group_concat_max_len": "1073741824",
    "div_precision_increment": "4",
    "lc_time_names": "'en_US'",
    "foreign_key_checks": "1",
    "unique_checks": "1",
}
"""Settings on which results and the text of values depends; recorded in each manifest, with time_zone."""

_OURS = {
    # A store that is slow for a while is no reason to lose the snapshot; an idle transaction neither.
    "net_read_timeout": "600",
    "net_write_timeout": "3600",
    "wait_timeout": "28800",
    # As many as there can be: what was cut off is told by warnings alone.
    "max_error_count": "65535",
}
# Lists of keys stay lists: rewritten as a subquery, or given up by the optimizer, they would be looked for row by row.
_MARIADB = {
    "in_predicate_conversion_threshold": "0",
    # Beyond it, a recursion would end in silence.
    "max_recursive_iterations": "4294967295",
    # Reads would see rows of another time than a DELETE does.
    "system_versioning_asof": "DEFAULT",
}
_MYSQL = {"range_optimizer_max_mem_size": "0"}


@dataclass(frozen=True)
class MysqlSource:
    """A MySQL or MariaDB database to read from, clean up in, or restore into. Connects only when used.

    `url` is `mysql://user:password@host:port/database`; `parameters` are more of PyMySQL's (ssl_ca, ssl_cert, ssl_key,
    ssl_verify_cert, connect_timeout …). A query string in the URL gives them, too.
    """

    url: str = field(repr=False)
    parameters: dict[str, Any] = field(default_factory=dict)
    engine: ClassVar[Literal["mysql"]] = "mysql"

    @property
    def name(self) -> str:
        """The connection without its password, for people."""
        return redact(self.url)

    def connect(self) -> Any:
        """A new PyMySQL connection. Raises SourceError."""
        import pymysql

        options = {**self._options(), **self.parameters}
        try:
            return pymysql.connect(**{"connect_timeout": 10, "charset": "utf8mb4", "autocommit": True, **options})
        except pymysql.Error as error:
            raise source_error(error, f"cannot connect to {self.name}") from None
        except (TypeError, ValueError, OSError) as error:
            raise SourceError(
                f"cannot connect to {self.name}: {error}", hint="check the options of the connection in resources/"
            ) from None

    def _options(self) -> dict[str, Any]:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in SCHEMES or "@" in (parts.hostname or ""):
            # What was given is not repeated: it may have the password.
            raise SourceError(
                "the URL of a connection is not valid",
                hint="mysql://user:password@host:port/database; write @ : / % of a password as %40 %3A %2F %25",
            )
        found: dict[str, Any] = {
            "host": parts.hostname or "127.0.0.1",
            "port": port or 3306,
            "user": unquote(parts.username or "") or None,
            "password": unquote(parts.password or ""),
            "database": unquote(parts.path.lstrip("/")) or None,
        }
        return {**found, **dict(parse_qsl(parts.query))}

    @contextmanager
    def session(
        self,
        *,
        read_only: bool = True,
        timezone: str = "UTC",
        statement_timeout: str = "0",
        lock_timeout: str = "0",
        watch: Callable[[], None] | None = None,
    ) -> Iterator[MysqlSession]:
        """A connection for one transaction after another, each REPEATABLE READ with all text settings pinned.

        Leaving it closes the connection, which rolls back what was not committed. Time-outs are written as
        PostgreSQL's (`10min`, `30s`, milliseconds without a unit); `0` is none. `watch` is called every now and then in
        the caller's thread while a statement runs; what it raises ends the statement.
        """
        session = MysqlSession(self, self.connect(), read_only, watch)
        try:
            session.pin(timezone, _seconds(statement_timeout), _seconds(lock_timeout))
            yield session
        finally:
            session.close()


class MysqlSession:
    """One connection. Not to be shared between threads."""

    def __init__(
        self, source: MysqlSource, connection: Any, read_only: bool, watch: Callable[[], None] | None = None
    ) -> None:
        self._watch = watch
        self._source = source
        self._connection = connection
        self._read_only = read_only
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="mysql")
        self.version: str = connection.get_server_info()
        self.mariadb = "mariadb" in self.version.lower()
        self.settings: dict[str, str] = {}

    def pin(self, timezone: str, statement_seconds: float, lock_seconds: float) -> None:
        """Make the text of values, and all limits, those of ours."""
        zone = "+00:00" if timezone == "UTC" else timezone
        limit = (
            {"max_statement_time": str(statement_seconds)}
            if self.mariadb
            else {"max_execution_time": str(int(statement_seconds * 1000))}
        )
        waits = str(max(1, round(lock_seconds))) if lock_seconds else "31536000"  # a year
        ours = {
            **PINNED,
            **_OURS,
            **limit,
            **(_MARIADB if self.mariadb else _MYSQL),
            "innodb_lock_wait_timeout": waits,
            "lock_wait_timeout": waits,
        }
        self.execute("SET NAMES utf8mb4 COLLATE utf8mb4_general_ci")
        self.execute("SET SESSION " + ", ".join(f"{name} = {value}" for name, value in ours.items()))
        try:
            self.execute("SET SESSION time_zone = %s", (zone,))
        except SourceError as error:
            raise SourceError(
                f"the server does not know the time zone {timezone!r}",
                hint="load its time zone tables (mysql_tzinfo_to_sql), or set `session_timezone: UTC`",
                code=error.code,
            ) from error
        self.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        # `TimeZone` is the name by which those that read files of any engine know it.
        self.settings = {name: value.strip("'") for name, value in PINNED.items()} | {
            "time_zone": zone,
            "TimeZone": timezone.translate(_TURNED) if zone[0] in "+-" and zone == timezone else timezone,
            "character_set": "utf8mb4",
        }

    def begin(self) -> None:
        """Start a transaction. One that only reads has its snapshot from here on; one that writes reads nothing of
        older times: its first statements are locking reads."""
        self.execute(
            "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY" if self._read_only else "START TRANSACTION"
        )

    def commit(self) -> None:
        """Commit. A lost connection leaves the outcome unknown."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """Give up the transaction."""
        self.execute("ROLLBACK")

    def execute(self, sql: str, values: Values = None) -> list[tuple[Any, ...]]:
        """Run one statement; return its rows, all in memory."""

        def run() -> list[tuple[Any, ...]]:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, values)
                return list(cursor.fetchall()) if cursor.description else []

        return self._interruptible(run, "query failed")

    def table(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run one statement; the names of its columns, and its rows, all in memory."""

        def run() -> tuple[list[str], list[tuple[Any, ...]]]:
            with self._connection.cursor() as cursor:
                cursor.execute(sql)
                return [column[0] for column in cursor.description], list(cursor.fetchall())

        return self._interruptible(run, "query failed")

    def change(self, sql: str, values: Values = None) -> int:
        """Run one INSERT, UPDATE or DELETE; the number of rows that it changed."""

        def run() -> int:
            with self._connection.cursor() as cursor:
                return int(cursor.execute(sql, values))

        return self._interruptible(run, "query failed")

    def one(self, sql: str, values: Values = None) -> tuple[Any, ...]:
        """The one row of a query."""
        return self.execute(sql, values)[0]

    def bound(self, sql: str, values: Values) -> str:
        """A statement with its values, as the driver writes them."""
        with self._connection.cursor() as cursor:
            return str(cursor.mogrify(sql, values))

    def describe(self, query: str) -> list[ResultColumn]:
        """The columns of a query, without running it."""
        from export_pipelines.sources import mysql_wire

        return self._interruptible(lambda: mysql_wire.describe(self._connection, query), "query failed")

    def stream(self, query: str, take: Callable[[Columns], object], *, quote: str = '"', raw: bool = False) -> None:
        """Run a query whose columns are texts made of fields (see mysql_types), never NULL; `take` gets its rows, some
        thousands a call, column by column, in a thread of its own. `quote` is that of the last column, all others have
        the usual one. With `raw` they come as the server gives them.

        Raises:
            SourceError: also when a value is NULL, since the server then could not make it (`max_allowed_packet`), or
                is no text in UTF-8; and, behind the last row, when the server tells that a value is not what it was.
        """
        from export_pipelines.sources import mysql_wire
        from export_pipelines.sources.mysql_types import quoted

        def run() -> None:
            for found in mysql_wire.rows(self._connection, query):
                if raw:
                    take(found)
                    continue
                heads = [quoted(texts, '"') for texts in found[:-1]]
                take([*heads, quoted(found[-1], quote)])

        try:
            self._interruptible(run, "export failed")
        except mysql_wire.NullInRow as error:
            self._give_up()
            raise SourceError(
                "a row is larger than the server's max_allowed_packet, so it gave NULL for it",
                hint="raise it above the largest row as text, in which binary columns count twice",
            ) from error
        except UnicodeDecodeError as error:
            self._give_up()
            raise no_text() from error
        refuse_altered(self.execute("SHOW WARNINGS"))

    def _give_up(self) -> None:
        """Close the connection: what is left of a result is of no use, nor is what would come behind it."""
        with suppress(Exception):
            self._connection._force_close()

    def close(self) -> None:
        """Close the connection; the server ends the transaction."""
        with suppress(Exception):
            # `close` alone would say good-bye and wait where a result is still on its way.
            self._connection._force_close()
        self._worker.shutdown(wait=False)

    def _interruptible(self, run: Callable[[], T], doing: str) -> T:
        import pymysql

        future = self._worker.submit(run)
        try:
            # A signal that comes just before the wait begins would not end it: look again every now and then.
            while not wait([future], _WATCH_SECONDS if self._watch else _LOOK_SECONDS).done:
                if self._watch:
                    self._watch()
            return future.result()
        except pymysql.Error as error:
            raise source_error(error, doing) from error
        except OSError as error:
            # Our own reader meets the socket's errors as they are.
            raise source_error(pymysql.OperationalError(2013, f"connection lost ({error})"), doing) from error
        except BaseException:
            # Either `run` failed by itself, or a signal came: then the statement must end on the server too.
            self._stop(future)
            raise

    def _stop(self, future: Future[T]) -> None:
        """End a statement that still runs. A server at work does not look whether its client is gone: it is told, by
        another connection."""
        if future.done():
            return
        with suppress(Exception), self._source.connect() as other, other.cursor() as cursor:
            cursor.execute(f"KILL {int(self._connection.thread_id())}")
        wait([future], _STOP_SECONDS)
        if not future.done():
            with suppress(Exception):
                self._connection._sock.shutdown(socket.SHUT_RDWR)
            wait([future], _STOP_SECONDS)


# PostgreSQL counts an offset that is not a zone's name to the west.
_TURNED = str.maketrans("+-", "-+")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(text: str) -> float:
    """A time-out as PostgreSQL writes it, in seconds. Raises SourceError."""
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text.strip()[len(digits) :].strip() or "ms"
    try:
        return float(digits) * _UNITS[unit]
    except (ValueError, KeyError):
        raise SourceError(
            f"{text!r} is no time-out", hint="write `30s`, `10min`, `500ms` or `1h`; `0` is none"
        ) from None
