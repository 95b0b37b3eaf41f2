"""The worker begins requests at once, in their order, ends them as they should end, and loses none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import psycopg2
import pytest

from export_pipelines.catalog.audit import Actor
from export_pipelines.components.warm_launcher import WORKER_TAG
from export_pipelines.local.postgres import Address
from tests.support.served import Served, elsewhere, served, until
from tests.support.servers import new_database, run_sql


@pytest.fixture(scope="module")
def project(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A project whose worker takes two requests at a time."""
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as storage,
        served(tmp_path_factory.mktemp("served") / "p", source, storage, service="concurrency: 2") as made,
    ):
        made.start()
        yield made


def run_ended(project: Served, run: str | None, status: str) -> None:
    until(lambda: project.run_status(run) == status, f"the run to end with {status}")


def test_a_request_becomes_a_run_with_a_file_and_a_materialisation(project: Served) -> None:
    row = project.ended(project.upto(1000).id)
    assert (row.state, row.rows, row.attempts) == ("succeeded", 1000, 1), row
    run_ended(project, row.run_id, "SUCCESS")
    found = run_sql(
        project.storage, "SELECT asset_key FROM event_logs WHERE run_id = %s AND asset_key IS NOT NULL", (row.run_id,)
    )
    assert ('["g", "numbers_request"]',) in found
    tags = dict(run_sql(project.storage, "SELECT key, value FROM run_tags WHERE run_id = %s", (row.run_id,)))
    assert (tags["export_pipelines/request"], tags["export_pipelines/user"]) == (row.id, "ann")
    assert (tags["export_pipelines/dataset"], tags["export_pipelines/environment"]) == ("g/numbers", "default")
    assert row.file is not None
    assert any(each.name in row.file.proof.key for each in project.files())


def test_a_run_belongs_to_the_code_location_so_that_the_ui_shows_it(project: Served) -> None:
    row = project.ended(project.upto(17).id)
    body = run_sql(project.storage, "SELECT run_body FROM runs WHERE run_id = %s", (row.run_id,))[0][0]
    assert '"location_name": "served"' in body


def test_requests_are_begun_in_their_order_and_no_more_at_a_time_than_the_limit(project: Served) -> None:
    asked = [project.upto(60 + n, "g/slow", user=f"user{n % 2}") for n in range(5)]
    most = 0
    while any(project.state(each.id) not in ("succeeded", "failed") for each in asked):
        most = max(most, sum(project.state(each.id) == "processing" for each in asked))
        time.sleep(0.02)
    rows = [project.row(each.id) for each in asked]
    assert [row.state for row in rows] == ["succeeded"] * 5
    begun = [row.started_at for row in rows if row.started_at]
    # Two are begun at the same moment: their processes may be out of step by a little.
    assert all(earlier < later for earlier, later in zip(begun, begun[2:], strict=False))
    assert most == 2
    assert [len(project.runs_of(row.id)) for row in rows] == [1] * 5


def test_what_waits_is_in_dagsters_queue_with_the_limits_tags(project: Served) -> None:
    asked = [project.upto(150 + n, "g/slow") for n in range(3)]
    run = until(lambda: project.row(asked[2].id).run_id, "the third to get a run")
    until(lambda: project.run_status(run) == "QUEUED", "its run to be queued")
    tags = dict(run_sql(project.storage, "SELECT key, value FROM run_tags WHERE run_id = %s", (run,)))
    assert (tags["export_pipelines/request_queue"], tags["dagster/priority"]) == ("requests", "0")
    assert [project.ended(each.id).state for each in asked] == ["succeeded"] * 3


def test_cancel_of_a_request_at_work_ends_its_query(project: Served) -> None:
    row = project.working(project.upto(3000, "g/slow").id)
    begun = time.monotonic()
    project.requests.leave(row.id, Actor("ann"))
    ended = project.ended(row.id)
    # The connection is cut, which the server notices within a second.
    until(lambda: not project.reads(), "the query to end")
    # Other tests run besides: alone it takes a second at most, and the query half a minute.
    assert time.monotonic() - begun < 15
    assert (ended.state, ended.file) == ("cancelled", None)
    run_ended(project, row.run_id, "CANCELED")


