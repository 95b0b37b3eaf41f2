"""Styles that change the table that is there: set-based statements from a temporary table of typed rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from export_pipelines.errors import TargetError
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import LoadSpec, Style
from export_pipelines.sql import quote_identifier, quote_literal
from export_pipelines.steps.load_convert import digest_text
from export_pipelines.targets.registry import Counts

TYPED = 'pg_temp."load typed"'
"""Rows of the file, converted, with `load ordinal`."""


@dataclass(frozen=True)
class Merge:
    """What a style needs to know. `columns` are those that the file fills."""

    session: Session
    spec: LoadSpec
    current: str
    """The table that readers see, as SQL."""
    columns: tuple[str, ...]
    raw: bool
    entry: int
    fetched: str
    """When the file was fetched, in ISO 8601: from when on a row of style `history` counts."""

    def run(self) -> Counts:
        """Change the table. Raises TargetError: the guard refuses what would be removed."""
        self.session.execute(f"ANALYZE {TYPED}")
        match self.spec.style:
            case Style.UPSERT:
                return self._upsert("")
            case Style.SNAPSHOT:
                return self._snapshot_by_key() if self.spec.key else self._snapshot_by_content()
            case Style.HISTORY:
                return self._history()
            case _:
                return self._partitions()

    # Statements

    def _insert(self, where: str, more: dict[str, str] | None = None, source: str = f"{TYPED} AS s") -> int:
        names = [*self._filled, *(more or {})]
        values = [*(f"s.{name}" for name in self._filled), *(more or {}).values()]
        return self.session.change(
            f"INSERT INTO {self.current} ({', '.join(names)}) SELECT {', '.join(values)} FROM {source} {where}"
        )

    @property
    def _filled(self) -> list[str]:
        return [*map(quote_identifier, self.columns), *(["raw_id"] if self.raw else [])]

    @property
    def _same_key(self) -> str:
        return " AND ".join(f"t.{name} = s.{name}" for name in map(quote_identifier, self.spec.key))

    @property
    def _differs(self) -> str:
        return f"{digest_text(self.columns, 't')} IS DISTINCT FROM {digest_text(self.columns, 's')}"

    def _upsert(self, marks: str) -> Counts:
        """`marks`: further assignment of a row that is in the file."""
        sets = ", ".join(f"{name} = s.{name}" for name in self._filled)
        differs = f"({self._differs} OR t.removed_at IS NOT NULL)" if marks else self._differs
        changed = self.session.change(
            f"UPDATE {self.current} AS t SET {sets}, file_id = {self.entry}{marks} FROM {TYPED} AS s "
            f"WHERE {self._same_key} AND {differs}"
        )
        added = self._insert(f"WHERE NOT EXISTS (SELECT FROM {self.current} AS t WHERE {self._same_key})")
        return Counts(added=added, changed=changed)

    def _snapshot_by_key(self) -> Counts:
        mark = self.spec.removal.mark
        alive = " AND t.removed_at IS NULL" if mark else ""
        absent = f"NOT EXISTS (SELECT FROM {TYPED} AS s WHERE {self._same_key}){alive}"
        self._guard(absent, alive)
        removed = self._remove(absent)
        return replace(self._upsert(", removed_at = NULL" if mark else ""), removed=removed)

    def _remove(self, absent: str) -> int:
        if self.spec.removal.mark:
            return self.session.change(f"UPDATE {self.current} AS t SET removed_at = now() WHERE {absent}")
        return self.session.change(f"DELETE FROM {self.current} AS t WHERE {absent}")

    def _snapshot_by_content(self) -> Counts:
        """Rows are told apart by all of their columns; of equal ones it counts how many there are."""
        alive = " AND t.removed_at IS NULL" if self.spec.removal.mark else ""
        old, new = digest_text(self.columns, "t"), digest_text(self.columns, "s")
        # By digest: a million texts as keys of a hash table would not fit into memory.
        old, new = (f"sha256(convert_to({text}, 'UTF8'))" for text in (old, new))
        self.session.execute(
            'CREATE TEMPORARY TABLE "load surplus" ON COMMIT DROP AS SELECT content, sum(n)::bigint AS surplus FROM ('
            f"SELECT {new} AS content, count(*) AS n FROM {TYPED} AS s GROUP BY 1 UNION ALL "
            f"SELECT {old}, -count(*) FROM {self.current} AS t WHERE true{alive} GROUP BY 1) AS both_sides "
            "GROUP BY content HAVING sum(n) <> 0"
        )
        gone = (
            f"t.row_id IN (SELECT row_id FROM (SELECT t.row_id, d.surplus, row_number() OVER (PARTITION BY d.content "
            f'ORDER BY t.row_id) AS place FROM {self.current} AS t JOIN pg_temp."load surplus" AS d '
            f"ON d.content = {old} WHERE d.surplus < 0{alive}) AS surplus WHERE place <= -surplus)"
        )
        self._guard(gone, alive)
        removed = self._remove(gone)
        rows = (
            f'(SELECT s.*, row_number() OVER (PARTITION BY d.content ORDER BY s."load ordinal") AS place, d.surplus '
            f'FROM {TYPED} AS s JOIN pg_temp."load surplus" AS d ON d.content = {new} WHERE d.surplus > 0) AS s'
        )
        return Counts(added=self._insert("WHERE place <= surplus", source=rows), removed=removed)

    def _guard(self, absent: str, alive: str) -> None:
        """Refuse a file that would remove too much."""
        total = self.session.one(f"SELECT count(*) FROM {self.current} AS t WHERE true{alive}")[0]
        gone = self.session.one(f"SELECT count(*) FROM {self.current} AS t WHERE {absent}")[0]
        share = self.spec.removal.share
        if total and gone > total * share:
            raise TargetError(
                f"the file would remove {gone} of {total} rows, more than the share of {share:g} that is allowed",
                hint="is it complete? If this is right, raise `removal: {share: …}` for this load",
            )

    def _history(self) -> Counts:
        """Close versions that are no longer so, and open those that are new. Statements over all rows at once."""
        start = self._start()
        alive = " AND t.valid_to IS NULL"
        removed = 0
        if self.spec.absent == "close":
            absent = f"NOT EXISTS (SELECT FROM {TYPED} AS s WHERE {self._same_key}){alive}"
            self._guard(absent, alive)
            removed = self.session.change(f"UPDATE {self.current} AS t SET valid_to = {start} WHERE {absent}")
        changed = self.session.change(
            f"UPDATE {self.current} AS t SET valid_to = {start} FROM {TYPED} AS s "
            f"WHERE {self._same_key}{alive} AND {self._differs}"
        )
        new = f"WHERE NOT EXISTS (SELECT FROM {self.current} AS t WHERE {self._same_key}{alive})"
        added = self._insert(new, {"valid_from": start})
        return Counts(added=added - changed, changed=changed, removed=removed)

    def _start(self) -> str:
        """Since when the rows of the file count: since it was fetched, but after all that is there."""
        latest = "max(greatest(valid_from, valid_to)) + interval '1 us'"
        sql = f"SELECT greatest(%s::timestamptz, {latest}) FROM {self.current}"
        return f"{quote_literal(self.session.one(sql, (self.fetched,))[0].isoformat())}::timestamptz"

    def _partitions(self) -> Counts:
        """The years, months or days of the file replace those that are there; rows without one replace such rows."""
        if self.spec.partition_by == "all":
            where = ""
        else:
            unit, column = re.fullmatch(r"(\w+)\((\w+)\)", self.spec.partition_by or "").groups()  # type: ignore[union-attr]
            if column not in self.columns:
                raise TargetError(f"the file does not fill column {column!r}, by which it is partitioned")
            quoted = quote_identifier(column)
            cut = f"date_trunc('{unit}', {{}}.{quoted})"
            where = (
                f"WHERE {cut.format('t')} IN (SELECT {cut.format('s')} FROM {TYPED} AS s) "
                f"OR (t.{quoted} IS NULL AND EXISTS (SELECT FROM {TYPED} AS s WHERE s.{quoted} IS NULL))"
            )
        removed = self.session.change(f"DELETE FROM {self.current} AS t {where}")
        return Counts(added=self._insert(""), removed=removed)


def repeated_keys(session: Session, relation: str, order: str, key: Sequence[str]) -> list[tuple[int, str]]:
    """Rows whose key comes again further on, by the value of `order`, and their content. The last of each stays."""
    listed = ", ".join(map(quote_identifier, key))
    if not session.execute(f"SELECT 1 FROM {relation} GROUP BY {listed} HAVING count(*) > 1 LIMIT 1"):
        return []
    found = session.execute(
        f"DELETE FROM {relation} AS t USING (SELECT {order} AS number, row_number() OVER (PARTITION BY {listed} "
        f"ORDER BY {order} DESC) AS place FROM {relation}) AS r WHERE t.{order} = r.number AND r.place > 1 "
        f"RETURNING t.{order}, to_json(t)::text"
    )
    return [(int(number), record) for number, record in found]
