"""Load of a landed csv.gz against `gzip -dc | psql -c "COPY … FROM STDIN"` of the same file into an empty table.

Styles `append` (all text, and typed) are measured; then `shadow` of a file with 1 % of its rows changed, against the
typed load.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import in_own_process, peak_memory, ratios, say, seconds, spread, table
from benchmarks.server import Database, lineitem_csv
from export_pipelines.manifest import FileProof, LandedManifest
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.steps.load import LoadContext, load_file
from export_pipelines.stores.filesystem import FilesystemStore

TYPES = {
    "l_orderkey": "bigint", "l_partkey": "int", "l_suppkey": "int", "l_linenumber": "int",
    "l_quantity": "numeric(15,2)", "l_extendedprice": "numeric(15,2)", "l_discount": "numeric(15,2)",
    "l_tax": "numeric(15,2)", "l_returnflag": "char(1)", "l_linestatus": "char(1)", "l_shipdate": "date",
    "l_commitdate": "date", "l_receiptdate": "date", "l_shipinstruct": "char(25)", "l_shipmode": "char(10)",
    "l_comment": "varchar(44)",
}  # fmt: skip
_CHANGED = 100
"""Every so many-th row is another in the second file."""


def run(base: Database, pairs: int, scale: float) -> str:
    """Measure; the result as Markdown."""
    folder = base.folder / "loading"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "store").mkdir(parents=True)
    files = (
        make_file(folder / "store" / "1.csv.gz", scale),
        make_file(folder / "store" / "2.csv.gz", scale, changed=True),
    )
    theirs: dict[str, list[float]] = {"text": [], "typed": []}
    ours: dict[str, list[float]] = {"text": [], "typed": [], "shadow": []}
    peak = 0.0
    for number in range(pairs):
        for kind in ("text", "typed"):
            _empty(base, kind)
            theirs[kind].append(seconds(lambda: _psql(base, folder / "store" / files[0])))
            _forget(base)
            figures = _ours(base, folder, files[0], kind)
            ours[kind].append(figures["seconds"])
            peak = max(peak, figures["peak_mb"])
        _forget(base)
        _ours(base, folder, files[0], "shadow")
        figures = _ours(base, folder, files[1], "shadow", 2)
        ours["shadow"].append(figures["seconds"])
        peak = max(peak, figures["peak_mb"])
        say(f"load {number + 1}/{pairs}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in ours.items())
            + "; psql " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in theirs.items()) + f"; {peak:.0f} MB")  # fmt: skip
    _forget(base)
    size = (folder / "store" / files[0]).stat().st_size / 1e6
    shutil.rmtree(folder)
    lines = [
        ['`gzip -dc \\| psql -c "COPY … FROM STDIN"`, text', spread(theirs["text"]).text(), "1"],
        ["our load, `append`, text", spread(ours["text"]).text(), ratios(ours["text"], theirs["text"]).text()],
        ['`gzip -dc \\| psql -c "COPY … FROM STDIN"`, typed', spread(theirs["typed"]).text(), "1"],
        ["our load, `append`, typed", spread(ours["typed"]).text(), ratios(ours["typed"], theirs["typed"]).text()],
        ["our load, `shadow`, 1 % changed, against the line above", spread(ours["shadow"]).text(),
         ratios(ours["shadow"], ours["typed"]).text()],
    ]  # fmt: skip
    return (
        f"lineitem at scale {scale:g}, {size:.0f} MB as csv.gz; {pairs} pairs; bars: 1.2, and 1.5 of shadow; "
        f"peak memory {peak:.0f} MB.\n\n" + table(["", "seconds: median (min–max)", "ratio: median (min–max)"], lines)
    )


def make_file(path: Path, scale: float, *, changed: bool = False) -> str:
    """lineitem as csv.gz, some of its rows changed or not; the file's name."""
    with lineitem_csv(scale) as lines, gzip.open(path, "wb", 6) as out:
        for number, line in enumerate(lines):
            out.write(_changed(line) if changed and number and number % _CHANGED == 0 else line)
    return path.name


def _changed(line: bytes) -> bytes:
    """The line with another quantity."""
    fields = line.split(b",", 5)
    fields[4] = b"77"
    return b",".join(fields)


def _empty(base: Database, kind: str) -> None:
    columns = ", ".join(f"{name} {type_ if kind == 'typed' else 'text'}" for name, type_ in TYPES.items())
    base.run("DROP TABLE IF EXISTS lineitem_loaded", f"CREATE TABLE lineitem_loaded ({columns})", "CHECKPOINT")


def _forget(base: Database) -> None:
    base.run("DROP TABLE IF EXISTS lineitem_loaded", "DROP SCHEMA IF EXISTS bench CASCADE",
             "DROP SCHEMA IF EXISTS operations CASCADE", "CHECKPOINT")  # fmt: skip


def _psql(base: Database, file: Path) -> None:
    program = shlex.quote(str(base.programs / "psql"))
    copy = shlex.quote("COPY lineitem_loaded FROM STDIN CSV HEADER")
    line = f"gzip -dc {shlex.quote(str(file))} | {program} -X -q {shlex.quote(base.source)} -c {copy}"
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True)


def _ours(base: Database, folder: Path, file: str, kind: str, sequence: int = 1) -> dict[str, Any]:
    job = {"source": base.source, "folder": str(folder), "file": file, "kind": kind, "sequence": sequence}
    return in_own_process("benchmarks.load", job)


def main() -> None:
    """One load in a process of its own: what to do as JSON on stdin, figures on stdout."""
    job = json.load(sys.stdin)
    columns = {} if job["kind"] == "text" else {name: {"type": type_} for name, type_ in TYPES.items()}
    key = ["l_orderkey", "l_linenumber"] if job["kind"] == "shadow" else []
    spec = LoadSpec.model_validate({
        "source": {"type": "folder", "path": "/nowhere"}, "target": {"table": "bench.lineitem"}, "columns": columns,
        "style": "shadow" if key else "append",
    })  # fmt: skip
    definition = LoadDefinition(name="lineitem", group="bench", folder=Path(job["folder"]), spec=spec, version="1")
    path = Path(job["folder"]) / "store" / job["file"]
    sha256 = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
    size = path.stat().st_size
    proof = FileProof(key=job["file"], size=size, sha256=sha256, raw_size=size, raw_sha256=sha256)
    now = datetime.now(UTC)
    landed = LandedManifest(
        sequence=job["sequence"], previous_sha256="", table="bench/lineitem", written=now, run_id="", source="folder",
        name=job["file"], url="", file=proof, fetched=now,
    )  # fmt: skip
    ctx = LoadContext(definition, PostgresSource(job["source"]), FilesystemStore(path.parent))
    begun = time.perf_counter()
    result = load_file(ctx, landed)
    figures = {"seconds": time.perf_counter() - begun, "peak_mb": peak_memory(), "action": result.action}
    json.dump({**figures, "rows": result.rows}, sys.stdout)


if __name__ == "__main__":
    main()
