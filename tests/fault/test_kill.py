"""kill -9 at each step's edge: a row is at all times in the source or in a verified archive, and in neither never."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from export_pipelines.errors import PartitionBusy
from export_pipelines.steps.verify import verify_table
from export_pipelines.stores import open_store
from tests.support.killed import Edge, run_until, started
from tests.support.tables import Kit

ALL = tuple(range(1, 11))
STEPS = ("export", "archive", "cleanup")
PUBLISH = "stores.filesystem:FileWriter.publish"

EDGES = [
    # Export: the sidecar is published first, then the file, then the catalog is told.
    Edge("before", "steps.rows:RowWriter.finish"),
    Edge("after", "steps.rows:RowWriter.finish"),
    Edge("before", PUBLISH, 1),
    Edge("after", PUBLISH, 1),
    Edge("after", PUBLISH, 2),
    Edge("before", "catalog:Catalog.begin_export"),
    Edge("after", "catalog:Catalog.begin_export"),
    Edge("before", "catalog:Catalog.finish_export"),
    Edge("after", "catalog:Catalog.finish_export"),
    # Archive: two copies, the manifest, the catalog, the head of the chain.
    Edge("before", PUBLISH, 3),
    Edge("after", PUBLISH, 3),
    Edge("after", PUBLISH, 4),
    Edge("before", PUBLISH, 5),
    Edge("after", PUBLISH, 5),
    Edge("before", "catalog:Catalog.mark_archived"),
    Edge("after", "catalog:Catalog.mark_archived"),
    Edge("before", "catalog:Catalog.advance_head"),
    Edge("after", "catalog:Catalog.advance_head"),
    # Cleanup: for each of four batches the deletion, its note, the commit, its outcome; then receipts.
    Edge("before", "steps.postgres.batches:proved", 2),
    Edge("before", "catalog:Catalog.begin_batch", 1),
    Edge("after", "catalog:Catalog.begin_batch", 1),
    Edge("after", "catalog:Catalog.begin_batch", 3),
    Edge("before", "sources.postgres:Session.commit", 2),
    Edge("after", "sources.postgres:Session.commit", 1),
    Edge("after", "sources.postgres:Session.commit", 2),
    Edge("after", "sources.postgres:Session.commit", 4),
    Edge("before", "catalog:Catalog.settle_batch", 4),
    Edge("after", "catalog:Catalog.settle_batch", 2),
    Edge("after", "catalog:Catalog.settle_batch", 4),
    Edge("before", PUBLISH, 6),
    Edge("after", PUBLISH, 6),
    Edge("before", "catalog:Catalog.note_receipt"),
    Edge("after", "catalog:Catalog.note_receipt"),
    Edge("before", "catalog:Catalog.save_cleanup"),
    Edge("after", "catalog:Catalog.save_cleanup"),
]


@pytest.fixture
def ten(kit: Kit) -> Kit:
    """Ten rows, to be deleted three at a time."""
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY, note text)", "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 10) i"
    )
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


def verified(kit: Kit) -> set[int]:
    """Ids in files whose manifests are there and right."""
    report = verify_table(open_store((kit.folder / "archive").as_uri()), kit.table.id)
    assert not report.problems
    return {int(record[0]) for record in kit.archived_records()}


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_no_row_is_lost_wherever_the_process_is_killed(ten: Kit, edge: Edge) -> None:
    assert run_until(edge, ten, STEPS) == -9
    assert set(ten.rows()) | (verified(ten) if ten.entries() else set()) == set(ALL)
    for step in STEPS:
        patiently(getattr(ten, step))
    assert ten.rows() == []
    assert verified(ten) == set(ALL)
    assert ten.restored() == [(i, "x") for i in ALL]
    committed = "SELECT b.deleted FROM cleanup_batch b JOIN export e ON e.id = b.export_id WHERE b.state = 'committed' "
    ranges = [r for (deleted,) in ten.catalog_sql(committed + f"AND table_id = '{ten.table.id}'") for r in deleted]
    assert sum(last - first + 1 for first, last in ranges) == 10
    told = {
        (entry.artifact_sequence, number)
        for entry in ten.entries()
        if entry.kind == "cleanup"
        for first, last in entry.deleted
        for number in range(first, last + 1)
    }
    assert len(told) == 10


@pytest.mark.parametrize(
    "edge", [edge for edge in EDGES if edge.function.startswith(("sources", "catalog:Catalog.se"))], ids=str
)
def test_receipts_of_a_killed_cleanup_are_exact_when_an_export_comes_first(ten: Kit, edge: Edge) -> None:
    """Another generation is exported and archived before anybody runs the cleanup again, and a row has come since."""
    assert run_until(edge, ten, STEPS) == -9
    ten.sql("INSERT INTO t VALUES (11, 'x')")
    for step in STEPS:
        patiently(getattr(ten, step))
    assert ten.rows() == []
    assert ten.restored() == [(i, "x") for i in (*ALL, 11)]


@pytest.mark.parametrize(
    "edge", [Edge("after", PUBLISH, 1), Edge("after", PUBLISH, 4), Edge("after", PUBLISH, 5)], ids=str
)
def test_an_archiver_that_died_is_followed_by_one_manifest(ten: Kit, edge: Edge) -> None:
    assert run_until(edge, ten, ("export", "archive")) == -9
    patiently(ten.export)
    ten.archive()
    ten.archive()
    assert len(ten.entries()) == 1


def test_a_killed_process_leaves_no_query_behind(ten: Kit) -> None:
    """The server notices that its client is gone, and does not work on for nobody."""
    ten.spec["table"] = None
    ten.select, ten.delete = "SELECT id, note, pg_sleep(30)::text FROM t", "DELETE FROM t"
    copies = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY (%'"
    process = started(ten, ("export",))
    wait_for(lambda: ten.rows(copies) == [1], 90)
    process.kill()
    wait_for(lambda: ten.rows(copies) == [0], 60)
    process.join()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
