"""A project with data sets whose worker runs in a process of its own, as people have it; without Dagster's daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import Asked, RequestRow, Requests
from export_pipelines.components.warm_launcher import ask_worker
from export_pipelines.settings import load_settings
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.query import RawFilter, parse_query
from tests.support.dagster_project import Folder, new_project
from tests.support.servers import run_sql

NUMBERS = """
type: export_pipelines.DataSet
attributes:
  table: public.numbers
  filters: {n: {type: integer}}
  order_by: [n]
  version_of: some/asset
"""
SLOW = """
type: export_pipelines.DataSet
attributes:
  description: A hundred rows a second.
  filters: {n: {type: integer}}
  version_of: some/asset
"""
SLOW_SQL = "SELECT n, text, (SELECT 1 FROM pg_sleep(0.01 + n * 0)) AS one FROM public.numbers ORDER BY n\n"
BROKEN_SQL = "SELECT n, 1 / (n - 500) AS x FROM public.numbers ORDER BY n\n"
WORKSPACE = """
load_from:
  - python_module: {module_name: export_pipelines.definitions, working_directory: ., location_name: served}
"""
IMPATIENT = """
import socket, sys
if sys.argv[2:]:
    socket.gethostname = lambda: sys.argv[2]
from export_pipelines.local.project import running
from export_pipelines.settings import load_settings
from export_pipelines.worker.main import work
with running(load_settings()) as settings:
    work(settings, say=print, silent_seconds=float(sys.argv[1]))
"""
ENDED = ("succeeded", "failed", "cancelled")


def until(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)
    return found


@dataclass
class Served:
    """The project. `worker` is the process, while there is one."""

    folder: Folder
    source: str
    storage: str
    worker: subprocess.Popen[bytes] | None = None
    round_robin: bool = False
    """Whether users take turns, as the API hands on from the service's settings."""
    _pool: CatalogPool = field(init=False)
    _datasets: dict[str, DataSetDefinition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = CatalogPool(self.storage, size=4)

    @property
    def root(self) -> Path:
        return self.folder.root

    @property
    def requests(self) -> Requests:
        return Requests(self._pool)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the project."""
        own = {
            "DATABASE_URL": self.source,
            "DAGSTER_PG_URL": self.storage,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        return {**os.environ, **own, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}

    @property
    def log(self) -> Path:
        return self.root / "worker.out"

    @property
    def socket(self) -> Path:
        from export_pipelines.local.project import worker_socket

        return worker_socket(load_settings(self.root))

    def start(self, *, silent: float | None = None, host: str = "", **more: str) -> None:
        """Start the worker, and wait until it takes requests. `silent` are the seconds after which one is stuck, with
        them it may take its machine for another one, `host`."""
        begun = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "export_pipelines.cli", "worker"]
        if silent is not None:
            command = [sys.executable, "-u", "-c", IMPATIENT, str(silent), *([host] if host else [])]
        with self.log.open("ab") as out:
            self.worker = subprocess.Popen(
                command, cwd=self.root, env={**self.environment, **more}, stdout=out, stderr=subprocess.STDOUT
            )

        def ready() -> bool:
            assert self.worker is not None and self.worker.poll() is None, self.said()
            return b"ready" in self.log.read_bytes()[begun:]

        until(ready, "the worker to be ready", 120)

    def stop(self, kind: int = signal.SIGTERM) -> int:
        """End the worker; its exit code."""
        if self.worker is None:
            return 0
        self.worker.send_signal(kind)
        code = self.worker.wait(90)
        self.worker = None
        return code

    def vanish(self) -> None:
        """Let the worker and all of its processes go away at once, as when a machine fails: none says a word."""
        assert self.worker is not None
        os.kill(self.worker.pid, signal.SIGSTOP)
        for warm, children in self.processes().items():
            os.kill(warm, signal.SIGSTOP)
            for each in [*children, warm]:
                os.kill(each, signal.SIGKILL)
        self.stop(signal.SIGKILL)

    def said(self) -> str:
        """The worker's log."""
        return self.log.read_text() if self.log.exists() else ""

    def ask(
        self, dataset: str = "g/numbers", *filters: RawFilter, user: str = "ann", secret: bytes = b"s" * 32, **more: Any
    ) -> RequestRow:
        """Ask as the API does, a request a question."""
        return self.ask_of(self.dataset(dataset), *filters, user=user, secret=secret, **more)

    def ask_of(
        self, dataset: DataSetDefinition, *filters: RawFilter, user: str = "ann", secret: bytes = b"s" * 32, **more: Any
    ) -> RequestRow:
        """Ask of a definition, which the project may have no more."""
        query = parse_query(dataset, filters=filters, **more)
        asked = Asked(Actor(user, "192.0.2.1"))
        return self.requests.ask(query, "1", asked, secret=secret, round_robin=self.round_robin)[0]

    def upto(self, n: int, dataset: str = "g/numbers", **more: Any) -> RequestRow:
        """Ask for the numbers up to one."""
        return self.ask(dataset, RawFilter("n", "le", n), **more)

    def dataset(self, name: str) -> DataSetDefinition:
        if name not in self._datasets:
            self._datasets = self.folder.load().datasets
        return self._datasets[name]

    def row(self, request: str) -> RequestRow:
        found = self.requests.get(request)
        assert found is not None
        return found

    def state(self, request: str) -> str:
        return self.row(request).state

    def ended(self, request: str, seconds: float = 90) -> RequestRow:
        """Wait for the end of a request."""

        def over() -> RequestRow | None:
            row = self.row(request)
            return row if row.state in ENDED else None

        try:
            found: RequestRow = until(over, f"request {request} to end", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.row(request)}\n{self.said()[-3000:]}") from None
        return found

    def working(self, request: str) -> RequestRow:
        """Wait until a request is at work on its query."""

        def at_work() -> RequestRow | None:
            row = self.row(request)
            assert row.state not in ENDED, row
            return row if row.state == "processing" and self.reads() else None

        found: RequestRow = until(at_work, f"request {request} to be at work")
        return found

    def reads(self) -> bool:
        """Whether the slow query is under way."""
        sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query ~ %s"
        return bool(run_sql(self.source, sql, ("pg_slee[p]",)))

    def run_status(self, run: str | None) -> str:
        """Status of a run in Dagster."""
        found = run_sql(self.storage, "SELECT status FROM runs WHERE run_id = %s", (run,))
        return str(found[0][0]) if found else ""

    def runs_of(self, request: str) -> list[str]:
        """Ids of all runs of a request, oldest first."""
        found = run_sql(
            self.storage,
            "SELECT run_id FROM run_tags WHERE key = 'export_pipelines/request' AND value = %s ORDER BY id",
            (request,),
        )
        return [str(each[0]) for each in found]

    def files(self) -> list[Path]:
        """Files of requests in the store; not what a broken-off attempt left, which is swept."""
        folder = self.root / ".local" / "exports" / "requests"
        return sorted(each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))

    def processes(self) -> dict[int, list[int]]:
        """Warm processes of the worker, with their children."""
        assert self.worker is not None
        return {each: children_of(each) for each in children_of(self.worker.pid)}

    def executing(self, request: str) -> int:
        """Process that executes a request."""
        run = self.row(request).run_id
        found = run_sql(self.storage, "SELECT event FROM event_logs WHERE run_id = %s", (run,))
        pids = {pid for each in found if (pid := json.loads(each[0])["dagster_event"]["pid"])}
        assert pids, found
        return int(pids.pop())

    def tell(self, **question: Any) -> dict[str, Any]:
        """Ask the worker as Dagster's launcher does."""
        return ask_worker(self.socket, question)


