"""Verify: read a table's archive again against its manifests, with no database at hand."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from pydantic import ValidationError

from export_pipelines.catalog import count
from export_pipelines.errors import (
    ExportPipelinesError,
    IdentityNeeded,
    IntegrityError,
    ObjectMissing,
    RequestError,
)
from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.csv import digest_records, format_digest, records
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.manifest import (
    FORMAT_VERSION,
    ArtifactManifest,
    CleanupReceipt,
    Entry,
    FileProof,
    digest,
    from_bytes,
)
from export_pipelines.naming import table_folder
from export_pipelines.specs.table import Compression
from export_pipelines.steps.chain import manifest_key
from export_pipelines.steps.companions import check_companion
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.reading import StoredFile, open_stored, read_sealed
from export_pipelines.steps.sidecar import read_buckets
from export_pipelines.stores.base import Store

_MANIFEST = re.compile(r"(?P<folder>.+)/manifests/(?P<number>\d{8,})\.json")


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and what is wrong with it. Rows are those of the files, bytes the stored ones without sidecars.

    A file that two manifests name for one export, as a crashed archiver leaves behind, counts once. `unaccounted` are
    objects in the table's folder that no manifest names: leftovers of a crash (`sweep` removes those), not damage.
    """

    table: str
    artifacts: int
    receipts: int
    rows: int
    bytes: int
    seconds: float
    problems: tuple[str, ...]
    unaccounted: tuple[str, ...] = ()
    sealed: int = 0
    """Encrypted files, sidecars included, that no identity here opens."""

    @property
    def limits(self) -> str:
        """What could not be proved, and what was proved instead; empty if nothing was left out."""
        if not self.sealed:
            return ""
        return (
            f"encrypted files not opened, for lack of an identity: {self.sealed}. Their rows were not "
            "counted and their digests not computed; size and SHA-256 of the stored bytes, the shape of the age "
            "format and the chain were checked"
        )

    @property
    def intact(self) -> bool:
        """Whether everything is as the manifests say."""
        return not self.problems


@dataclass
class _Findings:
    """Collected on the way."""

    archive: Store
    table_id: str
    progress: Callable[[Progress], None]
    problems: list[str] = field(default_factory=list)
    attempts: set[str] = field(default_factory=set)
    keyring: Keyring = NO_KEYS
    sealed: int = 0
    rows: int = 0
    bytes: int = 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """An error of ours becomes a problem, and the work goes on."""
        try:
            yield
        except ExportPipelinesError as error:
            self.problems.append(error.message)


