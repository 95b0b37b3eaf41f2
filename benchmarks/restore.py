"""Restore of a partition against `gzip -dc | psql -c "COPY … FROM STDIN"` of the same file, into equal empty tables."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from benchmarks.export import forget
from benchmarks.measure import ratios, say, seconds, spread, table
from benchmarks.server import Database, load_lineitem
from benchmarks.worker import in_own_process

INTO = "lineitem_restored"


def run(base: Database, pairs: int, scale: float) -> str:
    """Measure; the result as Markdown."""
    rows = load_lineitem(base, scale)
    folder = base.folder / "restoring"
    shutil.rmtree(folder, ignore_errors=True)
    forget(base)
    job = {"source": base.source, "catalog": base.catalog, "folder": str(folder), "table": "lineitem"}
    for step in ("export", "archive"):
        in_own_process({**job, "step": step})
    (file,) = (folder / "archive").rglob("*.csv.gz")
    theirs, ours, whole, peak = [], [], [], 0.0
    for number in range(pairs):
        _empty(base)
        theirs.append(seconds(lambda: _psql(base, file)))
        _empty(base)
        figures = in_own_process({**job, "step": "restore"})
        ours.append(figures["seconds"])
        whole.append(figures["process_seconds"])
        peak = max(peak, figures["peak_mb"])
        say(f"restore {number + 1}/{pairs}: psql {theirs[-1]:.2f} s, ours {ours[-1]:.2f} s, "
            f"process {whole[-1]:.2f} s, {figures['peak_mb']:.0f} MB")  # fmt: skip
    assert base.run(f"SELECT count(*) FROM {INTO}") == [(rows,)]
    base.run(f"DROP TABLE {INTO}")
    size = file.stat().st_size / 1e6
    shutil.rmtree(folder)
    lines = [
        ['`gzip -dc \\| psql -c "COPY … FROM STDIN"`', spread(theirs).text(), "1"],
        ["our restore step", spread(ours).text(), ratios(ours, theirs).text()],
        ["our restore step with its process's start", spread(whole).text(), ratios(whole, theirs).text()],
    ]
    return f"{rows:,} rows, {size:.0f} MB as csv.gz; {pairs} pairs; bar: 1.2; peak memory {peak:.0f} MB.\n\n" + table(
        ["", "seconds: median (min–max)", "ratio of the pairs: median (min–max)"], lines
    )


def _empty(base: Database) -> None:
    base.run(f"DROP TABLE IF EXISTS {INTO}", f"CREATE TABLE {INTO} (LIKE lineitem)", "CHECKPOINT")


def _psql(base: Database, file: Path) -> None:
    copy = f"COPY {INTO} FROM STDIN CSV HEADER"
    program = shlex.quote(str(base.programs / "psql"))
    line = f"gzip -dc {shlex.quote(str(file))} | {program} -X -q {shlex.quote(base.source)} -c {shlex.quote(copy)}"
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True)
