"""kill -9 at each edge of an expire: a file is there with all that proves it, or its tombstone stands, and a rerun or a
sweep goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from export_pipelines.errors import PartitionBusy
from export_pipelines.steps.sweep import sweep
from export_pipelines.steps.verify import verify_table
from export_pipelines.stores import open_store
from tests.support.killed import Edge, run_until
from tests.support.tables import Kit

pytestmark = pytest.mark.slow

DELETE = "stores.filesystem:FilesystemStore.delete"
APPEND = "steps.chain:append"

EDGES = [
    Edge("before", "catalog.fence:Fence.begin_expire"),
    Edge("after", "catalog.fence:Fence.begin_expire"),
    Edge("before", APPEND, 1),
    Edge("after", APPEND, 1),
    Edge("before", "catalog:Catalog.advance_head"),
    Edge("after", "catalog:Catalog.advance_head"),
    # The export has two manifests.
    Edge("before", APPEND, 2),
    Edge("after", APPEND, 2),
    Edge("before", DELETE, 1),
    *(Edge("after", DELETE, number) for number in range(1, 11)),
    Edge("before", "catalog.fence:Fence.finish_expire"),
    Edge("after", "catalog.fence:Fence.finish_expire"),
]
DECIDED = EDGES[3:-1]
"""Those between the first tombstone and the end."""


@pytest.fixture
def two(kit: Kit) -> Kit:
    """A snapshot whose archiver crashed and was followed by another, and a newer one, which alone is to stay."""
    kit.sql("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 5)")
    kit.spec.update(table="t", retention={"newest": 1})
    kit.exported()
    kit.catalog_sql(f"UPDATE export SET state = 'exported', sequence = NULL WHERE table_id = '{kit.table.id}'")
    kit.archive()
    kit.sql("INSERT INTO t VALUES (6)")
    kit.exported()
    assert len(kit.entries()) == 3
    return kit


def patiently(step: Callable[[], Any]) -> Any:
    """The lock of a killed process ends when the server notices, which may take a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return step()
        except PartitionBusy:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def state(kit: Kit) -> str:
    """Of the first generation."""
    query = f"SELECT state FROM export WHERE table_id = '{kit.table.id}' AND generation = 1"
    return str(kit.catalog_sql(query)[0][0])


def archived(kit: Kit) -> list[str]:
    return [key for key in kit.visible_files("archive") if "/manifests/" not in key]


def buried(kit: Kit) -> set[int]:
    return {entry.artifact_sequence for entry in kit.entries() if entry.kind == "expire"}


def refuse_damage(kit: Kit) -> None:
    report = verify_table(open_store((kit.folder / "archive").as_uri()), kit.table.id)
    assert not report.problems


def over(kit: Kit) -> None:
    """The first generation is gone with everything of it, and the second is whole."""
    assert state(kit) == "expired"
    assert buried(kit) == {1, 2}
    assert len([entry for entry in kit.entries() if entry.kind == "expire"]) == 2
    assert all("/g2-" in key for key in archived(kit))
    assert len(archived(kit)) == 4
    assert len(kit.visible_files()) == 2
    assert kit.restored() == [(i,) for i in range(1, 7)]
    refuse_damage(kit)


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_an_expire_that_was_killed_is_completed_by_the_next(two: Kit, edge: Edge) -> None:
    files = len(archived(two))
    assert run_until(edge, two, ("expire",)) == -9
    # What has no tombstone is there with all that lies beside it.
    if not buried(two):
        assert len(archived(two)) == files
        assert state(two) in ("archived", "expiring")
    else:
        assert state(two) == ("expired" if edge is EDGES[-1] else "expiring")
    assert two.restored() == [(i,) for i in range(1, 7)]
    refuse_damage(two)
    patiently(two.expire)
    over(two)


@pytest.mark.parametrize("edge", DECIDED, ids=str)
def test_a_sweep_completes_what_was_decided(two: Kit, edge: Edge) -> None:
    assert run_until(edge, two, ("expire",)) == -9
    deadline = time.monotonic() + 60
    with two.opened() as context:
        while state(two) != "expired":
            sweep([context], grace_seconds=3600)
            assert time.monotonic() < deadline
            time.sleep(0.05)
    over(two)


def test_what_was_fenced_off_and_is_held_meanwhile_stays_until_the_hold_ends(two: Kit) -> None:
    assert run_until(Edge("after", "catalog.fence:Fence.begin_expire"), two, ("expire",)) == -9
    with two.opened() as context:
        hold = context.catalog.place_hold(two.table.id, None, "court case 7", "ann")
        files = archived(two)
        assert patiently(two.expire).freed.files == 0
        sweep([context], grace_seconds=0)
        assert archived(two) == files
        context.catalog.release_hold(hold)
    two.expire()
    over(two)


def test_a_cleanup_relies_on_no_file_that_is_fenced_off(two: Kit) -> None:
    assert run_until(Edge("after", "catalog.fence:Fence.begin_expire"), two, ("expire",)) == -9
    assert two.cleanup().deleted == 6
    receipts = [entry for entry in two.entries() if entry.kind == "cleanup"]
    assert {receipt.artifact_sequence for receipt in receipts} == {3}
    patiently(two.expire)
    assert two.restored() == [(i,) for i in range(1, 7)]
