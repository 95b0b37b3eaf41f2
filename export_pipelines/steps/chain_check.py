"""Check the chain of a table without reading its files: entries, receipts, tombstones, signatures, the signed head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from pydantic import ValidationError

from export_pipelines.catalog import count
from export_pipelines.errors import ExportPipelinesError, IntegrityError
from export_pipelines.manifest import (
    FORMAT_VERSION,
    ArtifactManifest,
    CleanupReceipt,
    Entry,
    ExpireTombstone,
    LandedManifest,
    digest,
    from_bytes,
)
from export_pipelines.naming import table_folder
from export_pipelines.signing import PublicKey, fits_any
from export_pipelines.steps.chain import read_ahead
from export_pipelines.steps.chain_bundles import bundles, differing
from export_pipelines.steps.chain_keys import BUNDLE, MANIFEST, SIGNATURE, head_key, manifest_key, signature_key
from export_pipelines.steps.signatures import head_from_bytes
from export_pipelines.stores.base import Store

_MEND = "a crash may do that; `export-pipelines sign` looks at the chain and signs what is missing"


@dataclass(frozen=True)
class Expected:
    """An entry that somebody knows, and who: it must be in the chain as it was."""

    sequence: int
    sha256: str
    known_to: str


@dataclass(frozen=True, slots=True)
class ArtifactEntry:
    """What is kept in memory of an artifact while its table is verified; the manifest is read again with its files."""

    sequence: int
    sha256: str
    partition: str
    attempt: str
    size: int
    """Stored bytes of the file."""
    total: int
    """Stored bytes of all its objects."""
    lines: int
    """Lines of the sidecar."""
    keys: tuple[str, ...]


@dataclass
class ChainCheck:
    """What the chain of a table says, and what is wrong with it."""

    archive: Store
    table_id: str
    problems: list[str] = field(default_factory=list)
    artifacts: dict[int, ArtifactEntry] = field(default_factory=dict)
    """By number, those too whose files were given up."""
    expired: dict[int, int] = field(default_factory=dict)
    """Numbers of artifacts that were given up, with those of their tombstones."""
    landed: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Of a landing store: keys of the files of each entry, by number."""
    receipts: list[str] = field(default_factory=list)
    """The partition of each receipt."""
    last: tuple[int, str] = (0, "")
    """Number and SHA-256 of the last entry that is there."""
    signed: int = 0
    """Entries whose signature was checked and is good."""

    @property
    def living(self) -> list[ArtifactEntry]:
        """The artifacts that must be there."""
        return [each for number, each in self.artifacts.items() if number not in self.expired]

    @contextmanager
    def noted(self) -> Iterator[None]:
        """An error of ours becomes a problem, and the work goes on."""
        try:
            yield
        except ExportPipelinesError as error:
            self.problems.append(error.message)


def check_chain(
    archive: Store, table_id: str, *, expected: Sequence[Expected] = (), keys: Sequence[PublicKey] = ()
) -> ChainCheck:
    """Read all entries of a chain in order; what is missing, altered, cut off or wrongly signed becomes a problem, and
    so does a bundle (of a landing store) that is no copy of its entries.

    Signatures are checked if `keys` are given; that one is there of an entry which is not, is a problem in any case.
    Memory: about a kilobyte an entry.

    Raises:
        StoreError: the archive cannot be listed.
    """
    found = ChainCheck(archive, table_id)
    there = bundles(archive, table_id)
    present = _present(found)
    signed = set(_signatures(found))
    digests = _check_entries(found, present, signed, keys)
    last = max(present, default=0)
    found.last = (last, digests.get(last, ""))
    _check_expected(found, digests, expected)
    _check_signed(found, signed, present, keys)
    _check_head(found, digests, keys)
    found.problems += differing(archive, there, digests)
    return found


def _check_entries(
    found: ChainCheck, present: Mapping[int, str], signed: set[int], keys: Sequence[PublicKey]
) -> dict[int, str]:
    """Read the entries in order, as they come, and note what they say; give the digests of those that can be read."""
    digests: dict[int, str] = {}
    previous: str | None = ""
    numbers = range(1, max(present, default=0) + 1)
    wanted = [present[number] for number in numbers if number in present]
    with closing(read_ahead(found.archive, iter(wanted))) as reads:
        for number in numbers:
            if number not in present:
                found.problems.append(f"manifest {manifest_key(found.table_id, number)} is missing")
                previous = None
                continue
            before, previous = previous, None
            read = next(reads)
            with found.noted():
                data = read()
                previous = digests[number] = digest(data)
                if keys and number in signed:
                    _check_signature(found, number, data, keys)
                _take(found, _parsed(found, number, data, before), previous)
    return digests


