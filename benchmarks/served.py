"""Projects of their own, and our command line in them, for benchmarks of what runs as a service."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.server import Database

WORKSPACE = "load_from: [python_module: {module_name: export_pipelines.definitions, working_directory: .}]\n"
RESOURCES = """
type: export_pipelines.PostgresConnection
attributes: {resource_key: source, url: {env: DATABASE_URL}}
---
type: export_pipelines.FilesystemStore
attributes: {resource_key: exports, path: {env: EXPORT_PATH}}
---
type: export_pipelines.CatalogDatabase
attributes: {url: {env: DAGSTER_PG_URL}}
"""
OURS = [sys.executable, "-u", "-m", "export_pipelines.cli"]
"""The command line. What it prints can be read at once."""


def write_project(root: Path, files: Mapping[str, str]) -> None:
    """Write files below a folder; their paths are the keys."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def environment(base: Database) -> dict[str, str]:
    """Of our programs: the databases, and no proxy between us and ourselves."""
    return {**os.environ, "DATABASE_URL": base.source, "DAGSTER_PG_URL": base.catalog, "NO_PROXY": "127.0.0.1"}


@contextmanager
def running(base: Database, root: Path, *command: str, ready: Callable[[bytes], object]) -> Iterator[int]:
    """Run a command of ours in a project until the end, from when `ready` says so of what it has printed: its process.

    Raises:
        RuntimeError: it ended before, with what it printed.
    """
    log = root / f"{command[0]}.out"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*OURS, *command], cwd=root, env=environment(base), stdout=out, stderr=subprocess.STDOUT
        )
    try:
        while not ready(log.read_bytes()):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def processes_below(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        yield each
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            waiting += [int(child) for child in task.read_text().split()]
