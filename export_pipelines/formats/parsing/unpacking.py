"""Packed files: gzip, zstd and ZIP, with a guard against what unpacks to far more than it is."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import BinaryIO

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.parsing.base import Open
from export_pipelines.scratch import scratch_copy
from export_pipelines.specs.load import FileSpec
from export_pipelines.specs.table import Compression

_CHUNK = 1 << 20
_HARMLESS = 1 << 30
_MEMBERS = 10_000
_PACKED = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zip": "zip"}
_UNKNOWN = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf'\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x1f\x9d": "compress",
}

Pieces = Iterator[bytes]


@dataclass(frozen=True)
class Member:
    """A file to parse: the landed one, or one in a ZIP. Each call of `open` unpacks it anew."""

    name: str
    """Without the extension of its compression."""
    open: Callable[[], Pieces]


def members(spec: FileSpec, open_stream: Open, name: str) -> list[Member]:
    """The files that a landed file holds: itself, or those of a ZIP that match, in the order of their names.

    Raises:
        IntegrityError: it is not what its compression says.
        RequestError: nothing in the ZIP matches, or it is packed in a way that is not known.
    """
    kind = _kind(spec, open_stream, name)
    bare = bare_name(name)
    if kind == "zip":
        return _zip_members(spec, open_stream, name)
    packing = {"gzip": Compression.GZIP, "zstd": Compression.ZSTD, "none": Compression.NONE}[kind]
    return [Member(bare, lambda: _unpacked(spec, open_stream, packing, name))]


def bare_name(name: str) -> str:
    """A name without the extension of its compression."""
    for extension in _PACKED:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def _kind(spec: FileSpec, open_stream: Open, name: str) -> str:
    if spec.compression != "auto":
        return spec.compression
    with closing(open_stream()) as stream:
        head = stream.read(8)
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        # A workbook is a ZIP by itself.
        excel = spec.format == "excel" or name.lower().endswith((".xlsx", ".xlsm"))
        return "none" if excel else "zip"
    for mark, what in _UNKNOWN.items():
        if head.startswith(mark):
            raise RequestError(f"{name} is packed by {what}", hint="gzip, zstd and ZIP can be read")
    return "none"


class _Counted(io.RawIOBase):
    """Counts what is read of a packed file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self.size += len(data)
        return data


def _unpacked(spec: FileSpec, open_stream: Open, kind: Compression, name: str) -> Pieces:
    with closing(open_stream()) as stream:
        counted = _Counted(stream)
        yield from guarded(spec, decompressed(counted, kind, name=name), lambda: counted.size, name)


def guarded(spec: FileSpec, pieces: Pieces, packed: Callable[[], int], name: str) -> Pieces:
    """The pieces, until they are more than may come of so many packed bytes. Raises RequestError."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > _HARMLESS and total > spec.max_expansion * packed():
            raise RequestError(
                f"{name} unpacks to more than {spec.max_expansion:g} times its size: it may be a bomb",
                hint="set `max_expansion`, if it is right",
            )
        if piece:
            yield piece


# ZIP


@contextmanager
def _opened_zip(open_stream: Open, name: str) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(seekable(open_stream))
            yield stack.enter_context(zipfile.ZipFile(file))
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise IntegrityError(f"{name} is not an intact ZIP: {error}") from error


@contextmanager
def seekable(open_stream: Open) -> Iterator[BinaryIO]:
    """The file to be read in any order: itself if it can be, else a temporary copy."""
    with closing(open_stream()) as stream:
        if stream.seekable():
            yield stream
            return
        with scratch_copy(iter(lambda: stream.read(_CHUNK), b"")) as path, path.open("rb") as file:
            yield file


def _zip_members(spec: FileSpec, open_stream: Open, name: str) -> list[Member]:
    with _opened_zip(open_stream, name) as archive:
        infos = archive.infolist()
        if len(infos) > _MEMBERS:
            raise RequestError(f"{name} holds more than {_MEMBERS} files")
        found = [info for info in infos if _is_wanted(info, spec)]
        for info in found:
            _check_readable(info, name)
    if not found:
        names = ", ".join(repr(info.filename[:80]) for info in infos[:5])
        raise RequestError(f"no file in {name} matches {spec.member!r}; it holds {names or 'nothing'}")
    ordered = sorted(found, key=lambda info: info.filename)
    if len({info.filename for info in ordered}) < len(ordered):
        raise IntegrityError(f"{name} holds two files of one name")
    return [_zip_member(spec, open_stream, name, info.filename) for info in ordered]


def _is_wanted(info: zipfile.ZipInfo, spec: FileSpec) -> bool:
    base = info.filename.replace("\\", "/").rsplit("/", 1)[-1]
    # What a Mac puts beside each file.
    if info.is_dir() or info.filename.startswith("__MACOSX/") or base.startswith("._") or base == ".DS_Store":
        return False
    return fnmatchcase(info.filename, spec.member) or fnmatchcase(base, spec.member)


def _check_readable(info: zipfile.ZipInfo, name: str) -> None:
    if info.flag_bits & 1:
        raise RequestError(f"{info.filename!r} in {name} is encrypted", hint="only plain ZIPs can be read")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RequestError(
            f"{info.filename!r} in {name} is packed by method {info.compress_type}", hint="use the usual one (deflate)"
        )


def _zip_member(spec: FileSpec, open_stream: Open, name: str, inner: str) -> Member:
    # Its name is only shown, and looked at for its end: nothing is ever unpacked to a path of a ZIP.
    def pieces() -> Pieces:
        with _opened_zip(open_stream, name) as archive, archive.open(inner) as file:
            size = archive.getinfo(inner).compress_size
            read = iter(lambda: file.read(_CHUNK), b"")
            yield from guarded(spec, read, lambda: size, f"{inner!r} in {name}")

    return Member(inner, pieces)


@contextmanager
def as_file(member: Member) -> Iterator[BinaryIO]:
    """A member to be read in any order."""
    with scratch_copy(member.open()) as path, path.open("rb") as file:
        yield file
