"""Rows of the archive among rows that MySQL or MariaDB has already: staged in a temporary table, compared, and merged.

Rows of the target are read by locking reads, which see what was committed last and keep it as it is until the end; the
gaps between them are locked, too, so no row of a key that is missing can appear. Values are compared byte for byte,
whatever the collation.
"""

from __future__ import annotations

from export_pipelines.errors import SourceError
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_types import ResultColumn, comparable
from export_pipelines.sql_mysql import quote_identifier
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.merge import Merging, OnConflict
from export_pipelines.steps.mysql.loading import load
from export_pipelines.steps.pieces import Archived, Report
from export_pipelines.steps.target import Target

_STAGE = "`export_pipelines_restore`"
_KEY_TOO_LONG, _KEY_WITHOUT_LENGTH = "1071", "1170"


class Merger(Merging):
    """Merges into a table of MySQL or MariaDB."""

    stage = _STAGE
    # A plain read would take a snapshot, and what is committed later be a conflict with it.
    reading = " FOR UPDATE"

    def __init__(self, session: MysqlSession, target: Target, key: tuple[str, ...], policy: OnConflict) -> None:
        super().__init__(session, target, key, policy)
        self._session = session
        self._kinds: dict[str, ResultColumn] = {}

    def _quoted(self, name: str) -> str:
        return quote_identifier(name)

    def _stage(self, columns: tuple[str, ...]) -> None:
        query = f"SELECT {self._list(columns)} FROM {self._target.name} LIMIT 0"
        self._kinds = {kind.name: kind for kind in self._session.describe(query)}
        # A TRUNCATE would commit.
        self._session.execute(f"DROP TEMPORARY TABLE IF EXISTS {_STAGE}")
        made = f"CREATE TEMPORARY TABLE {_STAGE} {{}} ENGINE = InnoDB AS {query}"
        index = f"(KEY ({self._list(self._key)}))" if self._key else ""
        try:
            self._session.execute(made.format(index))
        except SourceError as error:
            if error.code not in (_KEY_TOO_LONG, _KEY_WITHOUT_LENGTH):
                raise
            self._session.execute(made.format(""))

    def _load(self, archived: Archived, piece: Generation, report: Report) -> int:
        return load(self._session, _STAGE, archived, piece, report)

    def _joined(self, columns: tuple[str, ...]) -> tuple[int, int]:
        # With a key of its own the table is looked up row by row, and no more of it is locked.
        join = "STRAIGHT_JOIN" if self._key in self._target.keys else "JOIN"
        found = self._session.one(
            f"SELECT COUNT(*), COALESCE(SUM({self._differs(columns)}), 0) FROM {_STAGE} AS s "
            f"{join} {self._target.name} AS t ON {self._same_key()} FOR UPDATE"
        )
        return int(found[0]), int(found[1])

    def _update(self, columns: tuple[str, ...], differing: int) -> None:
        sets = ", ".join(f"t.{quote_identifier(name)} = s.{quote_identifier(name)}" for name in self._settable(columns))
        query = f"UPDATE {_STAGE} AS s JOIN {self._target.name} AS t ON {self._same_key()} SET {sets}"
        self._counted(f"{query} WHERE {self._differs(columns)}", differing)

    def _unfound(self, columns: tuple[str, ...]) -> int:
        values = [f"COALESCE(MD5({comparable(self._kinds[name], quote_identifier(name))}), '')" for name in columns]
        digest = f"MD5(CONCAT_WS(',', {', '.join(values)}))"
        both = f"SELECT {digest} AS d, 1 AS n FROM {_STAGE} UNION ALL SELECT {digest}, -1 FROM {self._target.name}"
        query = f"SELECT d, SUM(n) AS n FROM ({both}) AS b GROUP BY d HAVING SUM(n) > 0"
        return int(self._session.one(f"SELECT COALESCE(SUM(n), 0) FROM ({query}) AS missing")[0])

    def _differs(self, columns: tuple[str, ...]) -> str:
        pairs = (
            f"{comparable(self._kinds[name], f't.{quoted}')} <=> {comparable(self._kinds[name], f's.{quoted}')}"
            for name, quoted in ((name, quote_identifier(name)) for name in columns)
        )
        return f"NOT ({' AND '.join(pairs)})"
