"""COPY of an archived file into a table of the target, by the settings that its text was written with."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.csv import copy_options
from export_pipelines.sources.postgres import PINNED, Session
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.copying import copy_in
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.pieces import Archived, Report, read_ahead

# What a session that has it would read differently; a manifest may set nothing else.
_SETTINGS = frozenset(PINNED) - {"row_security"} | {"TimeZone"}


def load(session: Session, relation: str, archived: Archived, piece: Generation, report: Report) -> int:
    """Load one file, or what is wanted of it, into a relation by the names of its columns; return the number of rows.

    The session's settings are those of the file afterwards. Memory: some mebibytes.

    Raises:
        IntegrityError: it is not what its manifest says, or the server has counted other rows.
        SourceError: the server refused it.
    """
    export = piece.manifest.export
    _set_as_written(session, export.source.settings)
    columns = ", ".join(quote_identifier(column.name) for column in export.columns)
    taken = export.rows if piece.whole else 0

    def pieces() -> Generator[bytes]:
        nonlocal taken
        with closing(read_ahead(archived.content(piece, report))) as found:
            for data, number in found:
                taken += number
                yield data

    dialect = export.csv if piece.whole else export.csv.model_copy(update={"header": False})
    rows = copy_in(session, f"{relation} ({columns})", copy_options(dialect), pieces())
    if rows != taken:
        place = archived.store.locate(piece.manifest.file.key)
        raise IntegrityError(
            f"{place} has {taken} rows to restore, the server took {rows}",
            hint="nothing was restored; a trigger or rule of the table may leave rows out",
        )
    return rows


def _set_as_written(session: Session, written: dict[str, str]) -> None:
    settings = {**{k: PINNED[k] for k in _SETTINGS & PINNED.keys()}, "TimeZone": "UTC", **written}
    calls = ", ".join("set_config(%s, %s, true)" for _ in _SETTINGS)
    session.execute(f"SELECT {calls}", [part for name in sorted(_SETTINGS) for part in (name, settings[name])])
