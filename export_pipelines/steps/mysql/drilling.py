"""A file of MySQL or MariaDB into a temporary table of theirs, and back."""

from __future__ import annotations

from collections.abc import Callable

from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sql_mysql import quote_identifier
from export_pipelines.steps.ddl import mysql_table_sql, refuse_foreign_types
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.mysql.engine import header
from export_pipelines.steps.mysql.loading import load
from export_pipelines.steps.mysql.reading import text_of
from export_pipelines.steps.pieces import Archived, Report

_SCRATCH = "`export_pipelines_drill`"


def round_trip(
    session: MysqlSession, archived: Archived, piece: Generation, report: Report, take: Callable[[list[bytes]], object]
) -> int:
    """Load a file; `take` gets what the table gives, records with their line ends, the header first if it is a whole
    file that has one. Returns how many rows were loaded.

    Raises:
        IntegrityError, TargetError, SourceError: as of `load`.
    """
    export = piece.manifest.export
    refuse_foreign_types(export.columns)
    session.execute(f"DROP TEMPORARY TABLE IF EXISTS {_SCRATCH}")
    session.execute(mysql_table_sql(_SCRATCH, export.columns, temporary=True))
    rows = load(session, _SCRATCH, archived, piece, report)
    query = f"SELECT {', '.join(quote_identifier(column.name) for column in export.columns)} FROM {_SCRATCH}"
    text = text_of(session.describe(query), export.csv)
    if piece.whole and export.csv.header:
        take([header(export.columns, export.csv)])
    session.stream(
        f"SELECT {text} FROM {_SCRATCH}",
        lambda found: take([record + b"\n" for record in found[-1]]),
        quote=export.csv.quote,
    )
    return rows
