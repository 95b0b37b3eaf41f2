"""What a restore reads: the archived partitions that were asked for, and the checked bytes of their files."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from export_pipelines.errors import BadRange, IntegrityError, ObjectMissing, RequestError
from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.specs.table import Compression, PartitionsSpec
from export_pipelines.steps.context import Progress
from export_pipelines.steps.generations import Generation, generations, picked
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.records import records_in
from export_pipelines.steps.tombstones import last_tombstones, told
from export_pipelines.stores.base import Store
from export_pipelines.windows import window_of

T = TypeVar("T")
Report = Callable[[int], None]

_AHEAD = 4
"""Pieces of about a mebibyte that are unpacked while others are on their way."""


@dataclass(frozen=True)
class Choice:
    """Which partitions: one; those from `first` to `last`, both included, either open; all when nothing is given. With
    `as_of`, as they were archived at that time.

    Raises:
        BadRange: a partition and a range.
    """

    partition: str | None = None
    first: str | None = None
    last: str | None = None
    as_of: datetime | None = None

    def __post_init__(self) -> None:
        if self.partition is not None and (self.first is not None or self.last is not None):
            raise BadRange("a partition and a range were given", hint="give one of them, or neither for all")


@dataclass(frozen=True)
class Archived:
    """A table in an archive, with what opens its encrypted files. `partitions` is what its definition says, if it still
    has one: it tells where in a range a partition lies which is not archived."""

    store: Store
    table: str
    keyring: Keyring = NO_KEYS
    partitions: PartitionsSpec | None = None

    def chosen(self, choice: Choice) -> dict[str, list[Generation]]:
        """The files to take of each partition that was asked for, in the order of their windows.

        Raises:
            RequestError: there is none of them in the archive.
            IntegrityError: the chain of manifests is broken.
        """
        found = generations(self.store, self.table, choice.as_of)
        if not found and choice.as_of is not None and (known := generations(self.store, self.table)):
            oldest = min(piece.manifest.export.started for pieces in known.values() for piece in pieces)
            raise RequestError(
                f"nothing of {self.table!r} is left that was exported by {choice.as_of:%Y-%m-%d %H:%M} UTC",
                hint=f"the oldest file is of {oldest:%Y-%m-%d %H:%M} UTC",
            )
        if not found and (expired := last_tombstones(self.store, self.table)):
            raise self._missing(choice.partition if choice.partition in expired else max(expired), found)
        if not found:
            raise RequestError(
                f"nothing of {self.table!r} is archived in {self.store.url}",
                hint="check the table's name (`export-pipelines list`), or run its archive first",
            )
        if choice.partition is not None:
            if choice.partition not in found:
                raise self._missing(choice.partition, found)
            return {choice.partition: found[choice.partition]}
        if choice.first is None and choice.last is None:
            return found
        return self._between(found, choice)

    def _between(self, found: dict[str, list[Generation]], choice: Choice) -> dict[str, list[Generation]]:
        starts = {key: _start(pieces) for key, pieces in found.items()}
        if None in starts.values():
            raise BadRange(f"{self.table} has no partitions", hint="leave out the range")
        times = {key: start for key, start in starts.items() if start is not None}
        lower = self._time(choice.first, times, found) if choice.first is not None else min(times.values())
        upper = self._time(choice.last, times, found) if choice.last is not None else max(times.values())
        if lower > upper and choice.first is not None and choice.last is not None:
            raise BadRange(
                f"partition {choice.first!r} is later than {choice.last!r}", hint="give the earlier one first"
            )
        between = {key: pieces for key, pieces in found.items() if lower <= times[key] <= upper}
        if not between:
            raise RequestError(
                f"no partition of {self.table!r} in that range is archived in {self.store.url}", hint=_which(found)
            )
        return between

    def _time(self, key: str, times: dict[str, float], found: dict[str, list[Generation]]) -> float:
        if key in times:
            return times[key]
        if self.partitions is None:
            raise self._missing(key, found)
        start = window_of(self.partitions, key).start
        return start.timestamp() if start else 0.0

    def _missing(self, key: str, found: dict[str, list[Generation]]) -> RequestError:
        hint = _which(found) if found else "nothing else of the table is archived"
        if tombstone := last_tombstones(self.store, self.table).get(key):
            return RequestError(f"partition {key!r} of {self.table!r} {told(tombstone)}: its files are gone", hint=hint)
        return RequestError(f"partition {key!r} of {self.table!r} is not archived in {self.store.url}", hint=hint)

    def raw(self, manifest: ArtifactManifest, report: Report) -> Generator[bytes]:
        """The raw bytes of an archived file, in pieces of about a mebibyte; `report` is told how many there were.

        Raises:
            IntegrityError: at the end, if it is not what its manifest says.
        """
        proof, place = manifest.file, self.store.locate(manifest.file.key)
        raw_sha256 = hashlib.sha256()
        size = 0
        try:
            with open_stored(self.store, proof, self.keyring) as stored:
                for data in decompressed(stored, Compression(manifest.export.compression), name=place):
                    raw_sha256.update(data)
                    size += len(data)
                    report(size)
                    yield data
                found = (stored.size, stored.hexdigest(), size, raw_sha256.hexdigest())
        except ObjectMissing as error:
            raise IntegrityError(
                f"archived file {place} is missing", hint="restore it from a copy of the archive"
            ) from error
        if found != (proof.size, proof.sha256, proof.raw_size, proof.raw_sha256):
            raise IntegrityError(
                f"{place} is not what its manifest says: size or SHA-256 differs",
                hint="nothing was restored; `export-pipelines verify` says more, restore the file from a copy",
            )

    def content(self, piece: Generation, report: Report) -> Generator[tuple[bytes, int]]:
        """What is taken of a file, and how many records it has where that is counted: a whole file as it is, with its
        header; of another the records that are wanted, without. Of a format that is not native: its records."""
        raw = self.raw(piece.manifest, report)
        if piece.whole and piece.manifest.export.layout is not None:
            yield from ((b"".join(found), 0) for found in records_in(piece.manifest.export, raw))
        elif piece.whole:
            yield from ((data, 0) for data in raw)
        else:
            for found in picked(self.store, piece, raw, self.keyring):
                yield b"".join(found), len(found)


def pieces_of(found: dict[str, list[Generation]]) -> list[Generation]:
    """The files of which anything is taken."""
    return [piece for same in found.values() for piece in same if not piece.empty]


def read_ahead(items: Generator[T]) -> Generator[T]:
    """The same items, made in a thread of its own while the ones before are used. Memory: _AHEAD items."""
    end = object()
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(_AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]  # it is not `end`


def reporter(progress: Callable[[Progress], None], manifest: ArtifactManifest, before: int = 0) -> Report:
    """Tells of a file's raw bytes so far, and of about as many of its rows, on top of those of the files before."""
    export = manifest.export
    whole = max(1, manifest.file.raw_size)

    def report(size: int) -> None:
        rows = before + export.rows * size // whole
        progress(Progress("restore", manifest.table, export.partition, rows, size))

    return report


def _start(pieces: list[Generation]) -> float | None:
    start = pieces[0].manifest.export.window_start
    return start.timestamp() if start else None


def _which(found: dict[str, list[Generation]]) -> str:
    names = list(found)
    return f"there are {len(names)} partitions, {names[0]} to {names[-1]}"
