"""The last stretch of a file's bytes on their way to a store: encryption, if there are recipients, and the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from export_pipelines.formats.encryption import AgeWriter
from export_pipelines.manifest import FileProof


class Writable(Protocol):
    """What takes bytes."""

    def write(self, data: bytes, /) -> object: ...


@contextmanager
def stored_writer(writer: Writable, recipients: Sequence[str] = ()) -> Iterator[StoredWriter]:
    """What encrypts to `recipients`, if any, and writes to `writer`, which is for the caller to publish or abort.

    Nothing may be published before `finish` has returned.
    """
    stored = StoredWriter(writer, recipients)
    try:
        yield stored
    finally:
        stored.close()


class StoredWriter:
    """Takes compressed bytes. With recipients only encrypted ones leave it, from a thread of its own."""

    def __init__(self, writer: Writable, recipients: Sequence[str] = ()) -> None:
        self._writer = writer
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._age = AgeWriter(self._store, recipients) if recipients else None

    def write(self, data: bytes) -> None:
        """Raises StoreError: the store failed, now or with bytes that were written before."""
        if self._age is None:
            self._store(data)
        elif data:
            self._age.write(data)

    def finish(self, key: str, raw_size: int, raw_sha256: str) -> FileProof:
        """Write what is left; the proof of what was stored. Raises StoreError."""
        if self._age is not None:
            self._age.finish()
        return FileProof(
            key=key,
            size=self._size,
            sha256=self._sha256.hexdigest(),
            raw_size=raw_size,
            raw_sha256=raw_sha256,
            encryption="age" if self._age else "",
        )

    def close(self) -> None:
        """End the thread. Without `finish` before, what was written is incomplete."""
        if self._age is not None:
            self._age.close()

    def _store(self, data: bytes) -> None:
        self._size += len(data)
        self._sha256.update(data)
        self._writer.write(data)
