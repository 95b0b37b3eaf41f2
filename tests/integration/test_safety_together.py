"""Several at work at the same time, and steps that are interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from export_pipelines.errors import PartitionBusy, SourceError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.export import export_partition
from export_pipelines.windows import Window
from tests.support.proxy import database_proxy
from tests.support.tables import DAY, NEXT_DAY, Kit
from tests.support.threads import meanwhile, transaction, wait_until, waiting

TABLE = "CREATE TABLE t (id int PRIMARY KEY, note text, at timestamptz)"
ROWS = "INSERT INTO t SELECT i, 'note ' || i, '2025-01-01 12:00Z' FROM generate_series(1, 5) AS i"
SLOW = "SELECT id, note, at, pg_sleep(0.4)::text AS slept FROM t"


@pytest.fixture
def whole(kit: Kit) -> Kit:
    """Rows 1 to 5 of a table without partitions."""
    kit.sql(TABLE, ROWS)
    kit.spec["table"] = "t"
    return kit


def sleeping(kit: Kit) -> bool:
    """Whether a COPY of ours is at work."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY (%'"
    return bool(kit.rows(query + " AND state = 'active'")[0])


def test_a_concurrent_update_is_a_conflict_that_is_tried_again(whole: Kit) -> None:
    whole.exported()
    with transaction(whole) as other, meanwhile(whole.cleanup) as cleanup:
        other.execute("UPDATE t SET note = 'changed' WHERE id = 2")
        wait_until(lambda: waiting(whole) or cleanup.done())
        assert not cleanup.done()
        other.execute("COMMIT")
        result = cleanup.result()
    assert (result.deleted, result.late) == (4, 1)
    assert whole.rows("SELECT note FROM t") == ["changed"]


def test_a_concurrent_delete_is_a_conflict_that_is_tried_again(whole: Kit) -> None:
    whole.exported()
    with transaction(whole) as other, meanwhile(whole.cleanup) as cleanup:
        other.execute("DELETE FROM t WHERE id = 2")
        wait_until(lambda: waiting(whole) or cleanup.done())
        other.execute("COMMIT")
        assert cleanup.result().deleted == 4
    assert whole.rows() == []


def test_a_concurrent_update_that_is_rolled_back_changes_nothing(whole: Kit) -> None:
    whole.exported()
    with transaction(whole) as other, meanwhile(whole.cleanup) as cleanup:
        other.execute("UPDATE t SET note = 'changed' WHERE id = 2")
        wait_until(lambda: waiting(whole) or cleanup.done())
        other.execute("ROLLBACK")
        assert cleanup.result().deleted == 5


def test_a_deadlock_is_tried_again(whole: Kit) -> None:
    whole.exported()
    with transaction(whole) as other, meanwhile(whole.cleanup) as cleanup:
        other.execute("SET deadlock_timeout = '20s'; UPDATE t SET note = 'x' WHERE id = 5")
        wait_until(lambda: waiting(whole) or cleanup.done())
        other.execute("UPDATE t SET note = 'x' WHERE id = 1")
        other.execute("COMMIT")
        result = cleanup.result()
    assert (result.deleted, result.late) == (3, 2)


def test_a_row_that_is_inserted_during_the_cleanup_stays(whole: Kit) -> None:
    whole.exported()
    with transaction(whole) as other, meanwhile(whole.cleanup) as cleanup:
        other.execute("SELECT 1 FROM t WHERE id = 2 FOR UPDATE")
        wait_until(lambda: waiting(whole) or cleanup.done())
        other.execute("INSERT INTO t VALUES (6, 'new')")
        other.execute("COMMIT")
        assert cleanup.result().deleted == 5
    assert whole.rows() == [6]


def test_an_insert_of_a_subtransaction_that_was_open_at_the_export_is_late(kit: Kit) -> None:
    kit.sql(TABLE, ROWS)
    kit.select, kit.delete = "SELECT DISTINCT * FROM t", "DELETE FROM t"
    with transaction(kit) as other:
        other.execute("INSERT INTO t VALUES (6, 'a'); SAVEPOINT s; INSERT INTO t VALUES (7, 'b')")
        kit.sql("CREATE TABLE o ()")
        assert kit.exported().rows == 5
        other.execute("COMMIT")
    result = kit.cleanup()
    assert (result.deleted, result.late, result.not_exported) == (5, 2, 0)
    assert kit.rows() == [6, 7]


def test_a_lock_that_is_not_had_in_time_is_transient_and_nothing_is_done(whole: Kit) -> None:
    whole.spec["lock_timeout"] = "200ms"
    whole.exported()
    with transaction(whole) as other:
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        for step in (whole.cleanup, whole.export):
            with pytest.raises(SourceError) as error:
                step()
            assert error.value.transient
            assert "lock_timeout" in error.value.hint
    assert whole.cleanup().deleted == 5


