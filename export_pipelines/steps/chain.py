"""The chain of a table's manifests in the archive: append and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import ValidationError

from export_pipelines.errors import IntegrityError, ObjectExists, ObjectMissing
from export_pipelines.manifest import (
    ArtifactManifest,
    CleanupReceipt,
    Entry,
    ExpireTombstone,
    LandedManifest,
    digest,
    from_bytes,
    to_bytes,
)
from export_pipelines.naming import table_folder
from export_pipelines.signing import Signer
from export_pipelines.steps.chain_keys import manifest_key as manifest_key  # noqa: PLC0414  # part of what this module offers
from export_pipelines.steps.signatures import seal
from export_pipelines.stores.base import Store

E_ = TypeVar("E_", ArtifactManifest, CleanupReceipt, ExpireTombstone, LandedManifest)

_RACES = 1000


def append(
    archive: Store,
    table_id: str,
    known: tuple[int, str] | None,
    make: Callable[[int, str, datetime], E_],
    signer: Signer | None = None,
) -> tuple[E_, str]:
    """Write the next entry of a chain, made from its sequence, the SHA-256 of the entry before, and the time.

    `known` is the last entry that the catalog knows; the true end is searched from there. Create-if-absent gives the
    number to one writer; others take the next one. With a `signer` it is signed right after. Returns the entry and its
    SHA-256.

    Crash: the entry is there whole, or not at all. Its signature may be missing: the next entry brings it.
    """
    entry, data = _append(archive, table_id, known, make)
    if signer is not None:
        seal(archive, table_id, entry.sequence, data, signer)
    return entry, digest(data)


def _append(
    archive: Store, table_id: str, known: tuple[int, str] | None, make: Callable[[int, str, datetime], E_]
) -> tuple[E_, bytes]:
    sequence, previous = end_of_chain(archive, table_id, known)
    for _ in range(_RACES):
        entry = make(sequence + 1, previous, datetime.now(UTC))
        data = to_bytes(entry)
        try:
            archive.put(manifest_key(table_id, sequence + 1), data)
        except ObjectExists:
            if archive.get(manifest_key(table_id, sequence + 1)) == data:
                # The store did write it, and its answer was lost.
                return entry, data
            sequence, previous = end_of_chain(archive, table_id, (sequence, previous) if sequence else None)
            continue
        return entry, data
    raise IntegrityError(f"the chain of {table_id!r} grew {_RACES} times while one entry was written")


def end_of_chain(archive: Store, table_id: str, known: tuple[int, str] | None) -> tuple[int, str]:
    """Sequence and SHA-256 of the last entry; (0, "") of an empty chain.

    Raises:
        IntegrityError: the entry that the catalog knows is gone or altered: the tail was cut off, or tampered with.
    """
    sequence, sha256 = known or (0, "")
    if known is None:
        keys = [info.key for info in archive.list(f"{table_folder(table_id)}/manifests/")]
        sequence = int(keys[-1].rsplit("/", 1)[1].removesuffix(".json")) if keys else 0
        sha256 = digest(archive.get(keys[-1])) if keys else ""
    else:
        try:
            found = digest(archive.get(manifest_key(table_id, sequence)))
        except ObjectMissing:
            found = ""
        if found != sha256:
            raise IntegrityError(
                f"manifest {sequence} of {table_id!r} is {'altered' if found else 'missing'} in {archive.url}",
                hint="run `export-pipelines verify`; restore the archive from its copy before going on",
            )
    while archive.head(manifest_key(table_id, sequence + 1)) is not None:
        sequence += 1
        sha256 = digest(archive.get(manifest_key(table_id, sequence)))
    return sequence, sha256


def read_entry(archive: Store, table_id: str, sequence: int) -> tuple[Entry, bytes]:
    """An entry and its bytes. Raises IntegrityError if it is missing or no manifest."""
    key = manifest_key(table_id, sequence)
    try:
        data = archive.get(key)
        entry = from_bytes(data)
    except ObjectMissing as error:
        raise IntegrityError(f"manifest {key} is missing in {archive.url}") from error
    except ValidationError as error:
        raise IntegrityError(f"{key} is no manifest: {error.errors()[0]['msg']}") from error
    if entry.sequence != sequence or entry.table != table_id:
        raise IntegrityError(f"{key} says that it is manifest {entry.sequence} of {entry.table!r}")
    return entry, data


def artifact_at(archive: Store, table_id: str, sequence: int) -> ArtifactManifest:
    """The artifact manifest of that number. Raises IntegrityError if there is none."""
    entry, _ = read_entry(archive, table_id, sequence)
    if not isinstance(entry, ArtifactManifest):
        raise IntegrityError(f"manifest {sequence} of {table_id!r} is of a {entry.kind}, not of an artifact")
    return entry


def refuse_altered(archive: Store, table_id: str, sequences: Iterable[int], known: tuple[int, str] | None) -> None:
    """Compare entries with the SHA-256 that the entry after each has of it, or the catalog of the last that it knows.

    Also looks whether the end that the catalog knows is there. An entry whose SHA-256 nobody has yet, as a crash leaves
    it, is left out.

    Raises:
        IntegrityError: one was altered after it was written, or the chain's tail was cut off.
    """
    end_of_chain(archive, table_id, known)
    data: dict[int, bytes] = {}

    def read(sequence: int) -> tuple[Entry, bytes]:
        entry, data[sequence] = read_entry(archive, table_id, sequence)
        return entry, data[sequence]

    for sequence in sequences:
        if known and sequence == known[0]:
            continue
        if archive.head(manifest_key(table_id, sequence + 1)) is None:
            continue
        previous = read(sequence + 1)[0].previous_sha256
        if previous != digest(data.get(sequence) or read(sequence)[1]):
            raise IntegrityError(
                f"manifest {sequence} of {table_id!r} is altered in {archive.url}: the next has another SHA-256 of it",
                hint="run `export-pipelines verify`; restore the archive from its copy before going on",
            )


def entries(archive: Store, table_id: str) -> Iterator[Entry]:
    """All entries of a chain in order, each checked against the one before.

    Raises:
        IntegrityError: an entry is missing, altered or out of order.
    """
    previous = ""
    expected = 1
    for info in archive.list(f"{table_folder(table_id)}/manifests/"):
        name = info.key.rsplit("/", 1)[1]
        if name != f"{expected:08d}.json":
            raise IntegrityError(f"the chain of {table_id!r} has {name} where number {expected} is expected")
        entry, data = read_entry(archive, table_id, expected)
        if entry.previous_sha256 != previous:
            raise IntegrityError(
                f"manifest {expected} of {table_id!r} does not follow the one before: a digest differs"
            )
        yield entry
        previous = digest(data)
        expected += 1
