"""The whole export step against psql's bare COPY of the same table to nowhere."""

from __future__ import annotations

import shutil
import subprocess

from benchmarks.measure import ratios, say, seconds, spread, table
from benchmarks.server import Database, load_lineitem
from benchmarks.worker import in_own_process

_TEXT = "COPY (SELECT * FROM lineitem) TO STDOUT"
_CSV = "COPY (SELECT * FROM lineitem) TO STDOUT WITH (FORMAT csv, HEADER)"
# The least that an export with identities can take: what the server needs to write them.
_FLOOR = "COPY (SELECT xmin, ctid, * FROM lineitem) TO STDOUT WITH (FORMAT csv, HEADER)"


def psql(base: Database, command: str) -> None:
    """Run one COPY by psql, its output thrown away."""
    program = base.programs / "psql"
    subprocess.run([program, "-X", "-q", base.source, "-c", command], check=True, stdout=subprocess.DEVNULL)


def export_once(base: Database, name: str = "lineitem", compression: str = "gzip") -> dict[str, float]:
    """Export a table as its first generation, in a process of its own; nothing is left of it."""
    folder = base.folder / "files"
    shutil.rmtree(folder, ignore_errors=True)
    forget(base)
    job = {"source": base.source, "catalog": base.catalog, "folder": str(folder)}
    figures = in_own_process({**job, "step": "export", "table": name, "compression": compression})
    shutil.rmtree(folder)
    return figures


def forget(base: Database) -> None:
    """Empty the catalog, so that an export is a first one."""
    catalog = Database(base.catalog, base.catalog, base.programs, base.folder)
    tables = "export_pipelines.export, export_pipelines.chain_head, export_pipelines.cleanup"
    catalog.run(f"TRUNCATE {tables}, export_pipelines.cleanup_batch")


def run(base: Database, pairs: int, scale: float) -> str:
    """Measure; the result as Markdown."""
    rows = load_lineitem(base, scale)
    psql(base, _TEXT)  # both sides find the table in memory
    texts, csvs, floors, ours, whole, peak = [], [], [], [], [], 0.0
    for number in range(pairs):
        texts.append(seconds(lambda: psql(base, _TEXT)))
        figures = export_once(base)
        ours.append(figures["seconds"])
        whole.append(figures["process_seconds"])
        csvs.append(seconds(lambda: psql(base, _CSV)))
        floors.append(seconds(lambda: psql(base, _FLOOR)))
        peak = max(peak, figures["peak_mb"])
        say(f"export {number + 1}/{pairs}: psql {texts[-1]:.2f} s, csv {csvs[-1]:.2f} s, floor {floors[-1]:.2f} s, "
            f"ours {ours[-1]:.2f} s, process {whole[-1]:.2f} s, {figures['peak_mb']:.0f} MB")  # fmt: skip
    lines = [
        ['`psql -c "COPY … TO STDOUT"`', spread(texts).text(), "1"],
        ["the same with CSV and a header", spread(csvs).text(), ratios(csvs, texts).text()],
        ["the same with each row's xmin and ctid", spread(floors).text(), ratios(floors, texts).text()],
        ["our export step", spread(ours).text(), ratios(ours, texts).text()],
        [
            "our export step with its process's start (Python, imports)",
            spread(whole).text(),
            ratios(whole, texts).text(),
        ],
    ]
    size = f"{figures['raw'] / 1e6:.0f} MB of CSV, {figures['stored'] / 1e6:.0f} MB as csv.gz"
    return (
        f"{rows:,} rows, {size}, sidecar {figures['identity'] / 1e6:.1f} MB; {pairs} pairs; "
        f"peak memory of our process {peak:.0f} MB.\n\n"
        + table(["", "seconds: median (min–max)", "ratio of the pairs: median (min–max)"], lines)
    )
