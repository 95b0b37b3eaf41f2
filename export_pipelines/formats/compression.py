"""Compression as streams of bytes. ISA-L's gzip is three to twenty times as fast as zlib's at nearly its ratio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from export_pipelines.errors import IntegrityError
from export_pipelines.specs.table import Compression

GZIP_LEVEL = 2
ZSTD_LEVEL = 3
_CHUNK = 1 << 20
# The library unpacks all that it is given at once, and 5 bytes may hold 128 KiB of equal ones.
_ZSTD_SLICE = 1024


class Compressor(Protocol):
    """Turns raw bytes into stored bytes, piece by piece."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Readable(Protocol):
    """What can be read in pieces: a file, a store's stream, one of ours that hashes on the way."""

    def read(self, size: int, /) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(kind: Compression) -> Compressor:
    """A new compressor; its output is a function of its input alone (no times, no names)."""
    if kind is Compression.GZIP:
        from isal import isal_zlib

        return isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    if kind is Compression.ZSTD:
        import zstandard

        return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compressobj()
    return _Plain()


def decompressed(stream: Readable, kind: Compression, *, name: str) -> Iterator[bytes]:
    """Raw bytes of a stored stream, in pieces of about a mebibyte. A truncated or damaged stream is an error.

    Raises:
        IntegrityError: naming `name`.
    """
    if kind is Compression.NONE:
        while data := stream.read(_CHUNK):
            yield data
        return
    yield from _gunzip(stream, name) if kind is Compression.GZIP else _unzstd(stream, name)


def _gunzip(stream: Readable, name: str) -> Iterator[bytes]:
    from isal import isal_zlib

    member = isal_zlib.decompressobj(31)
    started = False
    try:
        while data := stream.read(_CHUNK // 4):
            while data:
                if member.eof:
                    member = isal_zlib.decompressobj(31)
                started = True
                # Bounded, since a file of repeated values unpacks to a thousand times its size.
                yield member.decompress(data, _CHUNK)
                data = member.unused_data if member.eof else member.unconsumed_tail
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub has an instance
        raise IntegrityError(f"{name} is not intact gzip: {error}") from error
    if not started or not member.eof:
        raise IntegrityError(f"{name} ends in the middle of its gzip stream")


def _unzstd(stream: Readable, name: str) -> Iterator[bytes]:
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    started = False
    pieces: list[bytes] = []
    size = 0
    try:
        for data in _slices(stream, _ZSTD_SLICE):
            while data:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                started = True
                pieces.append(frame.decompress(data))
                size += len(pieces[-1])
                data = frame.unused_data if frame.eof else b""
            if size >= _CHUNK:
                yield b"".join(pieces)
                pieces, size = [], 0
    except zstandard.ZstdError as error:
        raise IntegrityError(f"{name} is not intact zstd: {error}") from error
    if not started or not frame.eof:
        raise IntegrityError(f"{name} ends in the middle of its zstd stream")
    yield b"".join(pieces)


def _slices(stream: Readable, size: int) -> Iterator[bytes]:
    while data := stream.read(_CHUNK // 4):
        for start in range(0, len(data), size):
            yield data[start : start + size]
