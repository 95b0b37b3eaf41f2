"""Which records of a partition's archived files make up the partition: each row once.

A partition may have several files: its generations. The latest is taken whole. Of an earlier one, those records are
taken whose rows a cleanup deleted, since no later export can have seen them. Whether a later one can have is decided,
in this order, by

1. the transactions of the deletion: if the latest export's snapshot saw all of them, it saw none of their rows;
2. the identities: a row version that stands in both sidecars, in the same place, is the same row;
3. the order: a receipt that was written before the latest export began;
4. the content: a record that stands in the latest file too is taken to be the same row.

Files which were adopted from an older service are taken whole always: that service deleted what it had exported.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain as joined

from export_pipelines.catalog import Ranges
from export_pipelines.errors import IntegrityError
from export_pipelines.formats.compression import Readable, decompressed
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.manifest import ArtifactManifest, CleanupReceipt, ExpireTombstone, ExportRecord
from export_pipelines.scratch import scratch_database
from export_pipelines.specs.table import Compression
from export_pipelines.steps import chain, keys
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.receipts import RecordSet
from export_pipelines.steps.records import records_in
from export_pipelines.steps.sidecar import read_buckets
from export_pipelines.stores.base import Store

Keep = Callable[[list[bytes]], list[bytes]]


@dataclass(frozen=True)
class Generation:
    """A file of a partition, and what was deleted of it: `sure` records are in no later file, `doubtful` may be.

    Numbers are those of the sidecar's lines. A `whole` file is taken whole.
    """

    manifest: ArtifactManifest
    whole: bool
    sure: RecordSet = field(default_factory=RecordSet)
    doubtful: RecordSet = field(default_factory=RecordSet)
    latest: ArtifactManifest | None = None
    """What doubtful records are looked for in; None for a whole file."""

    @property
    def empty(self) -> bool:
        """Whether nothing of it is taken."""
        return not self.whole and not len(self.sure) and not len(self.doubtful)


def generations(archive: Store, table_id: str, as_of: datetime | None = None) -> dict[str, list[Generation]]:
    """The files to take of each partition, oldest first; partitions in the order of their windows. What is expired is
    left out, and so is what was exported or deleted after `as_of`.

    Raises:
        IntegrityError: the chain of manifests is broken, so that nobody knows what is missing.
    """
    artifacts: dict[str, list[ArtifactManifest]] = {}
    receipts: dict[int, list[CleanupReceipt]] = {}
    entries = list(chain.entries(archive, table_id))
    expired = {entry.artifact_sequence for entry in entries if isinstance(entry, ExpireTombstone)}
    for entry in entries:
        if isinstance(entry, ArtifactManifest):
            if entry.sequence not in expired and (as_of is None or entry.export.started <= as_of):
                artifacts.setdefault(entry.export.partition, []).append(entry)
        elif isinstance(entry, CleanupReceipt) and (as_of is None or entry.written <= as_of):
            receipts.setdefault(entry.artifact_sequence, []).append(entry)
    made = {p: _of_partition(archive, found, receipts) for p, found in artifacts.items()}
    return dict(sorted(made.items(), key=lambda item: _start(item[1])))


def _start(found: list[Generation]) -> tuple[float, str]:
    export = found[0].manifest.export
    return (export.window_start.timestamp() if export.window_start else 0.0, export.partition)


def _of_partition(
    archive: Store, artifacts: list[ArtifactManifest], receipts: dict[int, list[CleanupReceipt]]
) -> list[Generation]:
    attempts: dict[str, list[ArtifactManifest]] = {}
    for artifact in artifacts:
        attempts.setdefault(artifact.export.attempt, []).append(artifact)
    # An archiver that crashed and its successor may both have written a manifest for one export.
    copies = [_present(archive, same) for same in attempts.values()]
    own = [manifest for manifest in copies if not manifest.adopted]
    latest = own[-1] if own else None
    found = []
    for manifest, same in zip(copies, attempts.values(), strict=True):
        if manifest.adopted or manifest is latest or latest is None:
            found.append(Generation(manifest, whole=True))
            continue
        deleted = [receipt for copy in same for receipt in receipts.get(copy.sequence, [])]
        sure: Ranges = []
        doubtful: Ranges = []
        for receipt in deleted:
            (sure if _gone_before(receipt, manifest.export, latest) else doubtful).extend(receipt.deleted)
        found.append(Generation(manifest, False, RecordSet(sure), RecordSet(doubtful), latest))
    return found


def _present(archive: Store, copies: list[ArtifactManifest]) -> ArtifactManifest:
    """The first copy that is there, by its size; the first at all if none is, which reading it will tell."""
    if len(copies) == 1:
        return copies[0]
    heads = ((copy, archive.head(copy.file.key)) for copy in copies)
    return next((copy for copy, head in heads if head and head.size == copy.file.size), copies[0])


def _gone_before(receipt: CleanupReceipt, export: ExportRecord, latest: ArtifactManifest) -> bool:
    """Whether what a receipt tells of was certainly deleted before the latest export looked."""
    source, later = export.source, latest.export.source
    same_server = (source.system_identifier, source.timeline) == (later.system_identifier, later.timeline)
    # A proof by content may have been made on another server, whose transactions have other numbers.
    if same_server and receipt.proof != "content" and receipt.transactions:
        return all(visible(int(xid), later.snapshot) for xid in receipt.transactions)
    if _same_place(export, latest.export):
        return False
    return receipt.sequence < latest.sequence and receipt.written <= latest.export.started


def visible(xid: int, snapshot: str) -> bool:
    """Whether a committed transaction is seen by a snapshot, given as `xmin:xmax:running,…` (pg_snapshot)."""
    xmin, xmax, running = snapshot.split(":")
    return xid < int(xmin) or (xid < int(xmax) and str(xid) not in running.split(","))


def _same_place(one: ExportRecord, other: ExportRecord) -> bool:
    """Whether equal identities mean the same row version in both."""
    return (
        one.identity.mode == other.identity.mode != "none"
        and one.identity.tableoid == other.identity.tableoid
        # Rows without a key are equal if their content is, and still may be two.
        and (one.identity.mode != "record" or one.identity.key == other.identity.key != ())
        and (one.source.system_identifier, one.source.timeline, one.source.relations)
        == (other.source.system_identifier, other.source.timeline, other.source.relations)
    )


def picked(
    archive: Store, generation: Generation, raw: Iterable[bytes], keyring: Keyring = NO_KEYS
) -> Iterator[list[bytes]]:
    """The records to take of an earlier generation, from the raw bytes of its file, without a header.

    Memory: about a mebibyte of records, and some bytes for each run of deleted ones; the rest is scratch space on disk.
    """
    export = generation.manifest.export
    with scratch_database() as database:
        wanted = _wanted(archive, keyring, generation, database)
        if export.identity.mode == "key":
            keep = _by_key(archive, keyring, generation.manifest, wanted, database)
        else:
            keep = _by_number(wanted)
        for found in records_in(export, raw):
            yield keep(found)


def _by_number(wanted: RecordSet) -> Keep:
    position = 0

    def keep(found: list[bytes]) -> list[bytes]:
        nonlocal position
        first, position = position, position + len(found)
        return [record for number, record in enumerate(found, start=first) if number in wanted]

    return keep


def _by_key(
    archive: Store, keyring: Keyring, manifest: ArtifactManifest, wanted: RecordSet, database: sqlite3.Connection
) -> Keep:
    """In mode `key` receipts number the sidecar's lines: their keys choose the records of the file."""
    export = manifest.export
    database.execute("CREATE TABLE wanted (key BLOB PRIMARY KEY) WITHOUT ROWID")
    lines = (line for number, line in enumerate(_sidecar(archive, keyring, manifest)) if number in wanted)
    database.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((line.rsplit(b",", 1)[1],) for line in lines))
    names = [column.name for column in export.columns]
    positions = [names.index(name) for name in export.identity.key]

    def has(row: list[str]) -> bool:
        key = keys.key_digest([row[i] for i in positions], export.csv.null)
        query = "SELECT 1 FROM wanted WHERE key = ?"
        return key is not None and database.execute(query, (key.hex().encode(),)).fetchone() is not None

    def keep(found: list[bytes]) -> list[bytes]:
        return [record for record, row in zip(found, keys.parse(found, export.csv), strict=True) if has(row)]

    return keep