def test_of_two_cleanups_at_once_one_does_the_work(whole: Kit) -> None:
    whole.exported()
    with transaction(whole) as other, meanwhile(whole.cleanup) as first:
        other.execute("SELECT 1 FROM t WHERE id = 3 FOR UPDATE")
        wait_until(lambda: waiting(whole))
        with pytest.raises(PartitionBusy, match="is being cleaned up by another run"):
            whole.cleanup()
        other.execute("COMMIT")
        assert first.result().deleted == 5


def test_of_two_exports_of_a_partition_at_once_one_does_the_work(whole: Kit) -> None:
    whole.select, whole.delete = SLOW, "DELETE FROM t"
    with meanwhile(whole.export) as first:
        wait_until(lambda: sleeping(whole))
        with pytest.raises(PartitionBusy, match="is being exported by another run"):
            whole.export()
        assert first.result().generation == 1
    assert len(whole.visible_files()) == 2


def test_cumulative_partitions_are_not_exported_at_the_same_time(whole: Kit) -> None:
    whole.spec.update(table=None, cumulative=True)
    whole.select = SLOW + " WHERE at < %(export_boundary)s"
    whole.delete = "DELETE FROM t WHERE at < %(export_boundary)s"
    whole.window = DAY
    with meanwhile(whole.export) as first:
        wait_until(lambda: sleeping(whole))
        with pytest.raises(PartitionBusy, match="is being exported by another run"):
            whole.export(NEXT_DAY)
        assert first.result().rows == 5
    assert whole.export(NEXT_DAY).rows == 0


def test_a_cleanup_during_the_next_export_of_its_partition_loses_and_doubles_nothing(whole: Kit) -> None:
    whole.spec["table"] = None
    whole.select, whole.delete = SLOW, "DELETE FROM t"
    whole.exported()
    whole.sql("INSERT INTO t VALUES (6, 'late')")
    with meanwhile(whole.export) as second:
        wait_until(lambda: sleeping(whole))
        result = whole.cleanup()
        assert second.result().rows == 6
    assert (result.deleted, result.late) == (5, 1)
    whole.archive()
    assert whole.cleanup().deleted == 1
    assert [row[0] for row in whole.restored()] == [1, 2, 3, 4, 5, 6]


