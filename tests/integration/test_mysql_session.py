"""Several at work at the same time in MariaDB, steps that are interrupted, lost commits, and zones of sessions."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.errors import CatalogError, PartitionBusy, SourceError
from export_pipelines.sources.mysql import MysqlSession, MysqlSource
from export_pipelines.steps.mysql import deletion
from export_pipelines.steps.mysql.deletion import MysqlDeletion
from export_pipelines.steps.mysql.engine import MysqlRows
from export_pipelines.windows import Window
from tests.support.mariadb import mysql_connection
from tests.support.mysql_tables import MysqlKit, kit, one_catalog
from tests.support.tables import DAY, NEXT_DAY
from tests.support.threads import meanwhile, wait_until

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, note VARCHAR(50))"
KEYLESS = "CREATE TABLE t (id INT, note VARCHAR(50))"
ROWS = "INSERT INTO t SELECT seq, CONCAT('note ', seq) FROM seq_1_to_5"
EXPORTING = (
    "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE '%export\\_pipelines\\_rows%' "
    "AND id <> CONNECTION_ID()"
)
ENDLESS = "SELECT COUNT(*) AS n FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b WHERE a.seq + b.seq = 0"


@pytest.fixture
def whole(kit: MysqlKit) -> MysqlKit:
    """Rows 1 to 5 of a table without partitions."""
    kit.sql(TABLE, ROWS)
    kit.spec["table"] = "t"
    return kit


@contextmanager
def transaction(kit: MysqlKit) -> Iterator[Any]:
    """A cursor of another session's transaction, which the block ends."""
    with closing(mysql_connection(kit.database, autocommit=False)) as connection, connection.cursor() as cursor:
        yield cursor


def waiting(kit: MysqlKit) -> bool:
    """Whether a session waits for a lock of a row, or one of the database for a table."""
    # Not by INNODB_TRX, which stays as it is for who asks more often than every 100 ms.
    query = (
        "SELECT variable_value + (SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() "
        "AND state LIKE 'Waiting for table metadata lock%') FROM information_schema.global_status "
        "WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
    )
    return bool(kit.rows(query)[0])


def at_work(kit: MysqlKit) -> bool:
    """Whether a query of an export runs."""
    return bool(kit.rows(EXPORTING))


def receipts(kit: MysqlKit) -> int:
    return sum(entry.deleted_rows for entry in kit.entries() if entry.kind == "cleanup")


# Writers beside a cleanup


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize(
    ("change", "outcome", "deleted", "late"),
    [
        ("UPDATE t SET note = 'changed' WHERE id = 2", "COMMIT", 4, 1),
        ("UPDATE t SET note = 'changed' WHERE id = 2", "ROLLBACK", 5, 0),
        ("DELETE FROM t WHERE id = 2", "COMMIT", 4, 0),
        ("DELETE FROM t WHERE id = 2", "ROLLBACK", 5, 0),
        ("UPDATE t SET id = 7 WHERE id = 2", "COMMIT", 4, 1),
    ],
)
def test_what_another_session_changes_is_waited_for(
    kit: MysqlKit, keyed: bool, change: str, outcome: str, deleted: int, late: int
) -> None:
    kit.sql(TABLE if keyed else KEYLESS, ROWS)
    kit.spec["table"] = "t"
    kit.exported()
    with transaction(kit) as other:
        other.execute(change)
        with meanwhile(kit.cleanup) as cleanup:
            wait_until(lambda: waiting(kit) or cleanup.done())
            assert not cleanup.done()
            other.execute(outcome)
            result = cleanup.result()
    assert (result.deleted, result.late) == (deleted, late)
    assert len(kit.rows()) == late
    assert receipts(kit) == deleted


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("INSERT INTO t VALUES (3, 'between')", [3]),
        ("INSERT INTO t VALUES (99, 'behind')", [99]),
        ("UPDATE t SET note = 'too late' WHERE id = 2", []),
        ("DELETE FROM t WHERE id = 2", []),
    ],
)
def test_what_is_changed_while_a_batch_is_locked_comes_after_it(
    kit: MysqlKit, monkeypatch: pytest.MonkeyPatch, keyed: bool, change: str, left: list[int]
) -> None:
    kit.sql(TABLE if keyed else KEYLESS, ROWS, "DELETE FROM t WHERE id = 3")
    kit.spec["table"] = "t"
    kit.exported()
    commit, threads = MysqlSession.commit, []

    def slow(session: MysqlSession) -> None:
        threads.append(threading.Thread(target=kit.sql, args=(change,)))
        threads[0].start()
        wait_until(lambda: waiting(kit) or not threads[0].is_alive())
        commit(session)

    with monkeypatch.context() as patch:
        patch.setattr(MysqlSession, "commit", slow)
        result = kit.cleanup()
    threads[0].join()
    assert result.deleted == 4
    assert kit.rows() == left
    kit.exported()
    assert sorted(kit.restored(columns="id")) == sorted([(1,), (2,), (4,), (5,), *((n,) for n in left)])


