"""INSERT of an archived file into a table of MySQL or MariaDB, by the settings that its text was written with."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice

from export_pipelines.errors import IntegrityError, TargetError
from export_pipelines.formats.csv import records
from export_pipelines.sources.mysql import PINNED, MysqlSession
from export_pipelines.sql_mysql import quote_identifier
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.mysql.literals import Literals, inserts
from export_pipelines.steps.pieces import Archived, Report, read_ahead

_STATEMENT = 1 << 20
# What a statement's packet has beside its text.
_ROOM = 64
_MODE = PINNED["sql_mode"].strip("'") + ",ALLOW_INVALID_DATES"
"""Strict, but for dates: what the source had (0000-00-00, 2024-02-31), the target takes."""


def load(session: MysqlSession, relation: str, archived: Archived, piece: Generation, report: Report) -> int:
    """Load one file, or what is wanted of it, into a relation by the names of its columns; return the number of rows.

    The session's time zone is that of the file afterwards. Memory: some mebibytes, and a record.

    Raises:
        IntegrityError: it is not what its manifest says.
        TargetError: the server took other rows, or a record is larger than it takes.
        SourceError: the server refused it.
    """
    export = piece.manifest.export
    _set_as_written(session, export.source.settings)
    columns = _list([column.name for column in export.columns])
    head = f"INSERT INTO {relation} ({columns}) VALUES "
    largest = int(session.one("SELECT @@max_allowed_packet")[0]) - _ROOM
    kinds = session.describe(f"SELECT {columns} FROM {relation}")
    literals = Literals(export.columns, export.csv, [n for n, kind in enumerate(kinds) if kind.never_null_instant])
    rows = 0
    with closing(read_ahead(_lists(archived, piece, report))) as found:
        values = map(literals.row, chain.from_iterable(found))
        for statement, number in inserts(head, values, min(_STATEMENT, largest)):
            _refuse_large(statement, largest)
            taken = session.change(statement)
            if taken != number:
                raise TargetError(
                    f"{relation} took {taken} rows of {number}; nothing was restored",
                    hint="restore into a name that is free, and merge from there",
                )
            rows += number
    if piece.whole and rows != export.rows:
        place = archived.store.locate(piece.manifest.file.key)
        raise IntegrityError(f"{place} has {rows} records, its manifest says {export.rows}")
    return rows


def _lists(archived: Archived, piece: Generation, report: Report) -> Generator[list[bytes]]:
    """The records to load, in lists, without the header."""
    csv = piece.manifest.export.csv
    with closing(archived.content(piece, report)) as content:
        lists: Iterator[list[bytes]] = records((data for data, _ in content), csv)
        if not (piece.whole and csv.header):
            yield from lists
            return
        first = next((found for found in lists if found), [])
        yield list(islice(first, 1, None))
        yield from lists


def _set_as_written(session: MysqlSession, written: dict[str, str]) -> None:
    zone = written.get("time_zone", "+00:00")
    session.execute("SET SESSION time_zone = %s, SESSION sql_mode = %s", (zone, _MODE))


def _refuse_large(statement: str, largest: int) -> None:
    if len(statement) * 4 > largest and len(statement.encode()) > largest:
        raise TargetError(
            f"a record needs a statement of {len(statement):,} characters, the server takes {largest:,} bytes",
            hint="raise max_allowed_packet on the target; nothing was restored",
        )


def _list(columns: Sequence[str]) -> str:
    return ", ".join(map(quote_identifier, columns))
