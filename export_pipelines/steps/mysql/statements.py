"""A table's statements for one partition in MySQL's dialect: read or derived, with the values of the window."""

from __future__ import annotations

from dataclasses import dataclass

from export_pipelines.errors import SpecError
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
    quote_identifier,
    split_name,
)
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
        select_text = select_text.replace("*", _column_list(table, session), 1)
    select, delete = parsed(table, window, select_text, delete_text, _zone(table, session))
    return MysqlStatements(select, delete, table.spec.format.csv, digest(f"{select_text}\0{delete_text}".encode()))


def parsed(
    table: TableDefinition, window: Window, select_text: str, delete_text: str | None, zone: str
) -> tuple[MysqlSelect, MysqlDelete | None]:
    """The statements with the window's values, as local times of `zone`. Raises SpecError."""
    values = parameters(window, zone)
    select_file, delete_file = table.folder / "select.sql", table.folder / "delete.sql"
    _refuse_without_bounds(table, select_text, "select.sql")
    select = parse_select(render(select_text, values, file=select_file), select_file)
    if delete_text is None:
        return select, None
    _refuse_without_bounds(table, delete_text, "delete.sql")
    return select, parse_delete(render(delete_text, values, file=delete_file), delete_file)


def texts(table: TableDefinition) -> tuple[str, str | None]:
    """The text of both statements, with parameters; the second is None where nothing can be deleted."""
    if table.select_sql is not None:
        return table.select_sql, table.delete_sql
    assert table.spec.table is not None
    where = ""
    if table.spec.time_column and table.spec.partitions:
        column = _verbatim(quote_identifier(table.spec.time_column))
        where = f"\nWHERE {column} >= %(window_start)s AND {column} < %(window_end)s"
    name = _verbatim(table.spec.table)
    return f"SELECT *\nFROM {name}{where}", table.delete_sql or f"DELETE FROM {name}{where}"


def _verbatim(name: str) -> str:
    """A name that stays as it is when parameters are filled in."""
    return name.replace("%", "%%")


def _zone(table: TableDefinition, session: MysqlSession) -> str:
    """The zone whose local times the parameters are: the session's; of a derived statement on a DATETIME, which has no
    zone, that of the partitions."""
    spec = table.spec
    if table.select_sql is not None or spec.table is None or spec.time_column is None or spec.partitions is None:
        return spec.session_timezone
    schema, name = split_name(spec.table)
    instant = mysql_inspect.is_instant(session, schema, name, spec.time_column)
    return spec.session_timezone if instant else spec.partitions.timezone


def _column_list(table: TableDefinition, session: MysqlSession) -> str:
    """The select list of a derived statement, without excluded columns and with masks."""
    spec = table.spec
    names = mysql_inspect.base_table(session, *split_name(spec.table or "")).names
    if unknown := {*spec.exclude_columns, *spec.mask_columns} - set(names):
        raise SpecError(
            f"columns {sorted(unknown)} to exclude or mask are not in {spec.table}",
            file=table.folder / "defs.yaml",
            hint=f"it has {', '.join(names)}",
        )
    masks = {name: f"({mask}) AS {_verbatim(quote_identifier(name))}" for name, mask in spec.mask_columns.items()}
    kept = [name for name in names if name not in spec.exclude_columns]
    return ", ".join(masks.get(name, _verbatim(quote_identifier(name))) for name in kept)


def _refuse_without_bounds(table: TableDefinition, text: str, file: str) -> None:
    if table.spec.partitions is not None and not parameters_used(text):
        raise SpecError(
            f"{file} uses no parameter, so each partition would be the whole table",
            file=table.folder / file,
            line=1,
            hint="compare a time column with %(window_start)s and %(window_end)s, or leave out `partitions`",
        )
