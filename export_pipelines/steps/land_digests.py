"""Which rows of a pull were seen before: by the digests of those rows, 16 bytes a row."""

from __future__ import annotations

import hashlib
import os
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
_LOOKUP = 1 << 10
_BLOCK = 1 << 6
_MOST_BLOCKS_BITS = 20
_PART_BYTES = 1 << 22
_SPLIT_BITS = 6

Write = Callable[[bytes], object]


class Seen:
    """The digests of rows that were seen, sorted. They are in a temporary file. Memory: at most 16 MiB for where its
    blocks begin, and some for the blocks of a batch of look-ups."""

    def __init__(self, path: Path) -> None:
        import numpy

        self._path = path
        self.rows = path.stat().st_size // DIGEST_BYTES
        block = max(_BLOCK, self.rows >> _MOST_BLOCKS_BITS)
        self._block_bytes = block * DIGEST_BYTES
        self._starts = numpy.empty(-(-self.rows // block), "<u8")
        place = 0
        with scratch_errors(), path.open("rb") as file:
            while data := file.read(self._block_bytes * _BLOCK):
                starts = numpy.frombuffer(data, "<u8")[:: 2 * block]
                self._starts[place : place + len(starts)] = starts
                place += len(starts)

    def holds(self, digests: bytes) -> numpy.ndarray[Any, Any]:
        """Of some digests, which are there."""
        import numpy

        found = numpy.zeros(len(digests) // DIGEST_BYTES, bool)
        if not self.rows:
            return found
        wanted = numpy.frombuffer(digests, "<u8").reshape(-1, 2)
        with scratch_errors(), self._path.open("rb", buffering=0) as file:
            for start in range(0, len(wanted), _LOOKUP):
                some = wanted[start : start + _LOOKUP]
                found[start : start + _LOOKUP] = _found(self._near(file.fileno(), some[:, 0]), some)
        return found

    def at(self, place: int, count: int) -> numpy.ndarray[Any, Any]:
        """Digests from a place on, as pairs of numbers; fewer than asked for at the end."""
        import numpy

        found = numpy.fromfile(self._path, "<u8", 2 * count, offset=place * DIGEST_BYTES)
        return found.reshape(-1, 2)

    def _near(self, file: int, first: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """The blocks in which digests of these first halves would be, in order."""
        import numpy

        # Those of the same first half may begin in one block and end in the next.
        places = [numpy.searchsorted(self._starts, first, side) for side in ("left", "right")]
        blocks = numpy.unique(numpy.maximum(numpy.concatenate(places) - 1, 0)).tolist()
        size = self._block_bytes
        read = b"".join([os.pread(file, size, block * size) for block in blocks])
        return numpy.frombuffer(read, "<u8").reshape(-1, 2)


def _found(pairs: numpy.ndarray[Any, Any], wanted: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """Which of the wanted are among sorted ones."""
    import numpy

    firsts = numpy.ascontiguousarray(pairs[:, 0])
    found = numpy.zeros(len(wanted), bool)
    place = numpy.searchsorted(firsts, wanted[:, 0])
    # Several with the same first half are hardly ever there, and stand one behind the other.
    while True:
        inside = place < len(firsts)
        same = inside.copy()
        same[inside] = firsts[place[inside]] == wanted[inside, 0]
        found[same] |= pairs[place[same], 1] == wanted[same, 1]
        if not (same & ~found).any():
            return found
        place = place + (same & ~found)


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
        if self._seen is not None and self._seen.rows:
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
    """Give the digests of a file in order, each once; whether they are others than before. Memory: some tens of
    mebibytes, whatever their number. The file is gone afterwards if it was split."""
    import numpy

    place, same = 0, True
    for part in _parts(path, 64):
        ordered = _ordered(numpy.fromfile(part, "<u8").reshape(-1, 2))
        keep(ordered.tobytes())
        same = same and numpy.array_equal(ordered, before.at(place, len(ordered)))
        place += len(ordered)
    return not same or place != before.rows


def _ordered(pairs: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """In order, each once."""
    import numpy

    ordered = pairs[numpy.lexsort((pairs[:, 1], pairs[:, 0]))]
    fresh = numpy.ones(len(ordered), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[fresh]


def _parts(path: Path, bits: int) -> Iterator[Path]:
    """The digests of a file in several small ones, by their next bits, in order."""
    size = path.stat().st_size if path.exists() else 0
    if size <= _PART_BYTES or bits < _SPLIT_BITS:
        if size:
            yield path
        return
    for part in _split(path, bits - _SPLIT_BITS):
        yield from _parts(part, bits - _SPLIT_BITS)
        part.unlink(missing_ok=True)


def _split(path: Path, shift: int) -> list[Path]:
    import numpy

    numbers = numpy.arange((1 << _SPLIT_BITS) + 1, dtype="<u8")
    parts = [path.with_name(f"{path.name} {number}") for number in range(1 << _SPLIT_BITS)]
    with ExitStack() as stack, scratch_errors():
        files = [stack.enter_context(part.open("wb")) for part in parts]
        source = stack.enter_context(path.open("rb"))
        while data := source.read(_CHUNK):
            # Equal rows, of which there may be many, must not make one part large.
            pairs = _ordered(numpy.frombuffer(data, "<u8").reshape(-1, 2))
            key = (pairs[:, 0] >> numpy.uint64(shift)) & numpy.uint64((1 << _SPLIT_BITS) - 1)
            bounds = numpy.searchsorted(key, numbers)
            for number, file in enumerate(files):
                file.write(pairs[bounds[number] : bounds[number + 1]].tobytes())
        path.unlink()
    return parts