def verify_table(
    archive: Store,
    table_id: str,
    *,
    partition: str | None = None,
    head: tuple[int, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    keyring: Keyring = NO_KEYS,
) -> VerifyReport:
    """Check the whole chain of a table and the files of all its partitions, or of one; report every problem found.

    Of each file: size, SHA-256 of the stored and of the raw bytes, its rows counted and their digest computed again,
    and the same of its sidecar. `head`, the last entry that the catalog knows, shows a tail that was cut off, which
    the chain by itself cannot show. Nothing is changed; memory is bounded.

    Raises:
        RequestError: there is nothing of this table, or of this partition, in the archive.
        StoreError: the archive cannot be listed. A single file that cannot be read is a problem of that file.
    """
    begun = time.monotonic()
    findings = _Findings(archive, table_id, progress or silent, keyring=keyring)
    entries = _read_chain(findings, head)
    artifacts = [entry for entry in entries if isinstance(entry, ArtifactManifest)]
    receipts = [entry for entry in entries if isinstance(entry, CleanupReceipt)]
    _refuse_nothing(findings, partition, entries)
    for receipt in receipts:
        _check_receipt(findings, receipt, {artifact.sequence: artifact for artifact in artifacts})
    wanted = [a for a in artifacts if partition in (None, a.export.partition)]
    for artifact in wanted:
        _check_artifact(findings, artifact)
    return VerifyReport(
        table=table_id,
        artifacts=len(findings.attempts),
        receipts=sum(partition in (None, receipt.partition) for receipt in receipts),
        rows=findings.rows,
        bytes=findings.bytes,
        seconds=time.monotonic() - begun,
        problems=tuple(findings.problems),
        unaccounted=tuple(unaccounted(archive, table_id, artifacts)) if partition is None else (),
        sealed=findings.sealed,
    )


def tables_in(archive: Store) -> list[str]:
    """Ids of the tables that have manifests in an archive, sorted. Lists every object once."""
    folders: dict[str, str] = {}
    for info in archive.list():
        if (match := _MANIFEST.fullmatch(info.key)) and match["folder"] not in folders:
            folders[match["folder"]] = _table_id(archive, match["folder"], info.key)
    return sorted(folders.values())


def unaccounted(archive: Store, table_id: str, artifacts: list[ArtifactManifest]) -> list[str]:
    """Keys in the folder of a table that are neither manifests nor files which one of `artifacts` names."""
    folder = table_folder(table_id) + "/"
    named = {proof.key for a in artifacts for proof in a.objects}
    keys = [info.key for info in archive.list(folder)]
    # The folder of one table may lie in that of another: a group can have the name of a table.
    inner = {m["folder"] + "/" for m in map(_MANIFEST.fullmatch, keys) if m} - {folder}
    return [
        key
        for key in keys
        if key not in named
        and not ((match := _MANIFEST.fullmatch(key)) and match["folder"] + "/" == folder)
        and not any(key.startswith(other) for other in inner)
    ]


def _table_id(archive: Store, folder: str, key: str) -> str:
    """The id that a manifest gives; if it cannot be read, the folder's name decoded, so that verify looks there."""
    try:
        entry = from_bytes(archive.get(key))
    except (ValidationError, ObjectMissing):
        return unquote(folder)
    return entry.table if table_folder(entry.table) == folder else unquote(folder)


def _read_chain(findings: _Findings, head: tuple[int, str] | None) -> list[Entry]:
    """All entries that can be read, in order; what is missing, altered or cut off becomes a problem."""
    prefix = f"{table_folder(findings.table_id)}/manifests/"
    present = {}
    for info in findings.archive.list(prefix):
        if match := _MANIFEST.fullmatch(info.key):
            present[int(match["number"])] = info.key
        else:
            findings.problems.append(f"{info.key} is no manifest of the chain")
    entries: list[Entry] = []
    previous: str | None = ""
    for number in range(1, max(present, default=0) + 1):
        if number not in present:
            findings.problems.append(f"manifest {manifest_key(findings.table_id, number)} is missing")
            previous = None
            continue
        before, previous = previous, None
        with findings.noted():
            data = findings.archive.get(present[number])
            previous = digest(data)
            entries.append(_parsed(findings, number, data, before))
        if head and number == head[0] and previous != head[1]:
            findings.problems.append(f"manifest {number} is not the one that the catalog knows: its SHA-256 differs")
    last = max(present, default=0)
    if head and head[0] > last:
        findings.problems.append(f"the chain ends at manifest {last}, the catalog knows {head[0]}: its tail is cut off")
    return entries


def _parsed(findings: _Findings, number: int, data: bytes, previous: str | None) -> Entry:
    key = manifest_key(findings.table_id, number)
    try:
        entry = from_bytes(data)
    except ValidationError as error:
        raise IntegrityError(f"{key} is no manifest: {error.errors()[0]['msg']}") from error
    if entry.format_version > FORMAT_VERSION:
        raise IntegrityError(f"{key} has format version {entry.format_version}; this program knows {FORMAT_VERSION}")
    if entry.sequence != number or entry.table != findings.table_id:
        raise IntegrityError(f"{key} says that it is manifest {entry.sequence} of {entry.table!r}")
    if previous is not None and entry.previous_sha256 != previous:
        findings.problems.append(f"manifest {number} does not follow the one before: a SHA-256 differs")
    return entry


def _refuse_nothing(findings: _Findings, partition: str | None, entries: list[Entry]) -> None:
    if not entries and not findings.problems:
        raise RequestError(
            f"nothing of {findings.table_id!r} is archived in {findings.archive.url}",
            hint="check the table's name (`export-pipelines list`), or run its archive first",
        )
    known = sorted({entry.export.partition for entry in entries if isinstance(entry, ArtifactManifest)})
    if partition is not None and partition not in known and not findings.problems:
        raise RequestError(
            f"partition {partition!r} of {findings.table_id!r} is not archived in {findings.archive.url}",
            hint=f"there are {len(known)} partitions, {known[0]} to {known[-1]}" if known else "",
        )


def _check_receipt(findings: _Findings, receipt: CleanupReceipt, artifacts: dict[int, ArtifactManifest]) -> None:
    artifact = artifacts.get(receipt.artifact_sequence)
    name = f"receipt {receipt.sequence} of partition {receipt.partition}"
    if artifact is None or artifact.export.partition != receipt.partition:
        findings.problems.append(f"{name} is of manifest {receipt.artifact_sequence}, which is no file of it")
        return
    lines = sum(bucket.rows for bucket in artifact.export.identity.buckets)
    sound = all(0 <= first <= last < lines for first, last in receipt.deleted)
    if not sound or count(list(receipt.deleted)) != receipt.deleted_rows:
        findings.problems.append(f"{name} names records that its file has not got, or counts them wrongly")


def _check_artifact(findings: _Findings, manifest: ArtifactManifest) -> None:
    """Check a file and its sidecar. The second manifest of one export is checked, but not counted."""
    export = manifest.export
    again = export.attempt in findings.attempts
    if not again:
        findings.attempts.add(export.attempt)
        findings.bytes += manifest.file.size

    def progress(rows: int, size: int) -> None:
        findings.progress(Progress("verify", findings.table_id, export.partition, rows, size))

    with findings.noted():
        _check_same(manifest, export.file, manifest.file)
        rows = _check_or_seal(findings, manifest.file, lambda: _check_file(findings, manifest, progress)) or 0
        findings.rows += 0 if again else rows
    with findings.noted():
        if (export.identity.file is None) != (manifest.identity_file is None):
            raise IntegrityError(f"manifest {manifest.sequence} has a sidecar in one place only")
        if manifest.identity_file is not None and export.identity.file is not None:
            _check_same(manifest, export.identity.file, manifest.identity_file)
            sidecar = manifest.identity_file
            _check_or_seal(findings, sidecar, lambda: _check_sidecar(findings, manifest, sidecar))
    for companion in manifest.companions:
        with findings.noted():
            check_companion(findings.archive, companion)


def _check_or_seal(findings: _Findings, proof: FileProof, check: Callable[[], int | None]) -> int | None:
    """Check a file, or, if nothing here opens it, what can be known of it all the same."""
    try:
        return check()
    except IdentityNeeded:
        read_sealed(findings.archive, proof)
        findings.sealed += 1
        return None


def _check_same(manifest: ArtifactManifest, exported: FileProof, archived: FileProof) -> None:
    if exported.model_copy(update={"key": archived.key}) != archived:
        raise IntegrityError(f"manifest {manifest.sequence}: {archived.key} was archived with other digests")


def _check_file(findings: _Findings, manifest: ArtifactManifest, progress: Callable[[int, int], None]) -> int:
    """Read a file once, with all checks; return its rows.

    Raises:
        IntegrityError: with all that is wrong with it in one sentence.
    """
    export, proof, archive = manifest.export, manifest.file, findings.archive
    place = archive.locate(proof.key)
    raw_sha256 = hashlib.sha256()
    rows = total = raw_size = 0
    wrong: list[str] = []
    with _opened(findings, proof) as reader:

        def raw() -> Iterator[bytes]:
            nonlocal raw_size
            for piece in decompressed(reader, Compression(export.compression), name=place):
                raw_sha256.update(piece)
                raw_size += len(piece)
                yield piece

        try:
            header = export.csv.header
            for found in records(raw(), export.csv):
                found, header = (found[1:], False) if header and found else (found, header)
                rows += len(found)
                total += digest_records(found)
                progress(rows, raw_size)
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
            ("row digest", export.row_digest, format_digest(total)),
        )
    if wrong:
        raise IntegrityError(f"{place} is not what manifest {manifest.sequence} says: {'; '.join(wrong)}")
    return rows