def test_cancel_of_a_queued_request_never_runs_it(project: Served) -> None:
    busy = [project.upto(200 + n, "g/slow") for n in range(2)]
    waiting = project.upto(777, "g/slow")
    run = until(lambda: project.row(waiting.id).run_id, "it to get a run")
    until(lambda: project.run_status(run) == "QUEUED", "its run to be queued")
    project.requests.leave(waiting.id, Actor("ann"))
    assert project.state(waiting.id) == "cancelled"
    run_ended(project, run, "CANCELED")
    assert [project.ended(each.id).state for each in busy] == ["succeeded"] * 2
    assert project.row(waiting.id).attempts == 0


def test_termination_of_a_run_in_dagster_cancels_its_request(project: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    row = project.working(project.upto(3001, "g/slow").id)
    monkeypatch.setenv("DAGSTER_PG_URL", project.storage)
    with dg.DagsterInstance.from_config(str(project.root / ".local" / "dagster")) as instance:
        begun = time.monotonic()
        assert instance.run_launcher.terminate(row.run_id or "") is True
    assert project.ended(row.id).state == "cancelled"
    assert time.monotonic() - begun < 15
    run_ended(project, row.run_id, "CANCELED")


def test_an_error_of_the_data_fails_the_request_at_once_with_its_reason(project: Served) -> None:
    row = project.ended(project.upto(600, "g/broken").id)
    assert (row.state, row.attempts) == ("failed", 1)
    assert "division by zero" in (row.error or "") and row.fault == "question"
    run_ended(project, row.run_id, "FAILURE")


def test_a_killed_child_puts_its_request_back_and_its_run_fails(project: Served) -> None:
    row = project.working(project.upto(250, "g/slow").id)
    os.kill(project.executing(row.id), signal.SIGKILL)
    ended = project.ended(row.id)
    assert (ended.state, ended.attempts, ended.rows) == ("succeeded", 2, 250)
    assert project.run_status(project.runs_of(row.id)[0]) == "FAILURE"
    assert len([each for each in project.files() if row.id in str(each)]) == 1


def test_a_child_that_dies_when_its_request_has_succeeded_leaves_a_run_that_has(project: Served) -> None:
    row = project.working(project.upto(352, "g/slow").id)
    pid = project.executing(row.id)
    with closing(psycopg2.connect(project.storage)) as connection, connection.cursor() as cursor:
        # Dagster's events wait, the catalog does not.
        cursor.execute("LOCK TABLE event_logs IN SHARE MODE")
        assert project.ended(row.id).state == "succeeded"
        os.kill(pid, signal.SIGKILL)
    run_ended(project, row.run_id, "SUCCESS")
    assert [row.run_id] == project.runs_of(row.id)
    found = run_sql(
        project.storage, "SELECT event FROM event_logs WHERE run_id = %s AND asset_key IS NOT NULL", (row.run_id,)
    )
    assert sum('ASSET_MATERIALIZATION"' in each[0] and row.id in each[0] for each in found) == 1
    assert "has ended by signal 9" in str(
        run_sql(project.storage, "SELECT event FROM event_logs WHERE run_id = %s", (row.run_id,))
    )


def test_a_request_at_work_for_too_long_is_ended_with_that_reason(project: Served) -> None:
    service = project.root / "resources/service/defs.yaml"
    before = service.read_text()
    service.write_text(before.replace("concurrency: 2", "concurrency: 2, max_runtime_minutes: 0.02"))
    try:
        row = project.ended(project.upto(3777, "g/slow").id, 60)
        assert (row.state, row.fault) == ("failed", "question"), row
        assert "it took longer than the 0.02 minutes" in (row.error or "")
        until(lambda: not project.reads(), "the query to end")
        run_ended(project, row.run_id, "CANCELED")
    finally:
        service.write_text(before)


def test_a_run_that_is_launched_twice_works_once(project: Served) -> None:
    row = project.working(project.upto(251, "g/slow").id)
    assert project.tell(do="launch", run=row.run_id) == {"ok": True}
    assert project.tell(do="health", run=row.run_id) == {"alive": True}
    ended = project.ended(row.id)
    assert (ended.state, ended.attempts) == ("succeeded", 1)


def test_changed_definitions_are_served_by_the_next_request(project: Served) -> None:
    project.folder.write("assets/g/fresh/defs.yaml", (project.root / "assets/g/numbers/defs.yaml").read_text())
    row = project.ended(project.ask("g/fresh").id, 60)
    assert (row.state, row.rows) == ("succeeded", 5000)
    assert "reading them anew" in project.said()


def test_a_request_to_a_data_set_that_is_gone_fails_with_its_reason(project: Served) -> None:
    project.folder.write("assets/g/gone/defs.yaml", (project.root / "assets/g/numbers/defs.yaml").read_text())
    dataset = project.dataset("g/gone")
    (project.root / "assets/g/gone/defs.yaml").unlink()
    row = project.ended(project.ask_of(dataset).id, 60)
    assert row.state == "failed"
    assert "no data set 'g/gone'" in (row.error or "")


def test_a_second_worker_of_the_project_is_refused(project: Served) -> None:
    command = [sys.executable, "-m", "export_pipelines.cli", "worker"]
    second = subprocess.run(
        command, cwd=project.root, env=project.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert second.returncode == 1
    assert "has a worker on this machine already" in second.stderr


def test_a_stopped_worker_puts_its_work_back_and_the_next_one_does_it(project: Served) -> None:
    row = project.working(project.upto(400, "g/slow").id)
    assert project.stop() == 0
    assert project.state(row.id) == "pending"
    run_ended(project, row.run_id, "CANCELED")
    project.start()
    ended = project.ended(row.id)
    assert (ended.state, ended.attempts, ended.rows) == ("succeeded", 2, 400)


def host_of(project: Served, run: str | None) -> str:
    """The machine whose worker has begun a run."""
    sql = "SELECT value FROM run_tags WHERE run_id = %s AND key = %s"
    return str(json.loads(run_sql(project.storage, sql, (run, WORKER_TAG))[0][0])["host"])


@pytest.mark.slow
def test_workers_of_two_machines_share_the_work_and_one_does_what_the_other_had_when_it_is_gone(
    postgres: Address, migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = "concurrency: 2, retries: 2, retry_delay_seconds: 0.1"
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as storage,
        served(tmp_path / "here", source, storage, service=service) as here,
    ):
        here.start(silent=4, host="here")
        assert here.ended(here.upto(10).id).state == "succeeded"
        with elsewhere(here, tmp_path / "there") as there:
            there.start(silent=4, host="there")
            asked, most = [here.upto(30 + n, "g/slow") for n in range(6)], 0
            while any(row.live for row in here.requests.many([each.id for each in asked])):
                most = max(most, len(here.requests.find(states=("processing",))))
                time.sleep(0.02)
            rows = [here.row(each.id) for each in asked]
            assert [(row.state, row.attempts) for row in rows] == [("succeeded", 1)] * 6
            assert most == 2
            for row in rows:
                run_ended(here, row.run_id, "SUCCESS")
                # One that was not made within ten seconds is given up, and another one is made.
                assert [here.run_status(each) for each in here.runs_of(row.id)].count("SUCCESS") == 1
            row = here.working(here.upto(400, "g/slow").id)
            gone, left = (here, there) if host_of(here, row.run_id) == "here" else (there, here)
            gone.vanish()
            ended = left.ended(row.id, 60)
            assert (ended.state, ended.attempts, ended.rows) == ("succeeded", 2, 400)
            assert host_of(left, ended.run_id) == left.root.name
            run_ended(left, row.run_id, "FAILURE")


def test_users_take_turns_and_none_has_more_than_its_share(
    postgres: Address, migrated_database: str, tmp_path: Path
) -> None:
    service = "concurrency: 2, per_user: 1, fairness: round_robin"
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as storage,
        served(tmp_path / "p", source, storage, service=service) as project,
    ):
        project.round_robin = True
        ann = [project.upto(40 + n, "g/slow", user="ann") for n in range(4)]
        bob = project.upto(80, "g/slow", user="bob")
        cai = project.upto(81, "g/slow", user="cai")
        project.start()
        most: Counter[str] = Counter()
        while any(project.row(each.id).live for each in [*ann, bob, cai]):
            now = Counter(r.created_by for r in project.requests.find(states=("processing",)))
            most |= now
            time.sleep(0.02)
        begun = {row.id: row.started_at for row in project.requests.many([each.id for each in [*ann, bob, cai]])}
        order = sorted(begun, key=lambda request: begun[request] or project.row(request).created_at)
        assert most["ann"] == 1
        # Those who asked once do not wait for all that ann asked before them.
        assert order.index(cai.id) < order.index(ann[2].id)
        assert order.index(bob.id) < order.index(ann[2].id)