def _wanted(archive: Store, keyring: Keyring, generation: Generation, database: sqlite3.Connection) -> RecordSet:
    """Numbers of the sidecar's lines whose rows are taken: the sure ones, and the doubtful ones not in `latest`."""
    latest = generation.latest
    if latest is None or not len(generation.doubtful):
        return generation.sure
    database.execute("CREATE TABLE later (mark BLOB, number INTEGER PRIMARY KEY)")
    export = generation.manifest.export
    # Of one row version a file may have several records, none of which counts when the row is in the latest file.
    if _same_place(export, latest.export):
        marks, found = _sidecar, _has
    else:
        marks, found = _keyed_contents if export.identity.mode == "key" else _contents, _used_up
        if marks is _contents:
            _refuse_other_spelling(export, latest.export)
    database.executemany("INSERT INTO later (mark) VALUES (?)", ((mark,) for mark in marks(archive, keyring, latest)))
    database.execute("CREATE INDEX by_mark ON later (mark)")
    if found is _used_up:
        # Of equal rows those that nobody deleted come first: only what the latest file has beyond them is doubtful.
        for number, mark in enumerate(marks(archive, keyring, generation.manifest)):
            if number not in generation.doubtful and number not in generation.sure:
                _used_up(database, mark)
    ranges: Ranges = list(generation.sure.ranges)
    for number, mark in enumerate(marks(archive, keyring, generation.manifest)):
        if number not in generation.doubtful or number in generation.sure or found(database, mark):
            continue
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return RecordSet(ranges)


