"""Whatever dies, hangs or is cut while requests are answered: each is answered once, or ends with a reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator

import dagster as dg
import pytest
from psycopg2.extensions import parse_dsn

from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.requests import RequestRow
from export_pipelines.components.warm_launcher import WORKER_TAG
from export_pipelines.formats.csv import copy_options
from export_pipelines.local.postgres import Address
from export_pipelines.specs.format import PLAIN
from export_pipelines.steps.request_files import sweep_requests
from export_pipelines.stores.filesystem import FilesystemStore
from export_pipelines.worker.context import age
from tests.fault.dagster_up import gone
from tests.support.proxy import DatabaseProxy, database_proxy
from tests.support.served import ENDED, Served, children_of, served, until
from tests.support.servers import new_database, run_sql

SERVICE = "concurrency: 3, retries: 2, retry_delay_seconds: 0.2"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def proxied(
    postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, DatabaseProxy]]:
    """A project whose source is behind a proxy."""
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as storage,
        database_proxy(source) as proxy,
        served(tmp_path_factory.mktemp("faults") / "p", source, storage, service=SERVICE) as made,
    ):
        yield made, proxy


@pytest.fixture
def project(proxied: tuple[Served, DatabaseProxy]) -> Served:
    """With its worker running, which takes three seconds of silence for stuck."""
    made, proxy = proxied
    proxy.fault = "none"
    if made.worker is None or made.worker.poll() is not None:
        made.worker = None
        made.start(silent=3)
    return made


def answered_once(project: Served, request: str, rows: int) -> None:
    """It succeeded, has one file with its rows, and no run of it is left over."""
    row = project.ended(request)
    assert (row.state, row.rows) == ("succeeded", rows), (row, project.said()[-2000:])
    assert [each.parent.name for each in project.files()].count(request) == 1
    for run in project.runs_of(request):
        until(lambda run=run: run_over(project, run), f"run {run} of {request} to end")
    states = [project.run_status(run) for run in project.runs_of(request)]
    assert states.count("SUCCESS") <= 1


def run_over(project: Served, run: str) -> bool:
    return project.run_status(run) in ("SUCCESS", "FAILURE", "CANCELED")


def test_a_killed_warm_process_is_replaced_and_what_it_had_begun_is_done_again(project: Served) -> None:
    row = project.working(project.upto(310, "g/slow").id)
    child = project.executing(row.id)
    for warm in project.processes():
        os.kill(warm, signal.SIGKILL)
    until(lambda: gone(child), "its children to end with it")
    answered_once(project, row.id, 310)
    assert project.row(row.id).attempts == 2


def test_a_killed_worker_leaves_nothing_running_and_the_next_one_goes_on(project: Served) -> None:
    row = project.working(project.upto(311, "g/slow").id)
    waiting = project.upto(12, "g/slow")
    child, warm = project.executing(row.id), list(project.processes())
    assert project.worker is not None
    project.worker.kill()
    project.worker.wait()
    until(lambda: all(gone(each) for each in [child, *warm]), "its processes to end")
    project.worker = None
    project.start(silent=3)
    answered_once(project, row.id, 311)
    answered_once(project, waiting.id, 12)


def test_a_child_that_hangs_is_found_and_its_request_done_again(project: Served) -> None:
    row = project.working(project.upto(312, "g/slow").id)
    child = project.executing(row.id)
    os.kill(child, signal.SIGSTOP)
    answered_once(project, row.id, 312)
    until(lambda: gone(child), "the child to be killed")
    assert "it said nothing for" in project.said()


def test_a_machine_that_stands_still_takes_nobody_for_stuck(project: Served) -> None:
    row = project.working(project.upto(600, "g/slow").id)
    assert project.worker is not None
    warm = project.processes()
    everything = [project.worker.pid, *warm, *(child for each in warm.values() for child in each)]
    try:
        for each in everything:
            os.kill(each, signal.SIGSTOP)
        until(lambda: age(project.row(row.id).beat_at) > 5, "its last word to be long ago")
    finally:
        for each in everything:
            os.kill(each, signal.SIGCONT)
    answered_once(project, row.id, 600)
    assert (project.row(row.id).attempts, project.runs_of(row.id)) == (1, [row.run_id])


def test_work_that_was_put_back_because_its_worker_ends_has_used_up_no_retry(project: Served) -> None:
    request = project.upto(601, "g/slow").id
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        row = project.working(request)
        os.kill(project.executing(request), number)
        until(lambda row=row: was_put_back(project, row), "it to be put back")
    answered_once(project, request, 601)
    assert project.row(request).attempts == 4


def was_put_back(project: Served, before: RequestRow) -> bool:
    row = project.row(before.id)
    assert row.live, row
    return row.run_id != before.run_id


def test_a_cancelled_child_that_hangs_is_killed(project: Served) -> None:
    row = project.working(project.upto(313, "g/slow").id)
    child = project.executing(row.id)
    os.kill(child, signal.SIGSTOP)
    project.requests.leave(row.id, Actor("ann"))
    assert project.ended(row.id).state == "cancelled"
    until(lambda: gone(child), "the child to be killed")


def test_a_cut_database_connection_is_tried_again_in_the_same_run(proxied: tuple[Served, DatabaseProxy]) -> None:
    made, proxy = proxied
    made.stop()
    through = parse_dsn(proxy.url)
    address = "postgresql://{user}:{password}@{host}:{port}/{dbname}?sslmode=disable&gssencmode=disable"
    made.start(silent=30, DATABASE_URL=address.format(**{"password": "", **through}))
    proxy.hit.clear()
    proxy.statement, proxy.skip, proxy.fault = f") TO STDOUT WITH ({copy_options(PLAIN)})".encode(), 0, "after"
    row = made.upto(60, "g/slow")
    answered_once(made, row.id, 60)
    assert proxy.hit.is_set()
    ended = made.row(row.id)
    assert (ended.attempts, len(made.runs_of(row.id))) == (2, 1)
    made.stop()


def test_a_catalog_that_is_away_for_seconds_loses_nothing(project: Served) -> None:
    row = project.working(project.upto(500, "g/slow").id)
    database = project.storage.rpartition("/")[2].partition("?")[0]
    run_sql(project.source, f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    run_sql(project.source, kill, (database,))
    time.sleep(2)
    run_sql(project.source, f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    later = until(lambda: asked(project, 13), "a request to be asked")
    answered_once(project, later, 13)
    answered_once(project, row.id, 500)


def asked(project: Served, n: int) -> str | None:
    from export_pipelines.errors import CatalogError

    try:
        return project.upto(n, "g/slow").id
    except CatalogError:
        return None


def test_errors_of_the_data_are_not_tried_again(project: Served) -> None:
    row = project.ended(project.upto(700, "g/broken").id)
    assert (row.state, row.attempts) == ("failed", 1)


def test_what_breaks_off_again_and_again_fails_with_a_reason(project: Served) -> None:
    request = project.upto(900, "g/slow").id
    for attempt in range(1, 4):
        until(lambda n=attempt: project.row(request).attempts == n and project.reads(), f"attempt {attempt}")
        os.kill(project.executing(request), signal.SIGKILL)
    row = project.ended(request)
    assert (row.state, row.attempts) == ("failed", 3)
    assert "broke off 3 times" in (row.error or "")


def test_a_run_that_a_dead_worker_had_taken_from_the_queue_is_begun_by_the_next(
    project: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [project.upto(320 + n, "g/slow").id for n in range(3)]
    waiting = project.upto(14, "g/slow").id
    run = until(lambda: project.row(waiting).run_id, "it to get a run")
    until(lambda: project.run_status(run) == "QUEUED", "its run to be queued")
    assert project.worker is not None
    project.worker.kill()
    project.worker.wait()
    project.worker = None
    monkeypatch.setenv("DAGSTER_PG_URL", project.storage)
    with dg.DagsterInstance.from_config(str(project.root / ".local" / "dagster")) as instance:
        instance.add_run_tags(run, {WORKER_TAG: json.dumps({"host": socket.gethostname(), "pid": 1})})
    project.start(silent=3)
    answered_once(project, waiting, 14)
    assert project.runs_of(waiting) == [run]
    for n, each in enumerate(busy):
        answered_once(project, each, 320 + n)


def test_a_run_that_was_made_and_not_begun_when_its_worker_stopped_is_cancelled(
    project: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = project.ended(project.upto(15).id)
    monkeypatch.setenv("DAGSTER_PG_URL", project.storage)
    with dg.DagsterInstance.from_config(str(project.root / ".local" / "dagster")) as instance:
        done = instance.get_run_by_id(row.run_id or "")
        assert done is not None
        left = done._replace(run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.NOT_STARTED)
        instance.run_storage.add_run(left)
    until(lambda: project.run_status(left.run_id) == "CANCELED", "the run to be cancelled")
    assert project.state(row.id) == "succeeded"


def restarts(project: Served, number: int, times: int) -> None:
    """So many requests, a part of which is at work or queued whenever the worker is killed or stopped."""
    requests = [project.upto(n, user=f"user{n % 3}").id for n in range(1000, 1000 + number)]
    for turn in range(times):
        time.sleep(1.5)
        if turn % 2:
            project.stop()
        else:
            assert project.worker is not None
            warm = list(project.processes())
            project.worker.kill()
            project.worker.wait()
            project.worker = None
            until(lambda warm=warm: all(gone(each) for each in warm), "its processes to end")
        # Nobody hangs here: who says nothing waits for the processor.
        project.start(silent=30)
    until(lambda: all(project.state(each) in ENDED for each in requests), "all requests to end", 600)
    # Who was killed between its file and its end left the file. Nobody knows of it; the worker sweeps it an hour later.
    sweep_requests(FilesystemStore(project.root / ".local" / "exports"), project.requests, 0)
    for n, request in enumerate(requests):
        answered_once(project, request, 1000 + n)


@pytest.mark.timeout(900)
def test_of_a_hundred_requests_none_is_lost_or_doubled_when_the_worker_is_restarted(project: Served) -> None:
    restarts(project, 100, 4)


def test_no_process_is_left_when_the_worker_has_stopped(project: Served) -> None:
    assert project.worker is not None
    warm = children_of(project.worker.pid)
    everything = [*warm, *(child for each in warm for child in children_of(each))]
    assert project.stop() == 0
    until(lambda: all(gone(each) for each in everything), "all to end")
