"""What a run costs before our code starts: Python, `import dagster`, this project's definitions, Dagster's own start.

Measured in new processes of this checkout, with its demo tables. A process that Dagster's launcher starts does the
same; its queue and daemon come before (dequeue_interval_seconds: 1 in the dagster.yaml of this project).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import say, spread, table
from benchmarks.server import Database
from export_pipelines.demo.flights import load

_PARTS = {
    "python": "Python starts",
    "dagster": "`import dagster`",
    "definitions": "our imports, and the definitions of this project",
    "asset": "Dagster: plan, events, resources, to the first line of our asset",
    "step": "export of 16 rows (two connections, file, sidecar, catalog)",
    "end": "Dagster: events of the result, end of the run",
}


def run(base: Database, pairs: int) -> str:
    """Measure; the result as Markdown."""
    load(base.source)
    taken: dict[str, list[float]] = {name: [] for name in _PARTS}
    folder = base.folder / "startup"
    for number in range(pairs):
        figures = _probe(base, folder / str(number))
        for name, value in figures.items():
            taken[name].append(value)
        say(f"startup {number + 1}/{pairs}: " + ", ".join(f"{k} {v:.2f} s" for k, v in figures.items()))
    whole = [sum(values) for values in zip(*taken.values(), strict=True)]
    lines = [[title, spread(taken[name]).text()] for name, title in _PARTS.items()]
    lines.append(["together", spread(whole).text()])
    base.run("DROP SCHEMA nycflights13 CASCADE")
    return f"{pairs} runs, in-process executor.\n\n" + table(["", "seconds: median (min–max)"], lines)


def _probe(base: Database, folder: Path) -> dict[str, float]:
    env = {
        **os.environ,
        "DATABASE_URL": base.source,
        "DAGSTER_PG_URL": base.catalog,
        "EXPORT_PATH": str(folder / "exports"),
        "ARCHIVE_URL": (folder / "archive").as_uri(),
        "EXPORT_PIPELINES_PROJECT": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-m", "benchmarks.startup_probe", str(time.time())]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return dict(json.loads(done.stdout))
