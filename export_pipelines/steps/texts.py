"""The text of a table's statements, with parameters: as it stands in its files, or derived, in either dialect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from export_pipelines.errors import SpecError
from export_pipelines.specs.table import TableDefinition

Quote = Callable[[str], str]


def texts(table: TableDefinition) -> tuple[str, str | None]:
    """The text of both statements in the dialect of the table's engine; the second is None where nothing can be
    deleted."""
    if table.select_sql is not None:
        return table.select_sql, table.delete_sql
    assert table.spec.table is not None
    where = ""
    if table.spec.time_column and table.spec.partitions:
        column = _verbatim(quote_of(table)(table.spec.time_column))
        where = f"\nWHERE {column} >= %(window_start)s AND {column} < %(window_end)s"
    name = _verbatim(table.spec.table)
    return f"SELECT *\nFROM {name}{where}", table.delete_sql or f"DELETE FROM {name}{where}"


def quote_of(table: TableDefinition) -> Quote:
    """What quotes a name in the table's dialect."""
    if table.engine == "mysql":
        from export_pipelines.sql_mysql import quote_identifier as backticks

        return backticks
    from export_pipelines.sql import quote_identifier

    return quote_identifier


def column_list(table: TableDefinition, names: Sequence[str]) -> str:
    """The select list of a derived statement, without excluded columns and with masks, of a table with these columns.

    Raises:
        SpecError: a column to exclude or mask is not among them.
    """
    spec, quote = table.spec, quote_of(table)
    if unknown := {*spec.exclude_columns, *spec.mask_columns} - set(names):
        raise SpecError(
            f"columns {sorted(unknown)} to exclude or mask are not in {spec.table}",
            file=table.folder / "defs.yaml",
            hint=f"it has {', '.join(names)}",
        )
    masks = {name: f"({mask}) AS {_verbatim(quote(name))}" for name, mask in spec.mask_columns.items()}
    kept = [name for name in names if name not in spec.exclude_columns]
    return ", ".join(masks.get(name, _verbatim(quote(name))) for name in kept)


def refuse_without_bounds(table: TableDefinition, used: set[str], file: str) -> None:
    """Raises SpecError: a statement of a table with partitions has no parameter to bind it to one."""
    if table.spec.partitions is not None and not used:
        raise SpecError(
            f"{file} uses no parameter, so each partition would be the whole table",
            file=table.folder / file,
            line=1,
            hint="compare a time column with %(window_start)s and %(window_end)s, or leave out `partitions`",
        )


def _verbatim(name: str) -> str:
    """A name that stays as it is when parameters are filled in."""
    return name.replace("%", "%%")
