"""A small project that is up, with a browser to click in its UI."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import Browser, Page, expect, sync_playwright

from export_pipelines.local import binaries
from export_pipelines.local.children import free_port, group_commands, port_is_free
from export_pipelines.local.postgres import Server
from export_pipelines.settings import load_settings
from tests.support.dagster_project import Folder, new_project, query

WORKSPACE = """
load_from:
  - python_module:
      module_name: export_pipelines.definitions
      working_directory: .
      location_name: ui_project
"""

DAYS = 10
ROWS = 200
"""Rows on each of the DAYS partitions of EVENTS."""

EVENTS = f"""
type: export_pipelines.ExportTable
attributes:
  table: public.events
  time_column: at
  partitions: {{every: day, start: 2025-01-01, end: 2025-01-{DAYS + 1:02}, single_run: true}}
  cleanup: after_archive
  owners: ["team:data"]
"""

# 5000 rows of 20 ms and 64 kB each, which leave the server as they are made: a file grows while the run is terminated.
# They are in every partition, so that the latest can be chosen, whatever day it is.
SLOW = """
type: export_pipelines.ExportTable
attributes:
  partitions: {every: day, start: 2025-01-01}
"""
SLOW_SELECT = """
SELECT id, note, pg_sleep(0.02)::text AS slept FROM slow WHERE %(window_start)s < %(window_end)s
"""

# `partitons` is on its third line.
BROKEN = """
type: export_pipelines.ExportTable
attributes:
  partitons: {every: day, start: 2025-01-01}
  table: public.events
"""

# One row lies before the first partition and one after the last: no statement with bounds ever meets them.
TABLES = f"""
CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text);
INSERT INTO events SELECT d * 1000 + n, timestamptz '2025-01-01 00:00+00' + d * interval '1 day'
    + n * interval '1 minute', 'row ' || n FROM generate_series(0, {DAYS - 1}) d, generate_series(1, {ROWS}) n;
INSERT INTO events VALUES (-1, '2024-12-31 23:59:59+00', 'outside'), (-2, '2025-01-{DAYS + 1:02} 00:00+00', 'outside');
CREATE TABLE slow (id bigint PRIMARY KEY, note text);
INSERT INTO slow SELECT n, repeat(md5(n::text), 2000) FROM generate_series(1, 5000) n;
"""

Answer = TypeVar("Answer")


class UiError(Exception):
    """What the tests of the UI stand on does not stand."""


def wait_for(condition: Callable[[], Answer], what: str, *, seconds: float = 90) -> Answer:
    """Ask again and again until the answer is true; return it."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise UiError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    return answer


@dataclass(frozen=True)
class RunningProject:
    """A project that is up."""

    root: Path
    port: int
    database: str
    """URL of the source."""

    @property
    def exports(self) -> Path:
        return self.root / ".local" / "exports"

    @property
    def server_log(self) -> Path:
        return self.root / ".local" / "postgres" / "server.log"

    def url(self, path: str) -> str:
        """Address of a page of the UI."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def graphql(self, text: str, **variables: object) -> Any:
        """`data` of the answer to a GraphQL query."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(self.url("graphql"), body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        if "errors" in found:
            raise UiError(str(found["errors"]))
        return found["data"]

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Rows of a query to the source."""
        return query(self.database, sql)


@contextmanager
def running_project() -> Iterator[RunningProject]:
    """Run `export-pipelines up` on a new project, as in a terminal; at the end nothing of it may be left.

    The folder is no `tmp_path`: the embedded server runs as another user when we are root, and must get in.
    """
    root = Path(tempfile.mkdtemp(prefix="export-pipelines-"))
    root.chmod(0o711)
    try:
        _write_project(root)
        with _up(root) as project:
            yield project
    finally:
        Server(root / ".local" / "postgres").stop()
        for made in [root, *binaries.data_folders(root / ".local" / "postgres")]:
            binaries.remove(made)


def _write_project(root: Path) -> Folder:
    folder = new_project(root)
    folder.write("workspace.yaml", WORKSPACE)
    folder.write("assets/demo/events/defs.yaml", EVENTS)
    folder.write("assets/slow/slow/defs.yaml", SLOW)
    folder.write("assets/slow/slow/select.sql", SLOW_SELECT)
    folder.write("assets/demo/misspelt/defs.yaml", BROKEN)
    return folder


@contextmanager
def _up(root: Path) -> Iterator[RunningProject]:
    port = free_port()
    command = [sys.executable, "-m", "export_pipelines.cli", "up", "--port", str(port), "--no-open", "--no-api"]
    with (root / "up.out").open("wb") as out:
        process = subprocess.Popen(command, cwd=root, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: _says_where(process, root, port), "`export-pipelines up` says where it is", seconds=240)
        database = load_settings(root).database_url or ""
        # All that the source is asked is in the log of its server.
        query(database, "ALTER DATABASE source SET log_statement = 'all'; " + TABLES)
        group = int((root / ".local" / "up.lock").read_text().split()[1])
        yield RunningProject(root, port, database)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _nothing_left(root, process, group, port)
    finally:
        process.kill()
        process.wait()


def _says_where(process: subprocess.Popen[bytes], root: Path, port: int) -> bool:
    said = (root / "up.out").read_text()
    if process.poll() is not None:
        raise UiError(f"`export-pipelines up` ended with code {process.returncode}:\n{said}")
    return f"http://127.0.0.1:{port}" in said


def _nothing_left(root: Path, process: subprocess.Popen[bytes], group: int, port: int) -> None:
    said = (root / "up.out").read_text()
    address = json.loads((root / ".local" / "postgres" / "server.json").read_text())
    assert process.returncode == 0, said
    assert said.endswith("stopped\n"), said
    assert group_commands(group) == []
    assert port_is_free(port)
    assert port_is_free(int(address["port"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; where it is missing the test fails."""
    path = shutil.which("chromium")
    if path is None:
        raise UiError("chromium is missing; hint: run scripts/debian-packages.sh")
    # Neither the sandbox nor /dev/shm works for root in a container.
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Browser, pictures: Path) -> Iterator[Page]:
    """A page of one's own; what it showed when the test failed is saved as a picture."""
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    page = context.new_page()
    # A busy machine takes its time; each wait ends as soon as it can.
    page.set_default_timeout(90_000)
    expect.set_options(timeout=90_000)
    try:
        yield page
    except BaseException:
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / "failed.png", full_page=True)
        (pictures / "failed.html").write_text(page.content(), encoding="utf-8")
        raise
    finally:
        context.close()


def without_proxy() -> None:
    """Let neither us nor the browser ask a proxy of the environment for our own pages."""
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
