"""Bundles: copies of a thousand manifests of a landing store in one object each, so that a long chain is read quickly.

`<table>/bundles/00001000.json.gz` has the bytes of the manifests 1 to 1,000 one after the other. Who lands, and
finds that it is not there, writes it. The manifests stay, and they alone are the truth: a bundle that does not fit is
passed over, and without bundles a chain is only slower to read. Archives have none: what a delete relies on is read
from the manifests themselves.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count, takewhile

from export_pipelines.errors import ExportPipelinesError, IntegrityError, ObjectExists, ObjectMissing, StoreError
from export_pipelines.formats.compression import compressor, decompressed
from export_pipelines.manifest import Entry, digest
from export_pipelines.naming import table_folder
from export_pipelines.specs.table import Compression
from export_pipelines.steps.chain import contents_after, linked, read_ahead
from export_pipelines.steps.chain_keys import BUNDLE, bundle_key, manifest_key
from export_pipelines.stores.base import Store

ENTRIES = 1000
"""Of each bundle. Ones of other sizes are not read."""

# Of each manifest, and nowhere in it: what is inside is indented, and line breaks of texts are escaped.
_END = b"\n}\n"


def digested(store: Store, table_id: str, *, write: bool) -> Generator[tuple[Entry, str]]:
    """All entries of a landing chain in order, each checked against the one before, with the SHA-256 of its bytes: from
    bundles as far as these go, then from the manifests. With `write`, writes the bundles that are not there.

    Crash: a bundle is there whole, or not at all, and then the next one writes it.

    Raises:
        IntegrityError: an entry is missing, altered or out of order.
    """
    there = bundles(store, table_id)
    found = _bundled(store, table_id, there)
    yield from found
    last = (len(found), found[-1][1] if found else "")
    new: list[bytes] = []
    with closing(contents_after(store, table_id, len(found))) as contents:
        for entry, sha256, data in linked(contents, table_id, last):
            yield entry, sha256
            new.append(data)
            if len(new) == ENTRIES:
                if write and entry.sequence not in there:
                    write = _write(store, table_id, entry.sequence, new)
                new = []


def bundles(store: Store, table_id: str) -> dict[int, str]:
    """Keys of the bundles of a table by the number of their last entry, in order; none where they cannot be listed."""
    folder = f"{table_folder(table_id)}/bundles/"
    try:
        matches = [BUNDLE.fullmatch(info.key) for info in store.list(folder)]
    except StoreError:
        # Of a folder, whoever wrote the first of them may have made them for himself alone.
        return {}
    return {int(match["number"]): match[0] for match in matches if match and f"{match['folder']}/bundles/" == folder}


def differing(store: Store, there: Mapping[int, str], digests: Mapping[int, str]) -> Iterator[str]:
    """What is wrong with bundles of a chain, whose manifests have these digests by their number.

    Bundles must have been listed before the manifests: while these are read, others may be added to both.
    """
    with closing(read_ahead(store, iter(there.values()))) as reads:
        for (last, key), read in zip(there.items(), reads, strict=True):
            try:
                held = [digest(data) for data in _unpacked(read(), key)]
                _refuse_difference(key, last, held, digests)
            except ExportPipelinesError as error:
                yield f"{error.message} (remove the bundle, which is a copy, if the manifests are as they should be)"


def _refuse_difference(key: str, last: int, held: Sequence[str], digests: Mapping[int, str]) -> None:
    if last % ENTRIES:
        raise IntegrityError(f"{key} is not named as bundles of {ENTRIES} manifests are")
    for number, sha256 in enumerate(held, start=last - ENTRIES + 1):
        if digests.get(number) != sha256:
            what = "differs from that" if number in digests else "is not there"
            raise IntegrityError(f"{key} has a manifest {number} that {what} of the chain")
    if len(held) != ENTRIES:
        raise IntegrityError(f"{key} has {len(held)} manifests, not {ENTRIES}")


def _bundled(store: Store, table_id: str, there: Mapping[int, str]) -> list[tuple[Entry, str]]:
    """The entries of the bundles up to the first that does not fit, or that ends otherwise than the chain has it."""
    found: list[tuple[Entry, str]] = []
    keys = [there[last] for last in takewhile(there.__contains__, count(ENTRIES, ENTRIES))]
    with closing(read_ahead(store, iter(keys))) as reads:
        for key, read in zip(keys, reads, strict=True):
            try:
                found += _checked(table_id, _unpacked(read(), key), found)
            except (IntegrityError, StoreError):
                break
    # As each entry has the SHA-256 of the one before, the last proves all of them.
    while found and not _is_in_chain(store, table_id, len(found), found[-1][1]):
        del found[-ENTRIES:]
    return found


def _checked(table_id: str, contents: Sequence[bytes], before: Sequence[tuple[Entry, str]]) -> list[tuple[Entry, str]]:
    """Raises IntegrityError unless they are the entries behind those."""
    if len(contents) != ENTRIES:
        raise IntegrityError(f"a bundle of {table_id!r} has {len(contents)} manifests")
    last = (len(before), before[-1][1] if before else "")
    return [(entry, sha256) for entry, sha256, _ in linked(contents, table_id, last)]


def _is_in_chain(store: Store, table_id: str, number: int, sha256: str) -> bool:
    try:
        return digest(store.get(manifest_key(table_id, number))) == sha256
    except ObjectMissing:
        return False


def _unpacked(data: bytes, key: str) -> list[bytes]:
    """The manifests in a bundle. Raises IntegrityError: it is damaged."""
    return _split(b"".join(decompressed(io.BytesIO(data), Compression.GZIP, name=key)))


def _split(data: bytes) -> list[bytes]:
    *whole, rest = data.split(_END)
    return [*(piece + _END for piece in whole), *([rest] if rest else [])]


def _write(store: Store, table_id: str, last: int, contents: Sequence[bytes]) -> bool:
    """Write a bundle. False if that is refused, or old entries are written otherwise: then there are none behind it."""
    data = b"".join(contents)
    if _split(data) != contents:
        return False
    packer = compressor(Compression.GZIP)
    try:
        store.put(bundle_key(table_id, last), packer.compress(data) + packer.flush())
    except ObjectExists:
        return True
    except StoreError:
        return False
    return True
