"""The chain of a table's manifests in the archive: append and read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import islice
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
_AHEAD = 64
"""Entries that are asked for before their turn, of a store that reads several at once."""


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
    data = _fetched(archive, manifest_key(table_id, sequence))
    return _parsed(data, table_id, sequence), data


def _fetched(archive: Store, key: str) -> bytes:
    try:
        return archive.get(key)
    except ObjectMissing as error:
        raise IntegrityError(f"manifest {key} is missing in {archive.url}") from error


def _parsed(data: bytes, table_id: str, sequence: int) -> Entry:
    try:
        entry = from_bytes(data)
    except ValidationError as error:
        key = manifest_key(table_id, sequence)
        raise IntegrityError(f"{key} is no manifest: {error.errors()[0]['msg']}") from error
    if entry.sequence != sequence or entry.table != table_id:
        key = manifest_key(table_id, sequence)
        raise IntegrityError(f"{key} says that it is manifest {entry.sequence} of {entry.table!r}")
    return entry


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


def entries(archive: Store, table_id: str) -> Generator[Entry]:
    """All entries of a chain in order, each checked against the one before.

    Raises:
        IntegrityError: an entry is missing, altered or out of order.
    """
    with closing(digested(archive, table_id)) as found:
        for entry, _ in found:
            yield entry


def digested(archive: Store, table_id: str) -> Generator[tuple[Entry, str]]:
    """The same, each with the SHA-256 of its bytes."""
    with closing(contents_after(archive, table_id, 0)) as contents:
        for entry, sha256, _ in linked(contents, table_id, (0, "")):
            yield entry, sha256


def contents_after(archive: Store, table_id: str, last: int) -> Generator[bytes]:
    """The bytes of the entries behind one, in order.

    Where reading is a wait for the network, the next entries are on their way while one is looked at. An error comes
    nevertheless at the turn of its entry, after all those before. The threads end with the generator.

    Raises:
        IntegrityError: an entry is missing.
    """
    with closing(read_ahead(archive, _keys(archive, table_id, last))) as reads:
        for read in reads:
            yield read()


def linked(contents: Iterable[bytes], table_id: str, last: tuple[int, str]) -> Iterator[tuple[Entry, str, bytes]]:
    """The entries that some bytes are, which follow one (its number and SHA-256), with their SHA-256 and bytes.

    Raises:
        IntegrityError: one is altered or out of order.
    """
    before, previous = last
    for sequence, data in enumerate(contents, start=before + 1):
        entry = _parsed(data, table_id, sequence)
        if entry.previous_sha256 != previous:
            raise IntegrityError(
                f"manifest {sequence} of {table_id!r} does not follow the one before: a digest differs"
            )
        previous = digest(data)
        yield entry, previous, data


def _keys(archive: Store, table_id: str, last: int) -> Iterator[str]:
    """Keys of the entries of a chain behind one. Raises IntegrityError at a gap."""
    folder = f"{table_folder(table_id)}/manifests/"
    after = manifest_key(table_id, last) if last else ""
    for expected, info in enumerate(archive.list(folder, after=after), start=last + 1):
        name = info.key.rsplit("/", 1)[1]
        if name != f"{expected:08d}.json":
            raise IntegrityError(f"the chain of {table_id!r} has {name} where number {expected} is expected")
        yield folder + name


def read_ahead(archive: Store, keys: Iterator[str]) -> Generator[Callable[[], bytes]]:
    """What gives what is under each key, or raises why not, in order; some of them are being read already."""
    # A chain of one entry needs no threads.
    for key in keys if archive.reads_at_once == 1 else islice(keys, 1):
        yield partial(_fetched, archive, key)
    pool = ThreadPoolExecutor(archive.reads_at_once, "chain")
    under_way: deque[Future[bytes]] = deque()
    try:
        for begun in _begun(pool, archive, keys):
            under_way.append(begun)
            if len(under_way) == _AHEAD:
                yield under_way.popleft().result
        while under_way:
            yield under_way.popleft().result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begun(pool: ThreadPoolExecutor, archive: Store, keys: Iterator[str]) -> Iterator[Future[bytes]]:
    """The reads of all keys. An error of the keys themselves is the last of them: it must wait for its turn, too."""
    try:
        for key in keys:
            yield pool.submit(_fetched, archive, key)
    except Exception as error:
        failed: Future[bytes] = Future()
        failed.set_exception(error)
        yield failed
