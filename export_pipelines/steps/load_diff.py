"""How two versions of a table differ, row by row."""

from __future__ import annotations

from collections.abc import Sequence

from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load_names import OWN_COLUMNS
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.load_context import RowDiff
from export_pipelines.steps.load_convert import digest_text
from export_pipelines.targets.tables import columns_of

Row = tuple[str | None, ...]


def difference(session: Session, old: str, new: str, key: Sequence[str], sample: int) -> RowDiff:
    """Compare the columns that both have. Within the caller's transaction."""
    there = {column.name for column in columns_of(session, new)}
    columns = [c.name for c in columns_of(session, old) if c.name in there and c.name not in OWN_COLUMNS]
    if key and set(key) <= set(columns):
        return _by_key(session, old, new, key, columns, sample)
    return _by_content(session, old, new, columns, sample)


def _by_key(session: Session, old: str, new: str, key: Sequence[str], columns: Sequence[str], sample: int) -> RowDiff:
    same = " AND ".join(f"o.{name} = n.{name}" for name in map(quote_identifier, key))
    differs = f"{digest_text(columns, 'o')} IS DISTINCT FROM {digest_text(columns, 'n')}"
    joined = f"FROM {old} AS o FULL JOIN {new} AS n ON {same}"
    added, removed, changed = session.one(
        "SELECT count(*) FILTER (WHERE o.row_id IS NULL), count(*) FILTER (WHERE n.row_id IS NULL), "
        f"count(*) FILTER (WHERE o.row_id IS NOT NULL AND n.row_id IS NOT NULL AND {differs}) {joined}"
    )
    before, after = _texts(columns, "o"), _texts(columns, "n")
    pairs = session.execute(
        f"SELECT {before}, {after} FROM {old} AS o JOIN {new} AS n ON {same} WHERE {differs} "
        f"ORDER BY o.row_id LIMIT {sample}"
    )
    width = len(columns)
    return RowDiff(
        tuple(columns), added, removed, changed,
        tuple(session.execute(f"SELECT {after} {joined} WHERE o.row_id IS NULL ORDER BY n.row_id LIMIT {sample}")),
        tuple(session.execute(f"SELECT {before} {joined} WHERE n.row_id IS NULL ORDER BY o.row_id LIMIT {sample}")),
        tuple((row[:width], row[width:]) for row in pairs),
    )  # fmt: skip


def _by_content(session: Session, old: str, new: str, columns: Sequence[str], sample: int) -> RowDiff:
    """Of equal rows it counts how many there are on each side."""
    content = f"sha256(convert_to({digest_text(columns, 't')}, 'UTF8'))"
    session.execute(
        'CREATE TEMPORARY TABLE "load difference" ON COMMIT DROP AS SELECT content, sum(n)::bigint AS surplus FROM ('
        f"SELECT {content} AS content, count(*) AS n FROM {new} AS t GROUP BY 1 UNION ALL "
        f"SELECT {content}, -count(*) FROM {old} AS t GROUP BY 1) AS both_sides GROUP BY content HAVING sum(n) <> 0"
    )
    added, removed = session.one(
        "SELECT coalesce(sum(surplus) FILTER (WHERE surplus > 0), 0)::bigint, "
        'coalesce(-sum(surplus) FILTER (WHERE surplus < 0), 0)::bigint FROM pg_temp."load difference"'
    )

    def rows(relation: str, sign: str) -> tuple[Row, ...]:
        return tuple(
            session.execute(
                f'SELECT {_texts(columns, "t")} FROM {relation} AS t JOIN pg_temp."load difference" AS d '
                f"ON d.content = {content} WHERE d.surplus {sign} 0 ORDER BY t.row_id LIMIT {sample}"
            )
        )

    return RowDiff(tuple(columns), added, removed, 0, rows(new, ">"), rows(old, "<"))


def _texts(columns: Sequence[str], qualifier: str) -> str:
    return ", ".join(f"{qualifier}.{quote_identifier(column)}::text" for column in columns)
