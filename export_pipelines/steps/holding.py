"""Which holds concern a partition, as cleanup, expire and the UI ask it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from export_pipelines.catalog import ExportRow, HoldRow
from export_pipelines.errors import Held
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import StepContext
from export_pipelines.windows import Window


def reach(
    table: TableDefinition, start: datetime | None, end: datetime | None
) -> tuple[datetime | None, datetime | None]:
    """The time that the rows of a partition may be of: its window, and of a cumulative table all before its end."""
    return (None if table.spec.cumulative else start, end)


def holds_on(ctx: StepContext, windows: Iterable[Window]) -> list[HoldRow]:
    """The holds in force that concern any of these partitions, in the order in which they were placed."""
    spans = [(window.partition, *reach(ctx.table, window.start, window.end)) for window in windows]
    return [hold for hold in ctx.catalog.holds(ctx.table.id) if any(hold.concerns(*span) for span in spans)]


def refuse_held(ctx: StepContext, windows: Iterable[Window]) -> None:
    """Raises Held: a hold concerns one of these partitions."""
    for hold in holds_on(ctx, windows):
        what = f"partition {hold.partition} of {ctx.table.id!r}" if hold.partition else f"{ctx.table.id!r}"
        ranged = hold.window_start is not None or hold.window_end is not None
        raise Held(
            f"{what} {hold.scope} is {hold}" if ranged else f"{what} is {hold}",
            hint=f"`export-pipelines unhold {hold.id}` releases it",
        )


def window_of_row(row: ExportRow) -> Window:
    """The window that an export was made of, as it was defined then."""
    record = row.record
    return Window(row.partition, record.window_start, record.window_end) if record else Window(row.partition)
