"""The greatest memory of each step at growing sizes of one partition: it must not grow with them."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.export import forget
from benchmarks.measure import say, table
from benchmarks.server import Database
from benchmarks.worker import in_own_process

STEPS = ("export", "archive", "verify", "restore", "cleanup")


def run(base: Database, rows: int) -> str:
    """Measure a hundredth, a tenth and all of `rows`; the result as Markdown."""
    sizes = [rows // 100, rows // 10, rows]
    figures = [_measure(base, size) for size in sizes]
    lines = [
        [step, *(f"{found[step]['peak_mb']:.0f} MB, {found[step]['seconds']:.1f} s" for found in figures)]
        for step in STEPS
    ]
    return table(["", *(f"{size:,} rows" for size in sizes)], lines)


def _measure(base: Database, rows: int) -> dict[str, dict[str, Any]]:
    """Figures of each step on a table of so many rows, each in a process of its own."""
    folder = base.folder / "growing"
    shutil.rmtree(folder, ignore_errors=True)
    forget(base)
    base.run(
        "DROP TABLE IF EXISTS growing, growing_restored",
        # Nothing that is measured depends on the write-ahead log, and without it this is done in half the time.
        "CREATE UNLOGGED TABLE growing (id bigint, note text) WITH (autovacuum_enabled = false)",
        f"INSERT INTO growing SELECT n, 'note ' || n % 1000 FROM generate_series(1, {rows}) AS n",
    )
    job = {"source": base.source, "catalog": base.catalog, "folder": str(folder), "table": "growing"}
    found = {}
    for step in STEPS:
        found[step] = in_own_process({**job, "step": step})
        say(f"memory, {rows} rows: {step} {found[step]['peak_mb']:.0f} MB, {found[step]['seconds']:.1f} s")
        base.run("DROP TABLE IF EXISTS growing_restored")
    (left,) = base.run("SELECT count(*) FROM growing")[0]
    assert left == 0, f"{left} rows were not cleaned up"
    base.run("DROP TABLE growing")
    shutil.rmtree(folder)
    return found
