"""kill -9 at each step's edge, on MariaDB: a row is at all times in the source or in a verified archive."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from export_pipelines.errors import PartitionBusy
from export_pipelines.steps.verify import verify_table
from export_pipelines.stores import open_store
from tests.support.killed import Edge, run_until
from tests.support.mysql_tables import MysqlKit, kit, one_catalog

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian

ALL = tuple(range(1, 11))
STEPS = ("export", "archive", "cleanup")
PUBLISH = "stores.filesystem:FileWriter.publish"
SESSION = "sources.mysql:MysqlSession"

EDGES = [
    # Export: lock and snapshot, the rows, the sidecar, the file, the catalog.
    Edge("after", "steps.mysql.transactions:try_lock", 1),
    Edge("after", f"{SESSION}.begin", 1),
    Edge("after", f"{SESSION}.stream", 1),
    Edge("after", PUBLISH, 1),
    Edge("after", PUBLISH, 2),
    Edge("after", "catalog:Catalog.finish_export"),
    # Archive: two copies, the manifest, the catalog.
    Edge("after", PUBLISH, 4),
    Edge("after", PUBLISH, 5),
    Edge("after", "catalog:Catalog.mark_archived"),
    # Cleanup: for each of four batches the locking read, the deletion, its note, the commit, its outcome; receipts.
    Edge("after", f"{SESSION}.stream", 2),
    Edge("before", f"{SESSION}.change", 1),
    Edge("after", f"{SESSION}.change", 2),
    Edge("before", "catalog:Catalog.begin_batch", 1),
    Edge("after", "catalog:Catalog.begin_batch", 1),
    Edge("after", "catalog:Catalog.begin_batch", 3),
    Edge("before", f"{SESSION}.commit", 2),
    Edge("after", f"{SESSION}.commit", 1),
    Edge("after", f"{SESSION}.commit", 2),
    Edge("after", f"{SESSION}.commit", 4),
    Edge("before", "catalog:Catalog.settle_batch", 4),
    Edge("after", "catalog:Catalog.settle_batch", 2),
    Edge("after", "catalog:Catalog.settle_batch", 4),
    Edge("before", PUBLISH, 6),
    Edge("after", PUBLISH, 6),
    Edge("before", "catalog:Catalog.note_receipt"),
    Edge("after", "catalog:Catalog.note_receipt"),
    Edge("after", "catalog:Catalog.save_cleanup"),
]
IN_DOUBT = [edge for edge in EDGES if edge.function.endswith((".commit", "settle_batch", "begin_batch"))]


@pytest.fixture(params=["with a key", "without a key"])
def ten(kit: MysqlKit, request: pytest.FixtureRequest) -> MysqlKit:
    """Ten rows, to be deleted three at a time."""
    key = "PRIMARY KEY" if request.param == "with a key" else ""
    kit.sql(f"CREATE TABLE t (id INT {key}, note TEXT)", "INSERT INTO t SELECT seq, 'x' FROM seq_1_to_10")
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "batch_rows": 3})
    return kit


def patiently(step: Callable[[], Any]) -> Any:
    """A killed session's transaction ends when the server notices, which may take a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return step()
        except PartitionBusy:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def verified(kit: MysqlKit) -> set[int]:
    """Ids in files whose manifests are there and right."""
    report = verify_table(open_store((kit.folder / "archive").as_uri()), kit.table.id)
    assert not report.problems
    return {int(record[0]) for record in kit.archived_records()}


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_no_row_is_lost_wherever_the_process_is_killed(ten: MysqlKit, edge: Edge) -> None:
    assert run_until(edge, ten, STEPS) == -9
    assert set(ten.rows()) | (verified(ten) if ten.entries() else set()) == set(ALL)
    for step in STEPS:
        patiently(getattr(ten, step))
    assert ten.rows() == []
    assert verified(ten) == set(ALL)
    assert ten.restored() == [(i, "x") for i in ALL]


@pytest.mark.parametrize("edge", IN_DOUBT, ids=str)
def test_each_row_is_restored_once_when_an_export_follows_a_killed_cleanup(ten: MysqlKit, edge: Edge) -> None:
    """Another generation is exported and archived before anybody runs the cleanup again, and a row has come since."""
    assert run_until(edge, ten, STEPS) == -9
    ten.sql("INSERT INTO t VALUES (11, 'x')")
    for step in STEPS:
        patiently(getattr(ten, step))
    assert ten.rows() == []
    assert ten.restored() == [(i, "x") for i in (*ALL, 11)]


# What cannot be told from the source alone: rows that users touch before a killed batch is settled.

BEFORE_THE_COMMIT, AFTER_THE_COMMIT = Edge("after", "catalog:Catalog.begin_batch"), Edge("after", f"{SESSION}.commit")


@pytest.mark.parametrize("edge", [BEFORE_THE_COMMIT, AFTER_THE_COMMIT], ids=str)
@pytest.mark.parametrize("changes", [1, 2])
def test_rows_that_users_change_before_a_killed_batch_is_settled_are_not_lost(
    ten: MysqlKit, edge: Edge, changes: int
) -> None:
    assert run_until(edge, ten, STEPS) == -9
    patiently(ten.export)  # the killed session's transaction has ended
    ten.sql(f"UPDATE t SET note = 'y' ORDER BY id LIMIT {changes}")
    changed = [row[0] for row in ten.sql("SELECT id FROM t WHERE note = 'y'")]
    for step in STEPS:
        patiently(getattr(ten, step))
    assert ten.rows() == []
    found = ten.restored()
    assert set(found) >= {(i, "y" if i in changed else "x") for i in ALL}
    # Of a row that was changed its archived version may be restored as well; of no other anything.
    assert len(found) <= len(ALL) + len(changed)


def test_a_row_that_comes_again_as_it_was_does_not_hide_that_its_batch_was_deleted(ten: MysqlKit) -> None:
    assert run_until(AFTER_THE_COMMIT, ten, STEPS) == -9
    ten.sql("INSERT INTO t VALUES (1, 'x')")
    for step in STEPS:
        patiently(getattr(ten, step))
    assert ten.rows() == []
    assert ten.restored() == [(i, "x") for i in ALL]


@pytest.mark.parametrize("edge", [BEFORE_THE_COMMIT, AFTER_THE_COMMIT], ids=str)
def test_equal_rows_are_restored_as_often_as_they_were_deleted(kit: MysqlKit, edge: Edge) -> None:
    """Those that are left do not hide that others were deleted."""
    kit.sql("CREATE TABLE t (id INT, note TEXT)", "INSERT INTO t SELECT 1, 'x' FROM seq_1_to_10")
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "batch_rows": 3})
    assert run_until(edge, kit, STEPS) == -9
    for step in STEPS:
        patiently(getattr(kit, step))
    assert kit.rows() == []
    assert kit.restored() == [(1, "x")] * 10
