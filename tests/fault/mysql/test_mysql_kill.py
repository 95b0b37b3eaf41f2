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
    deadline = time.monotonic() + 15
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


@pytest.mark.parametrize("edge", [each for each in IN_DOUBT if each.side == "after"], ids=str)
def test_rows_that_users_touch_before_a_killed_batch_is_settled_are_not_lost(ten: MysqlKit, edge: Edge) -> None:
    """A user changes one row of the batch and deletes another, so that its outcome cannot be told from the rows alone."""
    assert run_until(edge, ten, STEPS) == -9
    patiently(ten.export)
    before = ten.rows()
    ten.sql("UPDATE t SET note = 'y' ORDER BY id LIMIT 1", "DELETE FROM t ORDER BY id DESC LIMIT 1")
    changed, removed = before[:1], before[1:][-1:] or before[:1]
    for step in STEPS:
        patiently(getattr(ten, step))
    assert ten.rows() == []
    restored = {row[0] for row in ten.restored()}
    assert restored >= set(ALL) - set(removed)
    assert {(i, "y") for i in changed if i not in removed} <= set(ten.restored())
