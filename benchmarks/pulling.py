"""Loading against dlt for the same csv.gz, and a pull of PostgreSQL into PostgreSQL against `psql COPY | psql COPY`.

dlt comes into an environment of its own, since its pins are not ours. It reads by DuckDB into Arrow and loads by COPY,
the fastest of its ways: with read_csv it takes some six times as long. Ours lands first in both, which is counted.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from benchmarks.load import TYPES, make_file
from benchmarks.measure import in_own_process, peak_memory, ratios, say, seconds, spread, table
from benchmarks.server import Database, load_lineitem
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.steps.land import LandContext, land
from export_pipelines.steps.load import LoadContext, load_file
from export_pipelines.steps.load_live import loads_live, pull_and_load
from export_pipelines.stores.filesystem import FilesystemStore

_DLT = ("dlt[filesystem,postgres]==1.31.0", "duckdb", "pyarrow")
_PIPELINE = """
import sys
import time
import dlt
from dlt.sources.filesystem import filesystem, read_csv_duckdb
folder, target = sys.argv[1:]
begun = time.perf_counter()
files = filesystem("file://" + folder, file_glob="1.csv.gz")
rows = (files | read_csv_duckdb(use_pyarrow=True, chunk_size=100_000)).with_name("lineitem")
destination = dlt.destinations.postgres(credentials=target)
pipeline = dlt.pipeline("lineitem", destination=destination, dataset_name="dlt_bench", pipelines_dir=folder + "/dlt")
pipeline.run(rows, loader_file_format="csv")
print(time.perf_counter() - begun)
"""


def run(base: Database, pairs: int, scale: float) -> str:
    """Measure; the result as Markdown."""
    folder = base.folder / "pulling"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "drop").mkdir(parents=True)
    load_lineitem(base, scale)
    make_file(folder / "drop" / "1.csv.gz", scale)
    python = _dlt(base.folder / "dlt")
    names = ("dlt", "file", "psql", "pull")
    took: dict[str, list[float]] = {name: [] for name in names}
    peak = 0.0
    for number in range(pairs):
        for name in names:
            _forget(base)
            shutil.rmtree(folder / "store", ignore_errors=True)
            shutil.rmtree(folder / "drop" / "dlt", ignore_errors=True)
            if name == "dlt":
                took[name].append(_run_dlt(python, folder / "drop", base))
            elif name == "psql":
                took[name].append(_psql(base))
            else:
                figures = _ours(base, folder, name)
                took[name].append(figures["seconds"])
                peak = max(peak, figures["peak_mb"])
        say(f"pulling {number + 1}/{pairs}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in took.items()))
    _forget(base)
    shutil.rmtree(folder)
    lines = [
        ["dlt: filesystem, read_csv_duckdb, COPY", spread(took["dlt"]).text(), "1"],
        ["ours: land and load, `append`, typed", spread(took["file"]).text(), ratios(took["file"], took["dlt"]).text()],
        ["`psql COPY TO \\| psql COPY FROM`", spread(took["psql"]).text(), "1"],
        ["ours: pull and load, `append`, typed", spread(took["pull"]).text(),
         ratios(took["pull"], took["psql"]).text()],
    ]  # fmt: skip
    return (
        f"lineitem at scale {scale:g}; {pairs} pairs; bars: 0.33 of dlt, 1.3 of psql; peak memory {peak:.0f} MB.\n\n"
        + table(["", "seconds: median (min–max)", "ratio: median (min–max)"], lines)
    )


def _dlt(folder: Path) -> Path:
    """The Python of an environment with dlt."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_DLT], check=True)
    return python


def _forget(base: Database) -> None:
    base.run("DROP SCHEMA IF EXISTS dlt_bench, dlt_bench_staging, bench, operations CASCADE",
             "DROP TABLE IF EXISTS lineitem_pulled", "CHECKPOINT")  # fmt: skip


def _run_dlt(python: Path, drop: Path, base: Database) -> float:
    done = subprocess.run([python, "-c", _PIPELINE, drop, base.source], check=True, stdout=subprocess.PIPE)
    (stored,) = base.run("SELECT count(*) FROM dlt_bench.lineitem")[0]
    (there,) = base.run("SELECT count(*) FROM lineitem")[0]
    assert stored == there, f"dlt loaded {stored} of {there} rows"
    return float(done.stdout.split()[-1])


def _psql(base: Database) -> float:
    columns = ", ".join(f"{name} {type_}" for name, type_ in TYPES.items())
    base.run(f"CREATE TABLE lineitem_pulled ({columns})")
    psql = f"{shlex.quote(str(base.programs / 'psql'))} -X -q {shlex.quote(base.source)} -c"
    line = f"{psql} 'COPY lineitem TO STDOUT' | {psql} 'COPY lineitem_pulled FROM STDIN'"
    return seconds(lambda: subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True))


def _ours(base: Database, folder: Path, kind: str) -> dict[str, float]:
    job = {"source": base.source, "folder": str(folder), "kind": kind}
    return in_own_process("benchmarks.pulling", job, SOURCE_URL=base.source)


def main() -> None:
    """Land and load in a process of its own: what to do as JSON on stdin, figures on stdout."""
    job = json.load(sys.stdin)
    folder = Path(job["folder"])
    file = {"type": "folder", "path": str(folder / "drop"), "pattern": "1.csv.gz", "settle_seconds": 0}
    pull = {"type": "database", "url": {"env": "SOURCE_URL"}, "table": "lineitem"}
    spec = LoadSpec.model_validate({
        "source": file if job["kind"] == "file" else pull, "target": {"table": "bench.lineitem"}, "style": "append",
        "columns": {name: {"type": type_} for name, type_ in TYPES.items()},
    })  # fmt: skip
    definition = LoadDefinition(name="lineitem", group="bench", folder=folder, spec=spec, version="1")
    (folder / "store").mkdir(exist_ok=True)
    store = FilesystemStore(folder / "store")
    begun = time.perf_counter()
    landing, loading = LandContext(definition, store), LoadContext(definition, PostgresSource(job["source"]), store)
    if job["kind"] == "pull":
        assert loads_live(loading, [])
        result = pull_and_load(landing, loading).load
        assert result is not None
    else:
        (landed,) = land(landing).landed
        result = load_file(loading, landed)
    figures = {"seconds": time.perf_counter() - begun, "rows": result.rows}
    print(f"{job['kind']}: {figures}", file=sys.stderr)
    json.dump({**figures, "peak_mb": peak_memory()}, sys.stdout)


if __name__ == "__main__":
    main()
