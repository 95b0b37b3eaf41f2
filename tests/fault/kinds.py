"""The kinds of faults. Each knows how to strike a step, and whether it did.

A kind returns False where the step had ended before it could strike; the driver then tries again.
"""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Literal

import psycopg2
from psycopg2.extensions import TransactionRollbackError

from tests.fault.attempts import Attempt
from tests.fault.ledger import DAYS
from tests.fault.proofs import Violated, deaths, last_death
from tests.fault.sabotage import ClockShift, FaultyCall, FileLimit, Lie
from tests.fault.scenario import STEPS, Scenario
from tests.fault.world import database_line, end_sessions, rival
from tests.support.faulty_proxy import Fault, error_answer
from tests.support.servers import run_sql

Strike = Callable[[Scenario, str, str], bool]


@dataclass(frozen=True)
class Kind:
    """A kind of fault, the steps that it can befall, and where the archive must be."""

    name: str
    strike: Strike
    steps: tuple[str, ...] = STEPS
    archive: Literal["any", "folder", "s3"] = "any"


# The process


def _killed(s: Scenario, step: str, day: str) -> bool:
    outcome = s.at_a_moment(step, day, lambda attempt: attempt.signal(signal.SIGKILL))
    return outcome is not None and outcome.ended == "died"


def _terminated(s: Scenario, step: str, day: str) -> bool:
    outcome = s.at_a_moment(step, day, lambda attempt: attempt.signal(signal.SIGTERM))
    return outcome is not None and outcome.error == "Interrupted"


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
    return _between_or_during(s, step, day, lambda: _statement(s, "VACUUM FULL t"))


def _column_changed(s: Scenario, step: str, day: str) -> bool:
    """A column is added, dropped, renamed or retyped."""
    return _between_or_during(s, step, day, lambda: _statement(s, _alteration(s)))


def _rows_changed(s: Scenario, step: str, day: str) -> bool:
    """A user changes and deletes many rows of the partition at once."""
    half = f"at >= '{day}' AND at < '{day}'::timestamptz + interval '1 day' AND id % 2 = {s.rng.randrange(2)}"
    change = s.rng.choice(("UPDATE t SET amount = amount + 1", "UPDATE t SET note = note", "DELETE FROM t"))
    return _between_or_during(s, step, day, lambda: _statement(s, f"{change} WHERE {half}"))


def _between_or_during(s: Scenario, step: str, day: str, change: Callable[[], bool]) -> bool:
    if s.rng.random() < 0.4:
        changed = change()
        s.whole(step, day)
        return changed
    return s.at_a_moment(step, day, lambda _: change()) is not None


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


# The store


def _file_limit(s: Scenario, step: str, day: str) -> bool:
    outcome = s.whole(step, day, sabotage=FileLimit(s.rng.choice((0, 1, 50, 300, 1000, 3000))))
    return "larger than is allowed" in outcome.text


def _call_of_store(number: int, calls: tuple[str, ...]) -> Strike:
    def strike(s: Scenario, step: str, day: str) -> bool:
        sabotage = FaultyCall(s.rng.choice(calls), number, s.rng.choice((1, 1, 2, 3, 4, 6)), s.rng.random() < 0.3)
        return s.whole(step, day, sabotage=sabotage).struck > 0

    return strike


def _export_lied(s: Scenario, step: str, day: str) -> bool:
    """The store of the exports kept other bytes than it was given: that is no export."""
    outcome = s.whole(step, day, sabotage=Lie((s.table.folder / "exports").as_uri(), s.rng.randrange(1000)))
    if outcome.ended != "done" or not outcome.struck:
        return False
    refused = s.whole("archive", day)
    if refused.error != "IntegrityError":
        raise Violated(f"an export that is damaged was archived: {refused}")
    return True


def _archive_lied(s: Scenario, step: str, day: str) -> bool:
    """The archive kept other bytes than it was given: reading back must tell."""
    outcome = s.whole(step, day, sabotage=Lie(s.table.archive_url, s.rng.randrange(1000)))
    if outcome.struck and outcome.error != "IntegrityError":
        raise Violated(f"an archive that keeps other bytes was believed: {outcome}")
    return outcome.struck > 0


