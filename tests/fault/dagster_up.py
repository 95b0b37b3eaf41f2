"""The ledger's table as a project that is up, so that faults can strike Dagster's own processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_pipelines.local.children import free_port
from tests.fault.ledger import DAYS
from tests.fault.world import wait_until
from tests.support.dagster_project import new_project

WORKSPACE = """
load_from:
  - python_module: {module_name: export_pipelines.definitions, working_directory: ., location_name: faults}
"""
TABLE = f"""
type: export_pipelines.ExportTable
attributes:
  table: public.t
  time_column: at
  partitions: {{every: day, start: {DAYS[0]}, end: 2025-01-04}}
  cleanup: {{mode: after_archive, batch_rows: 10, acknowledge: [ledger]}}
  retries: {{attempts: 0}}
"""

LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
STATUS = """
query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }
"""
EVENTS = """
query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events { ... on MessageEvent {
  eventType message } } } } }
"""
TERMINATE = """
mutation ($run: String!) { terminateRun(runId: $run) { __typename ... on TerminateRunFailure { message } } }
"""
JOBS = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } pipelines { name } } } } }"

OVER = ("SUCCESS", "FAILURE", "CANCELED")


@dataclass
class Project:
    """A project with the table `t` that can be up. Both databases are servers of the suite."""

    root: Path
    source: str
    storage: str
    process: Any = None
    port: int = 0
    groups: list[int] = field(default_factory=list)

    def write(self) -> None:
        """Make its files."""
        self.root.mkdir()
        folder = new_project(self.root)
        folder.write("workspace.yaml", WORKSPACE)
        folder.write("assets/g/t/defs.yaml", TABLE)

    def up(self) -> None:
        """Start it, or start it again after something of it was killed."""
        self.down()
        self.port = free_port()
        command = [sys.executable, "-m", "export_pipelines.cli", "up", "--port", str(self.port)]
        command += ["--no-open", "--no-api"]
        environment = {**os.environ, "DATABASE_URL": self.source, "DAGSTER_PG_URL": self.storage}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        environment["no_proxy"] = environment["NO_PROXY"] = "127.0.0.1"
        out = self.root / "up.out"
        with out.open("wb") as stream:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

        def ready() -> bool:
            assert self.process.poll() is None, out.read_text()
            return f"http://127.0.0.1:{self.port}" in out.read_text()

        wait_until(ready, "`export-pipelines up` to say where it is", seconds=240)

    def down(self) -> None:
        """End it, as Ctrl-C does."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()
        self.process.wait()
        self.process = None

    def processes(self, words: str) -> list[int]:
        """Processes of Dagster of this project whose command line has these words."""
        group = (self.root / ".local" / "up.lock").read_text().split()[1]
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):
                its_group = (process / "stat").read_text().rpartition(")")[2].split()[2]
                if its_group == group and words in (process / "cmdline").read_text().replace("\0", " "):
                    found.append(int(process.name))
        return found

    def graphql(self, text: str, **variables: object) -> Any:
        """`data` of the answer to a GraphQL query."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        address = f"http://127.0.0.1:{self.port}/graphql"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]

    def launch(self) -> str:
        """Begin a run that exports, archives and cleans up all partitions; its id."""
        selector = {"repositoryLocationName": "faults", "repositoryName": "__repository__", "jobName": "g__t_chain"}
        first, last = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
        tags = [{"key": first, "value": DAYS[0]}, {"key": last, "value": DAYS[-1]}]
        params = {"selector": selector, "executionMetadata": {"tags": tags}, "runConfigData": {}}
        found = self.graphql(LAUNCH, params=params)["launchRun"]
        assert found["__typename"] == "LaunchRunSuccess", found
        return str(found["run"]["runId"])

    def events(self, run: str) -> list[dict[str, Any]]:
        """Events of a run, oldest first."""
        return list(self.graphql(EVENTS, run=run)["logsForRun"]["events"])

    def status(self, run: str) -> str:
        return str(self.graphql(STATUS, run=run)["runOrError"]["status"])

    def worker(self, run: str) -> int:
        """Process id of the worker of a run, once a step of it has begun."""
        found: list[int] = []

        def begun() -> bool:
            events = self.events(run)
            pids = [re.search(r"\(pid: (\d+)\)", event.get("message", "")) for event in events]
            found[:] = [int(match[1]) for match in pids if match]
            return bool(found) and any(event.get("eventType") == "STEP_START" for event in events)

        wait_until(begun, f"a step of run {run} to begin", seconds=120)
        return found[0]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
