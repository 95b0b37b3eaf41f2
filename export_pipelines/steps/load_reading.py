"""A landed file as COPY reads it: its own bytes where they will do, else the records of a parser."""

from __future__ import annotations

import hashlib
import hmac
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from export_pipelines.errors import IntegrityError, TargetError
from export_pipelines.formats.parsing import BadRecord, Batch, NotPlain, parse
from export_pipelines.formats.parsing.base import Parsed
from export_pipelines.formats.parsing.unpacking import members
from export_pipelines.specs.load import LoadSpec
from export_pipelines.specs.load_sources import ROW_SOURCES
from export_pipelines.steps.load_context import LoadContext

if TYPE_CHECKING:
    from export_pipelines.manifest import LandedManifest

RECORDS = "FORMAT csv, NULL '', ENCODING 'UTF8'"
"""Options of COPY for the records of a parser."""

_END_OF_DATA = b"\\."


@dataclass
class LandedFile:
    """A landed file that is being loaded. Each look at it reads it anew."""

    ctx: LoadContext
    landed: LandedManifest
    wanted: list[str] | None
    place: int = 0
    """Bytes of the file, as it landed, before the place that was read last: how far the look that is at work is."""
    _verified: bool = False

    @property
    def spec(self) -> LoadSpec:
        return self.ctx.load.spec

    def parse(self) -> Parsed:
        """A parser at the file's beginning, its header read.

        Raises:
            IntegrityError, RequestError: the file is damaged or not what the definition says.
        """
        pages = "pages" in self.landed.state
        parsed = parse(self.spec.file, self.wanted, self._open, self.landed.name, pages=pages)
        if not parsed.passthrough or self.landed.source not in ROW_SOURCES:
            return parsed
        # COPY or we ourselves wrote it, so that there is nothing to be looked for in it.
        (member,) = members(self.spec.file, self._open, self.landed.name)
        return replace(parsed, raw=member.open)

    def _open(self) -> BinaryIO:
        stream = self.ctx.store.open(self.landed.file.key)
        return cast(BinaryIO, _Hashed(stream, self._at, None if self._verified else self._whole))

    def _at(self, place: int) -> None:
        self.place = place

    def _whole(self, size: int, sha256: str) -> None:
        """The file was read from its beginning to its end."""
        if (size, sha256) != (self.landed.file.size, self.landed.file.sha256):
            raise IntegrityError(
                f"{self.ctx.store.locate(self.landed.file.key)} is not what landed: its size or SHA-256 differs",
                hint="land it again",
            )
        self._verified = True

    def verify(self) -> None:
        """Make sure that the file is what landed, if reading it did not show that already.

        Raises:
            IntegrityError: it was altered or cut off since.
        """
        if not self._verified:
            with self._open() as stream:
                while stream.read(1 << 20):
                    pass

    def lines(self, ordinals: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The lines in the file of the records with these numbers, which are sorted, count from 1, and leave out
        records that cannot be read. Reads the file up to the last of them."""
        done = 0
        for batch in self.parse().batches if ordinals else ():
            if isinstance(batch, BadRecord):
                continue
            size = _records_in(batch)
            for ordinal in ordinals[bisect_right(ordinals, done) : bisect_right(ordinals, done + size)]:
                place = ordinal - done - 1
                yield ordinal, batch.lines[place] if batch.lines is not None else batch.first_line + place
            done += size
            if done >= ordinals[-1]:
                return


def _records_in(batch: Batch) -> int:
    if batch.lines is not None:
        return len(batch.lines)
    # Without a list of lines, each record is a line.
    return batch.records.count(b"\n")


class ReadStream(io.RawIOBase):
    """A stream that is read, by `read` of the class that inherits."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(view)) or b""
        view[: len(data)] = data
        return len(data)


class _Hashed(ReadStream):
    """A stream that tells where it is, and hashes what is read in order, for `whole` if that is given."""

    def __init__(self, stream: IO[bytes], at: Callable[[int], None], whole: Callable[[int, str], None] | None) -> None:
        self._stream = stream
        self._at = at
        self._whole = whole
        self._digest = hashlib.sha256()
        self._place = 0

    def seekable(self) -> bool:
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._whole = None
        self._place = self._stream.seek(offset, whence)
        return self._place

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int | None = -1) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self._place += len(data)
        self._at(self._place)
        if self._whole is None:
            return data
        self._digest.update(data)
        if size and (not data or size < 0):
            whole, self._whole = self._whole, None
            whole(self._place, self._digest.hexdigest())
        return data

    def close(self) -> None:
        self._stream.close()
        super().close()


def raw_pieces(parsed: Parsed, *, escapes_end: bool) -> Iterator[bytes]:
    """The file's own bytes. With `escapes_end` the server takes a line of `\\.` for the end of all: NotPlain then."""
    tail = b""
    for piece in parsed.raw():
        if escapes_end and _END_OF_DATA in tail + piece:
            raise NotPlain("a line may be the end of data")
        tail = piece[-1:]
        yield piece


def record_pieces(
    parsed: Parsed, bad: Callable[[int, str, str | None], None], hashed: frozenset[int], secret: bytes
) -> Iterator[bytes]:
    """The records of the parser; `bad` is told line, reason and text of what it cannot read. Columns that must not be
    stored as they are, are hashed."""
    if hashed and len(secret) < 16:
        raise TargetError("`transform: hash` needs a secret", hint="set EXPORT_PIPELINES_SECRET: openssl rand -hex 32")
    for batch in parsed.batches:
        if isinstance(batch, BadRecord):
            # Of a file with secret columns, nothing is shown of what cannot be taken apart.
            bad(batch.line, batch.reason, None if hashed else batch.text)
        elif hashed:
            yield _hash_columns(batch.records, hashed, secret)
        else:
            yield batch.records


def _hash_columns(records: bytes, hashed: frozenset[int], secret: bytes) -> bytes:
    """The same records with some fields replaced by their HMAC-SHA256; NULL stays NULL."""
    out: list[bytes] = []
    for fields in _fields(records):
        for place in hashed:
            value = fields[place]
            if value != b"":
                text = value[1:-1].replace(b'""', b'"') if value.startswith(b'"') else value
                fields[place] = hmac.new(secret, text, hashlib.sha256).hexdigest().encode()
        out.append(b",".join(fields) + b"\n")
    return b"".join(out)


def _fields(records: bytes) -> Iterator[list[bytes]]:
    """The fields of CSV records as they are written, quotes included, by which NULL and "" differ."""
    fields: list[bytes] = []
    start = place = 0
    while place < len(records):
        if records[place : place + 1] == b'"':
            place = _behind_quotes(records, place)
        else:
            ends = [end for end in (records.find(b",", place), records.find(b"\n", place)) if end >= 0]
            place = min(ends) if ends else len(records)
        fields.append(records[start:place])
        if records[place : place + 1] != b",":
            yield fields
            fields = []
        place += 1
        start = place
        if records[place - 1 : place] == b"," and place == len(records):
            fields.append(b"")
            yield fields


def _behind_quotes(records: bytes, place: int) -> int:
    place += 1
    while True:
        place = records.index(b'"', place) + 1
        if records[place : place + 1] != b'"':
            return place
        place += 1


def header_of(file: LandedFile) -> tuple[tuple[str, ...], bool]:
    """The file's columns, and whether its own bytes are what COPY reads."""
    parsed = file.parse()
    try:
        return parsed.columns, parsed.passthrough
    finally:
        parsed.close()