@contextmanager
def elsewhere(here: Served, root: Path) -> Iterator[Served]:
    """The same project on another machine, without a worker yet: its files and its keys in another folder, and the same
    databases. What is in EXPORT_PATH both have."""
    shutil.copytree(here.root, root, ignore=shutil.ignore_patterns(".local", "worker.out"))
    shutil.copytree(here.root / ".local/keys", root / ".local/keys")
    made = Served(Folder(root), here.source, here.storage)
    try:
        yield made
    finally:
        made.stop()
        made._pool.close()


def children_of(pid: int) -> list[int]:
    """Processes that a process has started and that are there."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(each) for each in task.read_text().split()]
    return found


@contextmanager
def served(root: Path, source: str, storage: str, *, service: str = "", rows: int = 5_000) -> Iterator[Served]:
    """A project with the data sets `g/numbers`, `g/slow` and `g/broken`, without its worker running yet. `service` are
    attributes of the service."""
    folder = new_project(root)
    folder.write("workspace.yaml", WORKSPACE)
    folder.write("assets/g/numbers/defs.yaml", NUMBERS)
    folder.write("assets/g/slow/defs.yaml", SLOW)
    folder.write("assets/g/slow/select.sql", SLOW_SQL)
    folder.write("assets/g/broken/defs.yaml", SLOW)
    folder.write("assets/g/broken/select.sql", BROKEN_SQL)
    folder.write("resources/service/defs.yaml", f"type: export_pipelines.Service\nattributes: {{{service}}}\n")
    run_sql(source, "CREATE TABLE IF NOT EXISTS numbers (n bigint PRIMARY KEY, text text)")
    run_sql(source, "INSERT INTO numbers SELECT n, 'number ' || n FROM generate_series(1, %s) n", (rows,))
    made = Served(folder, source, storage)
    try:
        yield made
    finally:
        made.stop()
        made._pool.close()
