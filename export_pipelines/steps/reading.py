"""Reading stored files again, with their digests computed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO

from export_pipelines.errors import IntegrityError
from export_pipelines.formats.compression import decompressed
from export_pipelines.manifest import FileProof
from export_pipelines.specs.table import Compression
from export_pipelines.stores.base import Store

CHUNK = 1 << 20


def read_back(
    store: Store, proof: FileProof, compression: Compression | None, progress: Callable[[int], None] = lambda size: None
) -> None:
    """Read a file whole and compare it with its proof: the stored bytes, and the raw ones if `compression` is given.

    Raises:
        IntegrityError: it is another file, or damaged. ObjectMissing: it is gone.
    """
    with store.open(proof.key) as stream:
        hashing = HashingReader(stream, progress)
        if compression is None:
            while hashing.read(CHUNK):
                pass
        else:
            raw = hashlib.sha256()
            for piece in decompressed(hashing, compression, name=store.locate(proof.key)):
                raw.update(piece)
            if raw.hexdigest() != proof.raw_sha256:
                raise IntegrityError(
                    f"{store.locate(proof.key)} reads back other rows: SHA-256 of the raw bytes differs"
                )
    if (hashing.size, hashing.hexdigest()) != (proof.size, proof.sha256):
        raise IntegrityError(f"{store.locate(proof.key)} reads back other bytes: its size or SHA-256 differs")


class HashingReader:
    """Reads through, while SHA-256 and size of all that was read are computed."""

    def __init__(self, stream: BinaryIO, progress: Callable[[int], None] = lambda size: None) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._progress = progress
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._sha256.update(data)
        self.size += len(data)
        self._progress(self.size)
        return data

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()