def test_of_two_archivers_at_once_one_writes_the_manifest(whole: Kit) -> None:
    whole.sql("INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(10, 9000) AS i")
    whole.export()
    outcomes: list[object] = []

    def archive() -> None:
        try:
            outcomes.append(whole.archive().new)
        except PartitionBusy:
            outcomes.append("busy")

    threads = [threading.Thread(target=archive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(1) == 1
    assert set(outcomes) <= {1, 0, "busy"}
    assert len(whole.entries()) == 1


def test_parallel_partitions_append_to_one_chain(kit: Kit) -> None:
    kit.sql(TABLE)
    hours = "'2025-01-01Z'::timestamptz + i * interval '1 hour'"
    kit.sql(f"INSERT INTO t SELECT i, 'x', {hours} FROM generate_series(0, 191) AS i")
    kit.spec.update(table="t", time_column="at")
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    days = [begin + timedelta(days=day) for day in range(8)]
    windows = [Window(f"{day:%Y-%m-%d}", day, day + timedelta(days=1)) for day in days]
    kit.window = windows[0]

    def all_steps(window: Window) -> int:
        kit.exported(window)
        while True:
            try:
                return kit.cleanup(window).deleted
            except PartitionBusy:
                time.sleep(0.02)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(all_steps, windows)) == [24] * 8
    entries = kit.entries()
    assert [entry.sequence for entry in entries] == list(range(1, 17))
    assert len(kit.restored()) == 192
    assert kit.rows() == []


# Interruption


@contextmanager
def interrupted(when: Callable[[], object]) -> Iterator[list[float]]:
    """Expect KeyboardInterrupt in this thread, which a signal brings as soon as `when` is true; gives its time."""
    times: list[float] = []

    def interrupt() -> None:
        wait_until(when)
        times.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield times
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_export_ends_its_query_and_leaves_no_file(whole: Kit) -> None:
    whole.select, whole.delete = "SELECT id, pg_sleep(60)::text FROM t", "DELETE FROM t"
    with interrupted(lambda: sleeping(whole)) as times:
        whole.export()
    wait_until(lambda: not sleeping(whole), 50 - (time.monotonic() - times[0]))
    assert whole.all_files() == []
    ((state, error),) = whole.catalog_sql(f"SELECT state, error FROM export WHERE table_id = '{whole.table.id}'")
    assert (state, error) == ("failed", "KeyboardInterrupt")
    whole.select = "SELECT id FROM t"
    assert whole.export().rows == 5


def test_an_interrupted_stream_of_rows_ends_too(whole: Kit) -> None:
    whole.select = "SELECT i AS id, repeat('x', 1000) FROM t, generate_series(1, 100000000) AS i"
    whole.delete = "DELETE FROM t"
    with interrupted(whole.all_files) as times:
        whole.export()
    wait_until(lambda: not sleeping(whole), 50 - (time.monotonic() - times[0]))
    assert whole.all_files() == []


def test_an_interrupted_cleanup_deletes_nothing_and_goes_on_later(whole: Kit) -> None:
    whole.exported()
    with transaction(whole) as other:
        other.execute("SELECT 1 FROM t WHERE id = 3 FOR UPDATE")
        with interrupted(lambda: waiting(whole)):
            whole.cleanup()
        wait_until(lambda: not waiting(whole))
    assert len(whole.rows()) == 5
    assert whole.cleanup().deleted == 5


def test_an_interruption_ends_a_statement_even_when_the_network_is_silent(whole: Kit) -> None:
    whole.select, whole.delete = "SELECT id, pg_sleep(60)::text FROM t", "DELETE FROM t"
    with database_proxy(whole.database) as proxy:
        proxy.fault = "stall"

        def stall() -> bool:
            if sleeping(whole):
                proxy.hit.set()
            return proxy.hit.is_set()

        with interrupted(stall) as times, whole.opened() as context:
            export_partition(replace(context, source=PostgresSource(proxy.url)), whole.window)
        assert time.monotonic() - times[0] < 50
    assert whole.all_files() == []


# The outcome of a commit that nobody heard of


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_commit_whose_answer_was_lost_is_settled_by_the_servers_word(kit: Kit, fault: Any) -> None:
    kit.sql("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 10)")
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "batch_rows": 3})
    kit.exported()
    direct = kit.database
    with database_proxy(direct) as proxy:
        proxy.fault, proxy.skip = fault, 1
        kit.database = proxy.url
        with pytest.raises(SourceError) as error:
            kit.cleanup()
        assert error.value.transient
        kit.database = direct
        committed = 6 if fault == "after" else 3
        wait_until(lambda: len(kit.rows()) == 10 - committed)
        time.sleep(0.2)
        result = kit.cleanup()
    assert (result.deleted_before, result.deleted, result.complete) == (committed, 10 - committed, True)
    receipts = [entry for entry in kit.entries() if entry.kind == "cleanup"]
    assert sum(entry.deleted_rows for entry in receipts) == 10
    kit.exported()
    assert kit.restored() == [(i,) for i in range(1, 11)]


def test_a_commit_that_no_server_remembers_is_settled_by_what_is_there(kit: Kit) -> None:
    """After a failover, or years: the rows are looked for, by identity, or by content once the table was rewritten."""
    kit.sql("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 9)")
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "batch_rows": 3})
    kit.exported()
    kit.delete = "DELETE FROM t WHERE id <= 3"
    assert kit.cleanup().deleted == 3
    forget = "UPDATE cleanup_batch SET state = 'committing', source_xid = 3 WHERE export_id IN (SELECT id FROM export "
    kit.catalog_sql(forget + f"WHERE table_id = '{kit.table.id}')")
    # Other rows at the places of those that were deleted.
    kit.sql("VACUUM t", "INSERT INTO t SELECT generate_series(11, 13)")
    kit.delete = "DELETE FROM t WHERE id <= 6"
    result = kit.cleanup()
    assert (result.deleted_before, result.deleted) == (3, 3)
    kit.catalog_sql(forget + f"WHERE table_id = '{kit.table.id}')")
    kit.sql("VACUUM FULL t")
    kit.delete = "DELETE FROM t WHERE id <= 9"
    result = kit.cleanup()
    assert (result.deleted_before, result.deleted, result.proof) == (6, 3, "content")
    # One that did not commit: its rows are there.
    kit.exported()
    states = f"(SELECT max(id) FROM export WHERE table_id = '{kit.table.id}' AND state = 'archived')"
    kit.catalog_sql(
        "INSERT INTO cleanup_batch (export_id, bucket, state, source_xid, rows, deleted, proof, run_id) "
        f"VALUES ({states}, 0, 'committing', 3, 3, '[[0, 2]]', 'row', 'r')"
    )
    kit.delete = "DELETE FROM t"
    assert kit.cleanup().deleted == 3
    assert kit.rows() == []
