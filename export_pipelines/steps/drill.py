"""The restore drill: an archived partition is loaded into a database and read back, to see that it comes out the same.

It is loaded into a temporary table, within a transaction that is rolled back: nothing is left behind whatever happens,
nobody else ever sees it, the server's log of changes does not grow, and the role needs no more than TEMPORARY on the
database (which every role has, unless it was taken away).
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.csv import copy_options, digest_records, format_digest, records
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources.mysql import MysqlSession, MysqlSource
from export_pipelines.sources.postgres import PostgresSource, Session
from export_pipelines.sql import quote_identifier
from export_pipelines.steps import keys
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.loading import load
from export_pipelines.steps.pieces import Archived, Choice, Report, pieces_of, reporter
from export_pipelines.steps.restore import as_target_errors
from export_pipelines.steps.target import create

_SCRATCH = 'pg_temp."export_pipelines_drill"'


@dataclass(frozen=True)
class DrillResult:
    """What was restored and read back the same. `raw_bytes` are those that were read from the archive.

    `same_bytes` says whether whole files came back byte for byte; else the same records came in another order.
    """

    partition: str
    files: int
    rows: int
    raw_bytes: int
    row_digest: str
    same_bytes: bool
    seconds: float


def drill(
    archived: Archived,
    target: PostgresSource | MysqlSource,
    *,
    max_bytes: int | None = None,
    choose: Callable[[Sequence[str]], str] = random.choice,
    progress: Callable[[Progress], None] = silent,
) -> DrillResult:
    """Restore a random partition of at most `max_bytes` (raw) into a temporary table of `target`, and read it back.

    Partitions with rows come first. Left out is what was adopted from an older service, and what a format changed: it
    need not be spelt as COPY spells it. What was exported from MySQL or MariaDB is drilled there: PostgreSQL spells
    values in another way.

    Raises:
        RequestError: nothing is archived, no partition is small enough, or the target is of the other kind.
        IntegrityError: a file is not what its manifest says, or its rows came back differently.
        TargetError: the database did not take it.
    """
    begun = time.monotonic()
    found = archived.chosen(Choice())
    partition = choose(_fit(archived, found, max_bytes))
    pieces = pieces_of({partition: found[partition]})
    same = True
    rows = total = 0
    with as_target_errors("a temporary table"), target.session(read_only=False) as session:
        for piece in pieces:
            _refuse_other(piece, target.engine)
            session.begin()
            read, loaded = _round_trip(session, archived, piece, reporter(progress, piece.manifest, rows))
            session.rollback()
            digest, bytes_equal = _compared(read, archived, piece)
            rows += loaded
            total += digest
            same &= bytes_equal
    size = sum(piece.manifest.file.raw_size for piece in pieces)
    return DrillResult(partition, len(pieces), rows, size, format_digest(total), same, time.monotonic() - begun)


def _fit(archived: Archived, found: dict[str, list[Generation]], max_bytes: int | None) -> list[str]:
    own = {key: pieces for key, pieces in found.items() if not any(_unlike(piece.manifest) for piece in pieces)}
    sizes = {key: sum(p.manifest.file.raw_size for p in pieces_of({key: pieces})) for key, pieces in own.items()}
    small = [key for key, size in sizes.items() if max_bytes is None or size <= max_bytes]
    if not small:
        smallest = f"the smallest has {min(sizes.values()):,} bytes" if sizes else "all were adopted, or converted"
        raise RequestError(
            f"no partition of {archived.table!r} is fit for a drill: {smallest}", hint="raise max_megabytes"
        )
    return [key for key in small if any(piece.manifest.export.rows for piece in own[key])] or small


def _unlike(manifest: ArtifactManifest) -> bool:
    """Whether a file's rows need not come back as COPY spelt them: it was adopted, or its format converted values."""
    export = manifest.export
    converted = export.layout is not None and bool(export.layout.conversions) and not export.exact
    return manifest.adopted or converted


def _refuse_other(piece: Generation, engine: str) -> None:
    found = piece.manifest.export.source.engine
    if found != engine:
        raise RequestError(
            f"{piece.manifest.table} was exported from {found}, the drill is to be in {engine}",
            hint="give the drill a connection of the same kind as the table's",
        )


def _round_trip(
    session: Session | MysqlSession, archived: Archived, piece: Generation, report: Report
) -> tuple[_Read, int]:
    """Load a file into a temporary table, and read it back; how many rows were loaded."""
    if isinstance(session, MysqlSession):
        from export_pipelines.steps.mysql.drilling import round_trip

        read = _Read(header=piece.whole and piece.manifest.export.csv.header)
        return read, round_trip(session, archived, piece, report, read.take)
    create(session, _SCRATCH, [piece.manifest.export.columns])
    rows = load(session, _SCRATCH, archived, piece, report)
    return _read_back(session, piece), rows


def _read_back(session: Session, piece: Generation) -> _Read:
    export = piece.manifest.export
    dialect = export.csv if piece.whole else export.csv.model_copy(update={"header": False})
    read = _Read(header=dialect.header)
    columns = ", ".join(quote_identifier(column.name) for column in export.columns)
    with keys.batched(read.take) as write:
        session.copy_out(f"SELECT {columns} FROM {_SCRATCH}", copy_options(dialect), write)
    return read


def _compared(read: _Read, archived: Archived, piece: Generation) -> tuple[int, bool]:
    """Row digest of what the table gave, compared with that of the archive; whether a whole file's bytes are the same.

    Raises:
        IntegrityError: the records are not the same.
    """
    export = piece.manifest.export
    expected = int(export.row_digest, 16) if piece.whole else _digest_of(archived, piece)
    if (read.total - expected) % (1 << 64):
        raise IntegrityError(
            f"rows of {archived.store.locate(piece.manifest.file.key)} came back differently: row digest "
            f"{format_digest(read.total)}, archived {format_digest(expected)}",
            hint="restore it into a table and compare; another version of the server may print values in another way",
        )
    return expected, not piece.whole or read.sha256.hexdigest() == piece.manifest.file.raw_sha256


class _Read:
    """Records that come back: their digests."""

    def __init__(self, *, header: bool) -> None:
        self.sha256 = hashlib.sha256()
        self.total = 0
        self._header = header

    def take(self, found: list[bytes]) -> None:
        self.sha256.update(b"".join(found))
        self.total += digest_records(found[1:] if self._header else found)
        self._header = False


def _digest_of(archived: Archived, piece: Generation) -> int:
    """Row digest of the records that are taken of an earlier generation, not yet reduced."""
    dialect = piece.manifest.export.csv
    content = (data for data, _ in archived.content(piece, lambda size: None))
    return sum(digest_records(found) for found in records(content, dialect))
