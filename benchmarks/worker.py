"""One step in a process of its own (`python -m benchmarks.worker`): what to do as JSON on stdin, figures on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.project import context, snapshot
from export_pipelines.manifest import ExportRecord
from export_pipelines.specs.table import Compression
from export_pipelines.steps.archive import archive_partition
from export_pipelines.steps.cleanup import cleanup_partition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.export import export_partition
from export_pipelines.steps.restore import RestoreResult, restore_partition
from export_pipelines.steps.verify import VerifyReport, verify_table
from export_pipelines.windows import SNAPSHOT, Window


def verify(ctx: StepContext, window: Window) -> VerifyReport:
    """Verify the whole table."""
    report = verify_table(ctx.archive, ctx.table.id)
    assert report.intact, report.problems
    return report


def restore(ctx: StepContext, window: Window) -> RestoreResult:
    """Restore into a new table of the source."""
    return restore_partition(ctx.archive, ctx.table.id, window.partition, ctx.source, f"{ctx.table.name}_restored")


STEPS: dict[str, Callable[[StepContext, Window], object]] = {
    "export": export_partition,
    "archive": archive_partition,
    "cleanup": cleanup_partition,
    "verify": verify,
    "restore": restore,
}


def in_own_process(job: dict[str, Any]) -> dict[str, Any]:
    """Run `main` in a new process; its figures, with `process_seconds` from its start to its end."""
    begun = time.perf_counter()
    figures = measure.in_own_process("benchmarks.worker", job)
    return {**figures, "process_seconds": time.perf_counter() - begun}


def main() -> None:
    """Do one step of a snapshot table and say how long it took and what memory it needed."""
    job = json.load(sys.stdin)
    table = snapshot(
        job["table"],
        batch_rows=job.get("batch_rows", 50_000),
        compression=Compression(job.get("compression", "gzip")),
        select_sql=job.get("select_sql"),
        delete_sql=job.get("delete_sql"),
        engine=job.get("engine", "postgresql"),
    )
    ctx = context(job["source"], job["catalog"], Path(job["folder"]), table)
    begun = time.perf_counter()
    result = STEPS[job["step"]](ctx, Window(SNAPSHOT))
    figures: dict[str, Any] = {"seconds": time.perf_counter() - begun, "peak_mb": measure.peak_memory()}
    for name in ("deleted", "late", "not_exported", "proof", "batches", "rows"):
        figures[name] = getattr(result, name, None)
    if isinstance(result, ExportRecord):
        figures |= {"raw": result.file.raw_size, "stored": result.file.size}
        figures["identity"] = result.identity.file.size if result.identity.file else 0
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
