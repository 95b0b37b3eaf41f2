"""Adopt: take the files that an older export service left behind into the archive, with manifests that say so.

Such a file is named after its task and the boundary up to which it holds rows, `agency-2025_01_01-12_00_00_AM.csv.gz`,
and is gzip-compressed CSV with a header, as the COPY of the task's select.sql writes it. Nothing is known of the rows'
source: what is adopted can be verified and restored, but proves nothing that a cleanup could rely on.
"""

from __future__ import annotations

import csv
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

from export_pipelines.catalog import Catalog
from export_pipelines.errors import CatalogError, IntegrityError, RequestError
from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.csv import digest_records, format_digest, records
from export_pipelines.formats.encryption import recipients
from export_pipelines.manifest import ArtifactManifest, Column, ExportRecord, FileProof, IdentityProof, Snapshot
from export_pipelines.naming import AGE, archive_folder
from export_pipelines.signing import Signer
from export_pipelines.specs.table import Compression, CsvSpec, TableDefinition
from export_pipelines.sql import parameters, parse_select, render
from export_pipelines.steps import chain, keys
from export_pipelines.steps.companions import write_companions
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.export import software
from export_pipelines.steps.reading import CHUNK, HashingReader, read_back
from export_pipelines.steps.writing import stored_writer
from export_pipelines.stores.base import Store
from export_pipelines.windows import Window, closed_windows

REASON = "the file was adopted from an older service, and nothing is known of its rows in the source"

_BOUNDARY = re.compile(r"(?P<task>.+)-(\d{4})_(\d\d)_(\d\d)-(\d\d)_(\d\d)_(\d\d)_(AM|PM)\.csv\.gz")


@dataclass(frozen=True)
class Adopted:
    """What became of one file. `problem` says why nothing of it was taken; `new` is false for what was there before.
    `early` says that its rows are from before the table's first partition.

    Bytes are those of the file as it is, compressed.
    """

    file: Path
    partition: str
    rows: int
    bytes: int
    problem: str = ""
    new: bool = False
    early: bool = False


@dataclass(frozen=True)
class _Content:
    """What reading a file gave."""

    columns: tuple[str, ...]
    rows: int
    row_digest: str
    proof: FileProof


