"""Progress of a long partition, as observations of its asset."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import Progress

INTERVAL = 2.0
"""Seconds between two observations; a partition that is done sooner has none."""

PERCENT = "percent_read"
"""Of what is told of a load: how much of the landed file is read."""


def observed(step: str, progress: Progress) -> dict[str, Any]:
    """Description and metadata of an observation of a table that is loaded."""
    done = f"{progress.bytes / 1e6:,.1f}"
    if not progress.total:
        metadata = {"rows": progress.rows, "raw_bytes": progress.bytes}
        return {"description": f"{step}: {done} MB so far", "metadata": metadata}
    percent = min(100, 100 * progress.bytes // progress.total)
    description = f"{step}: {done} of {progress.total / 1e6:,.1f} MB are read"
    return {"description": description, "metadata": {"read_bytes": progress.bytes, PERCENT: percent}}


class Reporter:
    """Tells Dagster how far a partition is, at most every INTERVAL seconds."""

    def __init__(self, context: dg.AssetExecutionContext | dg.OpExecutionContext, table: TableDefinition) -> None:
        self._context = context
        self._table = table
        self._at: tuple[str, str] = ("", "")
        self._started = self._told = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Called by the steps, as often as they like, and by an export from the thread that reads its rows.

        Dagster's storage and logger take events from any thread. No two of ours call at the same time.
        """
        now = time.monotonic()
        if (progress.stage, progress.partition) != self._at:
            self._at = (progress.stage, progress.partition)
            self._started = self._told = now
        if now - self._told < INTERVAL:
            return
        self._told = now
        self._observe(progress, now - self._started)

    def _observe(self, progress: Progress, seconds: float) -> None:
        speed = progress.bytes / 1e6 / seconds
        partitioned = self._table.spec.partitions is not None and progress.stage not in ("expire", "dump")
        self._context.log_event(
            dg.AssetObservation(
                dg.AssetKey(naming.asset_key(self._table.id, self._stage(progress))),
                partition=progress.partition if partitioned else None,
                description=f"{progress.stage}: {progress.rows:,} rows, {progress.bytes / 1e6:,.1f} MB so far",
                metadata={"rows": progress.rows, "raw_bytes": progress.bytes, "mb_per_second": round(speed, 2)},
            )
        )

    @staticmethod
    def _stage(progress: Progress) -> str:
        if progress.stage == "dump":
            return "export"
        return progress.stage if progress.stage in ("export", "archive", "cleanup", "expire") else "archive"
