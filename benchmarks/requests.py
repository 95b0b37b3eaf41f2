"""Exports on demand: from the request to the file, one at a time, and many in the queue.

The worker of a project of its own, as `export-pipelines worker` has it; Dagster's daemon and web server are not needed
for a request and do not run. What the API adds is not measured here.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.measure import say, spread, table
from benchmarks.served import RESOURCES, WORKSPACE, processes_below, running, write_project
from benchmarks.server import Database
from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.migrate import migrate
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import Asked, RequestRow, Requests
from export_pipelines.components.project import load_project
from export_pipelines.specs.query import parse_query

_ROWS = 80_000
_FILES = {
    "workspace.yaml": WORKSPACE,
    "assets/bench/orders/defs.yaml": "type: export_pipelines.DataSet\nattributes: {table: public.orders_on_demand}\n",
    "resources/defs.yaml": RESOURCES,
}
_LIVE = ("pending", "processing")


def run(base: Database, pairs: int, most: int = 1_000) -> str:
    """Measure; the result as Markdown. `most` requests are queued at the end."""
    root = base.folder / "requests"
    write_project(root, _FILES)
    columns = ", ".join(f"n % {1000 + c} AS c{c}" for c in range(19))
    base.run("DROP TABLE IF EXISTS orders_on_demand")
    base.run(f"CREATE TABLE orders_on_demand AS SELECT n, {columns} FROM generate_series(1, {_ROWS}) n")
    migrate(base.catalog, "export_pipelines")
    pool = CatalogPool(base.catalog)
    try:
        with running(base, root, "worker", ready=lambda said: b"ready" in said) as worker:
            return _measure(Asking(root, Requests(pool)), worker, pairs, most)
    finally:
        pool.close()


class Asking:
    """Asks, each time another question, and waits."""

    def __init__(self, root: Path, requests: Requests) -> None:
        self._dataset = load_project(root, automations=False).datasets["bench/orders"]
        self._requests = requests
        self._number = 0

    def ask(self, rows: int) -> RequestRow:
        self._number += 1
        query = parse_query(self._dataset, limit=rows)
        row, _ = self._requests.ask(query, str(self._number), Asked(Actor("bench")), secret=b"bench", max_pending=10**6)
        return row

    def seconds(self, rows: int) -> tuple[float, float]:
        """From the request to the beginning of its work, and to its file."""
        row = self.ask(rows)
        while (found := self._requests.get(row.id)) and found.live:
            time.sleep(0.01)
        if found is None or found.state != "succeeded" or not found.started_at or not found.finished_at:
            raise RuntimeError(f"the request did not succeed: {found}")
        return (
            (found.started_at - found.created_at).total_seconds(),
            (found.finished_at - found.created_at).total_seconds(),
        )

    def many(self, number: int) -> tuple[float, int]:
        """So many at once: seconds until all have ended, and how many succeeded."""
        begun = time.perf_counter()
        rows = [self.ask(1 + n) for n in range(number)]
        last = rows[-1].number
        while live := self._requests.find(states=_LIVE, limit=1):
            say(f"queued: {self._requests.place(live[0]) if live[0].state == 'pending' else 0} left")
            time.sleep(2)
        taken = time.perf_counter() - begun
        ended = [
            row for start in range(0, number, 500) for row in self._requests.many([r.id for r in rows[start:][:500]])
        ]
        assert max(row.number for row in ended) == last
        return taken, sum(row.state == "succeeded" and row.attempts == 1 for row in ended)


def _measure(asking: Asking, worker: int, pairs: int, most: int) -> str:
    lines = []
    asking.seconds(10)
    for rows in (1_000, 80_000):
        taken = []
        for _ in range(pairs * 4 if rows == 1_000 else pairs):
            # The next child is forked ahead meanwhile, as it is between people.
            time.sleep(0.5)
            taken.append(asking.seconds(rows))
        begun, whole = spread([each[0] for each in taken]), spread([each[1] for each in taken])
        lines.append([f"{rows:,} rows x 20 columns", begun.text(), whole.text()])
        say(f"requests of {rows:,} rows: {begun.text()} s, {whole.text()} s")
    seconds, succeeded = asking.many(most)
    rate = f"{most / seconds:.1f} a second, 3 at a time"
    return table(["", "begun after: median (min–max) s", "file after"], lines) + (
        f"\n{most:,} requests of up to {most:,} rows, asked at once: {succeeded:,} answered at the first attempt, "
        f"each once, in {seconds:.0f} s ({rate}).\n\n"
        f"Memory (PSS) of the worker, its warm process and a child that waits: {_memory(worker):.0f} MB.\n"
    )


def _memory(pid: int) -> float:
    """Proportional share of a process and all below it, in MB."""
    total = 0.0
    for each in processes_below(pid):
        rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
        total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) * 1024 / 1e6
    return total
