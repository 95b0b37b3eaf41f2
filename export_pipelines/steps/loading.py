"""COPY of an archived file into a table of the target, by the settings that its text was written with."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress

from export_pipelines.errors import IntegrityError, SourceError
from export_pipelines.formats.csv import copy_options
from export_pipelines.sources.postgres import PINNED, Session
from export_pipelines.sql import quote_identifier
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
    feed = _Feed(read_ahead(archived.content(piece, report)), export.rows if piece.whole else 0)
    dialect = export.csv if piece.whole else export.csv.model_copy(update={"header": False})
    try:
        rows = session.copy_in(f"{relation} ({columns})", copy_options(dialect), feed.read)
    except SourceError:
        if feed.error is not None:
            raise feed.error from None
        raise
    finally:
        feed.close()
    if rows != feed.rows:
        place = archived.store.locate(piece.manifest.file.key)
        raise IntegrityError(
            f"{place} has {feed.rows} rows to restore, the server took {rows}",
            hint="nothing was restored; a trigger or rule of the table may leave rows out",
        )
    return rows


def _set_as_written(session: Session, written: dict[str, str]) -> None:
    settings = {**{k: PINNED[k] for k in _SETTINGS & PINNED.keys()}, "TimeZone": "UTC", **written}
    calls = ", ".join("set_config(%s, %s, true)" for _ in _SETTINGS)
    session.execute(f"SELECT {calls}", [part for name in sorted(_SETTINGS) for part in (name, settings[name])])


class _Feed:
    """What COPY reads from. Its error is kept, since the driver only tells its text."""

    def __init__(self, pieces: Generator[tuple[bytes, int]], rows: int) -> None:
        self._pieces = pieces
        self._rest: bytes | memoryview = b""
        self.rows = rows
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            while not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    return b""
                self._rest, rows = piece
                self.rows += rows
        except BaseException as error:
            self.error = error
            raise
        if len(self._rest) <= size:
            data, self._rest = self._rest, b""
        else:
            self._rest = memoryview(self._rest)
            data, self._rest = self._rest[:size], self._rest[size:]
        return data if isinstance(data, bytes) else bytes(data)

    def close(self) -> None:
        """Stop reading ahead, and close the file."""
        # A thread that was interrupted may still be at it: it ends by itself when the connection is cut.
        with suppress(ValueError):
            self._pieces.close()
