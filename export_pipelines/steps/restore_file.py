"""Restore into a file: partitions joined in the order of their windows, in the dialect that they were archived in."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from export_pipelines.errors import RequestError, TargetError
from export_pipelines.formats.compression import compressor
from export_pipelines.formats.csv import split_header
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.specs.table import Compression
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.pieces import Archived, Choice, Report, pieces_of, read_ahead, reporter
from export_pipelines.steps.records import header_of
from export_pipelines.stores.filesystem import FilesystemStore

_PACKINGS = {kind.extension: kind for kind in Compression}


@dataclass(frozen=True)
class FileResult:
    """What was written to `path`, from how many archived files (`artifacts`). `bytes` is the size of the new file."""

    path: str
    rows: int
    bytes: int
    partitions: tuple[str, ...]
    artifacts: int


def restore_to_file(
    archived: Archived, choice: Choice, path: Path, *, progress: Callable[[Progress], None] = silent
) -> FileResult:
    """Write the chosen partitions into one CSV file, each row once, the header (if they have one) once. What was
    archived in another format becomes plain CSV with a header.

    It is compressed as its extension says (`.gz`, `.zst`), never encrypted, and only its owner may read it. Streams in
    bounded memory; each archived file's digests are compared with its manifest on the way.

    Crash: there is no file of that name, but maybe a temporary beside it (`.tmp-…`).

    Raises:
        RequestError: there is no such partition in the archive, or no folder for the file.
        TargetError: there is a file of that name, or the archived files are not alike.
        IntegrityError, StoreError: as they say; there is no file of that name.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}", hint="make it first")
    if path.suffix == ".age":
        raise RequestError(f"{path} would not be encrypted", hint="leave out .age, and encrypt the file with `age`")
    if path.exists() or path.is_symlink():
        raise TargetError(f"{path} exists already", hint="give another name; nothing is overwritten")
    found = archived.chosen(choice)
    pieces = pieces_of(found)
    _refuse_unlike(pieces)
    packed = compressor(_PACKINGS.get(path.suffix, Compression.NONE))
    size = 0
    joined = _Joined(archived, pieces, progress)
    with closing(read_ahead(joined.content())) as content, FilesystemStore(folder).writer(path.name) as writer:
        for data in content:
            size += writer.write(packed.compress(data))
        size += writer.write(packed.flush())
        writer.publish()
    return FileResult(str(path), joined.rows, size, tuple(found), len(pieces))


def _refuse_unlike(pieces: Sequence[Generation]) -> None:
    def kind(manifest: ArtifactManifest) -> tuple[object, ...]:
        return manifest.export.csv, [column.name for column in manifest.export.columns]

    first = pieces[0].manifest
    for piece in pieces:
        if kind(piece.manifest) != kind(first):
            raise TargetError(
                f"partitions {first.export.partition} and {piece.manifest.export.partition} of {first.table!r} differ "
                "in their columns or their CSV dialect, so they cannot be joined",
                hint="restore them into files of their own, or into a table",
            )


class _Joined:
    """The files' records one after the other, with `rows` counted."""

    def __init__(self, archived: Archived, pieces: Sequence[Generation], progress: Callable[[Progress], None]) -> None:
        self.rows = 0
        self._archived = archived
        self._pieces = pieces
        self._progress = progress

    def content(self) -> Generator[bytes]:
        for number, piece in enumerate(self._pieces):
            report = reporter(self._progress, piece.manifest, self.rows)
            if number == 0 and (piece.manifest.export.csv.header or piece.manifest.export.layout):
                yield self._header(piece.manifest)
            yield from self._records(piece, report)

    def _header(self, manifest: ArtifactManifest) -> bytes:
        if manifest.export.layout is not None:
            return header_of(manifest.export.columns)
        with closing(self._archived.raw(manifest, lambda size: None)) as raw:
            return split_header(raw, manifest.export.csv)[0]

    def _records(self, piece: Generation, report: Report) -> Iterator[bytes]:
        content = self._archived.content(piece, report)
        if not piece.whole:
            for data, rows in content:
                self.rows += rows
                yield data
            return
        self.rows += piece.manifest.export.rows
        raw = (data for data, _ in content)
        yield from split_header(raw, piece.manifest.export.csv)[1] if piece.manifest.export.csv.header else raw
