"""The sidecar of a file: which row versions of the source are behind its records.

Lines stand in buckets, one zstd frame each, so that a cleanup reads and proves one batch at a time. In mode `row` they
are in the order of the file's records, so that a record's number is a line's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from export_pipelines.errors import IntegrityError
from export_pipelines.manifest import Bucket, FileProof, IdentityProof
from export_pipelines.steps.reading import HashingReader, StoredFile
from export_pipelines.steps.writing import StoredWriter

EXTENSION = ".identities.zst"
ENCRYPTED_EXTENSION = f"{EXTENSION}.age"


def file_of(key: str) -> str:
    """The key of the file that a sidecar's key is of; of another key, that key itself."""
    return key.removesuffix(ENCRYPTED_EXTENSION).removesuffix(EXTENSION)


class SidecarWriter:
    """Writes lines in buckets of at most `bucket_rows`. Memory: one bucket.

    Offsets and sizes of buckets are those before encryption.
    """

    def __init__(self, writer: StoredWriter, key: str, bucket_rows: int) -> None:
        self._writer = writer
        self._key = key
        self._limit = bucket_rows
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        self._parts: list[bytes] = []
        self._rows = 0
        self._raw = hashlib.sha256()
        self._raw_size = self._offset = 0
        self._buckets: list[Bucket] = []

    def add(self, lines: list[bytes]) -> None:
        """Add lines, given without their ends."""
        first = 0
        while first < len(lines):
            taken = lines[first : first + self._limit - self._rows]
            self._parts.append(b"\n".join(taken) + b"\n")
            self._rows += len(taken)
            first += len(taken)
            if self._rows == self._limit:
                self._end_bucket()

    def finish(self) -> tuple[FileProof, tuple[Bucket, ...]]:
        """Write what is left; return the proof of the whole and its buckets. Does not publish."""
        self._end_bucket()
        return self._writer.finish(self._key, self._raw_size, self._raw.hexdigest()), tuple(self._buckets)

    def _end_bucket(self) -> None:
        if not self._rows:
            return
        raw = b"".join(self._parts)
        stored = self._compressor.compress(raw)
        self._writer.write(stored)
        self._raw.update(raw)
        self._buckets.append(Bucket(rows=self._rows, offset=self._offset, size=len(stored)))
        self._raw_size += len(raw)
        self._offset += len(stored)
        self._parts, self._rows = [], 0


def read_buckets(stream: BinaryIO | StoredFile, identity: IdentityProof) -> Iterator[tuple[Bucket, bytes]]:
    """The buckets of a sidecar with their raw lines, while its SHA-256 is computed; memory: one bucket.

    One that may be encrypted must come from `open_stored`.

    Raises:
        IntegrityError: the sidecar is not what the manifest says; known only at its end, so check before relying on it.
    """
    assert identity.file is not None
    reader = stream if isinstance(stream, StoredFile) else HashingReader(stream)
    for bucket in identity.buckets:
        stored = _read_exactly(reader, bucket.size, identity.file.key)
        try:
            raw = zstandard.ZstdDecompressor().decompress(stored)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"{identity.file.key} is not intact: {error}") from error
        if raw.count(b"\n") != bucket.rows:
            raise IntegrityError(f"{identity.file.key}: a bucket has not the {bucket.rows} lines it should have")
        yield bucket, raw
    if reader.read(1) or reader.hexdigest() != identity.file.sha256:
        raise IntegrityError(f"{identity.file.key} differs from its manifest's SHA-256")


def _read_exactly(stream: HashingReader | StoredFile, size: int, name: str) -> bytes:
    parts = []
    while size and (data := stream.read(size)):
        parts.append(data)
        size -= len(data)
    if size:
        raise IntegrityError(f"{name} is {size} bytes shorter than its manifest says")
    return b"".join(parts)