def adopt_folder(
    table: TableDefinition,
    folder: Path,
    archive: Store,
    catalog: Catalog,
    *,
    run_id: str = "",
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
    signer: Signer | None = None,
) -> list[Adopted]:
    """Take the files of a table's name into the archive, oldest boundary first. The folder itself is never changed.

    Each is parsed as a whole, counted and hashed before anything of it is taken, copied, and read back. A file whose
    rows were adopted for its partition before is left out. A file with a problem is told of, and the others go on.
    With `dry_run` everything is read and nothing is written.

    Crash: files with a manifest are adopted, and the next call goes on from there.

    Raises:
        RequestError: there is no such folder, or the table has no partitions.
        IntegrityError: the table's chain of manifests is broken.
        PartitionBusy: the partition is being archived by another run.
        StoreError, CatalogError: as they say.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}", hint="give the folder that the older service exported to")
    spec = table.spec.partitions
    if spec is None:
        raise RequestError(
            f"{table.id!r} has no partitions, so the boundary in a file's name means nothing",
            hint="give it `partitions` whose windows end at these boundaries (every: day)",
        )
    zone = ZoneInfo(spec.timezone)
    windows = {w.end.astimezone(zone).replace(tzinfo=None): w for w in closed_windows(spec, datetime.now(UTC)) if w.end}
    known = _adopted_before(archive, table.id)
    tell = progress or silent
    found = []
    for boundary, file in _files(table.name, folder):
        window = windows.get(boundary) if boundary else None
        if window is None:
            early = boundary is not None and boundary <= spec.start.replace(tzinfo=None)
            problem = _no_window(table, boundary, early=early)
            found.append(Adopted(file, "", 0, file.stat().st_size, problem, early=early))
            continue
        adoption = _Adoption(table, window, _dialect(table, window), archive, catalog, run_id, tell, signer)
        found.append(adoption.adopt(file, known, dry_run))
    return found


def _files(task: str, folder: Path) -> list[tuple[datetime | None, Path]]:
    """The files that begin with the task's name, by boundary; None for those whose boundary cannot be read.

    Files of other tasks are left out, also of those whose names begin alike.
    """
    found: list[tuple[datetime | None, Path]] = []
    for file in folder.iterdir():
        if not file.is_file() or not file.name.startswith(f"{task}-"):
            continue
        match = _BOUNDARY.fullmatch(file.name)
        if match is None:
            found.append((None, file))
        elif match["task"] == task:
            found.append((_boundary(match), file))
    return sorted(found, key=lambda item: (item[0] or datetime.min, item[1].name))


def _boundary(match: re.Match[str]) -> datetime | None:
    """The local time in a name, whose hours count to 12. `%p` of strptime depends on the locale, so by hand."""
    year, month, day, hour, minute, second = map(int, match.groups()[1:7])
    if not 1 <= hour <= 12:
        return None
    with suppress(ValueError):
        return datetime(year, month, day, hour % 12 + (12 if match[8] == "PM" else 0), minute, second)
    return None


def _dialect(table: TableDefinition, window: Window) -> CsvSpec:
    """How the older service wrote: by the options of the COPY in the select.sql that it had, too."""
    if table.select_sql is None:
        return CsvSpec()
    file = table.folder / "select.sql"
    return parse_select(render(table.select_sql, parameters(window), file=file), file).csv or CsvSpec()


def _no_window(table: TableDefinition, boundary: datetime | None, *, early: bool) -> str:
    if boundary is None:
        return f"its name is not {table.name}-YYYY_MM_DD-HH_MM_SS_AM.csv.gz, so its boundary is not known"
    assert table.spec.partitions is not None
    if early:
        return f"it is older than the first partition of {table.id!r}, which starts at {table.spec.partitions.start}"
    return f"no closed partition of {table.id!r} ends at {boundary} {table.spec.partitions.timezone}"


def _adopted_before(archive: Store, table_id: str) -> dict[tuple[str, str], ArtifactManifest]:
    """What was adopted of a table, by partition and SHA-256 of what is in the file."""
    return {
        (entry.export.partition, entry.file.raw_sha256): entry
        for entry in chain.entries(archive, table_id)
        if isinstance(entry, ArtifactManifest) and entry.adopted
    }


@dataclass(frozen=True)
class _Adoption:
    """Where a file goes."""

    table: TableDefinition
    window: Window
    dialect: CsvSpec
    archive: Store
    catalog: Catalog
    run_id: str
    progress: Callable[[Progress], None]
    signer: Signer | None

    def adopt(self, file: Path, known: dict[tuple[str, str], ArtifactManifest], dry_run: bool) -> Adopted:
        """Take one file, unless it is known; `known` gets it."""
        partition, size = self.window.partition, file.stat().st_size
        try:
            content = self._read(file)
        except (IntegrityError, OSError) as error:
            problem = error.message if isinstance(error, IntegrityError) else str(error)
            return Adopted(file, partition, 0, size, problem)
        before = known.get((partition, content.proof.raw_sha256))
        if not dry_run:
            with self.catalog.lock(f"archive {self.table.id} {partition}", f"archiving {self.table.id} {partition}"):
                if before is not None:
                    self._register_again(before)
                else:
                    known[partition, content.proof.raw_sha256] = self._take(file, content)
        return Adopted(file, partition, content.rows, content.proof.size, new=before is None)

    def _read(self, file: Path) -> _Content:
        """Parse a whole file. Raises IntegrityError if it is damaged, cut off, or no table."""
        raw_sha256 = hashlib.sha256()
        rows = total = raw_size = 0
        columns: list[str] = []
        with file.open("rb") as stream:
            reader = HashingReader(stream)

            def raw() -> Iterator[bytes]:
                nonlocal raw_size
                for piece in decompressed(reader, Compression.GZIP, name=file.name):
                    raw_sha256.update(piece)
                    raw_size += len(piece)
                    yield piece

            for found in records(raw(), self.dialect):
                fields = _fields(found, self.dialect, file.name)
                if not columns and fields and self.dialect.header:
                    columns, found, fields = fields[0], found[1:], fields[1:]
                _refuse_ragged(fields, columns, rows, file.name)
                rows += len(found)
                total += digest_records(found)
                self.progress(Progress("adopt", self.table.id, self.window.partition, rows, raw_size))
        if not columns:
            raise IntegrityError(f"{file.name} has no header, so the names of its columns are not known")
        if len(set(columns)) < len(columns):
            raise IntegrityError(f"{file.name} has columns of one name: {', '.join(columns)}")
        proof = FileProof(
            key=file.name,
            size=reader.size,
            sha256=reader.hexdigest(),
            raw_size=raw_size,
            raw_sha256=raw_sha256.hexdigest(),
        )
        return _Content(tuple(columns), rows, format_digest(total), proof)

    def _take(self, file: Path, content: _Content) -> ArtifactManifest:
        """Copy a file, and write its manifest last."""
        table_id, partition = self.table.id, self.window.partition
        attempt = secrets.token_hex(8)
        export_id, generation = self.catalog.begin_export(table_id, partition, attempt, self.archive.url, self.run_id)
        try:
            folder = f"{archive_folder(self.table, self.window)}/g{generation}-{attempt[:8]}-{secrets.token_hex(2)}"
            sealed_to = recipients(self.table.spec.encryption)
            key = f"{folder}/{self.table.name}.csv.gz{AGE if sealed_to else ''}"
            with file.open("rb") as stream:
                archived = self._copy(stream, content.proof, key, sealed_to)
            read_back(self.archive, archived, Compression.GZIP)
            exported = archived.model_copy(update={"key": content.proof.key})
            record = self._record(replace(content, proof=exported), generation, attempt)
            record = record.model_copy(update={"recipients": sealed_to})
            companions = write_companions(self.archive, folder, record, [archived])
            manifest = self._append(record, archived, companions)
        except BaseException as error:
            with suppress(CatalogError):
                self.catalog.fail_export(export_id, str(error) or type(error).__name__)
            raise
        self.catalog.finish_export(export_id, record)
        self.catalog.mark_archived(export_id, self.archive.url, manifest.sequence)
        return manifest

    def _copy(self, stream: BinaryIO, found: FileProof, key: str, sealed_to: tuple[str, ...]) -> FileProof:
        reader = HashingReader(stream)
        with self.archive.writer(key) as writer, stored_writer(writer, sealed_to) as stored:
            while data := reader.read(CHUNK):
                stored.write(data)
            if (reader.size, reader.hexdigest()) != (found.size, found.sha256):
                raise IntegrityError(
                    "the file was changed while it was adopted", hint="stop the older service first, and adopt again"
                )
            archived = stored.finish(key, found.raw_size, found.raw_sha256)
            writer.publish()
        return archived

    def _append(self, record: ExportRecord, archived: FileProof, companions: tuple[FileProof, ...]) -> ArtifactManifest:
        table_id, url = self.table.id, self.archive.url
        manifest, sha256 = chain.append(
            self.archive,
            table_id,
            self.catalog.head(table_id, url),
            lambda sequence, previous, written: ArtifactManifest(
                sequence=sequence,
                previous_sha256=previous,
                table=table_id,
                written=written,
                run_id=self.run_id,
                export=record,
                file=archived,
                identity_file=None,
                adopted=True,
                companions=companions,
            ),
            self.signer,
        )
        self.catalog.advance_head(table_id, url, manifest.sequence, sha256)
        return manifest

    def _record(self, content: _Content, generation: int, attempt: str) -> ExportRecord:
        """What can be said of a file that somebody else wrote; what is not known stays empty."""
        now = datetime.now(UTC)
        return ExportRecord(
            table=self.table.id,
            partition=self.window.partition,
            window_start=self.window.start,
            window_end=self.window.end,
            generation=generation,
            attempt=attempt,
            rows=content.rows,
            row_digest=content.row_digest,
            columns=tuple(Column(name=name, type="text") for name in content.columns),
            csv=self.dialect,
            compression="gzip",
            file=content.proof,
            identity=IdentityProof(mode="none", reason=REASON),
            source=Snapshot(server_version="", database="", system_identifier="", timeline=0, snapshot="", next_xid=0),
            select_sql="",
            select_sha256="",
            definition_version="",
            software=software("postgresql"),
            run_id=self.run_id,
            started=now,
            finished=now,
        )

    def _register_again(self, manifest: ArtifactManifest) -> None:
        """Tell the catalog of a manifest that a crash kept from it, or that an older catalog knew."""
        export = manifest.export
        rows = self.catalog.exports(export.table, export.partition, expired=True)
        if any(
            row.sequence == manifest.sequence or (row.record and row.record.attempt == export.attempt) for row in rows
        ):
            return
        export_id, generation = self.catalog.begin_export(
            export.table, export.partition, secrets.token_hex(8), self.archive.url, self.run_id
        )
        self.catalog.finish_export(export_id, export.model_copy(update={"generation": generation}))
        self.catalog.mark_archived(export_id, self.archive.url, manifest.sequence)


def _fields(found: list[bytes], dialect: CsvSpec, name: str) -> list[list[str]]:
    """The fields of each record; an empty line is one empty field. Raises IntegrityError for what is no CSV."""
    try:
        return [row or [""] for row in keys.parse(found, dialect)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise IntegrityError(f"{name} is not CSV in UTF-8: {error}") from error


def _refuse_ragged(fields: list[list[str]], columns: list[str], before: int, name: str) -> None:
    for number, row in enumerate(fields, start=before + 1):
        if columns and len(row) != len(columns):
            raise IntegrityError(f"{name} is not intact: record {number} has {len(row)} fields, not {len(columns)}")
