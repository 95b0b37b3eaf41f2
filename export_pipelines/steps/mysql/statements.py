"""A table's statements for one partition in MySQL's dialect: read or derived, with the values of the window."""

from __future__ import annotations

from dataclasses import dataclass

from export_pipelines.manifest import digest
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.specs.table import CsvSpec, TableDefinition
from export_pipelines.sql import render
from export_pipelines.sql_mysql import (
    MysqlDelete,
    MysqlSelect,
    parameters,
    parameters_used,
    parse_delete,
    parse_select,
    split_name,
)
from export_pipelines.steps.dialects import dialect_of
from export_pipelines.steps.texts import column_list, refuse_without_bounds, texts
from export_pipelines.windows import Window


@dataclass(frozen=True)
class MysqlStatements:
    """Both statements of a partition, ready to run. `sha256` is of their text before parameters were filled in."""

    select: MysqlSelect
    delete: MysqlDelete | None
    csv: CsvSpec
    sha256: str


def statements(table: TableDefinition, window: Window, session: MysqlSession) -> MysqlStatements:
    """Read or derive the statements of a table for a window. Asks the server only for derived ones.

    Raises:
        SpecError: a statement is not what it must be, or would run without bounds.
        SourceError: the table or a column of it does not exist.
    """
    select_text, delete_text = texts(table)
    if table.spec.mask_columns or table.spec.exclude_columns:
        select_text = select_text.replace("*", column_list(table, _names(table, session)), 1)
    select, delete = parsed(table, window, select_text, delete_text, _zone(table, session))
    return MysqlStatements(select, delete, dialect_of(table), digest(f"{select_text}\0{delete_text}".encode()))


def parsed(
    table: TableDefinition, window: Window, select_text: str, delete_text: str | None, zone: str
) -> tuple[MysqlSelect, MysqlDelete | None]:
    """The statements with the window's values, as local times of `zone`. Raises SpecError."""
    values = parameters(window, zone)
    select_file, delete_file = table.folder / "select.sql", table.folder / "delete.sql"
    refuse_without_bounds(table, parameters_used(select_text), "select.sql")
    select = parse_select(render(select_text, values, file=select_file), select_file)
    if delete_text is None:
        return select, None
    refuse_without_bounds(table, parameters_used(delete_text), "delete.sql")
    return select, parse_delete(render(delete_text, values, file=delete_file), delete_file)


def _zone(table: TableDefinition, session: MysqlSession) -> str:
    """The zone whose local times the parameters are: the session's; of a derived statement on a DATETIME, which has no
    zone, that of the partitions."""
    spec = table.spec
    if table.select_sql is not None or spec.table is None or spec.time_column is None or spec.partitions is None:
        return spec.session_timezone
    schema, name = split_name(spec.table)
    instant = mysql_inspect.is_instant(session, schema, name, spec.time_column)
    return spec.session_timezone if instant else spec.partitions.timezone


def _names(table: TableDefinition, session: MysqlSession) -> tuple[str, ...]:
    return mysql_inspect.base_table(session, *split_name(table.spec.table or "")).names
