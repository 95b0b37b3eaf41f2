"""The kinds of faults at a MariaDB; see `tests.fault.kinds`."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pymysql

from tests.fault.acting import STEPS
from tests.fault.attempts import Attempt, Halt, Outcome
from tests.fault.mysql.ledger import DISK_FULL
from tests.fault.mysql.scenario import MysqlScenario
from tests.fault.mysql.world import end_mysql_sessions, mysql_line, mysql_rival
from tests.fault.neutral import (
    Kind,
    all_at_once,
    archive_lied,
    between_or_during,
    call_of_store,
    clock,
    double,
    export_lied,
    file_limit,
    killed,
    tampered,
    terminated,
)
from tests.fault.world import Line, database_line, end_sessions
from tests.support.mariadb import mysql_connection, run_mysql

_CONFLICTS = (pymysql.err.OperationalError, pymysql.err.IntegrityError)
_COMMIT = "MysqlSession.commit"
_BLOCKED = """
SELECT COUNT(*) FROM information_schema.innodb_lock_waits w
JOIN information_schema.innodb_trx waiting ON waiting.trx_id = w.requesting_trx_id
JOIN information_schema.innodb_trx holding ON holding.trx_id = w.blocking_trx_id
JOIN information_schema.processlist p ON p.id = waiting.trx_mysql_thread_id
WHERE p.user = 'program' AND holding.trx_mysql_thread_id = %s
"""

# The commit


def _at_a_commit(s: MysqlScenario, day: str, deed: Callable[[Attempt], object], **changes: Any) -> Outcome | None:
    """A cleanup, and a deed just before or after one of its first commits. None if it did not come to it."""
    halt = Halt(s.rng.choice(("before", "after")), s.rng.choice((1, 1, 2, 3)), _COMMIT)
    attempt = s.attempt("cleanup", day, halt=halt, **changes)
    struck = attempt.halted() and bool(deed(attempt))
    attempt.go_on()
    outcome = s.ended("cleanup", attempt)
    return outcome if struck else None


def _killed_at_a_commit(s: MysqlScenario, step: str, day: str) -> bool:
    outcome = _at_a_commit(s, day, lambda attempt: attempt.signal(signal.SIGKILL))
    return outcome is not None and outcome.ended == "died"


def _crashed_at_a_commit(s: MysqlScenario, step: str, day: str) -> bool:
    return _at_a_commit(s, day, lambda _: _crash(s)) is not None


def _commit_answer_lost(s: MysqlScenario, step: str, day: str) -> bool:
    """The server commits, and nobody hears of it."""
    with mysql_line(s.world.source) as line:
        halt = Halt("before", s.rng.choice((1, 1, 2, 3)), _COMMIT)
        attempt = s.attempt("cleanup", day, halt=halt, database=line.url)
        struck = attempt.halted() and line.lose_the_next_answer()
        attempt.go_on()
        return s.ended("cleanup", attempt).ended == "refused" and struck


# The server and the lines to it


def _sessions_ended(s: MysqlScenario, step: str, day: str) -> bool:
    return s.at_a_moment(step, day, lambda _: end_mysql_sessions(s.world.admin)) is not None


def _queries_ended(s: MysqlScenario, step: str, day: str) -> bool:
    return s.at_a_moment(step, day, lambda _: end_mysql_sessions(s.world.admin, what="QUERY")) is not None


def _catalog_sessions_ended(s: MysqlScenario, step: str, day: str) -> bool:
    return s.at_a_moment(step, day, lambda _: end_sessions(s.world.catalog)) is not None


def _server_crashed(s: MysqlScenario, step: str, day: str) -> bool:
    return s.at_a_moment(step, day, lambda _: _crash(s)) is not None


def _crash(s: MysqlScenario) -> bool:
    s.world.crash()
    return True


def _line_cut(s: MysqlScenario, step: str, day: str) -> bool:
    return _on_line(s, step, day, lambda line, attempt: line.cut())


def _answer_lost(s: MysqlScenario, step: str, day: str) -> bool:
    return _on_line(s, step, day, lambda line, attempt: line.lose_the_next_answer())


def _line_stalled(s: MysqlScenario, step: str, day: str) -> bool:
    def stall(line: Line, attempt: Attempt) -> bool:
        line.hold()
        attempt.go_on()
        time.sleep(s.rng.uniform(0.05, 0.3))
        cut = s.rng.random() < 0.5 and line.cut()
        line.release()
        return cut or attempt.running()

    return _on_line(s, step, day, stall)


def _on_line(s: MysqlScenario, step: str, day: str, deed: Callable[[Line, Attempt], bool]) -> bool:
    """Something befalls the connections to the source, or those to the catalog."""
    to_catalog = s.rng.random() < 0.3
    with database_line(s.world.catalog) if to_catalog else mysql_line(s.world.source) as line:
        changes = {"catalog_line" if to_catalog else "database": line.url}
        return s.at_a_moment(step, day, lambda attempt: deed(line, attempt), **changes) is not None


# Other sessions


def _archived_versions(s: MysqlScenario, day: str) -> list[int]:
    """Versions of some rows that the last file of a day has, next to each other and of one batch."""
    versions = [int(record["version"]) for record in s.newest_records(day)]
    size = s.table.table.spec.cleanup.batch_rows
    first = size * s.rng.randrange(1 + max(0, len(versions) - 1) // size)
    return versions[first : first + size]


def _deadlocked(s: MysqlScenario, step: str, day: str) -> bool:
    """Another session has a late row of a batch, and wants an early one, which the cleanup has."""
    with mysql_rival(s.world.writer) as cursor:
        marks = ", ".join(map(str, _archived_versions(s, day))) or "0"
        cursor.execute(f"SELECT version FROM t WHERE version IN ({marks}) ORDER BY id")
        versions = [row[0] for row in cursor.fetchall()]
        cursor.connection.rollback()
        if len(versions) < 2:
            return False
        lock = "SELECT id FROM t WHERE version = %s FOR UPDATE"
        with suppress(*_CONFLICTS):
            cursor.execute(lock, (versions[-1],))
        attempt = s.attempt(step, day)
        if not _waits(s, attempt, cursor):
            cursor.connection.rollback()
            s.ended(step, attempt)
            return False
        before = _deadlocks(s)
        with suppress(*_CONFLICTS):
            cursor.execute(lock, (versions[0],))
        cursor.connection.rollback()
        s.ended(step, attempt)
        return _deadlocks(s) > before


def _deadlocks(s: MysqlScenario) -> int:
    return int(run_mysql(s.world.admin, "SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'")[0][1])


def _changed_meanwhile(s: MysqlScenario, step: str, day: str) -> bool:
    """Rows that the cleanup waits for are other rows when it gets them."""
    with mysql_rival(s.world.writer) as cursor:
        if not _changed(cursor, _archived_versions(s, day)):
            return False
        attempt = s.attempt(step, day)
        waits = _waits(s, attempt, cursor)
        cursor.connection.commit()
        s.ended(step, attempt)
        return waits


def _locked_out(s: MysqlScenario, step: str, day: str) -> bool:
    """Rows are locked for longer than the cleanup waits at a time; sometimes for longer than it waits at all."""
    with mysql_rival(s.world.writer) as cursor:
        if not _changed(cursor, _archived_versions(s, day)):
            return False
        attempt = s.attempt(step, day, spec={**s.table.spec, "lock_timeout": "1s"})
        waits = _waits(s, attempt, cursor)
        if waits and s.rng.random() < 0.7:
            time.sleep(s.rng.uniform(1.2, 2.5))
            cursor.connection.commit()
        s.ended(step, attempt)
        cursor.connection.rollback()
        return waits


def _changed(cursor: Any, versions: list[int]) -> bool:
    """Whether some of these rows were changed, in a transaction that goes on."""
    marks = ", ".join(map(str, versions)) or "0"
    with suppress(*_CONFLICTS):
        return bool(cursor.execute(f"UPDATE t SET note = 'changed' WHERE version IN ({marks})"))
    return False


def _waits(s: MysqlScenario, attempt: Attempt, cursor: Any) -> bool:
    """Whether the program comes to wait for a row that this session has."""
    with closing(mysql_connection(s.world.admin)) as connection, connection.cursor() as asking:
        while attempt.running():
            asking.execute(_BLOCKED, (cursor.connection.thread_id(),))
            if asking.fetchone()[0]:
                return True
            # The server shows the same again to whom asks within 0.1 s.
            time.sleep(0.15)
    return False


def _table_locked(s: MysqlScenario, step: str, day: str) -> bool:
    return _behind_a_lock(s, step, day, "1205", lock_timeout="1s")


def _out_of_time(s: MysqlScenario, step: str, day: str) -> bool:
    return _behind_a_lock(s, step, day, "1969", lock_timeout="0", statement_timeout="60ms")


def _behind_a_lock(s: MysqlScenario, step: str, day: str, code: str, **settings: str) -> bool:
    with mysql_rival(s.world.writer) as cursor:
        try:
            cursor.execute("LOCK TABLES t WRITE")
        except pymysql.err.OperationalError:
            return False
        return s.whole(step, day, spec={**s.table.spec, **settings}).code == code


def _disk_full(s: MysqlScenario, step: str, day: str) -> bool:
    """The server says what it says when its disk is full, from some statement on."""
    with mysql_rival(s.world.writer) as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", (DISK_FULL,))
        return "is full" in s.whole(step, day).text


# The table


def _rebuilt(s: MysqlScenario, step: str, day: str) -> bool:
    """Every row is written anew; none is another."""
    return between_or_during(s, step, day, lambda: _statement(s, "ALTER TABLE t FORCE"))


def _column_changed(s: MysqlScenario, step: str, day: str) -> bool:
    """A column is added, dropped, renamed or retyped."""
    return between_or_during(s, step, day, lambda: _statement(s, _alteration(s)))


def _rows_changed(s: MysqlScenario, step: str, day: str) -> bool:
    """A user changes, replaces and deletes many rows of the partition at once."""
    half = f"at >= '{day}' AND at < '{day}' + INTERVAL 1 DAY AND version % 2 = {s.rng.randrange(2)}"
    change = s.rng.choice(
        (
            "UPDATE t SET amount = amount + 1 WHERE",
            "UPDATE t SET note = note WHERE",
            "DELETE FROM t WHERE",
            "REPLACE INTO t (id, at, note, amount) SELECT id, at, note, amount FROM t WHERE",
        )
    )
    return between_or_during(s, step, day, lambda: _statement(s, f"{change} {half}"))


def _alteration(s: MysqlScenario) -> str:
    query = (
        "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 't' "
        "AND column_name LIKE 'extra%'"
    )
    extras = [row[0] for row in run_mysql(s.world.admin, query)]
    new = f"extra_{s.rng.randrange(1 << 20)}"
    added = f"ALTER TABLE t ADD COLUMN {new} VARCHAR(20) DEFAULT 'new'"
    if not extras:
        return added
    one = s.rng.choice(extras)
    choices = [
        f"ALTER TABLE t DROP COLUMN {one}",
        f"ALTER TABLE t CHANGE COLUMN {one} {new} TEXT",
        f"ALTER TABLE t MODIFY COLUMN {one} VARCHAR(80) CHARACTER SET latin1",
    ]
    return s.rng.choice([*choices, added] if len(extras) < 3 else choices)


def _statement(s: MysqlScenario, statement: str) -> bool:
    """Whether the source would do it, in a short time."""
    with mysql_rival(s.world.writer) as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
        with suppress(*_CONFLICTS):
            cursor.execute(statement)
            cursor.connection.commit()
            return True
    return False


def _clock(s: MysqlScenario, step: str, day: str) -> bool:
    s.clock_was_wrong = True
    return clock(s, step, day)


_WORK = ("export", "cleanup")
_CLEANUP = ("cleanup",)

KINDS = [
    Kind("process killed (SIGKILL)", killed),
    Kind("process killed at a commit", _killed_at_a_commit, _CLEANUP),
    Kind("process terminated (SIGTERM)", terminated),
    Kind("sessions of the source ended (KILL)", _sessions_ended, _WORK),
    Kind("queries of the source ended (KILL QUERY)", _queries_ended, _WORK),
    Kind("sessions of the catalog ended", _catalog_sessions_ended),
    Kind("server killed and restarted", _server_crashed, _WORK),
    Kind("server killed at a commit", _crashed_at_a_commit, _CLEANUP),
    Kind("connection cut", _line_cut),
    Kind("answer lost", _answer_lost),
    Kind("answer lost at COMMIT", _commit_answer_lost, _CLEANUP),
    Kind("connection stalled", _line_stalled),
    Kind("deadlock", _deadlocked, _CLEANUP),
    Kind("rows changed while it waits for them", _changed_meanwhile, _CLEANUP),
    Kind("innodb_lock_wait_timeout", _locked_out, _CLEANUP),
    Kind("table locked by another", _table_locked, _WORK),
    Kind("max_statement_time", _out_of_time, _WORK),
    Kind("disk of the source full", _disk_full, _CLEANUP),
    Kind("table rebuilt (ALTER TABLE FORCE)", _rebuilt),
    Kind("column added, dropped, renamed or retyped", _column_changed),
    Kind("rows changed by a user", _rows_changed),
    Kind("disk full (RLIMIT_FSIZE)", file_limit),
    Kind("disk full (ENOSPC)", call_of_store(errno.ENOSPC, ("fsync", "open", "mkdir", "link"))),
    Kind("folder read-only (EROFS)", call_of_store(errno.EROFS, ("open", "link", "mkdir"))),
    Kind("fsync fails (EIO)", call_of_store(errno.EIO, ("fsync",))),
    Kind("exports keep other bytes", export_lied, ("export",)),
    Kind("archive keeps other bytes", archive_lied, ("archive",)),
    *(
        Kind(what, tampered(what), _CLEANUP)
        for what in ("object altered", "object truncated", "object gone", "manifest altered", "manifest gone")
    ),
    Kind("clock wrong", _clock, STEPS),
    Kind("the same work twice", double),
    Kind("four at once", all_at_once),
]
