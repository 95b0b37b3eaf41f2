"""Restore: bring a partition, or a whole table, back from the archive into a table."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from export_pipelines.errors import IntegrityError, ObjectMissing, RequestError, SourceError, TargetError
from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.csv import copy_options
from export_pipelines.manifest import ArtifactManifest, Column
from export_pipelines.sources.postgres import PINNED, PostgresSource, Session
from export_pipelines.specs.table import Compression
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.ddl import create_table_sql
from export_pipelines.steps.generations import Generation, generations, picked
from export_pipelines.steps.reading import HashingReader
from export_pipelines.stores.base import Store

_UNDEFINED_TABLE = "42P01"
_INVALID_SCHEMA = "3F000"
# What a session that has it would read differently; a manifest may set nothing else.
_SETTINGS = frozenset(PINNED) - {"row_security"} | {"TimeZone"}
_IDENTIFIER = r'"(?:[^"]|"")+"|[^\W\d][\w$]*'

_COLUMNS = """
SELECT attname::text, attgenerated <> '' FROM pg_attribute
WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped
"""


@dataclass(frozen=True)
class RestoreResult:
    """What was restored, from how many files (`artifacts`); `created` says whether the table was made for it."""

    rows: int
    created: bool
    partitions: tuple[str, ...]
    artifacts: int


def restore_partition(
    archive: Store,
    table_id: str,
    partition: str | None,
    target: PostgresSource,
    into: str,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> RestoreResult:
    """Load a partition, or all of a table (`partition` None), into the table `into`, each row once.

    `into` is `name` or `schema.name`, read as SQL reads it: quote what is not all lower case. If it does not exist it
    is made, with the columns and types of the manifests; else it must be empty and have the columns. Which records
    are taken of several generations says `steps/generations.py`. Streams in bounded memory; each file's digests and
    number of rows are compared with its manifest while it is loaded. No database but the target is needed.

    Crash: one transaction does it all, so the target is as it was.

    Raises:
        RequestError: there is no such partition in the archive, or `into` is no name.
        IntegrityError: the archive is not what its manifests say; nothing was loaded.
        TargetError: the target is not fit for it; nothing was loaded.
    """
    name = target_name(into)
    found = _wanted(archive, table_id, partition)
    pieces = [piece for same in found.values() for piece in same if not piece.empty]
    with _as_target_errors(name), target.session(read_only=False) as session:
        created = not _locked(session, name)
        columns = [piece.manifest.export.columns for piece in pieces if not piece.manifest.adopted]
        columns = columns or [piece.manifest.export.columns for piece in pieces]
        if created:
            _create(session, name, columns)
        _refuse_unfit(session, name, [piece.manifest for piece in pieces])
        rows = 0
        for piece in pieces:
            rows += _load(session, name, archive, piece, _reporter(progress or silent, piece.manifest, rows))
        session.commit()
    return RestoreResult(rows, created, tuple(found), len(pieces))


def target_name(text: str) -> str:
    """`name` or `schema.name` as SQL reads it, always quoted. Raises RequestError for anything else."""
    if not re.fullmatch(rf"(?:{_IDENTIFIER})(?:\.(?:{_IDENTIFIER}))?", text):
        raise RequestError(
            f"{text!r} is not the name of a table",
            hint='give `name` or `schema.name`, and put quotes around what has other signs: `"my table"`',
        )
    parts = re.findall(_IDENTIFIER, text)
    return ".".join(part if part.startswith('"') else quote_identifier(part.lower()) for part in parts)


def _wanted(archive: Store, table_id: str, partition: str | None) -> dict[str, list[Generation]]:
    found = generations(archive, table_id)
    if not found:
        raise RequestError(
            f"nothing of {table_id!r} is archived in {archive.url}",
            hint="check the table's name (`export-pipelines list`), or run its archive first",
        )
    if partition is None:
        return found
    if partition not in found:
        names = list(found)
        raise RequestError(
            f"partition {partition!r} of {table_id!r} is not archived in {archive.url}",
            hint=f"there are {len(names)} partitions, {names[0]} to {names[-1]}",
        )
    return {partition: found[partition]}


@contextmanager
def _as_target_errors(name: str) -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        hint = error.hint or "nothing was restored; mend the target, and run the restore again"
        raise TargetError(
            f"restore into {name} failed: {error.message}", hint=hint, transient=error.transient
        ) from error


def _locked(session: Session, name: str) -> bool:
    """Begin, with the target locked against other writers before the snapshot is taken. False if there is none."""
    session.begin()
    try:
        session.execute(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
    except SourceError as error:
        if error.code == _INVALID_SCHEMA:
            raise TargetError(f"the schema of {name} does not exist", hint="create it first") from error
        if error.code != _UNDEFINED_TABLE:
            raise
        session.rollback()
        session.begin()
        return False
    return True


def _create(session: Session, name: str, columns: list[tuple[Column, ...]]) -> None:
    """Make the table, if all files agree on its columns. Their order is that of the last file."""
    kinds = {tuple(sorted((column.name, column.type) for column in some)) for some in columns}
    if len(kinds) > 1:
        every = Counter(column for kind in kinds for column in kind)
        differing = sorted({column for (column, _), times in every.items() if times < len(kinds)})
        raise TargetError(
            f"columns {differing} are not the same in all files to restore, so {name} cannot be made",
            hint="create an empty table that has all of the columns, or restore one partition at a time",
        )
    types = sorted({column.type for column in columns[-1]})
    known = session.execute("SELECT t FROM unnest(%s::text[]) AS t WHERE to_regtype(t) IS NULL", (types,))
    if known:
        missing = ", ".join(row[0] for row in known)
        raise TargetError(
            f"types that do not exist in the target database: {missing}",
            hint="create them first (with the labels or fields they had), or create the table with other types",
        )
    session.execute(create_table_sql(name, columns[-1]))


def _refuse_unfit(session: Session, name: str, manifests: list[ArtifactManifest]) -> None:
    """Raises TargetError: it is no table, has rows, or lacks a column."""
    if session.one("SELECT relkind::text FROM pg_class WHERE oid = to_regclass(%s)", (name,))[0] not in "rp":
        raise TargetError(f"{name} is not a table", hint="restore into a table, or into a name that is free")
    if session.one(f"SELECT EXISTS (SELECT FROM {name})")[0]:
        raise TargetError(
            f"{name} has rows already", hint="restore into an empty table or a name that is free, and merge from there"
        )
    present = dict(session.execute(_COLUMNS, (name,)))
    needed = {column.name for manifest in manifests for column in manifest.export.columns}
    if missing := sorted(needed - present.keys()):
        raise TargetError(
            f"{name} has no columns {missing}, which the archive has",
            hint="add them, or restore into a name that is free",
        )
    if generated := sorted(column for column in needed if present[column]):
        raise TargetError(f"columns {generated} of {name} are generated", hint="restore into a name that is free")


Report = Callable[[int], None]


def _reporter(progress: Callable[[Progress], None], manifest: ArtifactManifest, rows: int) -> Report:
    return lambda size: progress(Progress("restore", manifest.table, manifest.export.partition, rows, size))


def _load(session: Session, name: str, archive: Store, piece: Generation, report: Report) -> int:
    """Load one file, or what is wanted of it; return the number of rows.

    Raises:
        IntegrityError: it is not what its manifest says, or the server has counted other rows.
    """
    export = piece.manifest.export
    settings = {**{k: PINNED[k] for k in _SETTINGS & PINNED.keys()}, "TimeZone": "UTC", **export.source.settings}
    for setting in sorted(_SETTINGS):
        session.execute("SELECT set_config(%s, %s, true)", (setting, settings[setting]))
    columns = ", ".join(quote_identifier(column.name) for column in export.columns)
    feed = _Feed(_pieces(archive, piece, report), export.rows if piece.whole else 0)
    dialect = export.csv if piece.whole else export.csv.model_copy(update={"header": False})
    try:
        rows = session.copy_in(f"{name} ({columns})", copy_options(dialect), feed.read)
    except SourceError:
        if feed.error is not None:
            raise feed.error from None
        raise
    if rows != feed.rows:
        raise IntegrityError(
            f"{archive.locate(piece.manifest.file.key)} has {feed.rows} rows to restore, the server took {rows}",
            hint="nothing was restored; a trigger or rule of the table may leave rows out",
        )
    return rows


class _Feed:
    """What COPY reads from. Its error is kept, since the driver only tells its text."""

    def __init__(self, pieces: Iterator[tuple[bytes, int]], rows: int) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.rows = rows
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            while not self._rest:
                piece, rows = next(self._pieces, (None, 0))
                if piece is None:
                    return b""
                self._rest = memoryview(piece)
                self.rows += rows
        except BaseException as error:
            self.error = error
            raise
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)


def _pieces(archive: Store, piece: Generation, report: Report) -> Iterator[tuple[bytes, int]]:
    """Bytes for COPY, and how many records they have where that is counted."""
    raw = _checked(archive, piece.manifest, report)
    if piece.whole:
        yield from ((data, 0) for data in raw)
    else:
        for found in picked(archive, piece, raw):
            yield b"".join(found), len(found)


def _checked(archive: Store, manifest: ArtifactManifest, report: Report) -> Iterator[bytes]:
    """The raw bytes of an archived file. Raises IntegrityError, at the end, if it is not what its manifest says."""
    proof, place = manifest.file, archive.locate(manifest.file.key)
    raw_sha256 = hashlib.sha256()
    size = 0
    try:
        stream = archive.open(proof.key)
    except ObjectMissing as error:
        raise IntegrityError(
            f"archived file {place} is missing", hint="restore it from a copy of the archive"
        ) from error
    with stream:
        reader = HashingReader(stream)
        for data in decompressed(reader, Compression(manifest.export.compression), name=place):
            raw_sha256.update(data)
            size += len(data)
            report(size)
            yield data
    found = (reader.size, reader.hexdigest(), size, raw_sha256.hexdigest())
    if found != (proof.size, proof.sha256, proof.raw_size, proof.raw_sha256):
        raise IntegrityError(
            f"{place} is not what its manifest says: size or SHA-256 differs",
            hint="nothing was restored; `export-pipelines verify` says more, restore the file from a copy",
        )
