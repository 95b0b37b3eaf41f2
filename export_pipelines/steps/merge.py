"""Rows of the archive among rows that are there already: staged in a temporary table, compared by key, and merged.

The target is locked against other writers, so what is compared is what is merged into. Values are compared as text,
byte for byte, since not every type has an equality, and equal values need not look the same (1.0 and 1.00).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from export_pipelines.errors import TargetError
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.loading import load
from export_pipelines.steps.pieces import Archived, Report
from export_pipelines.steps.target import Target

_STAGE = 'pg_temp."export_pipelines_restore"'


class OnConflict(StrEnum):
    """What becomes of archived rows whose key the table has already."""

    FAIL = "fail"
    """Nothing is restored."""
    SKIP = "skip"
    """The rows of the table stay as they are."""
    REPLACE = "replace"
    """The rows of the table become those of the archive."""


@dataclass
class Counts:
    """What became of the archived rows. `differing` ones were in the table with other values: with `skip` they are
    among `skipped` and still differ, with `replace` they were `replaced`."""

    inserted: int = 0
    skipped: int = 0
    replaced: int = 0
    differing: int = 0


class MergeSession(Protocol):
    """What is asked of the target's transaction."""

    def execute(self, sql: str, /) -> list[tuple[Any, ...]]: ...

    def change(self, sql: str, /) -> int: ...


class Merging(ABC):
    """Merges files into one table, one after the other. `key` may be empty for a table without rows.

    What is the same on every kind of database is here; the rest is in `Merger` of each.
    """

    counts: Counts
    stage: ClassVar[str]
    """SQL name of the temporary table."""
    reading: ClassVar[str] = ""
    """Ends a query of the temporary table."""
    overriding: ClassVar[str] = ""
    """Stands in an INSERT behind the columns."""

    def __init__(self, session: MergeSession, target: Target, key: tuple[str, ...], policy: OnConflict) -> None:
        self.counts = Counts()
        self._asked = session
        self._target = target
        self._key = key
        self._policy = policy

    def merge(self, archived: Archived, piece: Generation, report: Report) -> int:
        """Take one file; return its number of rows.

        Raises:
            TargetError: rows conflict and the policy says so, keys are null or repeated, or the table does not store
                what it was given.
            IntegrityError, SourceError: as of `load`.
        """
        export = piece.manifest.export
        columns = tuple(column.name for column in export.columns)
        self._stage(columns)
        rows = self._load(archived, piece, report)
        if not self._key:
            self._insert(columns, rows)
            self._refuse_altered(self._unfound(columns))
            return rows
        self._refuse_vague_keys(export.partition)
        there, differing = self._conflicts(columns, rows, export.partition)
        if self._policy is OnConflict.REPLACE and differing:
            self._update(columns, differing)
        self._insert(columns, rows - there)
        replaced = differing if self._policy is OnConflict.REPLACE else 0
        found, still = self._joined(columns)
        self._refuse_altered(rows - found + still - (differing - replaced))
        self.counts.inserted += rows - there
        self.counts.replaced += replaced
        self.counts.skipped += there - replaced
        self.counts.differing += differing
        return rows

    def _refuse_vague_keys(self, partition: str) -> None:
        key = self._list(self._key)
        nulls = " OR ".join(f"{self._quoted(name)} IS NULL" for name in self._key)
        for which, reason, query in (
            ("rows", "no value", f"SELECT 1 FROM {self.stage} WHERE ({nulls})"),
            ("several rows", "the same values", f"SELECT 1 FROM {self.stage} GROUP BY {key} HAVING COUNT(*) > 1"),
        ):
            if self._asked.execute(f"{query} LIMIT 1{self.reading}"):
                raise TargetError(
                    f"{which} of partition {partition} have {reason} in {', '.join(self._key)}, by which rows of "
                    f"{self._target.name} are told apart",
                    hint="restore into a name that is free, and merge from there",
                )

    def _conflicts(self, columns: tuple[str, ...], rows: int, partition: str) -> tuple[int, int]:
        """How many staged rows the table has by their key, and how many of these with other values."""
        there, differing = self._joined(columns)
        if there > rows:
            raise TargetError(
                f"{self._target.name} has several rows of one {', '.join(self._key)}",
                hint="restore into a name that is free, and merge from there",
            )
        if there and self._policy is OnConflict.FAIL:
            raise TargetError(
                f"{there} of {rows} rows of partition {partition} are in {self._target.name} already, {differing} of "
                f"them with other values (by {', '.join(self._key)}); nothing was restored",
                hint="say what to do with them: --on-conflict skip, or replace",
            )
        return there, differing

    def _same_key(self) -> str:
        return " AND ".join(f"t.{self._quoted(name)} = s.{self._quoted(name)}" for name in self._key)

    def _settable(self, columns: tuple[str, ...]) -> list[str]:
        """Columns that an UPDATE may set."""
        return [name for name in columns if name not in self._target.generated | self._target.always]

    def _insert(self, columns: tuple[str, ...], expected: int) -> None:
        """Insert the staged rows whose key the table has not got."""
        if not expected:
            return
        given = self._list(tuple(name for name in columns if name not in self._target.generated))
        query = f"INSERT INTO {self._target.name} ({given}){self.overriding} SELECT {given} FROM {self.stage} AS s"
        if self._key:
            query += f" WHERE NOT EXISTS (SELECT 1 FROM {self._target.name} AS t WHERE {self._same_key()})"
        self._counted(query, expected)

    def _counted(self, statement: str, expected: int) -> None:
        changed = self._asked.change(statement)
        if changed != expected:
            raise TargetError(
                f"{self._target.name} took {changed} rows of {expected}; nothing was restored",
                hint="a trigger or rule of the table leaves rows out, or as they were; disable it, or restore into a "
                "name that is free",
            )

    def _refuse_altered(self, rows: int) -> None:
        if rows:
            raise TargetError(
                f"{self._target.name} stores {rows} rows with other values than they have in the archive; nothing was "
                "restored",
                hint="a trigger or generated column of the table computes them; restore into a name that is free",
            )

    def _list(self, columns: tuple[str, ...]) -> str:
        return ", ".join(map(self._quoted, columns))

    @abstractmethod
    def _quoted(self, name: str) -> str:
        """A name as an SQL identifier."""

    @abstractmethod
    def _stage(self, columns: tuple[str, ...]) -> None:
        """An empty temporary table with these columns, of the target's types."""

    @abstractmethod
    def _load(self, archived: Archived, piece: Generation, report: Report) -> int:
        """Load a file into it; how many rows."""

    @abstractmethod
    def _joined(self, columns: tuple[str, ...]) -> tuple[int, int]:
        """How many staged rows the table has by their key, and how many of these with other values."""

    @abstractmethod
    def _update(self, columns: tuple[str, ...], differing: int) -> None:
        """Make the differing rows those of the archive. Equal ones are left alone."""

    @abstractmethod
    def _unfound(self, columns: tuple[str, ...]) -> int:
        """How many staged rows the table has not got, without a key to look them up by."""


