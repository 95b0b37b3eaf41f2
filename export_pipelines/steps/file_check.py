"""Check one artifact of an archive: its file, its sidecar and what lies beside them, each read once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from export_pipelines.errors import ExportPipelinesError, IdentityNeeded, IntegrityError, ObjectMissing
from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.csv import digest_records, format_digest
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.manifest import ArtifactManifest, FileProof
from export_pipelines.specs.table import Compression
from export_pipelines.steps.companions import check_companion
from export_pipelines.steps.reading import open_stored, read_sealed
from export_pipelines.steps.records import records_in
from export_pipelines.steps.sidecar import read_buckets
from export_pipelines.stores.base import Store

Tell = Callable[[int, int], None]
"""Called with the rows and the raw bytes that were read so far, as often as may be. An error of it ends the check."""


@dataclass
class FileCheck:
    """What was found out about one artifact."""

    sequence: int
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    sealed: int = 0
    """Encrypted files that no identity here opens: their content was not looked at."""
    unread: bool = False
    """Whether something could not be read, so that nothing is known of it. Also of files that were broken off."""


def check_artifact(archive: Store, manifest: ArtifactManifest, *, keyring: Keyring = NO_KEYS, tell: Tell) -> FileCheck:
    """Compare all objects of an artifact with its manifest; no more bytes of a file are read than it should have.

    Memory: some pieces of a mebibyte, and one bucket of the sidecar. Nothing is raised but what `tell` raises.
    """
    export, found = manifest.export, FileCheck(manifest.sequence)
    with _noted(found):
        file = manifest.file
        _check_same(manifest, export.file, file)
        with _present(archive, file):
            found.rows = _or_sealed(archive, found, file, tell, lambda: _check_file(archive, manifest, keyring, tell))
    with _noted(found):
        if (export.identity.file is None) != (manifest.identity_file is None):
            raise IntegrityError(f"manifest {manifest.sequence} has a sidecar in one place only")
        if (lines := manifest.identity_file) is not None and export.identity.file is not None:
            _check_same(manifest, export.identity.file, lines)
            with _present(archive, lines):
                _or_sealed(archive, found, lines, tell, lambda: _check_sidecar(archive, manifest, lines, keyring, tell))
    for companion in manifest.companions:
        with _noted(found):
            check_companion(archive, companion)
    return found


@contextmanager
def _noted(found: FileCheck) -> Iterator[None]:
    """An error of ours becomes a problem, and the check goes on."""
    try:
        yield
    except ExportPipelinesError as error:
        found.problems.append(error.message)
        found.unread |= not isinstance(error, IntegrityError)


@contextmanager
def _present(archive: Store, proof: FileProof) -> Iterator[None]:
    """Look whether a file is there, and not longer than it should be, before it is read."""
    info = archive.head(proof.key)
    if info is None:
        raise IntegrityError(f"{archive.locate(proof.key)} is missing")
    if info.size > proof.size:
        raise IntegrityError(
            f"{archive.locate(proof.key)} is not what its manifest says: size is {info.size}, not {proof.size}"
        )
    try:
        yield
    except ObjectMissing as error:
        raise IntegrityError(f"{archive.locate(proof.key)} is missing") from error


def _or_sealed(archive: Store, found: FileCheck, proof: FileProof, tell: Tell, check: Callable[[], int]) -> int:
    """Check a file, or, if nothing here opens it, what can be known of it all the same."""
    try:
        return check()
    except IdentityNeeded:
        read_sealed(archive, proof, lambda size: tell(0, size))
        found.sealed += 1
        return 0


def _check_same(manifest: ArtifactManifest, exported: FileProof, archived: FileProof) -> None:
    if exported.model_copy(update={"key": archived.key}) != archived:
        raise IntegrityError(f"manifest {manifest.sequence}: {archived.key} was archived with other digests")


def _check_file(archive: Store, manifest: ArtifactManifest, keyring: Keyring, tell: Tell) -> int:
    """Read a file once, with all checks; return its rows.

    Raises:
        IntegrityError: with all that is wrong with it in one sentence.
    """
    export, proof = manifest.export, manifest.file
    place = archive.locate(proof.key)
    raw_sha256 = hashlib.sha256()
    rows = total = raw_size = 0
    wrong: list[str] = []
    with open_stored(archive, proof, keyring) as reader:

        def raw() -> Iterator[bytes]:
            nonlocal raw_size
            for piece in decompressed(reader, Compression(export.compression), name=place):
                raw_sha256.update(piece)
                raw_size += len(piece)
                yield piece

        try:
            for found in records_in(export, raw()):
                rows += len(found)
                total += digest_records(found)
                tell(rows, raw_size)
        except IntegrityError as error:
            wrong.append(error.message)
            reader.drain()
    wrong += _differences(
        ("size", proof.size, reader.size),
        ("SHA-256", proof.sha256, reader.hexdigest()),
    )
    if not wrong:
        wrong = _differences(
            ("size of the raw bytes", proof.raw_size, raw_size),
            ("SHA-256 of the raw bytes", proof.raw_sha256, raw_sha256.hexdigest()),
            ("rows", export.rows, rows),
        )
    if not wrong and export.exact:
        wrong = _differences(("row digest", export.row_digest, format_digest(total)))
    _refuse(archive, manifest, proof, wrong)
    return rows


def _check_sidecar(archive: Store, manifest: ArtifactManifest, proof: FileProof, keyring: Keyring, tell: Tell) -> int:
    """Raises IntegrityError: lines, sizes or a SHA-256 of a sidecar are not what its manifest says."""
    identity = manifest.export.identity
    raw_sha256 = hashlib.sha256()
    size = 0
    with open_stored(archive, proof, keyring) as stream:
        for _, raw in read_buckets(stream, identity.model_copy(update={"file": proof})):
            raw_sha256.update(raw)
            size += len(raw)
            tell(manifest.export.rows, manifest.file.raw_size)
    lines = sum(bucket.rows for bucket in identity.buckets)
    wrong = _differences(
        ("size", proof.size, stream.size),
        ("size of the raw bytes", proof.raw_size, size),
        ("SHA-256 of the raw bytes", proof.raw_sha256, raw_sha256.hexdigest()),
    )
    if identity.aligned:
        wrong += _differences(("lines", manifest.export.rows, lines))
    _refuse(archive, manifest, proof, wrong)
    return lines


def _differences(*checks: tuple[str, object, object]) -> list[str]:
    return [f"{name} is {found}, not {expected}" for name, expected, found in checks if expected != found]


def _refuse(archive: Store, manifest: ArtifactManifest, proof: FileProof, wrong: list[str]) -> None:
    if wrong:
        raise IntegrityError(
            f"{archive.locate(proof.key)} is not what manifest {manifest.sequence} says: {'; '.join(wrong)}"
        )