def _differences(*checks: tuple[str, object, object]) -> list[str]:
    return [f"{name} is {found}, not {expected}" for name, expected, found in checks if expected != found]


def _check_sidecar(findings: _Findings, manifest: ArtifactManifest, proof: FileProof) -> None:
    """Raises IntegrityError: lines, sizes or a SHA-256 of a sidecar are not what its manifest says."""
    identity = manifest.export.identity
    raw_sha256 = hashlib.sha256()
    size = 0
    with _opened(findings, proof) as stream:
        for _, raw in read_buckets(stream, identity.model_copy(update={"file": proof})):
            raw_sha256.update(raw)
            size += len(raw)
    lines = sum(bucket.rows for bucket in identity.buckets)
    wrong = _differences(
        ("size", proof.size, stream.size),
        ("size of the raw bytes", proof.raw_size, size),
        ("SHA-256 of the raw bytes", proof.raw_sha256, raw_sha256.hexdigest()),
    )
    if identity.mode == "row":
        wrong += _differences(("lines", manifest.export.rows, lines))
    if wrong:
        raise IntegrityError(
            f"{findings.archive.locate(proof.key)} is not what manifest {manifest.sequence} says: {'; '.join(wrong)}"
        )


@contextmanager
def _opened(findings: _Findings, proof: FileProof) -> Iterator[StoredFile]:
    try:
        with open_stored(findings.archive, proof, findings.keyring) as stored:
            yield stored
    except ObjectMissing as error:
        raise IntegrityError(f"{findings.archive.locate(proof.key)} is missing") from error