def _present(found: ChainCheck) -> dict[int, str]:
    """Keys of the entries by their number."""
    present: dict[int, str] = {}
    for info in found.archive.list(f"{table_folder(found.table_id)}/manifests/"):
        if match := MANIFEST.fullmatch(info.key):
            present[int(match["number"])] = info.key
        else:
            found.problems.append(f"{info.key} is no manifest of the chain")
    return present


def _signatures(found: ChainCheck) -> Iterator[int]:
    """Numbers of the entries that have a signature."""
    for info in found.archive.list(f"{table_folder(found.table_id)}/signatures/"):
        match = SIGNATURE.fullmatch(info.key)
        if match and not match["head"] and match["kind"] == "sig":
            yield int(match["number"])


def _parsed(found: ChainCheck, number: int, data: bytes, previous: str | None) -> Entry:
    key = manifest_key(found.table_id, number)
    try:
        entry = from_bytes(data)
    except ValidationError as error:
        raise IntegrityError(f"{key} is no manifest: {error.errors()[0]['msg']}") from error
    if entry.format_version > FORMAT_VERSION:
        raise IntegrityError(f"{key} has format version {entry.format_version}; this program knows {FORMAT_VERSION}")
    if entry.sequence != number or entry.table != found.table_id:
        raise IntegrityError(f"{key} says that it is manifest {entry.sequence} of {entry.table!r}")
    if previous is not None and entry.previous_sha256 != previous:
        found.problems.append(f"manifest {number} does not follow the one before: a SHA-256 differs")
    return entry


def _take(found: ChainCheck, entry: Entry, sha256: str) -> None:
    """Note what an entry says. Receipts and tombstones always come after their artifact."""
    match entry:
        case ArtifactManifest():
            export = entry.export
            found.artifacts[entry.sequence] = ArtifactEntry(
                sequence=entry.sequence,
                sha256=sha256,
                partition=export.partition,
                attempt=export.attempt,
                size=entry.file.size,
                total=sum(proof.size for proof in entry.objects),
                lines=sum(bucket.rows for bucket in export.identity.buckets),
                keys=tuple(proof.key for proof in entry.objects),
            )
        case LandedManifest():
            found.landed[entry.sequence] = tuple(proof.key for proof in entry.objects)
        case CleanupReceipt():
            found.receipts.append(entry.partition)
            _check_receipt(found, entry)
        case ExpireTombstone():
            artifact = found.artifacts.get(entry.artifact_sequence)
            if artifact is None or artifact.partition != entry.partition:
                name = f"tombstone {entry.sequence} of partition {entry.partition}"
                found.problems.append(f"{name} is of manifest {entry.artifact_sequence}, which is no file of it")
            else:
                found.expired[entry.artifact_sequence] = entry.sequence


def _check_receipt(found: ChainCheck, receipt: CleanupReceipt) -> None:
    artifact = found.artifacts.get(receipt.artifact_sequence)
    name = f"receipt {receipt.sequence} of partition {receipt.partition}"
    if artifact is None or artifact.partition != receipt.partition:
        found.problems.append(f"{name} is of manifest {receipt.artifact_sequence}, which is no file of it")
        return
    sound = all(0 <= first <= last < artifact.lines for first, last in receipt.deleted)
    if not sound or count(list(receipt.deleted)) != receipt.deleted_rows:
        found.problems.append(f"{name} names records that its file has not got, or counts them wrongly")


def _check_expected(found: ChainCheck, digests: dict[int, str], expected: Sequence[Expected]) -> None:
    last = found.last[0]
    for each in expected:
        who = each.known_to
        if each.sequence > last:
            problem = f"the chain ends at manifest {last}, {who} knows {each.sequence}: its tail is cut off"
        elif digests.get(each.sequence) != each.sha256:
            problem = f"manifest {each.sequence} is not the one that {who} knows: its SHA-256 differs"
        else:
            continue
        found.problems.append(problem)


