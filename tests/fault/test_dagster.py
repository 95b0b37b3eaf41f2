"""The ledger suite through Dagster itself: its processes are killed, its runs terminated, while users write."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.restore import restore_partition
from export_pipelines.stores import open_store
from tests.fault.dagster_up import OVER, TERMINATE, Project, gone
from tests.fault.ledger import DAYS, Writers, insert_rows, make_table, paused
from tests.fault.outside import Outside, folder_objects
from tests.fault.proofs import deaths, prove, prove_restored
from tests.fault.world import World, new_world, rival, wait_until
from tests.support.servers import run_sql

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("FAULT_SEED", "20250101"))
ROWS = 150
KINDS = {
    "Dagster: run worker killed": 7,
    "Dagster: run terminated": 6,
    "Dagster: code server killed": 4,
    "Dagster: daemon killed": 3,
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with new_world() as world:
        yield world


@pytest.fixture(scope="module")
def project(world: World) -> Iterator[Project]:
    """The ledger's table as a project that is up."""
    run_sql(world.source, "CREATE DATABASE faults_dagster")
    make_table(world.source, partitioned=False)
    made = Project(world.folder / "project", world.source, world.source.replace("/faults", "/faults_dagster"))
    made.write()
    made.up()
    yield made
    made.down()


def outside(project: Project) -> Outside:
    return Outside(lambda: folder_objects(project.root / ".local" / "archive"), "g/t")


def more_rows(project: Project) -> None:
    with rival(project.source) as cursor:
        for day in DAYS:
            insert_rows(cursor, day, ROWS)
        cursor.connection.commit()


def killed_worker(project: Project, run: str, worker: int) -> None:
    os.kill(worker, signal.SIGKILL)


def terminated(project: Project, run: str, worker: int) -> None:
    assert project.graphql(TERMINATE, run=run)["terminateRun"]["__typename"] == "TerminateRunSuccess"


def killed_code_server(project: Project, run: str, worker: int) -> None:
    """The run goes on by itself, or ends with its server; either way nothing is lost."""
    for pid in project.processes("dagster api grpc"):
        os.kill(pid, signal.SIGKILL)


def killed_daemon(project: Project, run: str, worker: int) -> None:
    """`up` ends when its daemon does, and takes the runs with it."""
    for pid in project.processes("dagster._daemon run"):
        os.kill(pid, signal.SIGKILL)


STRIKES: dict[str, Callable[[Project, str, int], None]] = dict(
    zip(KINDS, (killed_worker, terminated, killed_code_server, killed_daemon), strict=True)
)


def struck(project: Project, rng: random.Random, kind: str) -> bool:
    """A run over all partitions, in the middle of which it happens; at the end nothing of it is left. False if the run
    was over before."""
    more_rows(project)
    run = project.launch()
    worker = project.worker(run)
    time.sleep(rng.uniform(0, 1.5))
    if gone(worker):
        return False
    STRIKES[kind](project, run, worker)
    if kind == "Dagster: daemon killed":
        wait_until(lambda: project.process.poll() is not None, "`up` to end")
        project.up()
    elif kind == "Dagster: code server killed":
        project.up()
    wait_until(lambda: gone(worker), f"the worker of run {run} to end", seconds=180)
    return True


def test_no_row_is_lost_when_processes_of_dagster_die(
    project: Project, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(SEED)
    kinds = [kind for kind, times in KINDS.items() for _ in range(times)]
    rng.shuffle(kinds)
    tally: Counter[str] = Counter()
    writers = Writers(project.source, SEED)
    writers.start()
    try:
        for kind in kinds:
            print(f"seed {SEED}: {kind}", flush=True)
            assert any(struck(project, rng, kind) for _ in range(20)), f"{kind}: every run was over before"
            tally[kind] += 1
            prove(project.source, outside(project))
        record_property("faults", json.dumps(tally))
        assert tally == KINDS
        with paused(project.source):
            more_rows(project)
            in_the_end(project)
    finally:
        writers.stop()


def in_the_end(project: Project) -> None:
    """A run that nothing befalls finishes the work: all is archived, nothing is left, each row is restored once."""
    run = project.launch()
    wait_until(lambda: project.status(run) in OVER, f"run {run} to end", seconds=300)
    assert project.status(run) == "SUCCESS", project.events(run)[-5:]
    prove(project.source, outside(project))
    assert deaths(project.source, "cleanup") >= ROWS * len(DAYS)
    columns = "id bigint, at timestamptz, note text, amount numeric, life bigint, version bigint, extra text"
    run_sql(project.source, f"CREATE TABLE restored (partition text, {columns})")
    archive = open_store((project.root / ".local" / "archive").as_uri())
    for day in DAYS:
        run_sql(project.source, f"DROP TABLE IF EXISTS one_restored; CREATE TABLE one_restored ({columns})")
        restore_partition(archive, "g/t", day, PostgresSource(project.source), "one_restored")
        run_sql(project.source, "INSERT INTO restored SELECT %s, * FROM one_restored", (day,))
    prove_restored(project.source, list(DAYS), at_the_end=True)
