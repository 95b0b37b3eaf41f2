"""Rows of the archive among rows that MySQL or MariaDB has already: staged in a temporary table, compared, and merged.

The counterpart of `steps/merge.py`. Rows of the target are read by locking reads, which see what was committed last and
keep it as it is until the end; the gaps between them are locked, too, so no row of a key that is missing can appear.
Values are compared byte for byte, whatever the collation.
"""

from __future__ import annotations

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_types import ResultColumn, comparable
from export_pipelines.sql_mysql import quote_identifier
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.merge import Counts, OnConflict
from export_pipelines.steps.mysql.loading import load
from export_pipelines.steps.pieces import Archived, Report
from export_pipelines.steps.target import Target

_STAGE = "`export_pipelines_restore`"
_KEY_TOO_LONG, _KEY_WITHOUT_LENGTH = "1071", "1170"


class Merger:
    """Merges files into one table, one after the other. `key` may be empty for a table without rows."""

    def __init__(self, session: MysqlSession, target: Target, key: tuple[str, ...], policy: OnConflict) -> None:
        self.counts = Counts()
        self._session = session
        self._target = target
        self._key = key
        self._policy = policy
        self._kinds: dict[str, ResultColumn] = {}

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
        rows = load(self._session, _STAGE, archived, piece, report)
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

    def _stage(self, columns: tuple[str, ...]) -> None:
        """An empty temporary table with these columns, of the target's types. A TRUNCATE would commit."""
        query = f"SELECT {_list(columns)} FROM {self._target.name} LIMIT 0"
        self._kinds = {kind.name: kind for kind in self._session.describe(query)}
        self._session.execute(f"DROP TEMPORARY TABLE IF EXISTS {_STAGE}")
        made = f"CREATE TEMPORARY TABLE {_STAGE} {{}} ENGINE = InnoDB AS {query}"
        index = f"(KEY ({_list(self._key)}))" if self._key else ""
        try:
            self._session.execute(made.format(index))
        except SourceError as error:
            if error.code not in (_KEY_TOO_LONG, _KEY_WITHOUT_LENGTH):
                raise
            self._session.execute(made.format(""))

    def _refuse_vague_keys(self, partition: str) -> None:
        key = _list(self._key)
        nulls = " OR ".join(f"{quote_identifier(name)} IS NULL" for name in self._key)
        for which, reason, query in (
            ("rows", "no value", f"SELECT 1 FROM {_STAGE} WHERE ({nulls})"),
            ("several rows", "the same values", f"SELECT 1 FROM {_STAGE} GROUP BY {key} HAVING COUNT(*) > 1"),
        ):
            # A plain read would take a snapshot, and what is committed later be a conflict with it.
            if self._session.execute(f"{query} LIMIT 1 FOR UPDATE"):
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

    def _joined(self, columns: tuple[str, ...]) -> tuple[int, int]:
        # With a key of its own the table is looked up row by row, and no more of it is locked.
        join = "STRAIGHT_JOIN" if self._key in self._target.keys else "JOIN"
        found = self._session.one(
            f"SELECT COUNT(*), COALESCE(SUM({self._differs(columns)}), 0) FROM {_STAGE} AS s "
            f"{join} {self._target.name} AS t ON {self._same_key()} FOR UPDATE"
        )
        return int(found[0]), int(found[1])

    def _same_key(self) -> str:
        return " AND ".join(f"t.{quote_identifier(name)} = s.{quote_identifier(name)}" for name in self._key)

    def _differs(self, columns: tuple[str, ...]) -> str:
        pairs = (
            f"{comparable(self._kinds[name], f't.{quoted}')} <=> {comparable(self._kinds[name], f's.{quoted}')}"
            for name, quoted in ((name, quote_identifier(name)) for name in columns)
        )
        return f"NOT ({' AND '.join(pairs)})"

    def _update(self, columns: tuple[str, ...], differing: int) -> None:
        """Make the differing rows those of the archive. Equal ones are left alone."""
        sets = ", ".join(
            f"t.{quote_identifier(name)} = s.{quote_identifier(name)}"
            for name in columns
            if name not in self._target.generated
        )
        query = f"UPDATE {_STAGE} AS s JOIN {self._target.name} AS t ON {self._same_key()} SET {sets}"
        self._counted(f"{query} WHERE {self._differs(columns)}", differing)

    def _insert(self, columns: tuple[str, ...], expected: int) -> None:
        """Insert the staged rows whose key the table has not got."""
        if not expected:
            return
        given = _list(tuple(name for name in columns if name not in self._target.generated))
        query = f"INSERT INTO {self._target.name} ({given}) SELECT {given} FROM {_STAGE} AS s"
        if self._key:
            query += f" WHERE NOT EXISTS (SELECT 1 FROM {self._target.name} AS t WHERE {self._same_key()})"
        self._counted(query, expected)

    def _counted(self, statement: str, expected: int) -> None:
        changed = self._session.change(statement)
        if changed != expected:
            raise TargetError(
                f"{self._target.name} took {changed} rows of {expected}; nothing was restored",
                hint="a trigger of the table keeps values as they were; remove it, or restore into a name that is free",
            )

    def _unfound(self, columns: tuple[str, ...]) -> int:
        """How many staged rows the table has not got, without a key to look them up by."""
        values = [f"COALESCE(MD5({comparable(self._kinds[name], quote_identifier(name))}), '')" for name in columns]
        digest = f"MD5(CONCAT_WS(',', {', '.join(values)}))"
        both = f"SELECT {digest} AS d, 1 AS n FROM {_STAGE} UNION ALL SELECT {digest}, -1 FROM {self._target.name}"
        query = f"SELECT d, SUM(n) AS n FROM ({both}) AS b GROUP BY d HAVING SUM(n) > 0"
        return int(self._session.one(f"SELECT COALESCE(SUM(n), 0) FROM ({query}) AS missing")[0])

    def _refuse_altered(self, rows: int) -> None:
        if rows:
            raise TargetError(
                f"{self._target.name} stores {rows} rows with other values than they have in the archive; nothing was "
                "restored",
                hint="a trigger or generated column of the table computes them; restore into a name that is free",
            )


def _list(columns: tuple[str, ...]) -> str:
    return ", ".join(map(quote_identifier, columns))
