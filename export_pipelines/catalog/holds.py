"""Holds: exemptions from cleanup and expire, of a table, of one partition, or of a range of time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_HOLD = (
    "SELECT id, table_id, partition, reason, owner, placed_at, window_start, window_end, released_at, released_by "
    "FROM hold "
)


@dataclass(frozen=True)
class HoldRow:
    """An exemption from cleanup and expire. Without partition and range it is of the whole table."""

    id: int
    table_id: str
    partition: str | None
    reason: str
    owner: str
    placed_at: datetime
    window_start: datetime | None = None
    """Start of the range; open when None."""
    window_end: datetime | None = None
    """End of the range (exclusive); open when None."""
    released_at: datetime | None = None
    released_by: str | None = None

    def concerns(self, partition: str, start: datetime | None, end: datetime | None) -> bool:
        """Whether it is about a partition whose rows may be of any time in `[start, end)`; None is open.

        A snapshot has neither, so that any range of its table concerns it.
        """
        if self.partition is not None:
            return self.partition == partition
        begins_in_time = start is None or self.window_end is None or start < self.window_end
        return begins_in_time and (end is None or self.window_start is None or end > self.window_start)

    @property
    def scope(self) -> str:
        """What of the table is held, for people."""
        if self.partition is not None:
            return f"partition {self.partition}"
        if self.window_start is None and self.window_end is None:
            return "all partitions"
        first = f"from {_moment(self.window_start)}" if self.window_start else ""
        last = f"to {_moment(self.window_end)}" if self.window_end else ""
        return " ".join(filter(None, (first, last)))

    def __str__(self) -> str:
        return f"held by {self.owner} since {self.placed_at:%Y-%m-%d}: {self.reason}"


def _moment(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}Z".replace(" 00:00Z", "")


def first_on(holds: Iterable[HoldRow], partition: str, start: datetime | None, end: datetime | None) -> HoldRow | None:
    """The first of some holds that concerns a partition."""
    return next((hold for hold in holds if hold.concerns(partition, start, end)), None)


class Holds:
    """The part of the catalog that knows the holds."""

    def _transaction(self) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def holds(
        self, table_id: str | None = None, partition: str | None = None, *, released: bool = False
    ) -> list[HoldRow]:
        """Holds in force, of all tables or of those that may concern a table (and a partition of it); with `released`
        those, too, that were ended."""
        with self._transaction() as cursor:
            cursor.execute(
                _HOLD + "WHERE (released_at IS NULL OR %(r)s) "
                "AND (%(t)s::text IS NULL OR table_id = %(t)s) "
                "AND (%(p)s::text IS NULL OR partition IS NULL OR partition = %(p)s) ORDER BY id",
                {"t": table_id, "p": partition, "r": released},
            )
            return [HoldRow(*row) for row in cursor.fetchall()]

    def place_hold(
        self,
        table_id: str,
        partition: str | None,
        reason: str,
        owner: str,
        *,
        window_start: datetime | None = None,
        window_end: datetime | None = None,
    ) -> int:
        """Exempt a table, a partition or a range of time from cleanup and expire; return the hold's id.

        A batch of a cleanup that was registered before may still commit; the next is refused.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO hold (table_id, partition, reason, owner, window_start, window_end) "
                "VALUES (%s, %s, %s, %s, %s, %s) RETURNING id",
                (table_id, partition, reason, owner, window_start, window_end),
            )
            return int(cursor.fetchone()[0])

    def release_hold(self, hold_id: int, by: str = "") -> bool:
        """End a hold and note by whom; False if there is none of that id in force."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE hold SET released_at = now(), released_by = nullif(%s, '') "
                "WHERE id = %s AND released_at IS NULL RETURNING id",
                (by, hold_id),
            )
            return cursor.fetchone() is not None


def in_force(cursor: Any, table_id: str) -> list[HoldRow]:
    """Holds of a table, read in a transaction that is going on."""
    cursor.execute(_HOLD + "WHERE table_id = %s AND released_at IS NULL ORDER BY id", (table_id,))
    return [HoldRow(*row) for row in cursor.fetchall()]
