"""Dumps of several tables at once: a process each, since a run needs a process's main thread, signals and streams."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export_pipelines.cli import output

if TYPE_CHECKING:
    from export_pipelines.specs.table import TableDefinition

_OPTIONS = {
    "start": "--start",
    "end": "--end",
    "batch": "--batch",
    "timezone": "--timezone",
    "page_rows": "--page-rows",
    "container": "--container",
    "folder": "--to",
    "batch_rows": "--batch-rows",
}


def dump_all(tables: Sequence[TableDefinition], config: dict[str, Any], parallel: int) -> list[dict[str, Any]]:
    """The results of all tables, in their order; at most `parallel` are at work at a time.

    An interruption ends all of them, and is raised when they have ended.
    """
    bar = output.bar()
    bar.start("dump", len(tables))
    children = _Children(config)
    with ThreadPoolExecutor(parallel, thread_name_prefix="dump") as pool:
        futures = [pool.submit(children.run, table.id) for table in tables]
        try:
            for number, future in enumerate(futures, start=1):
                future.result()
                bar.update(number, f"{number} of {output.count(len(tables), 'table')}")
        except BaseException:
            children.interrupt()
            bar.fail()
            raise
    bar.close()
    return [future.result() for future in futures]


class _Children:
    """The processes at work. They are in sessions of their own: Ctrl-C reaches them once, through us."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._options = [word for name, value in config.items() for word in (_OPTIONS[name], str(value))]
        self._lock = threading.Lock()
        self._at_work: set[subprocess.Popen[str]] = set()
        self._over = False

    def run(self, table: str) -> dict[str, Any]:
        """Dump one table, and wait for it."""
        program = "from export_pipelines.cli import main; main(prog_name='export-pipelines')"
        command = [sys.executable, "-c", program, "dump", table, *self._options, "--json"]
        with self._lock:
            if self._over:
                return _result(table, "", "not begun")
            process = subprocess.Popen(
                command,
                cwd=Path.cwd(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._at_work.add(process)
        out, err = process.communicate()
        with self._lock:
            self._at_work.discard(process)
        return _result(table, out, err)

    def interrupt(self) -> None:
        """Begin no more, and end those at work as Ctrl-C does."""
        with self._lock:
            self._over = True
            for process in self._at_work:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)


def _result(table: str, out: str, err: str) -> dict[str, Any]:
    try:
        (found,) = json.loads(out)
    except ValueError:
        lines = [line.removeprefix("error: ") for line in err.splitlines() if line.strip()]
        text = "\n".join(line for line in lines if not line.startswith("note:")) or "the process ended early"
        return {"table": table, "batches": 0, "rows": 0, "stored_bytes": 0, "done": [], "run": "", "errors": [text]}
    result: dict[str, Any] = found
    return result
