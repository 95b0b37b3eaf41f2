"""The table to restore into: its name, and what of it decides how rows get there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from export_pipelines.errors import RequestError, SourceError, TargetError
from export_pipelines.manifest import Column
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.ddl import create_table_sql

_UNDEFINED_TABLE = "42P01"
_INVALID_SCHEMA = "3F000"
_IDENTIFIER = r'"(?:[^"]|"")+"|[^\W\d][\w$]*'

_COLUMNS = """
SELECT attname::text, attgenerated <> '', attidentity = 'a' FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""

_KEYS = """
SELECT array_agg(a.attname::text ORDER BY k.position) FROM pg_index i
CROSS JOIN unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k(attnum, position)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid, i.indisprimary ORDER BY i.indisprimary DESC, bool_and(a.attnotnull) DESC, count(*), i.indexrelid
"""

# Row triggers BEFORE INSERT, of partitions as well.
_TRIGGERS = """
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgtype & 7 = 7 AND tgenabled <> 'D' AND NOT tgisinternal AND
  (tgrelid = to_regclass(%(name)s) OR tgrelid IN (SELECT relid FROM pg_partition_tree(to_regclass(%(name)s)))))
"""


@dataclass(frozen=True)
class Target:
    """An existing table. `name` is SQL; `keys` are the columns of its unique indexes, best first."""

    name: str
    generated: frozenset[str]
    always: frozenset[str]
    """Columns GENERATED ALWAYS AS IDENTITY: an INSERT may set them, an UPDATE never."""
    columns: frozenset[str]
    keys: tuple[tuple[str, ...], ...]
    empty: bool
    altered: bool
    """Whether it may store other values than it is given: by triggers, or in generated columns."""

    def key_for(self, files: Iterable[frozenset[str]], declared: Sequence[str]) -> tuple[str, ...]:
        """Columns that tell its rows apart and that every file has: of a unique index, else the declared ones, else
        none."""
        wanted = [*self.keys, *([tuple(declared)] if declared else [])]
        common = self.columns.intersection(*files)
        return next((key for key in wanted if common.issuperset(key)), ())


def target_name(text: str) -> str:
    """`name` or `schema.name` as SQL reads it, always quoted. Raises RequestError for anything else."""
    if not re.fullmatch(rf"(?:{_IDENTIFIER})(?:\.(?:{_IDENTIFIER}))?", text):
        raise RequestError(
            f"{text!r} is not the name of a table",
            hint='give `name` or `schema.name`, and put quotes around what has other signs: `"my table"`',
        )
    parts = re.findall(_IDENTIFIER, text)
    return ".".join(part if part.startswith('"') else quote_identifier(part.lower()) for part in parts)


def begin_locked(session: Session, name: str) -> bool:
    """Begin, with the target locked against other writers before the snapshot is taken. False if there is none."""
    session.begin()
    # A policy that hides rows would hide conflicts: it is an error then.
    session.execute("SET LOCAL row_security TO off")
    try:
        session.execute(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
    except SourceError as error:
        if error.code == _INVALID_SCHEMA:
            raise TargetError(f"the schema of {name} does not exist", hint="create it first") from error
        if error.code != _UNDEFINED_TABLE:
            raise
        session.rollback()
        session.begin()
        return False
    return True


def agreed(name: str, columns: Sequence[tuple[Column, ...]]) -> tuple[Column, ...]:
    """The columns of a table to be made, in the order of the last file. Raises TargetError: the files disagree."""
    kinds = {tuple(sorted((column.name, column.type) for column in some)) for some in columns}
    if len(kinds) > 1:
        every = Counter(column for kind in kinds for column in kind)
        differing = sorted({column for (column, _), times in every.items() if times < len(kinds)})
        raise TargetError(
            f"columns {differing} are not the same in all files to restore, so {name} cannot be made",
            hint="create an empty table that has all of the columns, or restore one partition at a time",
        )
    return columns[-1]


def create(session: Session, name: str, columns: Sequence[tuple[Column, ...]]) -> None:
    """Make the table, if all files agree on its columns. Their order is that of the last file."""
    wanted = agreed(name, columns)
    types = sorted({column.type for column in wanted})
    known = session.execute("SELECT t FROM unnest(%s::text[]) AS t WHERE to_regtype(t) IS NULL", (types,))
    if known:
        missing = ", ".join(row[0] for row in known)
        raise TargetError(
            f"types that do not exist in the target database: {missing}",
            hint="create them first (with the labels or fields they had), or create the table with other types",
        )
    session.execute(create_table_sql(name, wanted))


def existing(session: Session, name: str, needed: frozenset[str]) -> Target:
    """Look at the table. Raises TargetError: it is none, or lacks a column."""
    if session.one("SELECT relkind::text FROM pg_class WHERE oid = to_regclass(%s)", (name,))[0] not in "rp":
        raise TargetError(f"{name} is not a table", hint="restore into a table, or into a name that is free")
    columns = session.execute(_COLUMNS, (name,))
    if missing := sorted(needed - {column for column, _, _ in columns}):
        raise TargetError(
            f"{name} has no columns {missing}, which the archive has",
            hint="add them, or restore into a name that is free",
        )
    generated = frozenset(column for column, computed, _ in columns if computed)
    return Target(
        name=name,
        generated=generated & needed,
        always=frozenset(column for column, _, always in columns if always),
        columns=frozenset(column for column, _, _ in columns),
        keys=tuple(tuple(row[0]) for row in session.execute(_KEYS, (name,))),
        empty=not session.one(f"SELECT EXISTS (SELECT FROM {name})")[0],
        altered=bool(generated & needed) or bool(session.one(_TRIGGERS, {"name": name})[0]),
    )
