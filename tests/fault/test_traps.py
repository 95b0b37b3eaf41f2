"""Traps of deleting that want more than one process, or another server, to be fallen into."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipelines.errors import CleanupRefused, PartitionBusy
from tests.fault.attempts import Attempt, Halt, LedgerTable
from tests.fault.world import World, end_sessions, new_world
from tests.support.servers import run_sql
from tests.support.tables import WHOLE, Kit, run_each

# Who has written something has a transaction id, and a lock on it.
_DELETING = """
SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'transactionid' AND a.datname = current_database() AND a.application_name = 'export_pipelines'
"""


@pytest.fixture
def ten(database: str, catalog_url: str, tmp_path: Path) -> LedgerTable:
    """Ten archived rows."""
    run_each(
        database,
        "CREATE TABLE t (id int PRIMARY KEY, note text)",
        "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 10) i",
    )
    table = LedgerTable(database, catalog_url, tmp_path, {"table": "t", "cleanup": "after_archive"})
    table.archive_url = (tmp_path / "archive").as_uri()
    table.exported()
    return table


def test_the_lock_of_a_cleanup_outlives_its_connection_to_the_catalog(ten: LedgerTable) -> None:
    """It is a lock of the very transaction that deletes: while that one may still commit, nobody else begins."""
    attempt = halted_while_it_deletes(ten)
    end_sessions(ten.catalog_url)
    with pytest.raises(PartitionBusy):
        ten.cleanup()
    attempt.go_on()
    attempt.finish()
    ten.cleanup()
    assert ten.rows() == []
    assert len(ten.restored()) == 10


def halted_while_it_deletes(table: LedgerTable) -> Attempt:
    """A cleanup that has deleted rows and has not committed."""
    for number in range(1, 100):
        attempt = Attempt(table, "cleanup", WHOLE, halt=Halt("after", number))
        assert attempt.halted()
        if run_sql(table.database, _DELETING)[0][0]:
            return attempt
        attempt.process.kill()
        attempt.finish()
    raise AssertionError("the cleanup deletes nothing")


def test_no_setting_of_a_role_or_database_changes_a_byte_of_a_file(kit: Kit) -> None:
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, day date, span interval, f float8, b bytea, m money)",
        "INSERT INTO t VALUES (1, '2025-03-04 05:06:07Z', '2025-03-04', '1 day 02:03', 0.1::float4, 'ab', 1234.5)",
    )
    kit.spec["table"] = "t"
    plain = kit.export()
    name = kit.rows("SELECT current_database()")[0]
    for setting, value in (
        *(("DateStyle", "German"), ("IntervalStyle", "iso_8601"), ("TimeZone", "Asia/Tokyo")),
        *(("extra_float_digits", "-10"), ("bytea_output", "escape"), ("client_encoding", "LATIN1")),
    ):
        kit.sql(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    assert kit.rows("SHOW IntervalStyle") == ["iso_8601"]
    again = kit.export()
    assert again.unchanged
    assert again.file.raw_sha256 == plain.file.raw_sha256
    with gzip.open(kit.folder / "exports" / plain.file.key, "rt") as stream:
        assert "2025-03-04 05:06:07+00,2025-03-04,1 day 02:03:00,0.10000000149011612" in stream.read()
    assert plain.source.settings["DateStyle"] == "ISO, YMD"


def test_rows_of_a_table_that_is_no_heap_cannot_be_proved(kit: Kit) -> None:
    kit.sql(
        "CREATE ACCESS METHOD another TYPE TABLE HANDLER heap_tableam_handler",
        "CREATE TABLE t (id int) USING another",
        "INSERT INTO t VALUES (1)",
    )
    kit.spec["table"] = "t"
    kit.exported()
    with pytest.raises(CleanupRefused, match="heap"):
        kit.cleanup()
    assert kit.rows() == [1]


def test_another_row_that_got_the_identity_of_an_archived_one_by_a_rewrite_stays(kit: Kit) -> None:
    """VACUUM FULL moves rows together: one comes to lie where another lay, and both are of one transaction."""
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY, note text)", "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 4) i"
    )
    kit.select, kit.delete = "SELECT id, note FROM t WHERE id <= 2", "DELETE FROM t"
    kit.exported()
    before = {str(place): id for place, id in kit.rows("SELECT (ctid, xmin)::text, id FROM t")}
    kit.sql("DELETE FROM t WHERE id = 1", "VACUUM FULL t")
    after = {str(place): id for place, id in kit.rows("SELECT (ctid, xmin)::text, id FROM t")}
    assert any(before.get(place) in (1, 2) and id > 2 for place, id in after.items()), "no row took another's identity"
    assert kit.cleanup().deleted == 1
    assert kit.rows() == [3, 4]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with new_world() as world:
        yield world


def test_after_a_failover_content_decides(world: World) -> None:
    """Transaction ids are used again on the new timeline, so identities count for nothing there."""
    table = LedgerTable(world.source, world.catalog, world.folder / "failover", {"table": "f"}, name="failover")
    table.archive_url = (table.folder / "archive").as_uri()
    table.sql(
        "CREATE TABLE f (id int PRIMARY KEY, note text)", "INSERT INTO f SELECT i, 'x' FROM generate_series(1, 5) i"
    )
    table.exported()
    timeline = "SELECT timeline_id FROM pg_control_checkpoint()"
    before = table.rows(timeline)
    world.fail_over()
    assert table.rows(f"CHECKPOINT; {timeline}") != before
    table.sql("UPDATE f SET note = 'changed' WHERE id = 3")
    result = table.cleanup()
    assert (result.proof, result.deleted, result.late) == ("content", 4, 1)
    assert table.rows("SELECT id FROM f") == [3]