def test_a_deadlock_is_tried_again(whole: MysqlKit) -> None:
    whole.exported()
    whole.sql("CREATE TABLE heavy (id INT)")
    with transaction(whole) as other, meanwhile(whole.cleanup) as cleanup:
        # InnoDB gives up the transaction that changed fewer rows.
        other.execute("INSERT INTO heavy SELECT seq FROM seq_1_to_1000")
        other.execute("UPDATE t SET note = 'x' WHERE id = 5")
        wait_until(lambda: waiting(whole) or cleanup.done())
        other.execute("UPDATE t SET note = 'x' WHERE id = 1")
        other.execute("COMMIT")
        result = cleanup.result()
    assert (result.deleted, result.late) == (3, 2)


@pytest.mark.parametrize("lock", ["SELECT 1 FROM t WHERE id = 3 FOR UPDATE", "LOCK TABLES t WRITE"])
def test_a_lock_that_is_not_had_in_time_is_transient_and_nothing_is_done(whole: MysqlKit, lock: str) -> None:
    whole.exported()
    whole.spec["lock_timeout"] = "1s"
    with transaction(whole) as other:
        other.execute(lock)
        with pytest.raises(SourceError) as error:
            whole.cleanup()
    assert error.value.transient
    assert "lock_timeout" in error.value.hint
    assert (receipts(whole), len(whole.rows())) == (0, 5)
    assert whole.cleanup().deleted == 5


def test_of_two_cleanups_at_once_one_does_the_work(whole: MysqlKit) -> None:
    whole.exported()
    with transaction(whole) as other, meanwhile(whole.cleanup) as first:
        other.execute("SELECT 1 FROM t WHERE id = 3 FOR UPDATE")
        wait_until(lambda: waiting(whole))
        with pytest.raises(PartitionBusy, match="is being cleaned up by another run"):
            whole.cleanup()
        other.execute("COMMIT")
        assert first.result().deleted == 5


@pytest.mark.parametrize("cumulative", [False, True])
def test_of_two_exports_at_once_one_does_the_work(
    whole: MysqlKit, monkeypatch: pytest.MonkeyPatch, cumulative: bool
) -> None:
    if cumulative:
        whole.window = DAY
        whole.sql("ALTER TABLE t ADD at DATETIME NOT NULL DEFAULT '2024-12-31'")
        where = "WHERE at < %(export_boundary)s"
        whole.select, whole.delete = f"SELECT * FROM t {where}", f"DELETE FROM t {where}"
        whole.spec = {"cumulative": True}
    begun, gate, write = threading.Event(), threading.Event(), MysqlRows.write

    def held(*args: Any) -> None:
        begun.set()
        assert gate.wait(20)
        write(*args)

    monkeypatch.setattr(MysqlRows, "write", held)
    with meanwhile(whole.export) as first:
        assert begun.wait(20)
        with pytest.raises(PartitionBusy, match="is being exported by another run"):
            whole.export(NEXT_DAY if cumulative else None)
        gate.set()
        assert first.result().generation == 1
    assert len(whole.visible_files()) == 2


