"""Style `shadow`: a table that was built beside is compared with the one that is there, block by block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from export_pipelines.sources.postgres import Session
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.load_convert import digest_text
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.registry import Counts
from export_pipelines.targets.tables import TableColumn

BLOCKS = 4096
_EXACT = re.compile(
    r"smallint|integer|bigint|boolean|date|uuid|text|bytea|character( varying)?(\(\d+\))?|numeric\(\d+,\d+\)"
    r"|timestamp(\(\d\))? with(out)? time zone"
)
_FEW = 0.1
"""Share of the rows in blocks that differ, up to which they are changed in place. Beyond, a swap costs less: the table
is built already."""


@dataclass(frozen=True)
class Comparison:
    """The blocks that differ, the rows in them, and the digest of all of the new table."""

    differing: tuple[int, ...]
    share: float
    digest: str

    @property
    def few(self) -> bool:
        return self.share <= _FEW


def hash_sql(columns: Sequence[TableColumn], qualifier: str, seed: int) -> str:
    """A 64-bit hash of some columns. Types whose equality is that of their text go as they are, which is much quicker;
    others as text: 1.0 and 1.00 are equal as numeric, and not the same."""
    values = (f"{qualifier}.{quote_identifier(c.name)}{'' if _EXACT.fullmatch(c.type) else '::text'}" for c in columns)
    return f"hash_record_extended(ROW({', '.join(values)}), {seed})"


def block_sql(key: Sequence[str], columns: Sequence[TableColumn], qualifier: str) -> str:
    """The block of a row: by its key, so that a changed row stays in its block."""
    chosen = [column for column in columns if column.name in key] if key else columns
    return f"({hash_sql(chosen, qualifier, 1)} & {BLOCKS - 1})::integer"


def measure(session: Session, relation: str, key: Sequence[str], columns: Sequence[TableColumn]) -> None:
    """Digests of the blocks of a table into a temporary one. Reads it once, in parallel where the server does.

    The sum of 64-bit hashes of the rows guards against accidents, whatever their order.
    """
    session.execute(
        'CREATE TEMPORARY TABLE "load blocks" ON COMMIT DROP AS '
        f"SELECT {block_sql(key, columns, 't')} AS block, count(*) AS rows, "
        f"sum({hash_sql(columns, 't', 0)}) AS digest FROM {relation} AS t GROUP BY 1"
    )


def compare(session: Session, names: TableNames, current: int | None) -> Comparison:
    """What was measured against the blocks of the current version."""
    differing = session.execute(
        'SELECT coalesce(n.block, o.block), coalesce(n.rows, 0) FROM pg_temp."load blocks" AS n FULL JOIN (SELECT * '
        "FROM operations.table_block WHERE target_table = %s AND version = %s) AS o ON o.block = n.block "
        "WHERE (n.rows, n.digest) IS DISTINCT FROM (o.rows, o.digest)",
        (names.table, current or 0),
    )
    total, text = session.one(
        "SELECT coalesce(sum(rows), 0), encode(sha256(convert_to(coalesce(string_agg(concat_ws(' ', block, rows, "
        "digest), ',' ORDER BY block), ''), 'UTF8')), 'hex') FROM pg_temp.\"load blocks\""
    )
    rows = sum(row[1] for row in differing)
    return Comparison(tuple(row[0] for row in differing), float(rows) / float(total) if total else 1.0, str(text))


def keep(session: Session, names: TableNames, version: int) -> None:
    """Note what was measured as the blocks of a version."""
    session.execute(
        "DELETE FROM operations.table_block WHERE target_table = %s AND version = %s", (names.table, version)
    )
    session.execute(
        "INSERT INTO operations.table_block (target_table, version, block, rows, digest) "
        'SELECT %s, %s, block, rows, digest FROM pg_temp."load blocks"',
        (names.table, version),
    )


def change_blocks(
    session: Session,
    old: str,
    new: str,
    key: Sequence[str],
    columns: Sequence[TableColumn],
    more: Sequence[str],
    blocks: Sequence[int],
) -> Counts:
    """Make the old table's rows in these blocks those of the new one, by key. The others keep their row_id."""
    listed = f"ANY('{{{', '.join(map(str, blocks))}}}'::integer[])"
    old_block, new_block = (f"{block_sql(key, columns, side)} = {listed}" for side in ("t", "s"))
    same = " AND ".join(f"t.{name} = s.{name}" for name in map(quote_identifier, key))
    plain = [column.name for column in columns]
    names = [*map(quote_identifier, plain), *more]
    removed = session.change(
        f"DELETE FROM {old} AS t WHERE {old_block} AND NOT EXISTS (SELECT FROM {new} AS s WHERE {same})"
    )
    changed = session.change(
        f"UPDATE {old} AS t SET {', '.join(f'{name} = s.{name}' for name in names)} FROM {new} AS s WHERE {same} "
        f"AND {new_block} AND {digest_text(plain, 't')} IS DISTINCT FROM {digest_text(plain, 's')}"
    )
    added = session.change(
        f"INSERT INTO {old} ({', '.join(names)}) SELECT {', '.join(f's.{name}' for name in names)} FROM {new} AS s "
        f"WHERE {new_block} AND NOT EXISTS (SELECT FROM {old} AS t WHERE {same})"
    )
    return Counts(added=added, changed=changed, removed=removed)