def _tampered(what: str) -> Strike:
    """An object of the archive is altered, cut short or gone: nothing may be deleted by it."""

    def strike(s: Scenario, step: str, day: str) -> bool:
        manifest = s.newest(day)
        of_manifest = what.startswith("manifest")
        key = f"{s.table.table.id}/manifests/{manifest['sequence']:08d}.json" if of_manifest else _file_of(s, manifest)
        data = s.objects()[key]
        mark, before = last_death(s.world.source), deaths(s.world.source, "cleanup")
        s.put(key, _changed(s.rng, data, what.rsplit(maxsplit=1)[-1]))
        outcome = s.whole(step, day)
        if outcome.ended != "refused" or deaths(s.world.source, "cleanup") != before:
            raise Violated(f"a cleanup went by an archive that is not what it was ({what} {key}): {outcome}")
        if not of_manifest and s.rng.random() < 0.4:
            # The next export makes another file; what was deleted before the damage is in the damaged one alone.
            s.excused = mark
            s.patiently("export", day)
            s.patiently("archive", day)
            s.whole(step, day)
            s.prove()
            s.excused = 0
        s.put(key, data)
        return True

    return strike


def _file_of(s: Scenario, manifest: dict[str, Any]) -> str:
    return str(manifest[s.rng.choice(("file", "file", "identity_file"))]["key"])


def _changed(rng: random.Random, data: bytes, how: str) -> bytes | None:
    if how == "gone":
        return None
    at = rng.randrange(len(data))
    return data[:at] if how == "truncated" else data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


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


# Time, and double work


def _clock(s: Scenario, step: str, day: str) -> bool:
    """This host's clock is wrong: by minutes or years, before or after."""
    seconds = s.rng.choice((-1, 1)) * s.rng.choice((90, 3600, 86400, 400 * 86400))
    return s.whole(step, day, sabotage=ClockShift(seconds)).struck > 0


def _double(s: Scenario, step: str, day: str) -> bool:
    """A second scheduler runs the same step, or another one of the same partition, while the first is in the middle."""
    second = s.rng.choice((step, *STEPS))

    def deed(_: Attempt) -> bool:
        s.whole(second, day)
        return True

    return s.at_a_moment(step, day, deed) is not None


def _all_at_once(s: Scenario, step: str, day: str) -> bool:
    """Four processes begin at the same time, on the same partition and on others."""
    begun = [
        (each, s.attempt(each, s.rng.choice((day, day, *DAYS)))) for each in (step, step, *s.rng.choices(STEPS, k=2))
    ]
    for each, attempt in begun:
        s.ended(each, attempt)
    return True


_WORK = ("export", "cleanup")
_STORING = STEPS

KINDS = [
    Kind("process killed (SIGKILL)", _killed),
    Kind("process terminated (SIGTERM)", _terminated),
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
    Kind("disk full (RLIMIT_FSIZE)", _file_limit, _STORING, "folder"),
    Kind("disk full (ENOSPC)", _call_of_store(errno.ENOSPC, ("fsync", "open", "mkdir", "link")), _STORING, "folder"),
    Kind("folder read-only (EROFS)", _call_of_store(errno.EROFS, ("open", "link", "mkdir")), _STORING, "folder"),
    Kind("fsync fails (EIO)", _call_of_store(errno.EIO, ("fsync",)), _STORING, "folder"),
    Kind("exports keep other bytes", _export_lied, ("export",)),
    Kind("archive keeps other bytes", _archive_lied, ("archive",)),
    Kind("object altered", _tampered("object altered"), ("cleanup",)),
    Kind("object truncated", _tampered("object truncated"), ("cleanup",)),
    Kind("object gone", _tampered("object gone"), ("cleanup",)),
    Kind("manifest altered", _tampered("manifest altered"), ("cleanup",)),
    Kind("manifest gone", _tampered("manifest gone"), ("cleanup",)),
    Kind("clock wrong", _clock),
    Kind("the same work twice", _double),
    Kind("four at once", _all_at_once),
    Kind("S3: 500, 503, SlowDown", _s3(*(Fault(answer=error_answer(*e)) for e in (
        (500, "InternalError"), (503, "ServiceUnavailable"), (503, "SlowDown"))), every=False), STEPS, "s3"),
    Kind("S3: 400 RequestTimeout", _s3(Fault(answer=error_answer(400, "RequestTimeout"))), STEPS, "s3"),
    Kind("S3: connection reset", _s3(Fault(answer=b""), Fault(cut_after=0), Fault(cut_after=40)), STEPS, "s3"),
    Kind("S3: answer lost", _s3(Fault(lose_answer=True)), STEPS, "s3"),
    Kind("S3: credentials expired", _s3(Fault(answer=error_answer(400, "ExpiredToken")), every=True), STEPS, "s3"),
    Kind("S3: disk full", _s3(Fault(answer=error_answer(507, "InsufficientStorage")), every=True), STEPS, "s3"),
]  # fmt: skip