def _refuse_other_spelling(export: ExportRecord, later: ExportRecord) -> None:
    """Raises IntegrityError: equal rows may have different records in the two files."""
    if export.layout != later.layout and not (export.exact and later.exact):
        raise IntegrityError(
            f"generations {export.generation} and {later.generation} of {export.table!r} partition {export.partition} "
            f"cannot be compared: of {export.format} and {later.format}, one does not give back the text of its rows",
            hint="restore the files one by one (`restore --to-file`), and compare them by hand",
        )


def _has(database: sqlite3.Connection, mark: bytes) -> bool:
    """Whether `later` has that mark."""
    return database.execute("SELECT 1 FROM later WHERE mark = ?", (mark,)).fetchone() is not None


def _used_up(database: sqlite3.Connection, mark: bytes) -> bool:
    """Whether `later` has that mark; each of its entries serves once."""
    found = database.execute(
        "DELETE FROM later WHERE number = (SELECT number FROM later WHERE mark = ? LIMIT 1) RETURNING number", (mark,)
    ).fetchone()
    return found is not None


def _contents(archive: Store, keyring: Keyring, manifest: ArtifactManifest) -> Iterator[bytes]:
    """A digest of each record of the file."""
    found = joined.from_iterable(file_records(archive, manifest, keyring))
    return (hashlib.blake2b(record, digest_size=16).digest() for record in found)


def _keyed_contents(archive: Store, keyring: Keyring, manifest: ArtifactManifest) -> Iterator[bytes]:
    """MD5 of the whole row, and key, of each line of the sidecar of mode `key`; no lines of another."""
    if manifest.export.identity.mode == "key":
        yield from (b",".join(line.rsplit(b",", 2)[1:]) for line in _sidecar(archive, keyring, manifest))


def file_records(archive: Store, manifest: ArtifactManifest, keyring: Keyring = NO_KEYS) -> Iterator[list[bytes]]:
    """The records of an archived file without its header, in lists."""
    export = manifest.export
    with open_stored(archive, manifest.file, keyring) as stream:
        yield from records_in(export, _raw(stream, manifest))


def _raw(stream: Readable, manifest: ArtifactManifest) -> Iterator[bytes]:
    return decompressed(stream, Compression(manifest.export.compression), name=manifest.file.key)


def _sidecar(archive: Store, keyring: Keyring, manifest: ArtifactManifest) -> Iterator[bytes]:
    """The lines of a sidecar, whose SHA-256 is checked at its end."""
    if manifest.identity_file is None:
        return
    identity = manifest.export.identity.model_copy(update={"file": manifest.identity_file})
    with open_stored(archive, manifest.identity_file, keyring) as stream:
        for _, raw in read_buckets(stream, identity):
            yield from raw.splitlines()
