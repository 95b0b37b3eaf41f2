"""A table's statements for one partition: read or derived, parameters filled in, and what of them can be proved."""

from __future__ import annotations

from dataclasses import dataclass

from export_pipelines.errors import SpecError
from export_pipelines.manifest import digest
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.table import CsvSpec, TableDefinition
from export_pipelines.sql import (
    Delete,
    Select,
    parameters,
    parameters_used,
    parse_delete,
    parse_select,
    render,
)
from export_pipelines.steps.dialects import dialect_of
from export_pipelines.steps.texts import column_list, refuse_without_bounds, texts
from export_pipelines.windows import Window


@dataclass(frozen=True)
class Statements:
    """Both statements of a partition, ready to run. `sha256` is of their text before parameters were filled in."""

    select: Select
    delete: Delete | None
    csv: CsvSpec
    sha256: str


def statements(table: TableDefinition, window: Window, session: Session) -> Statements:
    """Read or derive the statements of a table for a window. Asks the server only for derived ones.

    Raises:
        SpecError: a statement is not what it must be, or would run without bounds.
        SourceError: the table or a column of it does not exist.
    """
    select_text, delete_text = texts(table)
    values = parameters(window, _naive_zone(table, session))
    if table.spec.mask_columns or table.spec.exclude_columns:
        select_text = select_text.replace("*", column_list(table, _names(table, session)), 1)
    select_file, delete_file = table.folder / "select.sql", table.folder / "delete.sql"
    refuse_without_bounds(table, parameters_used(select_text), "select.sql")
    select = parse_select(render(select_text, values, file=select_file), select_file)
    delete = None
    if delete_text is not None:
        refuse_without_bounds(table, parameters_used(delete_text), "delete.sql")
        delete = parse_delete(render(delete_text, values, file=delete_file), delete_file)
    if select.csv is not None and not table.spec.format.native:
        raise SpecError(
            "select.sql is a COPY with a dialect of its own, and `format` in defs.yaml wants another format",
            file=select_file,
            line=1,
            hint="leave the COPY out, and write the query alone",
        )
    csv = select.csv or dialect_of(table)
    return Statements(select, delete, csv, digest(f"{select_text}\0{delete_text}".encode()))


def _naive_zone(table: TableDefinition, session: Session) -> str | None:
    """The zone for parameters without one, when a derived statement compares them to a naive column."""
    spec = table.spec
    if table.select_sql is not None or spec.table is None or spec.time_column is None or spec.partitions is None:
        return None
    zoned = inspect.time_zone_of_column(session, spec.table, spec.time_column)
    return None if zoned else spec.partitions.timezone


def _names(table: TableDefinition, session: Session) -> list[str]:
    return [column.name for column in inspect.columns(session, f"SELECT * FROM {table.spec.table}")]
