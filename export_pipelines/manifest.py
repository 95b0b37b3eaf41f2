"""The proof of what a file holds, as written to the archive.

A *chain* is one folder a table: `<table id>/manifests/00000001.json`, `00000002.json`, … Each entry is created only if
absent, never changed, and carries the SHA-256 of the one before. In an archive there are three kinds of entry: an
`artifact` (a file with its sidecar, the commit point of an archive), a `cleanup` (the receipt of what was deleted from
the source) and an `expire` (files were given up). In a landing store each entry is a `landed` file.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from export_pipelines.specs.format import CsvSpec, FormatName, FormatSpec
from export_pipelines.specs.model import SpecModel

FORMAT_VERSION = 1


class Column(SpecModel):
    """A column of the file, with its type as its server spells it: PostgreSQL's format_type(), MySQL's COLUMN_TYPE."""

    name: str
    type: str


class FileProof(SpecModel):
    """One stored file. Sizes in bytes; digests are SHA-256 in hex; raw is before compression and encryption."""

    key: str
    size: int
    sha256: str
    raw_size: int
    raw_sha256: str
    encryption: Literal["", "age"] = ""
    """How the stored bytes are encrypted, after compression; empty when they are not."""


class Bucket(SpecModel):
    """A run of consecutive rows of the file in the sidecar: one zstd frame. Sizes and offset in bytes."""

    rows: int
    offset: int
    size: int


class IdentityProof(SpecModel):
    """How the rows of the file are known in the source.

    mode `row`: line n of the sidecar is `xmin,"(block,offset)"` of the source row behind record n (counted without the
    header), with `tableoid,` before it when `tableoid` is true.
    mode `key`: each line is that identity, then the MD5 of the source row's text, then its key, of the rows of
    `relation` which delete.sql matched in the same snapshot and whose key is in the file.
    mode `record` (MySQL and MariaDB, whose rows have no identity of their own): line n is the key of the source row
    behind record n, as CSV, then the BLAKE2b-128 of the CSV text of all its columns; of a table without a key the
    latter alone. There, lines of mode `key` are the same, followed by the digest of the key.
    mode `none`: nothing can be proved, and cleanup refuses; `reason` says why.
    """

    mode: Literal["row", "record", "key", "none"]
    reason: str = ""
    relation: str = ""
    """Schema-qualified, quoted name of the relation which the identities belong to."""
    only: bool = False
    """Whether the relation stands without what inherits from it (`ONLY`)."""
    tableoid: bool = False
    """Whether each identity starts with the OID of its table: of partitioned tables and those with children."""
    key: tuple[str, ...] = ()
    file: FileProof | None = None
    buckets: tuple[Bucket, ...] = ()

    @property
    def aligned(self) -> bool:
        """Whether line n of the sidecar belongs to record n of the file."""
        return self.mode in ("row", "record")


class Relation(SpecModel):
    """A heap that identities point into, and its file node: a rewrite (VACUUM FULL) changes it."""

    oid: int
    name: str
    relfilenode: int


class Snapshot(SpecModel):
    """The server and the consistent view that was read."""

    engine: Literal["postgresql", "mysql"] = "postgresql"
    """`mysql` for MariaDB, too."""
    server_version: str
    database: str
    system_identifier: str
    timeline: int
    snapshot: str
    """pg_current_snapshot() of the transaction; of MySQL the position of its binary log, if it has one."""
    next_xid: int
    """64-bit: every row version seen is older than this; 0 of MySQL."""
    relations: tuple[Relation, ...] = ()
    fingerprint: str = ""
    """SHA-256 over columns, types and enum labels of the relations."""
    settings: dict[str, str] = {}
    """Session settings on which the text of values depends."""


class ExportRecord(SpecModel):
    """What an export wrote: everything of a manifest but its place in the archive."""

    table: str
    partition: str
    window_start: datetime | None
    window_end: datetime | None
    generation: int
    attempt: str
    rows: int
    row_digest: str
    """Sum modulo 2**64 of XXH3-64 of each record's bytes, in hex: guards against accidents, whatever the order."""
    columns: tuple[Column, ...]
    format: FormatName = FormatName.CSV
    csv: CsvSpec
    """Dialect of the records, which of a native format are the file's bytes."""
    layout: FormatSpec | None = None
    """What the records were turned into; absent where they are the file. The row digest is always of the records."""
    exact: bool = True
    """Whether the records are read back from the file byte for byte. Without, its values are spelt in another way
    (floats of Parquet), or were changed by a conversion that the layout declares."""
    compression: Literal["gzip", "zstd", "none"]
    file: FileProof
    identity: IdentityProof
    source: Snapshot
    select_sql: str
    """As sent to the server, parameters filled in."""
    select_sha256: str
    """Of the text of the definition."""
    definition_version: str
    software: dict[str, str]
    run_id: str
    recipients: tuple[str, ...] = ()
    """Public keys that the file is encrypted to."""
    upstream_run_id: str = ""
    started: datetime
    finished: datetime
    unchanged: bool = False
    """True when the file would equal the previous generation; nothing new was published."""


