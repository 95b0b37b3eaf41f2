"""The table of MySQL or MariaDB to restore into: its name, and what of it decides how rows get there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.manifest import Column
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql import MysqlSession, MysqlSource
from export_pipelines.sql_mysql import MysqlRelation, split_name
from export_pipelines.steps.ddl import mysql_table_sql, refuse_foreign_types
from export_pipelines.steps.target import Target, agreed

_TABLES = "SELECT 1 FROM information_schema.tables WHERE table_schema = COALESCE(%s, DATABASE()) AND table_name = %s"
_GENERATED = """
SELECT column_name FROM information_schema.columns
WHERE table_schema = %s AND table_name = %s AND generation_expression <> ''
"""
_TRIGGERS = """
SELECT 1 FROM information_schema.triggers
WHERE event_object_schema = %s AND event_object_table = %s
  AND action_timing = 'BEFORE' AND event_manipulation = 'INSERT'
"""


def target_name(text: str) -> MysqlRelation:
    """`name` or `database.name`. Raises RequestError for anything else."""
    schema, name = split_name(text)
    return MysqlRelation(schema, name, "")


def exists(session: MysqlSession, name: MysqlRelation) -> bool:
    """Whether there is such a table, or view."""
    return bool(session.execute(_TABLES, (name.schema, name.name)))


def create(session: MysqlSession, name: str, columns: Sequence[tuple[Column, ...]]) -> None:
    """Make the table, if all files agree on its columns. It is there at once, whatever becomes of the transaction."""
    wanted = agreed(name, columns)
    refuse_foreign_types(wanted)
    session.execute(mysql_table_sql(name, wanted))


def drop_if_empty(target: MysqlSource, name: str) -> None:
    """Remove a table that we made in vain, unless somebody has put rows into it. One that cannot be removed stays."""
    with suppress(SourceError), target.session(read_only=False) as session:
        session.execute(f"LOCK TABLES {name} WRITE")
        if not session.one(f"SELECT EXISTS (SELECT 1 FROM {name})")[0]:
            session.execute(f"DROP TABLE {name}")


def existing(session: MysqlSession, name: MysqlRelation, needed: frozenset[str]) -> Target:
    """Look at the table, and begin. An empty one is locked against other writers. Columns are called as in the files.

    Raises:
        TargetError: it is no table of InnoDB, or lacks a column.
    """
    table = mysql_inspect.base_table(session, name.schema, name.name)
    if table.unsound:
        raise TargetError(
            f"{table.unsound}, so a restore that fails could not be undone",
            hint="restore into a table of InnoDB, or into a name that is free",
        )
    spelling = {column.lower(): column for column in needed}
    columns = [spelling.get(column.lower(), column) for column in table.names]
    if missing := sorted(needed - set(columns)):
        raise TargetError(
            f"{name.sql} has no columns {missing}, which the archive has",
            hint="add them, or restore into a name that is free",
        )
    here = (table.schema, table.name)
    computed = {str(row[0]).lower() for row in session.execute(_GENERATED, here)}
    generated = frozenset(column for column in needed if column.lower() in computed)
    triggers = bool(session.execute(_TRIGGERS, here))
    session.begin()
    return Target(
        name=table.sql,
        generated=generated,
        always=frozenset(),
        columns=frozenset(columns),
        keys=tuple(tuple(spelling.get(column.lower(), column) for column in key) for key in table.keys),
        empty=not session.execute(f"SELECT 1 FROM {table.sql} LIMIT 1 FOR UPDATE"),
        altered=bool(generated) or triggers,
    )
