"""verify of an archive against `gzip -dc | sha256sum` of the same files on one core, and on all cores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import ratios, say, seconds, spread, table
from benchmarks.project import context, snapshot
from benchmarks.server import Database, load_lineitem
from export_pipelines.steps.archive import archive_partition
from export_pipelines.steps.export import export_partition
from export_pipelines.windows import SNAPSHOT, Window

PARTS = 8


def archive_lineitem(base: Database, scale: float) -> Path:
    """Archive lineitem in PARTS files of about the same size, unless that was done; the archive's folder."""
    folder = base.folder / f"verify-{scale:g}"
    if (folder / "done").exists():
        return folder / "archive"
    shutil.rmtree(folder, ignore_errors=True)
    load_lineitem(base, scale)
    for part in range(PARTS):
        name = f"lineitem_{part}"
        base.run(
            f"DROP TABLE IF EXISTS {name}",
            f"CREATE TABLE {name} AS SELECT * FROM lineitem WHERE l_orderkey / 32 % {PARTS} = {part}",
        )
        ctx = context(base.source, base.catalog, folder, snapshot(name))
        export_partition(ctx, Window(SNAPSHOT))
        archive_partition(ctx, Window(SNAPSHOT))
        base.run(f"DROP TABLE {name}")
    (folder / "done").touch()
    return folder / "archive"


def peer(files: Sequence[Path], cores: set[int]) -> None:
    """Unpack all files and hash what comes out, on some cores."""
    names = " ".join(str(file) for file in files)
    command = ["sh", "-c", f"for file in {names}; do gzip -dc $file | sha256sum; done"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, cores))


def ours(archive: Path, jobs: int, cores: set[int]) -> float:
    """Verify on some cores; the seconds of the work itself, without the start of Python."""
    command = [sys.executable, "-m", "export_pipelines.cli", "verify", "--archive", str(archive), "--json"]
    done = subprocess.run(
        [*command, "--jobs", str(jobs)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    # All tables are worked on at the same time: the longest took as long as all.
    return max(float(each["seconds"]) for each in json.loads(done.stdout))


def run(base: Database, pairs: int, scale: float) -> str:
    """Measure; the result as Markdown."""
    archive = archive_lineitem(base, scale)
    files = sorted(archive.rglob("*.csv.gz"))
    every = os.sched_getaffinity(0)
    one = {min(every)}
    peer(files, one)  # both sides find the files in memory
    peers, whole, work, wide, widework = [], [], [], [], []
    for number in range(pairs):
        peers.append(seconds(lambda: peer(files, one)))
        whole.append(seconds(lambda: work.append(ours(archive, 1, one))))
        wide.append(seconds(lambda: widework.append(ours(archive, len(every), every))))
        say(f"verify {number + 1}/{pairs}: gzip | sha256sum {peers[-1]:.2f} s, ours {whole[-1]:.2f} s (work "
            f"{work[-1]:.2f} s), {len(every)} processes {wide[-1]:.2f} s (work {widework[-1]:.2f} s)")  # fmt: skip
    lines = [
        ["`gzip -dc \\| sha256sum` of all files, one core", spread(peers).text(), "1"],
        ["our verify, one core", spread(whole).text(), ratios(peers, whole).text()],
        ["the same without the start of Python", spread(work).text(), ratios(peers, work).text()],
        [f"our verify, {len(every)} processes on {len(every)} cores", spread(wide).text(), ratios(peers, wide).text()],
        ["the same without the start of Python", spread(widework).text(), ratios(peers, widework).text()],
    ]
    size = sum(file.stat().st_size for file in files) / 1e6
    return (
        f"{len(files)} files of lineitem at scale {scale:g}, {size:.0f} MB as csv.gz; {pairs} pairs; bar: 0.8 × the "
        "peer's speed on one core. Ours also reads sidecars, counts records and digests each.\n\n"
        + table(["", "seconds: median (min–max)", "speed, the peer's being 1: median (min–max)"], lines)
    )
