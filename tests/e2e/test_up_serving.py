"""`up` with exports on demand: everything of it at once, as people have it on their own machine."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg2
import pytest

from export_pipelines.components.warm_launcher import WORKER_TAG
from export_pipelines.local.children import free_port, group_commands
from export_pipelines.local.postgres import Address
from tests.support.pages import log_in
from tests.support.served import Served, served, until
from tests.support.servers import new_database, run_sql

CHECKOUT = Path(__file__).parents[2]
TABLES = CHECKOUT / "export_pipelines/demo/nycflights13.sql"
FLIGHTS = """
INSERT INTO nycflights13.flights SELECT n, 2013, 1, 1 + n % 28, 517, 515, n % 120 - 20, 830, 819, 11,
    (ARRAY['UA', 'AA', 'B6'])[1 + n % 3], n, 'N' || n, 'EWR', 'IAH', 227, 1400, 5, 15,
    timestamptz '2013-01-01 05:00-05', timestamptz '2013-01-01 05:15-05' + n * interval '1 minute'
    FROM generate_series(1, 6000) n; ANALYZE nycflights13.flights
"""


@dataclass
class Up:
    """`up` in a process of its own, as in a terminal, with the addresses that it says."""

    project: Served
    port: int
    api_port: int
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def token(self) -> str:
        found = re.search(r"the token (\S+)", "".join(self.said))
        assert found is not None, self.said
        return found[1]

    def client(self) -> httpx.Client:
        """A program that asks."""
        head = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=head, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def up(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A project that is up on free ports: one request at a time, and the demo's flights to ask for."""
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as storage,
        served(tmp_path_factory.mktemp("up") / "p", source, storage, service="concurrency: 1") as project,
    ):
        shutil.copytree(CHECKOUT / "assets/nycflights13/flights", project.root / "assets/nycflights13/flights")
        run_sql(source, TABLES.read_text())
        run_sql(source, FLIGHTS)
        port, api_port = free_port(), free_port()
        command = [sys.executable, "-u", "-m", "export_pipelines.cli", "up", "--no-open", "--port", str(port)]
        with subprocess.Popen(
            [*command, "--api-port", str(api_port)],
            cwd=project.root,
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            made = Up(project, port, api_port, process)
            assert process.stdout is not None
            while made.url not in "".join(made.said):
                line = process.stdout.readline()
                assert line, made.said
                made.said.append(line)
            try:
                yield made
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.communicate(timeout=120)


def test_links_lead_to_where_it_was_started(up: Up) -> None:
    with up.client() as client:
        asked = client.post("/requests", json={"dataset": "g/numbers", "limit": 100}).json()
        row = up.project.ended(asked["id"], 60)
        assert (row.state, row.rows) == ("succeeded", 100), row
        found = client.get(f"/requests/{row.id}").json()
    assert found["run"]["url"] == f"http://127.0.0.1:{up.port}/runs/{row.run_id}"
    until(lambda: up.project.run_status(row.run_id) == "SUCCESS", "the run to end")
    told = run_sql(up.project.storage, "SELECT event FROM event_logs WHERE run_id = %s", (row.run_id,))
    assert f"{up.url}/requests/{row.id}" in str(told)
    with httpx.Client(base_url=up.url, headers={"Accept": "text/html"}, trust_env=False, timeout=60) as browser:
        log_in(browser, up.token)
        page = browser.get(f"/requests/{row.id}").text
    assert f"{up.url}/files/" in page and f"{up.url}/datasets/" in page


def test_who_waits_for_an_export_that_fails_is_told_whose_fault_it_is(up: Up) -> None:
    with up.client() as client:
        answer = client.get("/datasets/g/broken/export?n__le=600", headers={"Prefer": "wait"})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "the export failed: " in answer.json()["detail"] and "division by zero" in answer.json()["detail"]


def test_the_daemon_hands_what_waits_in_dagsters_queue_to_the_worker(up: Up) -> None:
    project = up.project
    busy = project.working(project.upto(150, "g/slow").id)
    waits = project.upto(42)
    run = until(lambda: project.row(waits.id).run_id, "the second to get a run")
    until(lambda: project.run_status(run) == "QUEUED", "its run to be queued")
    with closing(psycopg2.connect(project.storage)) as connection, connection.cursor() as cursor:
        # As if another machine's worker were at the queue: this one takes only what the daemon gives it.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('export_pipelines', 2))")
        assert project.ended(busy.id, 60).state == "succeeded"
        row = project.ended(waits.id, 60)
    assert (row.state, row.attempts, project.runs_of(row.id)) == ("succeeded", 1, [run])
    sql = "SELECT dagster_event_type, event FROM event_logs WHERE run_id = %s"
    events = {kind: json.loads(event)["dagster_event"] for kind, event in run_sql(project.storage, sql, (run,))}
    # What the worker begins by itself its child says all of.
    assert events["PIPELINE_STARTING"]["pid"] != events["PIPELINE_START"]["pid"]
    tags = dict(run_sql(project.storage, "SELECT key, value FROM run_tags WHERE run_id = %s", (run,)))
    worker = int((project.root / ".local/worker.lock").read_text())
    assert json.loads(tags[WORKER_TAG])["pid"] == worker


# The examples of the documentation


def blocks(kind: str) -> list[str]:
    """The blocks of code of a language, in their order."""
    text = (CHECKOUT / "docs/how-to/ask-for-data.md").read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """What is typed after each prompt."""
    return [each for block in blocks("console") for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]


class Shell:
    """A folder in which examples are run as they stand, but for the address and what `…` stands for."""

    def __init__(self, up: Up, folder: Path) -> None:
        self.up, self.folder = up, folder
        # What is refused is an error here, and no proxy stands between.
        (folder / ".curlrc").write_text('fail-with-body\nnoproxy = "*"\n')
        scripts = str(Path(sys.executable).parent)
        self.variables = {
            **up.project.environment,
            "CURL_HOME": str(folder),
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "EXPORT_PIPELINES_URL": up.url,
            "EXPORT_PIPELINES_PROJECT": str(up.project.root),
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def bash(self, command: str, values: dict[str, str]) -> str:
        """Run a command; one that sets a variable sets it for those after it."""
        if found := re.fullmatch(r"export (\w+)=\S*…\s*(#.*)?\n?", command):
            self.variables[found[1]] = values[found[1]]
            return ""
        assert "…" not in command, command
        return self.run("bash", "-euo", "pipefail", "-c", command.replace("http://127.0.0.1:8080", self.up.url))


@pytest.mark.debian
def test_the_examples_of_asking_for_data_work_as_they_stand(up: Up, tmp_path: Path) -> None:
    shell, values = Shell(up, tmp_path), {"TOKEN": up.token}
    said = []
    for command in commands():
        said.append(shell.bash(command, values))
        if found := re.findall(r'"id": ?"([a-z2-7]{26})"', said[-1]):
            values["ID"] = found[-1]
            up.project.ended(values["ID"], 60)
    assert len(said) >= 12 and "ID" in values
    assert (tmp_path / "late.csv").read_text().count(",UA,") > 100
    with gzip.open(tmp_path / "late.csv.gz", "rt") as file:
        assert file.readline() == "carrier,flight,dep_delay\n" and file.readline().startswith("UA,")
    assert len((tmp_path / "flights.csv").read_text().splitlines()) == 1001
    shell.variables["TOKEN"] = up.token
    script = "\n".join(blocks("python")).replace("http://127.0.0.1:8080", up.url)
    with up.client() as client:
        asked = client.get("/datasets/flights/export?carrier=UA&fileType=parquet&compression=none").json()["id"]
    assert up.project.ended(asked, 60).state == "succeeded"
    look = "\nassert (len(flights), len(late)) == (2000, 2000), (len(flights), len(late))"
    shell.run(sys.executable, "-c", f"request_id = {asked!r}\n{script}{look}")


def test_everything_ends_when_the_worker_does(up: Up) -> None:
    groups = [int(each) for each in (up.project.root / ".local/up.lock").read_text().split()[1:]]
    assert len(groups) == 3
    os.kill(groups[2], signal.SIGKILL)
    rest, _ = up.process.communicate(timeout=120)
    assert up.process.returncode == 1
    assert "the worker ended by itself" in rest
    assert [group_commands(group) for group in groups] == [[], [], []]
