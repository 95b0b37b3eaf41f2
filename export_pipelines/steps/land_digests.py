"""Which rows of a pull were seen before: by the digests of those rows, 16 bytes a row."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from export_pipelines.scratch import scratch_errors, scratch_folder

if TYPE_CHECKING:
    import numpy

DIGEST_BYTES = 16
_ROWS = 1 << 12
_CHUNK = 1 << 20
_LOOKUP = 1 << 9
_PART_BYTES = 1 << 22
_MOST_PARTS_BITS = 8

Write = Callable[[bytes], object]


class Seen:
    """The digests of rows that were seen, sorted. They are in temporary files. A lookup maps pages of them: the
    more rows, the more, some 130 MB for 10 million, 330 MB for 30 million."""

    def __init__(self, path: Path) -> None:
        self._both = _Mapped(path)
        self.pairs = self._both.numbers.reshape(-1, 2)
        halves = path.with_name(f"{path.name} first")
        with scratch_errors(), halves.open("wb") as file:
            for start in range(0, len(self.pairs), _ROWS):
                file.write(self.pairs[start : start + _ROWS, 0].tobytes())
                self._both.forget()
        self._halves = _Mapped(halves)
        self._first = self._halves.numbers

    def holds(self, digests: bytes) -> numpy.ndarray[Any, Any]:
        """Of some digests, which are there."""
        import numpy

        found: list[numpy.ndarray[Any, Any]] = []
        for start in range(0, len(digests), _LOOKUP * DIGEST_BYTES):
            found.append(self._found(digests[start : start + _LOOKUP * DIGEST_BYTES]))
            # Each one that is looked up maps some pages of both files, 64 KiB at a time.
            self.forget()
        return numpy.concatenate(found) if found else numpy.zeros(0, bool)

    def forget(self) -> None:
        """Let the memory go that reading took."""
        self._both.forget()
        self._halves.forget()

    def _found(self, digests: bytes) -> numpy.ndarray[Any, Any]:
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
    """Give the digests of a file in order, each once; whether they are others than before. Memory: that of a part, of
    which there are 256 at most; equal rows are all in one."""
    import numpy

    place, same = 0, True
    for part in _parts(path):
        pairs = numpy.fromfile(part, "<u8").reshape(-1, 2)
        ordered = pairs[numpy.lexsort((pairs[:, 1], pairs[:, 0]))]
        fresh = numpy.ones(len(ordered), bool)
        fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        ordered = ordered[fresh]
        keep(ordered.tobytes())
        same = same and numpy.array_equal(ordered, before.pairs[place : place + len(ordered)])
        place += len(ordered)
        before.forget()
    return not same or place != len(before.pairs)


def _parts(path: Path) -> list[Path]:
    """The digests of a file in several, by their greatest bits, in order."""
    import numpy

    size = path.stat().st_size if path.exists() else 0
    bits = min((size // _PART_BYTES).bit_length(), _MOST_PARTS_BITS)
    if bits == 0:
        return [path] if size else []
    parts = [path.with_name(f"{path.name} {number}") for number in range(1 << bits)]
    with ExitStack() as stack, scratch_errors():
        files = [stack.enter_context(part.open("wb")) for part in parts]
        source = stack.enter_context(path.open("rb"))
        while data := source.read(_CHUNK):
            pairs = numpy.frombuffer(data, "<u8").reshape(-1, 2)
            numbers = pairs[:, 0] >> numpy.uint64(64 - bits)
            order = numpy.argsort(numbers, kind="stable")
            bounds = numpy.searchsorted(numbers[order], numpy.arange(len(files) + 1, dtype="<u8"))
            for number, file in enumerate(files):
                file.write(pairs[order[bounds[number] : bounds[number + 1]]].tobytes())
    return parts


class _Mapped:
    """A file of numbers that is read as if it were in memory."""

    def __init__(self, path: Path) -> None:
        import numpy

        self._map: mmap.mmap | None = None
        self.numbers = numpy.zeros(0, "<u8")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.numbers = numpy.frombuffer(self._map, "<u8")

    def forget(self) -> None:
        """Let the memory go that reading took. The pages are read again when needed, mostly from the system's cache."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
