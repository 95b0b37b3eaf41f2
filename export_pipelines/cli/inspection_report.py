"""What `check` looks at for `dump: report`: whether a finished file could be entered in the table of reports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from export_pipelines.cli.places import table_error
from export_pipelines.errors import SourceError, SpecError
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.mysql_errors import DENIED, NO_SUCH_TABLE, UNKNOWN_COLUMN
from export_pipelines.specs.dump import ReportColumns, ReportSpec
from export_pipelines.steps.report import entry_statements

if TYPE_CHECKING:
    from export_pipelines.specs.table import TableDefinition
    from export_pipelines.steps.context import Source

_NOW = datetime(2000, 1, 1, tzinfo=UTC)
_SAMPLES = {
    "path": "/x",
    "name": "x",
    "type": "x",
    "size": 1,
    "rows": 1,
    "range_start": _NOW,
    "range_end": _NOW,
    "date": _NOW,
}
_TYPES = {
    "postgresql": {str: "text", int: "bigint", datetime: "timestamptz"},
    "mysql": {str: "varchar(700)", int: "bigint", datetime: "datetime"},
}
_MISSING_TABLE = ("42P01", "3F000", NO_SUCH_TABLE)
_MISSING_COLUMN = ("42703", UNKNOWN_COLUMN)
_REFUSED = ("42501", *DENIED)


def report_connection(table: TableDefinition) -> str | None:
    """Name of the connection of a table's report; None without a report."""
    report = table.spec.dump.report
    return (report.connection or table.spec.connection) if report else None


def inspect_report(table: TableDefinition, source: Source) -> list[SpecError]:
    """Have the server prepare the entry of a file in the table of reports. Nothing is entered."""
    spec = table.spec.dump.report
    assert spec is not None
    try:
        _prepare(spec, source)
    except SourceError as error:
        field = "columns" if error.code in _MISSING_COLUMN and spec.columns != ReportColumns() else "table"
        message = f"files could not be entered in {spec.table}: {error.message}"
        return [table_error(table, message, ("dump", "report", field), _hint(spec, source, error))]
    return []


def _prepare(spec: ReportSpec, source: Source) -> None:
    values = {name: value for field, value in _SAMPLES.items() if (name := getattr(spec.columns, field))}
    looking, entering = entry_statements(spec, list(values), source.engine)
    if isinstance(source, MysqlSource):
        with source.session() as mysql:
            # Outside of a transaction that only reads, in which the server would not even prepare the second.
            for statement in (looking, entering):
                mysql.describe(statement.replace("%s", "NULL").replace("%%", "%"))
        return
    with source.session(statement_timeout="30s", lock_timeout="30s") as session:
        session.begin()
        session.execute(f"EXPLAIN {looking}", ("/x",))
        session.execute(f"EXPLAIN {entering}", tuple(values.values()))


def _hint(spec: ReportSpec, source: Source, error: SourceError) -> str:
    if error.code in _MISSING_TABLE:
        return f"correct its name, or make it: {table_sql(spec, source.engine)}"
    if error.code in _MISSING_COLUMN:
        return "say under `columns:` what the columns are called there; `null` leaves one out"
    if error.code in _REFUSED:
        return "the account of its connection needs SELECT and INSERT on it; `export-pipelines roles` prints them"
    return error.hint


def table_sql(spec: ReportSpec, engine: str) -> str:
    """A CREATE TABLE that has the columns of a report."""
    types = _TYPES[engine]
    columns = [f"{name} {types[type(_SAMPLES[field])]}" for field, name in spec.columns if name]
    key = "NOT NULL PRIMARY KEY"
    return f"CREATE TABLE {spec.table} ({', '.join([f'{columns[0]} {key}', *columns[1:]])})"
