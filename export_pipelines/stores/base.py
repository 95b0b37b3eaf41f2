"""What a store is: named, immutable objects that appear whole or not at all."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import BinaryIO, Protocol, Self


@dataclass(frozen=True)
class ObjectInfo:
    """An object as listed. `size` in bytes; `modified` is zone-aware."""

    key: str
    size: int
    modified: datetime


class ObjectWriter(Protocol):
    """Writes one object. Nothing is visible under its key before `publish` returns; leaving without it aborts.

    Used as a context manager. `write` may be called from one thread only.
    """

    def write(self, data: bytes) -> object: ...

    def publish(self) -> None:
        """Make it durable and visible under its key, which no other writer can have taken.

        Raises:
            ObjectExists: the key is taken; what was written is gone, the other object untouched.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    """A place for artifacts and manifests. Keys are relative, `/`-separated, without `.` and `..` parts."""

    url: str
    """`file:///…` or `s3://bucket/prefix`, without secrets."""
    reads_at_once: int
    """How many small objects are best read at the same time: 1 if reading is no wait for a network."""

    def locate(self, key: str) -> str:
        """URL of an object, for people; a plain path for a filesystem."""

    def writer(self, key: str) -> ObjectWriter:
        """Begin to write an object, streaming: memory is bounded whatever its size."""

    def put(self, key: str, data: bytes) -> None:
        """Write a small object at once, if absent. Raises ObjectExists."""

    def open(self, key: str) -> BinaryIO:
        """Read an object as a stream. Raises ObjectMissing."""

    def get(self, key: str) -> bytes:
        """Read a small object whole. Raises ObjectMissing."""

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, None if there is none."""

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in the order of their keys; no temporaries.

        Only those whose key comes `after` another, if one is given: what comes before it costs little. `prefix` must
        then name a folder without folders in it, of which stores have one order.
        """

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""

    def sweep(self, older_than_seconds: float, *, dry_run: bool = False) -> builtins.list[str]:
        """Remove temporaries and unfinished uploads that were last touched so long ago; return what they were.

        With `dry_run` they stay.
        """

    def probe(self) -> None:
        """Check that it can be written, read, deleted, and that it honours create-if-absent.

        Raises:
            StoreError: with the reason and a hint.
        """