def _check_signature(found: ChainCheck, number: int, data: bytes, keys: Sequence[PublicKey]) -> None:
    if fits_any(keys, found.archive.get(signature_key(found.table_id, number)), data):
        found.signed += 1
    else:
        found.problems.append(f"manifest {number} is not what was signed, or was signed by another key")


def _check_signed(found: ChainCheck, signed: set[int], present: dict[int, str], keys: Sequence[PublicKey]) -> None:
    """Entries without signatures, and signatures without entries."""
    gone = sorted(number for number in signed if number > found.last[0])
    if gone:
        found.problems.append(f"{_these(gone)} signed and not there: the chain's tail is cut off")
    if not keys:
        return
    if present and not signed:
        found.problems.append("no manifest is signed (`export-pipelines sign` signs them)")
    unsigned = sorted(number for number in present if signed and number > min(signed) and number not in signed)
    if unsigned:
        found.problems.append(f"{_these(unsigned)} not signed, though an earlier one is ({_MEND})")


def _check_head(found: ChainCheck, digests: dict[int, str], keys: Sequence[PublicKey]) -> None:
    """The head with the highest number must be that of the last entry, and signed."""
    table_id, archive, last = found.table_id, found.archive, found.last[0]
    listed = archive.list(f"{table_folder(table_id)}/signatures/head/")
    numbers = [int(m["number"]) for info in listed if (m := SIGNATURE.fullmatch(info.key)) and m["kind"] == "json"]
    if not numbers:
        if keys and last:
            found.problems.append("there is no signed head of the chain (`export-pipelines sign` writes it)")
        return
    newest = max(numbers)
    with found.noted():
        data = archive.get(head_key(table_id, newest, "json"))
        head = head_from_bytes(data)
        if head is None or (head.table, head.sequence) != (table_id, newest):
            raise IntegrityError(f"{head_key(table_id, newest, 'json')} is no head of this chain")
        if keys and not fits_any(keys, archive.get(head_key(table_id, newest, "sig")), data):
            raise IntegrityError(f"the head of the chain (manifest {newest}) was signed by another key, or altered")
        _check_expected(found, digests, [Expected(newest, head.sha256, "the signed head")])
        if keys and newest < last:
            found.problems.append(f"the signed head is manifest {newest}, and the chain goes on to {last} ({_MEND})")


def _these(numbers: list[int]) -> str:
    """Some manifests, as the beginning of a sentence."""
    if len(numbers) == 1:
        return f"manifest {numbers[0]} is"
    return f"{len(numbers)} manifests from {numbers[0]} to {numbers[-1]} are"


def unaccounted(archive: Store, table_id: str, found: ChainCheck) -> list[str]:
    """Keys in the folder of a table that are no part of its chain, and no file that one of its entries names.

    The files of artifacts that were given up belong to these: an expire that was killed left them, and `sweep` removes
    them.
    """
    folder = table_folder(table_id) + "/"
    named = {key for artifact in found.living for key in artifact.keys}
    named.update(key for landed in found.landed.values() for key in landed)
    keys = [info.key for info in archive.list(folder)]
    # The folder of one table may lie in that of another: a group can have the name of a table.
    inner = {m["folder"] + "/" for m in map(MANIFEST.fullmatch, keys) if m} - {folder}
    newest_head = max((int(m["number"]) for m in map(_own_head(folder).fullmatch, keys) if m), default=0)
    return [
        key
        for key in keys
        if key not in named
        and not _of_chain(key, folder, newest_head)
        and not any(key.startswith(other) for other in inner)
    ]


def _own_head(folder: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(folder)}signatures/head/(?P<number>\d{{8,}})\.json")


def _of_chain(key: str, folder: str, newest_head: int) -> bool:
    """Whether a key is one of an entry, of a bundle, of a signature, or of the newest head."""
    if match := MANIFEST.fullmatch(key) or BUNDLE.fullmatch(key):
        return match["folder"] + "/" == folder
    match = SIGNATURE.fullmatch(key)
    if not match or match["folder"] + "/" != folder:
        return False
    if match["head"]:
        return int(match["number"]) == newest_head
    return match["kind"] == "sig"
