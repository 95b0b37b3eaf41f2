"""`up` starts everything, says where, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import RequestError
from export_pipelines.local import binaries
from export_pipelines.local.children import free_port, group_commands, port_is_free
from export_pipelines.local.postgres import Server
from export_pipelines.local.up import up
from export_pipelines.settings import load_settings
from tests.support.served import served

UP = """
import sys
from pathlib import Path
from export_pipelines.local.up import up
from export_pipelines.settings import load_settings
up(load_settings(Path(sys.argv[1])), port=int(sys.argv[2]), echo=lambda text: print(text, flush=True))
"""
DEFINITIONS = """
import dagster as dg

@dg.asset
def one() -> None: ...

defs = dg.Definitions(assets=[one])
"""


@pytest.fixture
def project() -> Iterator[Path]:
    """A small project with Dagster definitions of its own."""
    root = Path(tempfile.mkdtemp(prefix="export-pipelines-"))
    root.chmod(0o711)
    (root / "assets").mkdir()
    (root / "workspace.yaml").write_text("load_from: [{python_file: location.py}]\n")
    (root / "location.py").write_text(DEFINITIONS)
    yield root
    Server(root / ".local" / "postgres").stop()
    for made in [root, *binaries.data_folders(root / ".local" / "postgres")]:
        binaries.remove(made)


class Up:
    """An `up` in a process of its own, as in a terminal."""

    def __init__(self, project: Path) -> None:
        self.port = free_port()
        self.lock = project / ".local" / "up.lock"
        command = [sys.executable, "-c", UP, str(project), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert f"http://127.0.0.1:{self.port}" in self.line, self.line + self.process.stdout.read()

    def group(self) -> int:
        return int(self.lock.read_text().split()[1])

    def end(self, kind: int) -> tuple[str, float]:
        """Send a signal and wait; what it still said, and how long it took."""
        started = time.monotonic()
        self.process.send_signal(kind)
        rest, _ = self.process.communicate(timeout=40)
        return rest, time.monotonic() - started


def server_answers(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=10) as answer:
        return "dagster_version" in json.load(answer)


def test_up_says_where_it_is_refuses_a_second_one_and_leaves_nothing_after_a_signal(project: Path) -> None:
    first = Up(project)
    group, database = first.group(), json.loads((project / ".local/postgres/server.json").read_text())
    assert server_answers(first.port)
    with pytest.raises(RequestError, match="up already"):
        up(load_settings(project), port=free_port())
    rest, seconds = first.end(signal.SIGINT)
    assert rest == "stopped\n"
    assert first.process.returncode == 0
    assert seconds < 60
    assert group_commands(group) == []
    assert port_is_free(first.port)
    assert port_is_free(int(database["port"]))


def test_up_says_that_its_port_is_taken(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RequestError, match=re.escape("is taken by another program")):
            up(load_settings(project), port=taken.getsockname()[1])


@pytest.mark.slow
def test_up_ends_what_a_killed_one_left_and_takes_its_database_over(project: Path) -> None:
    killed = Up(project)
    group = killed.group()
    killed.end(signal.SIGKILL)
    second = Up(project)
    assert group_commands(group) == []
    assert server_answers(second.port)
    second.end(signal.SIGTERM)
    assert group_commands(second.group() if second.lock.read_text() else group) == []


@pytest.mark.slow
def test_two_projects_on_one_storage_cannot_both_be_up(
    project: Path, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_PG_URL", database)
    monkeypatch.setenv("DATABASE_URL", database)
    first = Up(project)
    assert not (project / ".local" / "postgres").exists()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(RequestError, match="another `up` runs a daemon"):
        up(load_settings(other), port=free_port())
    first.end(signal.SIGTERM)


def ask_for_numbers(address: str, token: str) -> dict[str, Any]:
    """Ask by HTTP and wait for the end; the request as the API shows it."""

    def call(path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json"}
        data = json.dumps(body).encode() if body else None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(address + path, data, head), timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    request = call("/requests", {"dataset": "g/numbers", "limit": 100})["id"]
    deadline = time.monotonic() + 60
    while (found := call(f"/requests/{request}"))["status"] in ("Pending", "Processing"):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_up_serves_exports_on_demand_and_ends_when_its_worker_does(
    database: str, second_database: str, tmp_path: Path
) -> None:
    with served(tmp_path / "p", database, second_database) as project:
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
            assert process.stdout is not None
            said = ""
            while f"http://127.0.0.1:{api_port}" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            token = re.search(r"the token (\S+)", said)
            assert token is not None
            found = ask_for_numbers(f"http://127.0.0.1:{api_port}", token[1])
            assert (found["status"], found["rows"]) == ("Succeeded", 100), found
            groups = [int(each) for each in (project.root / ".local/up.lock").read_text().split()[1:]]
            assert len(groups) == 3
            os.kill(groups[2], signal.SIGKILL)
            rest = process.stdout.read()
            assert process.wait(60) == 1
            assert "the worker ended by itself" in rest
            assert [group_commands(group) for group in groups] == [[], [], []]