class ChainEntry(SpecModel):
    """What each entry of a chain carries."""

    format_version: int = FORMAT_VERSION
    sequence: int
    previous_sha256: str
    """SHA-256 of the bytes of the entry before; empty for the first."""
    table: str
    written: datetime
    run_id: str


class ArtifactManifest(ChainEntry):
    """An archived file: it was read back, and its digests are those of the export."""

    kind: Literal["artifact"] = "artifact"
    export: ExportRecord
    file: FileProof
    """As archived: the key is one of the archive's store."""
    identity_file: FileProof | None
    adopted: bool = False
    """Taken over from an older service: digests are of the file as found, nothing is known of its source."""
    companions: tuple[FileProof, ...] = ()
    """What lies beside for a person with a shell: CREATE TABLE, then SHA256SUMS. Empty in older manifests."""

    @property
    def objects(self) -> tuple[FileProof, ...]:
        """All that the archive has of it."""
        return (self.file, *((self.identity_file,) if self.identity_file else ()), *self.companions)


class CleanupReceipt(ChainEntry):
    """What a cleanup deleted. `deleted` gives record numbers of the artifact's sidecar as inclusive ranges from 0."""

    kind: Literal["cleanup"] = "cleanup"
    partition: str
    artifact_sequence: int
    deleted_rows: int
    deleted: tuple[tuple[int, int], ...]
    proof: Literal["row", "record", "key", "content"]
    transactions: tuple[str, ...] = ()
    """64-bit transaction ids of the source that committed it; empty of MySQL, which does not tell how one ended."""


class ExpireTombstone(ChainEntry):
    """That the files of an artifact were given up by retention. It is written before they are removed."""

    kind: Literal["expire"] = "expire"
    partition: str
    artifact_sequence: int
    rows: int
    bytes: int
    """Stored bytes that were freed, the sidecar included."""
    reason: str
    """The rule that gave it up, in words."""
    only_copy: bool
    """Whether it had the only copy of some rows, as far as anybody knew: nothing may have them now. The definition
    allowed it in words."""


class LandedManifest(ChainEntry):
    """A file that was copied from a source into the landing store, as it is; the commit point of a landing."""

    kind: Literal["landed"] = "landed"
    source: str
    """Type of the source: folder, s3, http, rest, wfs, database, upload, table, table_api."""
    name: str
    """The file's name at the source, which may have slashes; of rows and pages a name that says what they are."""
    url: str
    """Where it came from, without secrets."""
    version: str = ""
    """What the source says of it that changes when the file does: ETag, date and size, a number. Empty if nothing."""
    partition: str = ""
    """Window that it is of, where the table has windows."""
    file: FileProof
    """As stored. Files are stored as they came, so that raw and stored are the same; only rows of databases, and pages
    that land as one file, are compressed by us."""
    fetched: datetime
    definition_version: str = ""
    rows: int | None = None
    """Of a database, or of pages that landed as one file; of other files nobody has counted them yet."""
    state: dict[str, str] = {}
    """Where an incremental pull stands behind this file; of a copy of a table, what that held: `columns`, `digest`; of
    pages that landed as one file, `pages` and the `digest` of their records."""
    state_file: FileProof | None = None
    """Digests of the rows that such a pull may meet again."""

    @property
    def objects(self) -> tuple[FileProof, ...]:
        """All that the store has of it."""
        return (self.file, *((self.state_file,) if self.state_file else ()))


Entry = ArtifactManifest | CleanupReceipt | ExpireTombstone | LandedManifest
Manifest = Annotated[Entry, Field(discriminator="kind")]
_adapter: TypeAdapter[Entry] = TypeAdapter(Manifest)
_names: dict[frozenset[str], set[str]] = {}
"""Names of the fields that entries were given, which pydantic keeps with each."""


def to_bytes(entry: Entry) -> bytes:
    """The entry as it is stored: JSON, indented so that a person can read it, ending in a newline."""
    return (entry.model_dump_json(indent=1) + "\n").encode()


def from_bytes(data: bytes) -> Entry:
    """The entry of stored bytes. Raises pydantic.ValidationError for anything else."""
    entry = _adapter.validate_json(data)
    if isinstance(entry, LandedManifest):
        # A hundred thousand of them are held at once, and sets of their own would be nearly half of that.
        for model in (entry, *entry.objects):
            names = model.model_fields_set
            object.__setattr__(model, "__pydantic_fields_set__", _names.setdefault(frozenset(names), names))
    return entry


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
