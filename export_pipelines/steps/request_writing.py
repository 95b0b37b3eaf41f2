"""The way of a request's rows into its file, and the proof that the file is what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from export_pipelines.errors import IntegrityError, RequestError
from export_pipelines.formats.compression import compressor, decompressed
from export_pipelines.formats.csv import digest_records, format_digest
from export_pipelines.formats.encryption import Keyring
from export_pipelines.formats.fields import Field
from export_pipelines.formats.readers import read_records
from export_pipelines.formats.writers import FormatWriter
from export_pipelines.manifest import FileProof
from export_pipelines.specs.format import Compression, FormatName, FormatSpec
from export_pipelines.steps.reading import CHUNK, HashingReader, open_stored
from export_pipelines.steps.writing import StoredWriter
from export_pipelines.stores.base import Store

_DECODED_BYTES = {
    FormatName.CSV: 1 << 30,
    FormatName.PARQUET: 64 << 20,
    FormatName.JSON: 8 << 20,
    FormatName.JSONL: 8 << 20,
    FormatName.EXCEL: 8 << 20,
}
"""Up to so many bytes, which take about a second, a file is decoded again, row by row, before it is handed out. A
larger one is compared byte by byte, as all are."""
_DECODED_CELLS = 4_000_000
"""Of formats whose values are decoded one by one, up to so many values as well."""

# A third less time than for each quarter of a mebibyte.
_WIDENED_BYTES = 2 << 20


class Widens(Protocol):
    """What makes columns of keys."""

    def encode(self, records: list[bytes]) -> list[bytes]: ...


@dataclass(frozen=True)
class Written:
    """What went into a file: `bytes` of its format, and the same rows as the digest of their plain records."""

    rows: int
    bytes: int
    sha256: str
    row_digest: str
    file: FileProof


class AnswerWriter:
    """Takes records and writes the file. Memory: what the format's writer needs. One thread at a time."""

    def __init__(
        self,
        stored: StoredWriter,
        writer: FormatWriter,
        compression: Compression,
        *,
        limit: int | None,
        too_many: RequestError,
        widener: Widens | None = None,
    ) -> None:
        self._stored, self._writer = stored, writer
        self._compressor = compressor(compression)
        self._limit, self._too_many, self._widener = limit, too_many, widener
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._format, self._raw = hashlib.sha256(), hashlib.sha256()
        self._raw_size = self._total = 0
        self.rows = self.bytes = 0

    def take(self, records: list[bytes]) -> None:
        """Take records. Raises RequestError: they are more than are allowed; FormatError, StoreError."""
        if not self.bytes:
            self._put(self._writer.begin())
        self.rows += len(records)
        if self._limit is not None and self.rows > self._limit:
            raise self._too_many
        if self._widener is None:
            self._encode(records)
            return
        self._waiting += records
        self._waiting_bytes += sum(map(len, records))
        if self._waiting_bytes >= _WIDENED_BYTES:
            self._widen()

    def _widen(self) -> None:
        records, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self._widener is not None and records:
            self._encode(self._widener.encode(records))

    def _encode(self, records: list[bytes]) -> None:
        self._total += digest_records(records)
        self._put(self._writer.encode(records))

    def finish(self, key: str) -> Written:
        """Write what is left. Does not publish."""
        if not self.bytes:
            self._put(self._writer.begin())
        self._widen()
        for piece in self._writer.finish():
            self._put(piece)
        self._store(self._compressor.flush())
        file = self._stored.finish(key, self._raw_size, self._raw.hexdigest())
        return Written(self.rows, self.bytes, self._format.hexdigest(), format_digest(self._total), file)

    def _put(self, data: bytes) -> None:
        if data:
            self.bytes += len(data)
            self._format.update(data)
            self._store(self._compressor.compress(data))

    def _store(self, data: bytes) -> None:
        if data:
            self._raw_size += len(data)
            self._raw.update(data)
            self._stored.write(data)


@dataclass(frozen=True)
class Layout:
    """How a file is to be read."""

    spec: FormatSpec
    fields: Sequence[Field]
    compression: Compression
    exact: bool
    """Whether its records are read back byte for byte."""


def verify_answer(store: Store, written: Written, layout: Layout, keyring: Keyring, watch: Callable[[], None]) -> None:
    """Read a file back: opened and unpacked, it must have the bytes that were written, and the rows in them.

    Raises:
        IntegrityError: it has not. IdentityNeeded: nothing here opens it.
    """
    place = store.locate(written.file.key)
    unpacked = hashlib.sha256()
    decodes = _decodes(written, layout)
    rows = total = 0
    with open_stored(store, written.file, keyring) as stored:
        raw = HashingReader(stored)  # type: ignore[arg-type]
        pieces = _hashed(decompressed(raw, layout.compression, name=place), unpacked, watch)
        if decodes:
            for records in read_records(layout.spec, layout.fields, pieces):
                watch()
                rows += len(records)
                total += digest_records(records) if layout.exact else 0
        for _ in pieces:
            pass
        raw.read(CHUNK)
        same = (raw.size, raw.hexdigest()) == (written.file.raw_size, written.file.raw_sha256)
        same = same and (stored.size, stored.hexdigest()) == (written.file.size, written.file.sha256)
    if not same or unpacked.hexdigest() != written.sha256:
        raise IntegrityError(f"{place} reads back other bytes than were written")
    if decodes and rows != written.rows:
        raise IntegrityError(f"{place} reads back {rows} rows, and {written.rows} were written")
    if decodes and layout.exact and format_digest(total) != written.row_digest:
        raise IntegrityError(f"{place} reads back other rows than were written")


def _decodes(written: Written, layout: Layout) -> bool:
    """Whether a file is decoded again."""
    kind = layout.spec.type
    few = kind is FormatName.CSV or written.rows * len(layout.fields) <= _DECODED_CELLS
    return few and written.bytes <= _DECODED_BYTES[kind]


def _hashed(pieces: Iterator[bytes], digest: hashlib._Hash, watch: Callable[[], None]) -> Iterator[bytes]:
    for piece in pieces:
        watch()
        digest.update(piece)
        yield piece
