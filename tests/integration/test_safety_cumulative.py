"""Cumulative partitions (S1): everything before the boundary that is not the newest version; and bounded batches."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.errors import CleanupRefused
from export_pipelines.steps.cleanup import cleanup_partition
from export_pipelines.windows import Window
from tests.support.tables import DAY, NEXT_DAY, Kit

THIRD_DAY = Window("2025-01-03", datetime(2025, 1, 3, tzinfo=UTC), datetime(2025, 1, 4, tzinfo=UTC))
SUPERSEDED = (
    "t.updated_at < %(export_boundary)s AND EXISTS (SELECT 1 FROM t AS newer "
    "WHERE newer.base_id = t.base_id AND newer.updated_at > t.updated_at)"
)


@pytest.fixture
def versions(kit: Kit) -> Kit:
    """Versioned rows (base_id, updated_at): 1 and 2 have two versions on the first day, 3 has one."""
    kit.sql(
        "CREATE TABLE t (base_id int, updated_at timestamptz, note text)",
        "INSERT INTO t VALUES (1, '2025-01-01 01:00Z', 'a'), (1, '2025-01-01 02:00Z', 'b'), "
        "(2, '2025-01-01 01:00Z', 'a'), (2, '2025-01-01 03:00Z', 'b'), (3, '2025-01-01 01:00Z', 'a')",
    )
    kit.select = f"COPY (SELECT * FROM t WHERE {SUPERSEDED}) TO STDOUT WITH CSV HEADER"
    kit.delete = f"DELETE FROM t WHERE {SUPERSEDED}"
    kit.spec["cumulative"] = True
    kit.window = DAY
    return kit


def notes(kit: Kit) -> list[tuple[int, str]]:
    return kit.rows("SELECT base_id, note FROM t ORDER BY base_id, updated_at")


def test_the_newest_version_stays(versions: Kit) -> None:
    assert versions.exported().rows == 2
    result = versions.cleanup()
    assert (result.deleted, result.late, result.not_exported) == (2, 0, 0)
    assert notes(versions) == [(1, "b"), (2, "b"), (3, "a")]


def test_a_row_that_was_superseded_since_its_export_stays_for_the_next_one(versions: Kit) -> None:
    versions.exported()
    versions.sql("INSERT INTO t VALUES (3, '2025-01-01 05:00Z', 'b')")
    result = versions.cleanup()
    assert (result.deleted, result.late, result.not_exported) == (2, 1, 0)
    assert (3, "a") in notes(versions)
    assert versions.exported(NEXT_DAY).rows == 1
    assert versions.cleanup(NEXT_DAY).deleted == 1
    assert notes(versions) == [(1, "b"), (2, "b"), (3, "b")]


def test_rows_of_an_earlier_partition_are_not_written_again(versions: Kit) -> None:
    versions.exported()
    versions.sql("INSERT INTO t VALUES (3, '2025-01-02 05:00Z', 'b'), (3, '2025-01-02 06:00Z', 'c')")
    assert versions.exported(NEXT_DAY).rows == 2
    assert sorted(row[0] for row in versions.archived_records()) == ["1", "2", "3", "3"]


def test_a_later_cleanup_takes_what_earlier_ones_left(versions: Kit) -> None:
    versions.exported()
    versions.sql("INSERT INTO t VALUES (3, '2025-01-02 05:00Z', 'b')")
    versions.exported(NEXT_DAY)
    result = versions.cleanup(NEXT_DAY)
    assert (result.deleted, result.complete) == (3, True)
    assert sum(entry.deleted_rows for entry in versions.entries() if entry.kind == "cleanup") == 3
    assert len(versions.restored()) == 3


def test_an_earlier_cleanup_leaves_what_only_later_partitions_have(versions: Kit) -> None:
    versions.exported()
    versions.sql("INSERT INTO t VALUES (3, '2025-01-02 05:00Z', 'b'), (3, '2025-01-02 06:00Z', 'c')")
    versions.exported(NEXT_DAY)
    assert versions.cleanup(DAY).deleted == 2
    assert (3, "b") in notes(versions)


def test_partitions_that_come_in_the_wrong_order_write_no_row_twice(versions: Kit) -> None:
    versions.sql("INSERT INTO t VALUES (3, '2025-01-02 05:00Z', 'b')")
    assert versions.exported(NEXT_DAY).rows == 3
    assert versions.exported(DAY).rows == 0


def test_a_row_whose_content_changed_without_a_new_version_is_written_again(versions: Kit) -> None:
    versions.sql("CREATE TYPE mood AS ENUM ('sad', 'glad')", "ALTER TABLE t ADD m mood DEFAULT 'sad'")
    versions.exported()
    versions.sql("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
    assert versions.exported(NEXT_DAY).rows == 2


@pytest.mark.parametrize("header", [True, False])
def test_after_a_rewrite_rows_of_an_earlier_partition_are_known_by_their_content(versions: Kit, header: bool) -> None:
    if not header:
        versions.select = f"COPY (SELECT * FROM t WHERE {SUPERSEDED}) TO STDOUT WITH CSV"
    versions.exported()
    versions.sql("INSERT INTO t VALUES (3, '2025-01-02 05:00Z', 'b')", "VACUUM FULL t")
    assert versions.exported(NEXT_DAY).rows == 1
    before = versions.restored()
    assert [(row[0], row[2]) for row in before] == [(1, "a"), (2, "a"), (3, "a")]
    result = versions.cleanup(NEXT_DAY)
    assert (result.deleted, result.complete) == (3, True)
    assert versions.restored() == before


def test_after_a_rewrite_each_record_stands_for_one_row(versions: Kit) -> None:
    versions.exported()
    versions.sql("INSERT INTO t VALUES (1, '2025-01-01 01:00Z', 'a')", "VACUUM FULL t")
    assert versions.exported(NEXT_DAY).rows == 1
    assert len(versions.restored()) == 3
    assert versions.cleanup(NEXT_DAY).deleted == 3
    # The archived records stand for rows that are gone: an equal row is a new one.
    versions.sql("INSERT INTO t VALUES (1, '2025-01-01 01:00Z', 'a')", "VACUUM FULL t")
    assert versions.exported(THIRD_DAY).rows == 1
    assert versions.cleanup(THIRD_DAY).deleted == 1
    assert len(versions.restored()) == 4


def test_after_a_rewrite_a_changed_row_is_written_again(versions: Kit) -> None:
    versions.exported()
    versions.sql("UPDATE t SET note = 'x' WHERE base_id = 1", "VACUUM FULL t")
    assert versions.exported(NEXT_DAY).rows == 1
    assert versions.cleanup(NEXT_DAY).complete


def test_after_a_rewrite_rows_that_content_cannot_tell_apart_are_written_again(versions: Kit) -> None:
    versions.select = f"COPY (SELECT base_id, note FROM t WHERE {SUPERSEDED}) TO STDOUT WITH CSV HEADER"
    versions.exported()
    versions.sql("VACUUM FULL t")
    assert versions.exported(NEXT_DAY).rows == 2
    assert versions.cleanup(NEXT_DAY).deleted == 2


def test_a_hold_on_an_earlier_partition_keeps_its_rows(versions: Kit) -> None:
    versions.exported()
    catalog = Catalog(versions.catalog_url)
    catalog.place_hold(versions.table.id, DAY.partition, "court case 7", "ann")
    catalog.close()
    versions.sql("INSERT INTO t VALUES (3, '2025-01-02 05:00Z', 'b')")
    versions.exported(NEXT_DAY)
    with pytest.raises(CleanupRefused, match=r"2025-01-01.*court case 7"):
        versions.cleanup(NEXT_DAY)
    assert len(notes(versions)) == 6


def test_each_row_is_archived_once_over_many_days(versions: Kit) -> None:
    for day, window in enumerate((DAY, NEXT_DAY, THIRD_DAY), start=1):
        versions.sql(
            f"INSERT INTO t SELECT i, '2025-01-0{day} 08:00Z'::timestamptz + n * interval '1 h', 'd{day}' "
            "FROM generate_series(1, 3) AS i, generate_series(1, 3) AS n"
        )
        versions.exported(window)
        if day != 2:
            assert versions.cleanup(window).complete
    assert len(notes(versions)) == 3
    records = [tuple(row) for row in versions.archived_records()]
    assert len(records) == len(set(records)) == 5 + 27 - 3
    assert len(versions.restored()) == 5 + 27 - 3


# Batches


@pytest.fixture
def batched(kit: Kit) -> Kit:
    """Thirty rows, to be deleted seven at a time; a trigger notes the transaction of each."""
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "INSERT INTO t SELECT generate_series(1, 30)",
        "CREATE TABLE gone (id int, xid xid8)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO gone VALUES (OLD.id, pg_current_xact_id()); RETURN NULL; END'",
        "CREATE TRIGGER note AFTER DELETE ON t FOR EACH ROW EXECUTE FUNCTION f()",
    )
    cleanup = {"mode": "after_archive", "batch_rows": 7, "acknowledge": ["note"]}
    kit.spec.update(table="t", cleanup=cleanup)
    return kit


def test_no_commit_deletes_more_than_a_batch(batched: Kit) -> None:
    batched.exported()
    result = batched.cleanup()
    assert (result.deleted, result.batches) == (30, 5)
    sizes = batched.rows("SELECT count(*) FROM gone GROUP BY xid ORDER BY min(id)")
    assert sizes == [7, 7, 7, 7, 2]


def test_receipts_name_the_transactions_and_the_records(batched: Kit) -> None:
    batched.exported()
    batched.cleanup()
    (receipt,) = [entry for entry in batched.entries() if entry.kind == "cleanup"]
    assert (receipt.deleted, receipt.deleted_rows, receipt.proof) == (((0, 29),), 30, "row")
    assert list(receipt.transactions) == batched.rows("SELECT xid::text FROM gone GROUP BY xid ORDER BY min(id)")


def test_batches_after_a_rewrite_are_bounded_too(batched: Kit) -> None:
    batched.exported()
    batched.sql("VACUUM FULL t")
    result = batched.cleanup()
    assert (result.deleted, result.batches, result.proof) == (30, 5, "content")


def test_batches_by_key_are_bounded_too(batched: Kit) -> None:
    batched.spec["table"] = None
    batched.select, batched.delete = "SELECT DISTINCT id FROM t", "DELETE FROM t WHERE id <> 30"
    batched.exported()
    result = batched.cleanup()
    assert (result.deleted, result.batches, result.proof) == (29, 5, "key")


def test_batches_of_repeated_rows_are_bounded_too(batched: Kit) -> None:
    batched.spec["table"] = None
    batched.select, batched.delete = "SELECT id, generate_series(1, 5) AS n FROM t", "DELETE FROM t"
    batched.exported()
    result = batched.cleanup()
    assert (result.deleted, result.batches) == (30, 5)
    (receipt,) = [entry for entry in batched.entries() if entry.kind == "cleanup"]
    assert receipt.deleted == ((0, 149),)


def test_a_cleanup_that_stopped_in_the_middle_goes_on_from_there(batched: Kit) -> None:
    batched.sql("CREATE TABLE o (id int REFERENCES t)", "INSERT INTO o VALUES (17)")
    batched.exported()
    with pytest.raises(Exception, match="foreign key"):
        batched.cleanup()
    assert batched.rows("SELECT count(*) FROM t") == [16]
    batched.sql("DROP TABLE o")
    result = batched.cleanup()
    assert (result.deleted_before, result.deleted, result.complete) == (14, 16, True)
    assert sum(entry.deleted_rows for entry in batched.entries() if entry.kind == "cleanup") == 30
    assert len(batched.restored()) == 30


def test_a_hold_that_is_placed_during_a_cleanup_stops_it_before_the_next_batch(batched: Kit) -> None:
    batched.exported()
    with batched.opened() as context:
        catalog = Catalog(batched.catalog_url)
        placed: list[int] = []

        def hold(progress: object) -> None:
            if not placed:
                placed.append(catalog.place_hold(batched.table.id, None, "stop", "ann"))

        with pytest.raises(CleanupRefused, match="stop"):
            cleanup_partition(replace(context, progress=hold), batched.window)
        catalog.close()
    assert batched.rows("SELECT count(*) FROM t") == [23]
