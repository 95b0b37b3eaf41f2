"""The kinds of faults at a PostgreSQL. Each knows how to strike a step, and whether it did.

A kind returns False where the step had ended before it could strike; the driver then tries again.
"""

from __future__ import annotations

import errno
import time
from contextlib import closing, suppress
from typing import Any

import psycopg2
from psycopg2.extensions import TransactionRollbackError

from tests.fault.acting import STEPS
from tests.fault.attempts import Attempt
from tests.fault.neutral import (
    Kind,
    Strike,
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
from tests.fault.scenario import Scenario
from tests.fault.world import database_line, end_sessions, rival
from tests.support.faulty_proxy import Fault, error_answer
from tests.support.servers import run_sql

# The database


def _sessions_ended(s: Scenario, step: str, day: str) -> bool:
    return s.at_a_moment(step, day, lambda _: end_sessions(s.world.source)) is not None


def _catalog_sessions_ended(s: Scenario, step: str, day: str) -> bool:
    return s.at_a_moment(step, day, lambda _: end_sessions(s.world.catalog)) is not None


def _server_crashed(s: Scenario, step: str, day: str) -> bool:
    def crash(_: Attempt) -> bool:
        s.world.crash()
        return True

    return s.at_a_moment(step, day, crash) is not None


def _failed_over(s: Scenario, step: str, day: str) -> bool:
    """While a cleanup is under way, so that it cannot ask the old server how a transaction ended."""

    def fail_over(_: Attempt) -> bool:
        s.in_doubt = True
        s.world.fail_over()
        return True

    return s.at_a_moment(step, day, fail_over) is not None


def _line_cut(s: Scenario, step: str, day: str) -> bool:
    return _on_line(s, step, day, "cut")


def _answer_lost(s: Scenario, step: str, day: str) -> bool:
    return _on_line(s, step, day, "answer")


def _line_stalled(s: Scenario, step: str, day: str) -> bool:
    return _on_line(s, step, day, "stall")


def _on_line(s: Scenario, step: str, day: str, what: str) -> bool:
    """Something befalls the connections to the source, or those to the catalog."""
    to_catalog = s.rng.random() < 0.4
    with database_line(s.world.catalog if to_catalog else s.world.source) as line:

        def deed(attempt: Attempt) -> bool:
            if what == "cut":
                return line.cut()
            if what == "answer":
                return line.lose_the_next_answer()
            line.hold()
            attempt.go_on()
            time.sleep(s.rng.uniform(0.05, 0.3))
            cut = s.rng.random() < 0.5 and line.cut()
            line.release()
            return cut or attempt.running()

        changes = {"catalog_line" if to_catalog else "database": line.url}
        return s.at_a_moment(step, day, deed, **changes) is not None


def _deadlocked(s: Scenario, step: str, day: str) -> bool:
    """Another session has the second row, and wants the first, which the cleanup has."""
    with rival(s.world.source) as cursor:
        cursor.execute("SET statement_timeout = '10s'")
        rows = _archived_rows(s, cursor, day)
        if len(rows) < 2:
            return False
        first, second = rows
        with suppress(TransactionRollbackError):
            cursor.execute("SELECT FROM t WHERE id = %s FOR UPDATE", (second,))
        attempt = s.attempt(step, day)
        if not _waits(s, attempt):
            cursor.connection.rollback()
            s.ended(step, attempt)
            return False
        begun = time.monotonic()
        with suppress(psycopg2.Error):
            cursor.execute("SELECT FROM t WHERE id = %s FOR UPDATE", (first,))
        waited = time.monotonic() - begun > 0.03
        cursor.connection.rollback()
        s.ended(step, attempt)
        return waited


def _conflict(s: Scenario, step: str, day: str) -> bool:
    """A row that the cleanup waits for was changed when it gets it: a serialization failure."""
    with rival(s.world.source) as cursor:
        rows = _archived_rows(s, cursor, day)
        with suppress(TransactionRollbackError):
            cursor.execute("UPDATE t SET note = 'changed' WHERE id = ANY (%s)", (rows,))
        attempt = s.attempt(step, day)
        waits = _waits(s, attempt)
        cursor.connection.commit()
        s.ended(step, attempt)
        return waits


def _archived_rows(s: Scenario, cursor: Any, day: str) -> list[Any]:
    """Two rows of a day that lie next to each other, in the state in which the last archived file has them."""
    versions = [int(record["version"]) for record in s.newest_records(day)]
    cursor.execute("SELECT id FROM t WHERE version = ANY (%s) ORDER BY tableoid, ctid LIMIT 2", (versions,))
    return [row[0] for row in cursor.fetchall()]


def _waits(s: Scenario, attempt: Attempt) -> bool:
    """Whether the program comes to wait for a row that another session of ours has, and not for a writer's."""
    query = (
        "SELECT b.application_name FROM pg_stat_activity AS a, pg_stat_activity AS b WHERE a.wait_event_type = 'Lock' "
        "AND a.application_name = 'export_pipelines' AND a.datname = current_database() "
        "AND b.pid = ANY (pg_blocking_pids(a.pid))"
    )
    behind_writers = 0
    with closing(psycopg2.connect(s.world.source, application_name="suite")) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        while attempt.running() and behind_writers < 20:
            cursor.execute(query)
            blocking = {row[0] for row in cursor.fetchall()}
            if "suite" in blocking:
                return True
            behind_writers += bool(blocking)
            time.sleep(0.005)
    return False


def _locked_out(s: Scenario, step: str, day: str) -> bool:
    return _behind_a_lock(s, step, day, "55P03", lock_timeout="60ms")


def _out_of_time(s: Scenario, step: str, day: str) -> bool:
    return _behind_a_lock(s, step, day, "57014", lock_timeout="0", statement_timeout="60ms")


def _behind_a_lock(s: Scenario, step: str, day: str, code: str, **settings: str) -> bool:
    with rival(s.world.source) as cursor:
        try:
            cursor.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        except TransactionRollbackError:  # writers hold the partitions one by one, too
            return False
        return s.whole(step, day, spec={**s.table.spec, **settings}).code == code


def _disk_of_the_source_full(s: Scenario, step: str, day: str) -> bool:
    return _disk_full(s, step, day, s.world.source)


def _disk_of_the_catalog_full(s: Scenario, step: str, day: str) -> bool:
    return _disk_full(s, step, day, s.world.catalog)


def _disk_full(s: Scenario, step: str, day: str, url: str) -> bool:
    """The server says what it says when its disk is full, from some statement on."""
    run_sql(url, "INSERT INTO fault.disk_full VALUES (%s)", (s.rng.choice((0.3, 1.0)),))
    try:
        return "No space left on device" in s.whole(step, day).text
    finally:
        run_sql(url, "DELETE FROM fault.disk_full")


def _rewritten(s: Scenario, step: str, day: str) -> bool:
    """VACUUM FULL, after which each row has another identity."""
    return between_or_during(s, step, day, lambda: _statement(s, "VACUUM FULL t"))


def _column_changed(s: Scenario, step: str, day: str) -> bool:
    """A column is added, dropped, renamed or retyped."""
    return between_or_during(s, step, day, lambda: _statement(s, _alteration(s)))


def _rows_changed(s: Scenario, step: str, day: str) -> bool:
    """A user changes and deletes many rows of the partition at once."""
    half = f"at >= '{day}' AND at < '{day}'::timestamptz + interval '1 day' AND id % 2 = {s.rng.randrange(2)}"
    change = s.rng.choice(("UPDATE t SET amount = amount + 1", "UPDATE t SET note = note", "DELETE FROM t"))
    return between_or_during(s, step, day, lambda: _statement(s, f"{change} WHERE {half}"))


def _alteration(s: Scenario) -> str:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attname LIKE 'extra%' AND attnum > 0"
    extras = [row[0] for row in run_sql(s.world.source, query + " AND NOT attisdropped")]
    new = f"extra_{s.rng.randrange(1 << 20)}"
    if not extras:
        return f"ALTER TABLE t ADD COLUMN {new} text DEFAULT 'new'"
    one = s.rng.choice(extras)
    choices = [
        f"ALTER TABLE t DROP COLUMN {one}",
        f"ALTER TABLE t RENAME COLUMN {one} TO {new}",
        f"ALTER TABLE t ALTER COLUMN {one} TYPE int USING length({one}::text)",
        f"ALTER TABLE t ALTER COLUMN {one} TYPE varchar(80) USING {one}::text",
    ]
    return s.rng.choice([*choices, f"ALTER TABLE t ADD COLUMN {new} text DEFAULT 'new'"][: 5 if len(extras) < 3 else 4])


def _statement(s: Scenario, statement: str) -> bool:
    """Whether the source would do it, in a short time."""
    with rival(s.world.source) as cursor:
        cursor.connection.autocommit = True
        cursor.execute("SET lock_timeout = '150ms'")
        for _ in range(3):
            with suppress(psycopg2.errors.LockNotAvailable, TransactionRollbackError):
                cursor.execute(statement)
                return True
    return False


# S3


def _s3(*faults: Fault, every: bool = False) -> Strike:
    """One of the faults befalls a request of the step: the n-th, or all from there on."""

    def strike(s: Scenario, step: str, day: str) -> bool:
        fault, nth, hits = s.rng.choice(faults), s.rng.randint(1, 12), [0, 0]

        def choose(line: str) -> Fault | None:
            hits[0] += 1
            if hits[0] == nth or (every and hits[0] > nth):
                hits[1] += 1
                return fault
            return None

        s.world.proxy.choose = choose
        try:
            s.whole(step, day)
        finally:
            s.world.proxy.choose = lambda line: None
        return hits[1] > 0

    return strike


_WORK = ("export", "cleanup")
_STORING = STEPS

KINDS = [
    Kind("process killed (SIGKILL)", killed),
    Kind("process terminated (SIGTERM)", terminated),
    Kind("sessions of the source ended", _sessions_ended),
    Kind("sessions of the catalog ended", _catalog_sessions_ended),
    Kind("server crashed and restarted", _server_crashed),
    Kind("server failed over", _failed_over),
    Kind("connection cut", _line_cut),
    Kind("answer lost", _answer_lost),
    Kind("connection stalled", _line_stalled),
    Kind("deadlock", _deadlocked, ("cleanup",)),
    Kind("serialization failure", _conflict, ("cleanup",)),
    Kind("lock held by another", _locked_out, _WORK),
    Kind("statement_timeout", _out_of_time, _WORK),
    Kind("disk of the source full", _disk_of_the_source_full, ("cleanup",)),
    Kind("disk of the catalog full", _disk_of_the_catalog_full),
    Kind("table rewritten (VACUUM FULL)", _rewritten),
    Kind("column added, dropped, renamed or retyped", _column_changed),
    Kind("rows changed by a user", _rows_changed),
    Kind("disk full (RLIMIT_FSIZE)", file_limit, _STORING, "folder"),
    Kind("disk full (ENOSPC)", call_of_store(errno.ENOSPC, ("fsync", "open", "mkdir", "link")), _STORING, "folder"),
    Kind("folder read-only (EROFS)", call_of_store(errno.EROFS, ("open", "link", "mkdir")), _STORING, "folder"),
    Kind("fsync fails (EIO)", call_of_store(errno.EIO, ("fsync",)), _STORING, "folder"),
    Kind("exports keep other bytes", export_lied, ("export",)),
    Kind("archive keeps other bytes", archive_lied, ("archive",)),
    Kind("object altered", tampered("object altered"), ("cleanup",)),
    Kind("object truncated", tampered("object truncated"), ("cleanup",)),
    Kind("object gone", tampered("object gone"), ("cleanup",)),
    Kind("manifest altered", tampered("manifest altered"), ("cleanup",)),
    Kind("manifest gone", tampered("manifest gone"), ("cleanup",)),
    Kind("clock wrong", clock),
    Kind("the same work twice", double),
    Kind("four at once", all_at_once),
    Kind("S3: 500, 503, SlowDown", _s3(*(Fault(answer=error_answer(*e)) for e in (
        (500, "InternalError"), (503, "ServiceUnavailable"), (503, "SlowDown"))), every=False), STEPS, "s3"),
    Kind("S3: 400 RequestTimeout", _s3(Fault(answer=error_answer(400, "RequestTimeout"))), STEPS, "s3"),
    Kind("S3: connection reset", _s3(Fault(answer=b""), Fault(cut_after=0), Fault(cut_after=40)), STEPS, "s3"),
    Kind("S3: answer lost", _s3(Fault(lose_answer=True)), STEPS, "s3"),
    Kind("S3: credentials expired", _s3(Fault(answer=error_answer(400, "ExpiredToken")), every=True), STEPS, "s3"),
    Kind("S3: disk full", _s3(Fault(answer=error_answer(507, "InsufficientStorage")), every=True), STEPS, "s3"),
]  # fmt: skip
