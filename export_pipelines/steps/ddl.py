"""CREATE TABLE from the columns of a manifest, for PostgreSQL and for MySQL and MariaDB."""

from __future__ import annotations

import re
from collections.abc import Sequence

from export_pipelines.errors import TargetError
from export_pipelines.manifest import Column, ExportRecord
from export_pipelines.sources.mysql_types import is_binary, is_bits, postgres_type
from export_pipelines.specs.table import CsvSpec
from export_pipelines.sql import quote_identifier
from export_pipelines.sql_mysql import quote_identifier as mysql_identifier
from export_pipelines.sql_mysql import quote_literal as mysql_literal

# Of the longest varchar in utf8mb4.
_WIDEST = 16383
_MYSQL_TYPE = re.compile(
    r"[a-z]\w*( precision)?(\s*\(\s*(\d+\s*(,\s*\d+\s*)?|'(''|[^'])*'(\s*,\s*'(''|[^'])*')*)\))?( unsigned| zerofill)*"
)


def create_table_sql(name: str, columns: Sequence[Column]) -> str:
    """The statement, one line a column, without keys, indexes and defaults. `name` is SQL already: quote it first.

    Types stand as the manifest has them, which is SQL as well: a restore asks the server whether each is a type, before
    it runs this.
    """
    body = ",\n".join(f"  {quote_identifier(column.name)} {column.type}" for column in columns)
    return f"CREATE TABLE {name} (\n{body}\n)"


def postgres_columns(export: ExportRecord) -> tuple[Column, ...]:
    """The columns of a file with their types in PostgreSQL, whatever it was exported from."""
    if export.source.engine == "postgresql":
        return export.columns
    return tuple(Column(name=column.name, type=postgres_type(column.type)) for column in export.columns)


def mysql_table_sql(name: str, columns: Sequence[Column], *, temporary: bool = False) -> str:
    """The same in MySQL's dialect. Strings are utf8mb4, whatever their charset was: the file says them in UTF-8.

    Each column may be NULL, also a timestamp, which an older server would fill with the present time instead.
    """
    body = ",\n".join(f"  {mysql_identifier(column.name)} {_mysql_type(column.type)} NULL" for column in columns)
    kind = "TEMPORARY TABLE" if temporary else "TABLE"
    return f"CREATE {kind} {name} (\n{body}\n) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4"


def refuse_foreign_types(columns: Sequence[Column]) -> None:
    """Raises TargetError: what stands for a type is none of MySQL's, and would be run as SQL."""
    for column in columns:
        if not _MYSQL_TYPE.fullmatch(_mysql_type(column.type)):
            raise TargetError(
                f"column {column.name!r} has a type that is none of MySQL's: {column.type}",
                hint="create the table first, with the types that you want",
            )


def mysql_load_sql(name: str, columns: Sequence[Column], csv: CsvSpec) -> str:
    """LOAD DATA of a file in this dialect, for a person with a shell. It cannot tell an empty string from NULL."""
    names = [mysql_identifier(column.name) for column in columns]
    given = ", ".join(f"@c{number}" for number, _ in enumerate(columns, 1))
    sets = ", ".join(
        f"{quoted} = {_loaded(column.type, f'NULLIF(@c{number}, {mysql_literal(csv.null)})')}"
        for number, (quoted, column) in enumerate(zip(names, columns, strict=True), 1)
    )
    header = " IGNORE 1 LINES" if csv.header else ""
    return (
        f"LOAD DATA LOCAL INFILE 'file.csv' INTO TABLE {name} CHARACTER SET utf8mb4 FIELDS TERMINATED BY "
        f"{_sign(csv.delimiter)} OPTIONALLY ENCLOSED BY {_sign(csv.quote)} ESCAPED BY '' "
        f"LINES TERMINATED BY X'0A'{header} ({given}) SET {sets}"
    )


def _loaded(kind: str, value: str) -> str:
    if is_binary(kind):
        return f"UNHEX(SUBSTRING({value}, 3))"
    return f"CAST(CONV({value}, 2, 10) AS UNSIGNED)" if is_bits(kind) else value


def _sign(sign: str) -> str:
    return f"X'{sign.encode().hex()}'"


def _mysql_type(declared: str) -> str:
    # MariaDB says in a comment how it stores a column.
    kind = re.sub(r"\s*/\*M?!\d+ \w+\*/$", "", declared).strip()
    width = re.fullmatch(r"varchar\((\d+)\)", kind)
    return "longtext" if width and int(width[1]) > _WIDEST else kind
