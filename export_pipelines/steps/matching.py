"""Matching by content: which record of a file is like which row of now, whatever their number.

A hash join on disk. Both sides go, as digests with their numbers, to partition files of a scratch folder by a part of
the digest; then each partition is sorted in memory by itself. Memory: some 60 MB, and 8 bytes a row.

Measured with 2 million rows: an SQLite table with a DELETE … RETURNING a row took 30 times as long.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from xxhash import xxh3_128_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.uint64]

_PARTITION_ROWS = 1 << 19


class Matcher:
    """Takes the records of a file and the rows of now, and gives each row at most one record of the same content.

    Contents are compared by XXH3-128 with a seed that nobody knows beforehand, so that no two contents can be made
    that look the same.
    """

    def __init__(self, folder: Path, files: ExitStack, expected: int) -> None:
        self._seed = secrets.randbits(64)
        self._partitions = expected // _PARTITION_ROWS + 1
        self._records = [_scratch(files, folder, f"records-{n}") for n in range(self._partitions)]
        self._rows = [_scratch(files, folder, f"rows-{n}") for n in range(self._partitions)]
        self._identities = _scratch(files, folder, "identities")
        self._count = 0

    def add_records(self, contents: Sequence[bytes], numbers: Sequence[int]) -> None:
        """Take records of the file, with their record numbers."""
        self._spool(self._records, contents, numbers)

    def add_rows(self, contents: Sequence[bytes], identities: Sequence[bytes]) -> None:
        """Take rows of now, with their identities."""
        if not contents:
            return
        self._spool(self._rows, contents, range(self._count, self._count + len(contents)))
        self._count += len(contents)
        self._identities.write(b"\n".join(identities) + b"\n")

    def matches(self, batch_rows: int) -> Iterator[tuple[list[bytes], list[int]]]:
        """Identities with the numbers of their records, in the order in which the rows were added."""
        import numpy as np

        partners = np.full(self._count, -1, dtype=np.int64)
        for records, rows in zip(self._records, self._rows, strict=True):
            number_of_row, number_of_record = _pairs(_load(records), _load(rows))
            partners[number_of_row] = number_of_record
        self._identities.seek(0)
        for first in range(0, self._count, batch_rows):
            identities = b"".join(islice(self._identities, batch_rows)).splitlines()
            part = partners[first : first + batch_rows]
            numbers = part.tolist()
            if (part < 0).any():
                identities = [identity for identity, n in zip(identities, numbers, strict=True) if n >= 0]
                numbers = [n for n in numbers if n >= 0]
            if numbers:
                yield identities, numbers

    def _spool(self, files: list[BinaryIO], contents: Sequence[bytes], numbers: Sequence[int]) -> None:
        import numpy as np

        block = np.empty((len(contents), 3), dtype=np.uint64)
        digests = b"".join(map(xxh3_128_digest, contents, repeat(self._seed)))
        block[:, :2] = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
        block[:, 2] = numbers
        if self._partitions == 1:
            files[0].write(block.tobytes())
            return
        # Of the second half: the first is what a partition is sorted by.
        partition = block[:, 1] % np.uint64(self._partitions)
        for number, file in enumerate(files):
            file.write(block[partition == number].tobytes())


@contextmanager
def matcher(expected: int) -> Iterator[Matcher]:
    """A matcher for about that many records; its scratch folder (in TMPDIR) goes with it."""
    with tempfile.TemporaryDirectory(prefix="export_pipelines-") as folder, ExitStack() as files:
        yield Matcher(Path(folder), files, expected)


def _scratch(files: ExitStack, folder: Path, name: str) -> BinaryIO:
    return files.enter_context((folder / name).open("w+b"))


def _load(file: BinaryIO) -> Numbers:
    import numpy as np

    file.seek(0)
    return np.frombuffer(file.read(), dtype=np.uint64).reshape(-1, 3)


def _pairs(records: Numbers, rows: Numbers) -> tuple[Numbers, Numbers]:
    """Numbers of rows, and those of their records: the first row of a content gets its first record, and so on.

    All are sorted by 63 bits of the digest and a bit for the side, so that a content's records stand before its rows.
    Two contents that have these bits in common are compared by the other half, and are no pair.
    """
    import numpy as np

    one = np.uint64(1)
    keys = np.concatenate([records[:, 0] & ~one, rows[:, 0] | one])
    order = np.argsort(keys)
    keys = keys[order] >> one
    begins = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, dtype=bool)
    starts = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    is_record = order < len(records)
    in_group = np.add.reduceat(is_record, starts, dtype=np.int64) if len(starts) else starts
    place = np.flatnonzero(~is_record)
    rank = place - starts[group[place]] - in_group[group[place]]
    paired = rank < in_group[group[place]]
    row = rows[order[place[paired]] - len(records)]
    record = records[order[starts[group[place[paired]]] + rank[paired]]]
    same = row[:, 1] == record[:, 1]
    return row[same, 2], record[same, 2]
