"""Pulls that are killed while their rows go into store and table at once: each row is in the table once in the end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from export_pipelines.steps.land import check_landed
from export_pipelines.steps.load import pending
from tests.support.killed import Edge
from tests.support.processes import context
from tests.support.pulls import ROWS, PullKit

STYLES = {
    "append": {"pull": {"mode": "changes"}},
    "shadow": {"style": "shadow", "key": ["id"]},
    "upsert": {"style": "upsert", "key": ["id"], "pull": {"mode": "changes"}},
}
EDGES = [
    Edge("before", "sources.postgres:Session.copy_in"),
    Edge("after", "sources.postgres:Session.copy_in"),
    Edge("before", "steps.land_storing:store_content"),
    Edge("before", "steps.chain:append"),
    Edge("after", "steps.chain:append"),
    Edge("before", "targets.registry:add"),
    Edge("after", "targets.registry:add"),
    Edge("before", "targets.versions:sweep"),
]


def work(edge: Edge, kit: PullKit) -> None:
    edge.arm()
    kit.pull()


def killed_at(edge: Edge, kit: PullKit) -> int | None:
    process = context.Process(target=work, args=(edge, kit))
    process.start()
    process.join(180)
    return process.exitcode


SOME = [style if style == "append" else pytest.param(style, marks=pytest.mark.slow) for style in STYLES]


@pytest.mark.parametrize("style", SOME)
@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_a_pull_that_is_killed_is_loaded_only_if_it_landed_and_once(
    style: str, edge: Edge, tmp_path: Path, database: str, second_database: str
) -> None:
    kit = PullKit(tmp_path, database, second_database, STYLES[style])
    kit.make_origin()
    kit.pull()
    kit.add(ROWS + 1, 2 * ROWS)
    assert killed_at(edge, kit) == -signal.SIGKILL
    landed = kit.landed()
    assert check_landed(kit.store, landed) == []
    # What is in the table has landed; what landed is in the table, or waits.
    loaded = kit.rows() // ROWS
    assert kit.rows() == loaded * ROWS and loaded <= len(landed)
    assert len(pending(kit.loading)) == len(landed) - loaded
    for each in pending(kit.loading):
        kit.load(each)
    for each in kit.pull().landing.landed:
        kit.load(each)
    assert kit.rows() == 2 * ROWS
    assert [entry[:2] for entry in kit.entries()] == [("processed", 1), ("processed", 2)]
    assert kit.sql("SELECT count(*) FROM shop.orders o JOIN operations.datafile_registry r ON r.id = o.file_id") == [
        (2 * ROWS,)
    ]
