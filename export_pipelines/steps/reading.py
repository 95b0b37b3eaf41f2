"""Reading stored files again, decrypted, with the digests of the stored bytes computed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from export_pipelines.errors import IdentityNeeded, IntegrityError, ObjectMissing
from export_pipelines.formats.compression import Readable, decompressed
from export_pipelines.formats.encryption import NO_KEYS, AgeReader, Keyring, Shape
from export_pipelines.manifest import ArtifactManifest, FileProof
from export_pipelines.specs.table import Compression
from export_pipelines.stores.base import Store

CHUNK = 1 << 20


def _ignore(size: int) -> None:
    """For those who want no progress."""


@contextmanager
def open_stored(
    store: Store, proof: FileProof, keyring: Keyring = NO_KEYS, progress: Callable[[int], None] = _ignore
) -> Iterator[StoredFile]:
    """A stored file to read, decrypted if it is encrypted, and still compressed. Memory: some mebibytes.

    Raises:
        ObjectMissing: it is gone. IdentityNeeded: it is encrypted, and nothing here opens it.
    """
    identities = keyring.needed(store.locate(proof.key)) if proof.encryption else []
    with store.open(proof.key) as stream:
        hashing = HashingReader(stream, progress)
        if not proof.encryption:
            yield StoredFile(hashing, hashing)
            return
        plain = AgeReader(hashing, identities, name=store.locate(proof.key))
        try:
            yield StoredFile(hashing, plain)
        finally:
            plain.close()


def read_back(
    store: Store,
    proof: FileProof,
    compression: Compression | None,
    progress: Callable[[int], None] = _ignore,
    keyring: Keyring = NO_KEYS,
) -> None:
    """Read a file whole and compare it with its proof: the stored bytes, and the raw ones if `compression` is given.

    An encrypted file that nothing here opens is compared by its stored bytes, and must have the shape of an age file.

    Raises:
        IntegrityError: it is another file, or damaged. ObjectMissing: it is gone.
    """
    try:
        if compression is not None:
            _read_open(store, proof, compression, progress, keyring)
            return
    except IdentityNeeded:
        pass
    read_sealed(store, proof, progress)


def _read_open(
    store: Store, proof: FileProof, compression: Compression, progress: Callable[[int], None], keyring: Keyring
) -> None:
    place = store.locate(proof.key)
    raw = hashlib.sha256()
    with open_stored(store, proof, keyring, progress) as stored:
        for piece in decompressed(stored, compression, name=place):
            raw.update(piece)
        if raw.hexdigest() != proof.raw_sha256:
            raise IntegrityError(f"{place} reads back other rows: SHA-256 of the raw bytes differs")
        _compare(place, stored, proof)


def read_sealed(store: Store, proof: FileProof, progress: Callable[[int], None] = _ignore) -> int:
    """Read a file whole without opening it, and compare the stored bytes with its proof; return the size of what is in
    it, before encryption.

    Raises:
        IntegrityError: it is another file, damaged, or encrypted and no whole age file. ObjectMissing: it is gone.
    """
    place = store.locate(proof.key)
    shape = Shape()
    with store.open(proof.key) as stream:
        hashing = HashingReader(stream, progress)
        while data := hashing.read(CHUNK):
            shape.take(data)
    _compare(place, hashing, proof)
    return shape.plain_size(place) if proof.encryption else hashing.size


def _compare(place: str, found: HashingReader | StoredFile, proof: FileProof) -> None:
    if (found.size, found.hexdigest()) != (proof.size, proof.sha256):
        raise IntegrityError(f"{place} reads back other bytes: its size or SHA-256 differs")


def check_archived(archive: Store, manifest: ArtifactManifest) -> None:
    """Check, just before deleting, that the archive still has what the manifest says, byte for byte.

    Raises:
        IntegrityError: it has not.
    """
    for proof in (manifest.file, manifest.identity_file):
        if proof is None:
            continue
        try:
            stream = archive.open(proof.key)
        except ObjectMissing as error:
            raise IntegrityError(
                f"archived file {archive.locate(proof.key)} is missing", hint="restore it, or export again"
            ) from error
        with stream:
            reader = HashingReader(stream)
            while reader.read(1 << 20):
                pass
        if (reader.size, reader.hexdigest()) != (proof.size, proof.sha256):
            raise IntegrityError(
                f"archived file {archive.locate(proof.key)} is not what its manifest says: size or SHA-256 differs",
                hint="restore it from a copy; until then nothing of it is deleted from the source",
            )


class HashingReader:
    """Reads through, while SHA-256 and size of all that was read are computed."""

    def __init__(self, stream: BinaryIO, progress: Callable[[int], None] = _ignore) -> None:
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


class StoredFile:
    """A stored file that is being read. `size` and `hexdigest` are those of the stored bytes, known at the end."""

    def __init__(self, stored: HashingReader, plain: Readable) -> None:
        self._stored = stored
        self._plain = plain

    def read(self, size: int = CHUNK, /) -> bytes:
        """Decrypted bytes. Raises IntegrityError: they cannot be decrypted."""
        return self._plain.read(size)

    def drain(self) -> None:
        """Read what is left of the stored bytes, after an error too, so that their digest is that of all."""
        if isinstance(self._plain, AgeReader):
            self._plain.close()
        while self._stored.read(CHUNK):
            pass

    @property
    def size(self) -> int:
        return self._stored.size

    def hexdigest(self) -> str:
        return self._stored.hexdigest()