def test_an_export_sees_one_moment_whatever_is_written_meanwhile(
    whole: MysqlKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MysqlRows.write

    def later(*args: Any) -> None:
        whole.sql(
            "UPDATE t SET note = 'new' WHERE id = 1", "DELETE FROM t WHERE id = 2", "INSERT INTO t VALUES (6, 'new')"
        )
        write(*args)

    monkeypatch.setattr(MysqlRows, "write", later)
    assert whole.exported().rows == 5
    assert whole.archived_records() == [[str(n), f"note {n}"] for n in range(1, 6)]
    result = whole.cleanup()
    assert (result.deleted, result.late) == (3, 2)
    assert whole.rows() == [1, 6]


@pytest.mark.parametrize(
    "change", ["TRUNCATE t", "DROP TABLE t", "ALTER TABLE t DROP note", "ALTER TABLE t FORCE, ALGORITHM = COPY"]
)
def test_a_table_that_is_altered_before_its_rows_are_read_is_an_error(
    whole: MysqlKit, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    write = MysqlRows.write

    def later(*args: Any) -> None:
        whole.sql(change)
        write(*args)

    monkeypatch.setattr(MysqlRows, "write", later)
    with pytest.raises(SourceError):
        whole.export()
    assert whole.visible_files() == []


def test_a_column_that_is_added_before_rows_are_read_makes_them_unproved(
    whole: MysqlKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MysqlRows.write

    def later(*args: Any) -> None:
        whole.sql("ALTER TABLE t ADD extra INT DEFAULT 7")
        write(*args)

    monkeypatch.setattr(MysqlRows, "write", later)
    try:
        whole.exported()
    except SourceError as error:
        assert error.transient
        return
    with pytest.raises(Exception, match="altered since the export"):
        whole.cleanup()
    assert len(whole.rows()) == 5


# Interruption


@contextmanager
def interrupted(when: Callable[[], object]) -> Iterator[None]:
    """Expect KeyboardInterrupt in this thread, which a signal brings as soon as `when` is true."""

    def interrupt() -> None:
        wait_until(when)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_export_ends_its_query_and_leaves_no_file(whole: MysqlKit) -> None:
    whole.select = ENDLESS
    with interrupted(lambda: at_work(whole)):
        whole.export()
    wait_until(lambda: not at_work(whole))
    assert whole.all_files() == []
    ((state, error),) = whole.catalog_sql(f"SELECT state, error FROM export WHERE table_id = '{whole.table.id}'")
    assert (state, error) == ("failed", "KeyboardInterrupt")
    whole.select = "SELECT id FROM t"
    assert whole.export().rows == 5


def test_an_interrupted_stream_of_rows_ends_too(whole: MysqlKit) -> None:
    whole.select = "SELECT seq, REPEAT('x', 1000) AS x FROM seq_1_to_1000000000"
    with interrupted(whole.all_files):
        whole.export()
    wait_until(lambda: not at_work(whole))
    assert whole.all_files() == []


def test_an_interrupted_cleanup_deletes_nothing_and_goes_on_later(whole: MysqlKit) -> None:
    whole.exported()
    with transaction(whole) as other:
        other.execute("SELECT 1 FROM t WHERE id = 3 FOR UPDATE")
        with interrupted(lambda: waiting(whole)):
            whole.cleanup()
        wait_until(lambda: not waiting(whole))
    assert len(whole.rows()) == 5
    assert whole.cleanup().deleted == 5


@pytest.mark.parametrize("kill", ["KILL", "KILL QUERY"])
@pytest.mark.parametrize("query", [ENDLESS, "SELECT seq, REPEAT('x', 1000) AS x FROM seq_1_to_1000000000"])
def test_a_query_that_somebody_ends_is_a_transient_error_and_publishes_nothing(
    whole: MysqlKit, kill: str, query: str
) -> None:
    whole.select = query
    with meanwhile(whole.export) as export:
        wait_until(lambda: at_work(whole) and (query == ENDLESS or whole.all_files()))
        (victim,) = whole.rows(EXPORTING)
        whole.sql(f"{kill} {victim}")
        with pytest.raises(SourceError) as error:
            export.result()
    assert error.value.transient
    assert whole.visible_files() == []
    assert whole.all_files() == []


def test_a_statement_that_takes_too_long_is_ended(whole: MysqlKit) -> None:
    whole.select = ENDLESS
    whole.spec["statement_timeout"] = "500ms"
    with pytest.raises(SourceError) as error:
        whole.export()
    assert "statement_timeout" in error.value.hint
    assert whole.all_files() == []
    wait_until(lambda: not at_work(whole))


# The outcome of a commit that nobody heard of


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_answer_was_lost_is_settled_by_what_is_there(
    kit: MysqlKit, monkeypatch: pytest.MonkeyPatch, keyed: bool, committed: bool
) -> None:
    kit.sql(TABLE if keyed else KEYLESS, ROWS, "INSERT INTO t SELECT id + 5, note FROM t")
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "batch_rows": 3})
    kit.exported()
    commit, calls = MysqlSession.commit, [0]

    def fails(session: MysqlSession) -> None:
        calls[0] += 1
        if calls[0] == 2:
            if committed:
                commit(session)
            session.execute("KILL CONNECTION_ID()")
        commit(session)

    monkeypatch.setattr(MysqlSession, "commit", fails)
    with pytest.raises(SourceError) as error:
        kit.cleanup()
    assert error.value.transient
    gone = 6 if committed else 3
    wait_until(lambda: len(kit.rows()) == 10 - gone)
    result = kit.cleanup()
    assert (result.deleted_before, result.deleted, result.complete) == (gone, 10 - gone, True)
    assert receipts(kit) == 10
    kit.exported()
    assert kit.restored(columns="id") == [(n,) for n in range(1, 11)]


@pytest.mark.parametrize("keyed", [True, False])
def test_a_commit_that_could_not_be_noted_is_settled_later(
    kit: MysqlKit, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    kit.sql(TABLE if keyed else KEYLESS, ROWS)
    kit.spec["table"] = "t"
    kit.exported()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise CatalogError("the catalog is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "settle_batch", fails)
        with pytest.raises(CatalogError):
            kit.cleanup()
    assert kit.rows() == []
    # Late ones at the same place are no sign that nothing was committed.
    kit.sql("INSERT INTO t VALUES (1, 'another'), (6, 'late')")
    result = kit.cleanup()
    assert (result.deleted_before, result.deleted, result.late) == (5, 0, 2)
    assert receipts(kit) == 5
    kit.exported()
    assert kit.cleanup().deleted == 2
    assert kit.rows() == []


def test_equal_rows_that_came_after_a_lost_commit_are_not_taken_for_those_it_deleted(
    kit: MysqlKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction is whole: where most of its rows are gone, all were deleted, and the equal ones there are new."""
    kit.sql("CREATE TABLE t (id INT)", "INSERT INTO t VALUES (1), (1), (2), (3)")
    kit.spec["table"] = "t"
    kit.exported()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise CatalogError("the catalog is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "settle_batch", fails)
        with pytest.raises(CatalogError):
            kit.cleanup()
    kit.sql("INSERT INTO t VALUES (1), (1)")
    result = kit.cleanup()
    assert (result.deleted_before, result.deleted, result.late) == (4, 0, 2)
    assert kit.rows() == [1, 1]
    kit.exported()
    assert kit.cleanup().deleted == 2
    assert [id for (id,) in kit.restored()] == [1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("broken_off", [False, True])
def test_what_another_run_deleted_just_before_proves_no_equal_row(
    kit: MysqlKit, monkeypatch: pytest.MonkeyPatch, broken_off: bool
) -> None:
    """What is deleted already is asked under the lock: equal rows that came since are in no file."""
    kit.sql("CREATE TABLE t (id INT)", "INSERT INTO t VALUES (1), (1)")
    kit.spec["table"] = "t"
    kit.exported()
    lock, before = deletion.lock, []

    def fails(*args: Any, **kwargs: Any) -> None:
        raise CatalogError("the catalog is gone")

    def late(*args: Any) -> None:
        if not before:
            before.append(True)
            with monkeypatch.context() as patch, suppress(CatalogError):
                if broken_off:
                    patch.setattr(Catalog, "settle_batch", fails)
                kit.cleanup()
            kit.sql("INSERT INTO t VALUES (1), (1), (1)")
        lock(*args)

    monkeypatch.setattr(deletion, "lock", late)
    if broken_off:
        with pytest.raises(PartitionBusy, match="broken off just now"):
            kit.cleanup()
    else:
        assert (result := kit.cleanup()).deleted == 0 and result.late == 3
    assert kit.rows() == [1, 1, 1]


def test_a_batch_that_still_goes_on_is_waited_for_by_its_successor(
    whole: MysqlKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.exported()
    gate, begun, commit = threading.Event(), threading.Event(), MysqlSession.commit

    def slow(session: MysqlSession) -> None:
        begun.set()
        assert gate.wait(20)
        commit(session)

    monkeypatch.setattr(MysqlSession, "commit", slow)
    with meanwhile(whole.cleanup) as first:
        assert begun.wait(20)
        with pytest.raises(PartitionBusy, match="has not ended yet"):
            whole.cleanup()
        gate.set()
        assert first.result().deleted == 5
    assert receipts(whole) == 5


def test_a_table_altered_since_a_lost_commit_counts_as_deleted(
    whole: MysqlKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.exported()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise CatalogError("the catalog is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "settle_batch", fails)
        with pytest.raises(CatalogError):
            whole.cleanup()
    whole.sql("ALTER TABLE t ADD extra INT")
    whole.exported()
    assert whole.cleanup().complete
    assert receipts(whole) == 5


def test_a_deletion_that_took_other_rows_than_were_proved_is_rolled_back(
    whole: MysqlKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.exported()
    change = MysqlSession.change

    def more(session: MysqlSession, sql: str, values: Any = None) -> int:
        return change(session, sql, values) + 1

    monkeypatch.setattr(MysqlSession, "change", more)
    with pytest.raises(Exception, match="took 6 rows where 5 were proved"):
        whole.cleanup()
    assert (len(whole.rows()), receipts(whole)) == (5, 0)


def test_triggers_are_looked_for_in_each_batch(whole: MysqlKit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole.spec["cleanup"] = {"mode": "after_archive", "batch_rows": 2}
    whole.exported()
    commit, made = MysqlDeletion.commit, []

    def then(*args: Any) -> None:
        commit(*args)
        if not made:
            made.append(whole.sql("CREATE TRIGGER audit AFTER DELETE ON t FOR EACH ROW SET @gone = OLD.id"))

    monkeypatch.setattr(MysqlDeletion, "commit", then)
    with pytest.raises(Exception, match="'audit'"):
        whole.cleanup()
    assert (whole.rows(), receipts(whole)) == ([3, 4, 5], 0)
    whole.sql("DROP TRIGGER audit")
    assert whole.cleanup().deleted == 3
    assert receipts(whole) == 5


# Zones

ZONE = "Europe/Tallinn"


@pytest.fixture
def zone(kit: MysqlKit) -> Iterator[str]:
    """A zone with summer time that the server knows."""
    kit.sql("DELETE FROM mysql.time_zone_name WHERE Name = 'Europe/Tallinn'")
    with closing(mysql_connection(kit.database)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO mysql.time_zone (Use_leap_seconds) VALUES ('N')")
        number = cursor.lastrowid
        cursor.execute("INSERT INTO mysql.time_zone_name VALUES (%s, %s)", (ZONE, number))
        for kind, offset, summer in ((0, 7200, 0), (1, 10800, 1)):
            row = (number, kind, offset, summer, "EEST" if summer else "EET")
            cursor.execute("INSERT INTO mysql.time_zone_transition_type VALUES (%s, %s, %s, %s, %s)", row)
        for moment, kind in transitions():
            cursor.execute("INSERT INTO mysql.time_zone_transition VALUES (%s, %s, %s)", (number, moment, kind))
    yield ZONE


def transitions() -> Iterator[tuple[int, int]]:
    """Hours in 2024 to 2026 at which the clocks of the zone change, and whether summer time begins."""
    hour = datetime(2024, 1, 1, tzinfo=UTC)
    while hour.year < 2027:
        was, now = ((hour - timedelta(hours=n)).astimezone(ZoneInfo(ZONE)).utcoffset() for n in (1, 0))
        if was != now:
            yield int(hour.timestamp()), int(now == timedelta(hours=3))
        hour += timedelta(hours=1)


def windows(kit: MysqlKit, begin: datetime, hours: list[int]) -> Iterator[Window]:
    for number, length in enumerate(hours):
        end = begin + timedelta(hours=length)
        yield Window(f"{begin:%Y-%m-%d}-{number}", begin, end)
        begin = end


@pytest.mark.parametrize("kind", ["DATETIME", "TIMESTAMP", "DATE"])
@pytest.mark.parametrize("session", ["UTC", ZONE])
def test_days_of_a_zone_with_summer_time_take_each_row_once(kit: MysqlKit, zone: str, kind: str, session: str) -> None:
    """25 and 23 hours: a DATETIME is local to the partitions, a TIMESTAMP an instant."""
    kit.sql(f"CREATE TABLE t (id INT PRIMARY KEY, at {kind} NULL)")
    begin = datetime(2025, 10, 24, 21, tzinfo=UTC)
    instants = [begin + timedelta(minutes=30 * n) for n in range(2 * 73)]
    for number, instant in enumerate(instants):
        local = instant.astimezone(UTC if kind == "TIMESTAMP" else ZoneInfo(zone))
        kit.sql("SET time_zone = '+00:00'", f"INSERT INTO t VALUES ({number}, '{local:%Y-%m-%d %H:%M:%S}')")
    kit.spec.update(table="t", time_column="at", session_timezone=session)
    kit.spec["partitions"] = {"every": "day", "start": "2025-01-01", "timezone": zone}
    found = []
    for window in windows(kit, begin, [24, 25, 24]):
        kit.window = window
        found.append(kit.exported().rows)
        assert kit.cleanup().complete
    assert found == [48, 50, 48]
    assert kit.rows() == []
    assert len({record[0] for record in kit.archived_records()}) == len(instants)


@pytest.mark.parametrize("kind", ["DATETIME", "TIMESTAMP"])
def test_hours_that_clocks_repeat_lose_no_row(kit: MysqlKit, zone: str, kind: str) -> None:
    """Of a DATETIME nobody can tell which of the two hours it means: such rows are in one of both, or stay."""
    kit.sql(f"CREATE TABLE t (id INT PRIMARY KEY, at {kind} NULL)")
    begin = datetime(2025, 10, 25, 22, tzinfo=UTC)
    for number in range(8):
        local = (begin + timedelta(minutes=30 * number)).astimezone(UTC if kind == "TIMESTAMP" else ZoneInfo(zone))
        kit.sql("SET time_zone = '+00:00'", f"INSERT INTO t VALUES ({number}, '{local:%Y-%m-%d %H:%M:%S}')")
    kit.spec.update(table="t", time_column="at", partitions={"every": "hour", "start": "2025-01-01", "timezone": zone})
    found = []
    for window in windows(kit, begin, [1, 1, 1, 1]):
        kit.window = window
        found.append(kit.exported().rows)
        kit.cleanup()
    assert sum(found) == 8
    assert kit.rows() == []
    assert sorted(int(record[0]) for record in kit.archived_records()) == list(range(8))


def test_a_zone_that_the_server_does_not_know_is_an_error(whole: MysqlKit) -> None:
    whole.spec["session_timezone"] = "Asia/Tokyo"
    with pytest.raises(SourceError, match="does not know the time zone 'Asia/Tokyo'") as error:
        whole.export()
    assert "mysql_tzinfo_to_sql" in error.value.hint


# What a session pins


def test_settings_of_the_server_change_no_text(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, d DATE, f FLOAT, s VARCHAR(20))")
    kit.sql("SET sql_mode = ''", "INSERT INTO t VALUES (1, '0000-00-00', 1 / 3, 'it''s \\\\ \"x\"')")
    kit.spec["table"] = "t"
    settings = {
        "sql_mode": "'ANSI,NO_ZERO_DATE,NO_BACKSLASH_ESCAPES'",
        "sql_select_limit": "1",
        "sql_safe_updates": "1",
    }
    before = {name: kit.rows(f"SELECT @@global.{name}")[0] for name in settings}
    kit.exported()
    try:
        kit.sql(*(f"SET GLOBAL {name} = {value}" for name, value in settings.items()))
        assert kit.exported().unchanged
        assert kit.cleanup().deleted == 1
    finally:
        for name, value in before.items():
            kit.sql(f"SET GLOBAL {name} = {value!r}")


def test_a_delete_sees_the_rows_of_now_whatever_time_the_server_reads_at(kit: MysqlKit) -> None:
    kit.sql(f"{TABLE} WITH SYSTEM VERSIONING", ROWS)
    kit.spec["table"] = "t"
    kit.exported()
    (then,) = kit.rows("SELECT CAST(NOW(6) AS CHAR)")
    kit.sql("UPDATE t SET note = 'in no file' WHERE id = 1")
    try:
        kit.sql(f"SET GLOBAL system_versioning_asof = '{then}'")
        assert kit.cleanup().deleted == 4
        kit.sql("SET GLOBAL system_versioning_asof = DEFAULT")
        assert kit.rows("SELECT note FROM t") == ["in no file"]
    finally:
        kit.sql("SET GLOBAL system_versioning_asof = DEFAULT")


def test_a_session_that_only_reads_cannot_write(whole: MysqlKit) -> None:
    with MysqlSource(whole.database).session() as session:
        session.begin()
        with pytest.raises(SourceError) as error:
            session.execute("DELETE FROM t")
    assert error.value.code == "1792"
    assert len(whole.rows()) == 5
