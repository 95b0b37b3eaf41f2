"""Which rows of a pull were seen before: by the digests of those rows, 16 bytes a row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from export_pipelines.scratch import scratch_errors, scratch_folder

if TYPE_CHECKING:
    import numpy

DIGEST_BYTES = 16
_ROWS = 1 << 12
_CHUNK = 1 << 20

Write = Callable[[bytes], object]


class Seen:
    """The digests of rows that were seen, sorted. Memory: 8 bytes a row, the rest is in a temporary file."""

    def __init__(self, path: Path) -> None:
        self.pairs = _pairs(path)
        self._first = self.pairs[:, 0].copy()

    def holds(self, digests: bytes) -> numpy.ndarray[Any, Any]:
        """Of some digests, which are there."""
        import numpy

        wanted = numpy.frombuffer(digests, "<u8").reshape(-1, 2)
        found = numpy.zeros(len(wanted), bool)
        place = numpy.searchsorted(self._first, wanted[:, 0])
        # Several with the same first half are hardly ever there, and stand one behind the other.
        while True:
            inside = place < len(self._first)
            same = inside.copy()
            same[inside] = self._first[place[inside]] == wanted[inside, 0]
            found[same] |= self.pairs[place[same], 1] == wanted[same, 1]
            if not (same & ~found).any():
                return found
            place = place + (same & ~found)
            if not (place[same & ~found] < len(self._first)).any():
                return found


class Sieve:
    """Takes rows one by one: writes those that were not seen, and notes the digests of all."""

    def __init__(self, seen: Seen | None, write: Write | None, note: IO[bytes] | None = None) -> None:
        self._seen = seen
        self._write = write
        self._note = note
        self._records: list[bytes] = []
        self.written = 0

    def take(self, record: bytes) -> None:
        self._records.append(record)
        if len(self._records) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Work off what was taken."""
        records, self._records = self._records, []
        if not records:
            return
        digests = b"".join([hashlib.blake2b(record, digest_size=DIGEST_BYTES).digest() for record in records])
        if self._note is not None:
            with scratch_errors():
                self._note.write(digests)
        if self._write is None:
            return
        if self._seen is not None and len(self._seen.pairs):
            known = self._seen.holds(digests)
            records = [record for record, old in zip(records, known, strict=True) if not old]
        for record in records:
            self._write(record)
        self.written += len(records)


@contextmanager
def digests_seen(before: Callable[[], BinaryIO]) -> Iterator[tuple[Seen, Path]]:
    """What was seen before, and a folder for what is seen now."""
    with scratch_folder() as folder:
        with before() as stream, (folder / "before").open("wb") as file:
            while data := stream.read(_CHUNK):
                file.write(data)
        yield Seen(folder / "before"), folder / "now"


def keep_sorted(path: Path, keep: Write, before: Seen) -> bool:
    """Give the digests of a file in order, each once; whether they are others than before."""
    import numpy

    pairs = _pairs(path)
    order = numpy.lexsort((pairs[:, 1], pairs[:, 0]))
    ordered = pairs[order]
    if len(ordered):
        fresh = numpy.ones(len(ordered), bool)
        fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        ordered = ordered[fresh]
    for start in range(0, len(ordered), 1 << 16):
        keep(ordered[start : start + (1 << 16)].tobytes())
    return not numpy.array_equal(ordered, before.pairs)


def _pairs(path: Path) -> numpy.ndarray[Any, Any]:
    """The digests of a file, as two numbers each."""
    import numpy

    if not path.exists() or not path.stat().st_size:
        return numpy.zeros((0, 2), "<u8")
    return numpy.memmap(path, "<u8", "r").reshape(-1, 2)
