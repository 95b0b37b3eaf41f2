"""A year of daily partitions, one after the other in one process, against as many bare COPYs through one connection."""

from __future__ import annotations

import io
import shutil
from contextlib import closing
from functools import partial

import psycopg2

from benchmarks.export import forget
from benchmarks.measure import say, seconds, spread, table
from benchmarks.project import context, flights
from benchmarks.server import Database
from export_pipelines.demo.flights import load
from export_pipelines.steps.archive import archive_partition
from export_pipelines.steps.cleanup import cleanup_partition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.export import export_partition
from export_pipelines.windows import Window, windows_between


class _Nowhere(io.RawIOBase):
    """Takes what COPY gives and keeps nothing."""

    def write(self, data: object) -> int:
        return len(data)  # type: ignore[arg-type]


def run(base: Database, pairs: int) -> str:
    """Measure; the result as Markdown."""
    load(base.source)
    spec = flights().spec.partitions
    windows = windows_between(spec, "2013-01-01", "2013-12-31")
    bare, ours = [], []
    for number in range(pairs):
        bare.append(seconds(lambda: _bare(base, windows)))
        forget(base)
        folder = base.folder / "year"
        shutil.rmtree(folder, ignore_errors=True)
        ctx = context(base.source, base.catalog, folder, flights())
        ours.append(seconds(partial(_export, ctx, windows)))
        say(f"partitions {number + 1}/{pairs}: COPYs {bare[-1]:.2f} s, exports {ours[-1]:.2f} s, "
            f"{(ours[-1] - bare[-1]) / len(windows) * 1000:.1f} ms more a partition")  # fmt: skip
    archived = seconds(lambda: [archive_partition(ctx, window) for window in windows])
    cleaned = seconds(lambda: [cleanup_partition(ctx, window) for window in windows])
    left = base.run("SELECT count(*) FROM nycflights13.flights")[0][0]
    base.run("DROP SCHEMA nycflights13 CASCADE")
    shutil.rmtree(folder)
    more = spread([(a - b) / len(windows) * 1000 for a, b in zip(ours, bare, strict=True)])
    lines = [
        ["365 bare COPYs", spread(bare).text(), ""],
        ["365 exports", spread(ours).text(), more.text(1)],
        ["365 archives (once)", f"{archived:.2f}", f"{archived / len(windows) * 1000:.1f}"],
        [f"365 cleanups (once; {left} rows left)", f"{cleaned:.2f}", f"{cleaned / len(windows) * 1000:.1f}"],
    ]
    head = ["", "seconds: median (min–max)", "ms a partition, beyond the COPYs: median (min–max)"]
    return f"{pairs} pairs; bar: 60 ms a partition beyond the COPYs.\n\n" + table(head, lines)


def _bare(base: Database, windows: list[Window]) -> None:
    nowhere = _Nowhere()
    with closing(psycopg2.connect(base.source)) as connection, connection.cursor() as cursor:
        for window in windows:
            cursor.copy_expert(
                "COPY (SELECT * FROM nycflights13.flights WHERE scheduled_departure >= "
                f"'{window.start}' AND scheduled_departure < '{window.end}') TO STDOUT WITH (FORMAT csv, HEADER)",
                nowhere,
            )
            connection.commit()


def _export(ctx: StepContext, windows: list[Window]) -> None:
    for window in windows:
        export_partition(ctx, window)
