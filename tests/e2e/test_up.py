"""`up` starts everything, says where, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
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

import pytest

from export_pipelines.errors import RequestError
from export_pipelines.local import binaries
from export_pipelines.local.children import free_port, group_commands, port_is_free
from export_pipelines.local.postgres import Server
from export_pipelines.local.up import up
from export_pipelines.settings import load_settings

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
        rest, _ = self.process.communicate(timeout=90)
        return rest, time.monotonic() - started


def server_answers(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=60) as answer:
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
    assert seconds < 90
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
