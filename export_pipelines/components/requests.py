"""Requests for runs: idempotent by their key, tagged with the runs that caused them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import dagster as dg

from export_pipelines import windows
from export_pipelines.components.automation import Stage
from export_pipelines.components.partition_run import ROOT_TAG, UPSTREAM_TAG
from export_pipelines.components.tables import job_name
from export_pipelines.errors import RequestError
from export_pipelines.specs.table import TableDefinition
from export_pipelines.windows import Window

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def caused_by(run: dg.DagsterRun) -> dict[str, str]:
    """Tags that lead from a run to the one which caused it, and to the first of all."""
    return {UPSTREAM_TAG: run.run_id, ROOT_TAG: run.tags.get(ROOT_TAG, run.run_id)}


def run_requests(
    table: TableDefinition, stage: Stage, found: Iterable[Window], cause: str, tags: dict[str, str] | None = None
) -> Iterator[dg.RunRequest]:
    """Runs of a stage over some windows: one run each, or one a contiguous range where the table says `single_run`.

    `cause` makes the keys: the same cause never leads to the same work twice.
    """
    for first, last, alone in _groups(table, _ordered(found)):
        key = f"{stage}:{table.id}:{cause}" + ("" if alone else f":{first.partition}")
        name = job_name(table, stage)
        if table.spec.partitions is None:
            yield dg.RunRequest(run_key=key, job_name=name, tags=tags)
        elif first is last:
            yield dg.RunRequest(run_key=key, job_name=name, tags=tags, partition_key=first.partition)
        else:
            bounds = {RANGE_START: first.partition, RANGE_END: last.partition}
            yield dg.RunRequest(run_key=key, job_name=name, tags={**(tags or {}), **bounds})


def closed_windows_of(table: TableDefinition, partitions: Iterable[str | None], now: float) -> list[Window]:
    """The windows of some keys; keys that the table has not got, and windows that are still open, are left out."""
    found = []
    for key in partitions:
        try:
            window = windows.window_of(table.spec.partitions, windows.SNAPSHOT if key is None else key)
        except RequestError:
            continue
        if window.end is None or window.end.timestamp() <= now:
            found.append(window)
    return found


def _ordered(found: Iterable[Window]) -> list[Window]:
    return sorted(dict.fromkeys(found), key=_start)


def _start(window: Window) -> float:
    return window.start.timestamp() if window.start else 0.0


def _groups(table: TableDefinition, found: Sequence[Window]) -> Iterator[tuple[Window, Window, bool]]:
    """First and last window of each run, and whether it is the only run."""
    single = table.spec.partitions is not None and table.spec.partitions.single_run
    groups: list[list[Window]] = []
    for window in found:
        before = groups[-1][-1] if groups else None
        if single and before and before.end and window.start and before.end.timestamp() == window.start.timestamp():
            groups[-1].append(window)
        else:
            groups.append([window])
    for group in groups:
        yield group[0], group[-1], len(groups) == 1
