"""Which partitions a command works on, and what of a table's life is still to be done, as the catalog knows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from export_pipelines import windows
from export_pipelines.catalog import Catalog, CleanupRow, ExportRow
from export_pipelines.errors import BadRange, RequestError
from export_pipelines.specs.table import CleanupMode, TableDefinition
from export_pipelines.windows import Window

if TYPE_CHECKING:
    from export_pipelines.components.automation import Stage


@dataclass(frozen=True)
class Known:
    """What the catalog knows of a table, by partition. What is expired was exported, archived, and is done with."""

    table: TableDefinition
    exports: dict[str, list[ExportRow]]
    cleanups: dict[str, CleanupRow]

    @property
    def exported(self) -> set[str]:
        """Partitions that were exported."""
        return set(self.exports)

    @property
    def archived(self) -> set[str]:
        """Partitions of which every published generation is in the archive, or was until it expired."""
        return {key for key, rows in self.exports.items() if all(map(_in_archive, rows))}

    @property
    def expired(self) -> set[str]:
        """Partitions whose newest generation was given up: nothing of them can be cleaned up any more."""
        return {key for key, rows in self.exports.items() if rows and rows[-1].given_up}

    @property
    def cleaned(self) -> set[str]:
        """Partitions whose last cleanup left nothing, and which were not exported since; and those that expired."""
        return self.expired | {
            key
            for key, row in self.cleanups.items()
            if row.complete and not any(_finished(each) > row.at for each in self.exports.get(key, ()))
        }

    @property
    def late_rows(self) -> int:
        """Rows that came or changed after their export, as of the last cleanup or comparison of each partition."""
        return sum(int(row.result.get("late") or 0) for key, row in self.cleanups.items() if key not in self.cleaned)


def _in_archive(row: ExportRow) -> bool:
    return row.state == "archived" or row.given_up


def _finished(row: ExportRow) -> datetime:
    return row.finished_at or row.started_at


def known(catalog: Catalog, table: TableDefinition) -> Known:
    """Ask the catalog of a table."""
    exports: dict[str, list[ExportRow]] = {}
    for row in catalog.exports(table.id, expired=True):
        exports.setdefault(row.partition, []).append(row)
    return Known(table, exports, catalog.cleanups(table.id))


def chosen(
    table: TableDefinition, partition: str | None, first: str | None, last: str | None, now: datetime
) -> list[Window]:
    """The windows that were asked for: one, those from one to another, or all that have closed.

    Raises:
        RequestError: there is no such partition, or one that was named is still open.
        BadRange: the range is the wrong way round, or the table has no partitions.
    """
    spec = table.spec.partitions
    closed = windows.closed_windows(spec, now)
    if partition is not None:
        found = [windows.window_of(spec, partition, now)]
    elif first is not None or last is not None:
        if spec is None:
            raise BadRange(f"{table.id} has no partitions", hint="leave out --from and --to")
        if not closed:
            raise RequestError(f"no partition of {table.id} has closed yet", hint=f"the first starts at {spec.start}")
        found = windows.windows_between(spec, first or closed[0].partition, last or closed[-1].partition)
    else:
        return closed
    for window in found:
        if not window.closed(now):
            hint = f"rows may still come; the last that has ended is {closed[-1].partition}" if closed else ""
            raise RequestError(
                f"partition {window.partition} of {table.id} is open until {window.end}",
                hint=hint or "none has ended yet",
            )
    return found


def to_do(have: Known, found: Iterable[Window], stage: Stage, now: datetime) -> list[Window]:
    """Those windows of which something of a stage (`chain`: of any) is left to do.

    A snapshot is always to be done: what it shows may have changed, and an export that has not is not kept.
    """
    return [window for window in found if _is_to_do(have, window, stage, now)]


def newest(have: Known, left: Sequence[Window], closed: Sequence[Window], now: datetime) -> list[Window]:
    """What is left to do of a cumulative table: its newest partition, which holds everything before it.

    Older ones are taken only where they were begun: an export that is not archived yet, and the newest whose cleanup
    has come due while that of the newest of all has not.
    """
    last = closed[-1:]
    begun = [window for window in left if window.partition in have.exported and window not in last]
    taken = [window for window in begun if window.partition not in have.archived]
    cleaned = [number for number, window in enumerate(closed) if window.partition in have.cleaned]
    since = closed[max(cleaned) :] if cleaned else closed
    if not any(window in left and is_due(have.table, window, now) for window in last):
        taken += [window for window in begun if window.partition in have.archived and window in since][-1:]
    return taken + [window for window in last if window in left]


def _is_to_do(have: Known, window: Window, stage: Stage, now: datetime) -> bool:
    key = window.partition
    exported = key in have.exported and not window.is_snapshot
    archived = key in have.archived
    match stage.value:
        case "export":
            return not exported
        case "archive":
            return key in have.exported and not archived
        case "cleanup":
            return archived and key not in have.cleaned and is_due(have.table, window, now)
    return not exported or not archived or (key not in have.cleaned and is_due(have.table, window, now))


def is_due(table: TableDefinition, window: Window, now: datetime) -> bool:
    """Whether rows of an archived partition are to be deleted by now."""
    cleanup = table.spec.cleanup
    if cleanup.mode is not CleanupMode.KEEP or window.end is None:
        return cleanup.mode is not CleanupMode.OFF
    return window.end.astimezone(UTC) + timedelta(days=cleanup.keep_days) <= now


def totals(rows: Sequence[ExportRow]) -> dict[str, int | float | str]:
    """Rows, bytes, seconds and row digest of generations that are there. The digest is a sum, so it is that of all rows
    together."""
    records = [row.record for row in rows if row.record is not None and row.state != "expired"]
    seconds = sum((record.finished - record.started).total_seconds() for record in records)
    raw = sum(record.file.raw_size for record in records)
    return {
        "rows": sum(record.rows for record in records),
        "raw_bytes": raw,
        "stored_bytes": sum(record.file.size for record in records),
        "seconds": seconds,
        "mb_per_second": raw / 1e6 / seconds if seconds else 0.0,
        "row_digest": digest_sum(record.row_digest for record in records),
    }


def digest_sum(digests: Iterable[str]) -> str:
    """Row digest of sets of rows together: the sum modulo 2**64, in hex."""
    return f"{sum(int(each, 16) for each in digests) % 2**64:016x}"