class Merger(Merging):
    """Merges into a table of PostgreSQL."""

    stage = _STAGE
    overriding = " OVERRIDING SYSTEM VALUE"

    def __init__(self, session: Session, target: Target, key: tuple[str, ...], policy: OnConflict) -> None:
        super().__init__(session, target, key, policy)
        self._session = session
        self._staged: tuple[str, ...] = ()

    def _quoted(self, name: str) -> str:
        return quote_identifier(name)

    def _stage(self, columns: tuple[str, ...]) -> None:
        """An empty temporary table with these columns, of the target's types. It ends with the transaction."""
        if self._staged == columns:
            self._session.execute(f"TRUNCATE {_STAGE}")
            return
        made = f"CREATE TEMP TABLE {_STAGE.partition('.')[2]} ON COMMIT DROP"
        drop = f"DROP TABLE {_STAGE}; " if self._staged else ""
        self._session.execute(f"{drop}{made} AS SELECT {self._list(columns)} FROM {self._target.name} WITH NO DATA")
        self._staged = columns

    def _load(self, archived: Archived, piece: Generation, report: Report) -> int:
        rows = load(self._session, _STAGE, archived, piece, report)
        if self._key:
            self._session.execute(f"ANALYZE {_STAGE} ({self._list(self._key)})")
        return rows

    def _joined(self, columns: tuple[str, ...]) -> tuple[int, int]:
        there, differing = self._session.one(
            f"SELECT count(*), count(*) FILTER (WHERE {_differs(columns)}) FROM {_STAGE} AS s "
            f"JOIN {self._target.name} AS t ON {self._same_key()}"
        )
        return there, differing

    def _update(self, columns: tuple[str, ...], differing: int) -> None:
        """Make the differing rows those of the archive. Equal ones stay the row versions that they are."""
        fixed = [name for name in columns if name in self._target.always and name not in self._key]
        if fixed:
            raise TargetError(
                f"columns {fixed} of {self._target.name} are GENERATED ALWAYS AS IDENTITY, so rows cannot be replaced",
                hint="--on-conflict skip, or restore into a name that is free",
            )
        sets = ", ".join(f"{quote_identifier(name)} = s.{quote_identifier(name)}" for name in self._settable(columns))
        query = f"UPDATE {self._target.name} AS t SET {sets} FROM {_STAGE} AS s WHERE {self._same_key()}"
        self._counted(f"{query} AND {_differs(columns)}", differing)

    def _unfound(self, columns: tuple[str, ...]) -> int:
        """How many staged rows the table has not got, without a key to look them up by."""
        staged = f"SELECT {_text(columns, 's')} FROM {_STAGE} AS s"
        there = f"SELECT {_text(columns, 't')} FROM {self._target.name} AS t"
        return int(self._session.one(f"SELECT count(*) FROM ({staged} EXCEPT ALL {there}) AS missing")[0])


def _text(columns: tuple[str, ...], alias: str) -> str:
    return f"""ROW({", ".join(f"{alias}.{quote_identifier(name)}" for name in columns)})::text COLLATE "C" """


def _differs(columns: tuple[str, ...]) -> str:
    return f"{_text(columns, 't')} IS DISTINCT FROM {_text(columns, 's')}"
