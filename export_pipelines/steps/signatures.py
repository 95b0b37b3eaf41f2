"""Signatures in the archive: one beside each entry of a chain, and one head that says where the chain ends.

    <table id>/signatures/00000007.sig         of the bytes of manifests/00000007.json
    <table id>/signatures/head/00000007.json   that entry 7 is the last, and its SHA-256
    <table id>/signatures/head/00000007.sig    of the bytes of that file

There is one head: when the next is written, the one before is removed. So whoever cuts off the end of a chain cannot
show a head for the shorter one, unless it was kept. See docs/explanation/the-archive-format.md for what that leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from export_pipelines.errors import IntegrityError, ObjectExists, ObjectMissing
from export_pipelines.manifest import digest, from_bytes
from export_pipelines.naming import table_folder
from export_pipelines.signing import Signer, fits_any
from export_pipelines.steps.chain_keys import SIGNATURE, head_key, manifest_key, signature_key
from export_pipelines.stores.base import Store


@dataclass(frozen=True)
class Head:
    """The last entry of a chain: what an auditor keeps elsewhere."""

    table: str
    sequence: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.table}={self.sequence}:{self.sha256}"

    def to_bytes(self) -> bytes:
        """As it is stored and signed: JSON, a function of the head alone."""
        said = {"kind": "head", "table": self.table, "sequence": self.sequence, "sha256": self.sha256}
        return (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode()


def head_from_bytes(data: bytes) -> Head | None:
    """The head that a file says; None if it is none."""
    try:
        said = json.loads(data)
        found = Head(said["table"], said["sequence"], said["sha256"])
    except (ValueError, TypeError, KeyError):
        return None
    return found if found.to_bytes() == data else None


def seal(archive: Store, table_id: str, sequence: int, data: bytes, signer: Signer) -> int:
    """Sign an entry that was just written, and those before it that a crash left unsigned; then the head. Return how
    many entries were signed.

    Entries from before signing began stay unsigned: the first signature proves them by the chain.

    Crash: what is missing is made up for by the next call, which is that of the next entry, or `export-pipelines sign`.

    Raises:
        IntegrityError: an unsigned entry does not belong to the chain, or a signature is there that is not ours.
    """
    unsigned = list(_unsigned(archive, table_id, sequence, data))
    # Oldest first, so that a crash leaves the newest ones unsigned, where the next call looks.
    written = sum(_sign(archive, table_id, number, each, signer) for number, each in reversed(unsigned))
    write_head(archive, Head(table_id, sequence, digest(data)), signer)
    return written


def seal_all(archive: Store, table_id: str, last: tuple[int, str], signer: Signer) -> int:
    """Sign every entry of a chain that has no signature, up to the last (its number and SHA-256), and the head; return
    how many were signed. Each is compared, before it is signed, with what the one after it says.

    Raises:
        IntegrityError: the chain is not the one that ends in this entry.
    """
    signed = {number for number, head in signed_numbers(archive, table_id) if not head}
    number, sha256 = last
    written = 0
    while number:
        data = archive.get(manifest_key(table_id, number))
        if digest(data) != sha256:
            raise IntegrityError(f"manifest {number} of {table_id!r} was changed while the chain was signed")
        if number not in signed:
            written += _sign(archive, table_id, number, data, signer)
        number, sha256 = number - 1, from_bytes(data).previous_sha256
    if last[0]:
        write_head(archive, Head(table_id, *last), signer)
    return written


def write_head(archive: Store, head: Head, signer: Signer) -> None:
    """Write a signed head, and remove the older ones.

    Crash: there may be two, of which the one with the higher number counts, or one whose signature is missing; the next
    call mends that.
    """
    data = head.to_bytes()
    for kind, content in (("json", data), ("sig", signer.sign(data))):
        key = head_key(head.table, head.sequence, kind)
        try:
            archive.put(key, content)
        except ObjectExists as error:
            found = archive.get(key)
            if found != content and not (kind == "sig" and fits_any(signer.keys, found, data)):
                raise IntegrityError(
                    f"{archive.locate(key)} is of another chain than the one that is there",
                    hint="run `export-pipelines verify`: manifests may have been replaced or brought back from a copy",
                ) from error
    heads = [number for number, is_head in signed_numbers(archive, head.table, "head/") if is_head]
    for number in {each for each in heads if each < max(heads)}:
        for kind in ("json", "sig"):
            archive.delete(head_key(head.table, number, kind))


def signed_numbers(archive: Store, table_id: str, below: str = "") -> Iterator[tuple[int, bool]]:
    """Number of each object in the folder of signatures, in the order of keys, and whether it belongs to a head."""
    for info in archive.list(f"{table_folder(table_id)}/signatures/{below}"):
        if match := SIGNATURE.fullmatch(info.key):
            yield int(match["number"]), bool(match["head"])


def _unsigned(archive: Store, table_id: str, sequence: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The entry, and those right before it that have no signature though older ones have."""
    yield sequence, data
    if sequence == 1 or archive.head(signature_key(table_id, sequence - 1)) is not None:
        return
    first = min((number for number, head in signed_numbers(archive, table_id) if not head), default=sequence)
    while sequence - 1 > first and archive.head(signature_key(table_id, sequence - 1)) is None:
        key = manifest_key(table_id, sequence - 1)
        before = archive.get(key)
        if digest(before) != from_bytes(data).previous_sha256:
            raise IntegrityError(
                f"{archive.locate(key)} was not signed, and is not the entry that the next one follows",
                hint="run `export-pipelines verify`",
            )
        sequence, data = sequence - 1, before
        yield sequence, data


def _sign(archive: Store, table_id: str, sequence: int, data: bytes, signer: Signer) -> bool:
    """Sign one entry; False if it was signed before. Raises IntegrityError for a signature that is not ours."""
    key = signature_key(table_id, sequence)
    try:
        archive.put(key, signer.sign(data))
    except ObjectExists:
        if not signed_well(archive, key, data, signer):
            raise IntegrityError(
                f"{archive.locate(key)} is no signature of its entry by a key that is known",
                hint="name the public key of an earlier pair in `public_keys`, or run `export-pipelines verify`",
            ) from None
        return False
    return True


def signed_well(archive: Store, key: str, data: bytes, signer: Signer) -> bool:
    """Whether the signature there is of these bytes, by a key that the signer knows."""
    try:
        return fits_any(signer.keys, archive.get(key), data)
    except ObjectMissing:
        return False
