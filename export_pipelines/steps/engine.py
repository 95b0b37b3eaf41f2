"""What a step asks of the source that it works on: each kind of database does it in its own way.

An *engine* is how the rows of one kind of database are read in one snapshot, known again, and deleted by proof. What is
the same for all of them is in the steps themselves: files, manifests, the order of things, holds, receipts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from export_pipelines.catalog import BatchRow, ExportRow, Ranges
from export_pipelines.errors import CleanupRefused, PartitionBusy
from export_pipelines.manifest import ArtifactManifest, Column, IdentityProof, Snapshot
from export_pipelines.specs.table import CsvSpec, TableDefinition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.receipts import RecordSet
from export_pipelines.steps.rows import Keep, RowWriter
from export_pipelines.steps.sidecar import SidecarWriter
from export_pipelines.windows import Window

ATTEMPTS = 8
"""How often a batch is tried that conflicts with other sessions."""


class Unprovable(CleanupRefused):
    """Nothing proves the rows of a file; those of another may be proved all the same."""


@dataclass(frozen=True)
class Reading:
    """One partition in one snapshot, ready to be read: what is known before the rows."""

    columns: tuple[Column, ...]
    csv: CsvSpec
    select_sql: str
    """As it runs, parameters filled in."""
    sha256: str
    """Of the text of the definition."""
    source: Snapshot
    identity: IdentityProof
    """How rows will be known again, without the sidecar and its buckets."""
    rows: Rows
    fields: int = 0
    """Identity columns in front of each record that `rows` writes."""
    keep: Keep | None = None


class Rows(Protocol):
    """Gives the rows of a reading."""

    def write(self, rows: RowWriter, sidecar: SidecarWriter | None) -> None:
        """Write all records, the header first, and the sidecar's lines. Raises SourceError."""


class Deletion(Protocol):
    """The deletion of a partition: delete.sql, with the window's values."""

    @property
    def sql(self) -> str:
        """What a batch runs, for people."""

    def delete(self, row: ExportRow, manifest: ArtifactManifest, done: RecordSet) -> Iterator[Deleted]:
        """Delete the rows of one archived file that are not in `done`, batch by batch, each committed by proof.

        Raises:
            Unprovable: nothing proves the rows of this file. Moved: what proved them changed meanwhile; begin again.
            CleanupRefused: a deletion would do more than it should, or did; it was rolled back.
        """

    def match(self, row: ExportRow, manifest: ArtifactManifest, done: RecordSet, seen: Seen) -> Iterator[Matched]:
        """What `delete` would delete now; nothing is deleted. Rows in `seen` are passed over."""

    def left(self, latest: ArtifactManifest) -> tuple[int, int]:
        """Rows that delete.sql still matches: those that the next export will take, and the others."""


def busy(table: TableDefinition, partition: str, doing: str) -> PartitionBusy:
    """The error of one who finds a partition (or, with a `*`, a table) locked by another run."""
    what = f"{table.id!r}" if partition.startswith("*") else f"partition {partition} of {table.id!r}"
    return PartitionBusy(
        f"{what} is being {doing} by another run, so this one did nothing",
        hint="see the runs in progress in Dagster; the other run does the work",
    )


class Moved(Exception):
    """What proved the rows changed between the proof and the deletion."""


@dataclass(frozen=True)
class Deleted:
    """What one committed batch deleted."""

    rows: int
    proof: str


@dataclass(frozen=True)
class Matched:
    """What a batch would delete. `bytes` is the size of these rows in the table, without indexes."""

    rows: int
    bytes: int
    proof: str
    refusals: tuple[str, ...] = ()


@dataclass
class Seen:
    """Rows that were counted already, where several files may have them."""

    identities: set[bytes] = field(default_factory=set)
    needed: bool = False

    def new(self, found: set[bytes]) -> set[bytes]:
        """Those that were not seen before."""
        fresh = found - self.identities
        if self.needed:
            self.identities |= fresh
        return fresh


class Engine(Protocol):
    """One kind of database."""

    def reading(self, ctx: StepContext, window: Window) -> AbstractContextManager[Reading]:
        """A partition to read, in one snapshot, locked against a second export of it.

        Raises:
            PartitionBusy: another run is exporting it. SpecError, SourceError: as they say.
        """

    def deletion(self, ctx: StepContext, window: Window) -> Deletion | None:
        """What deletes a partition; None where there is no delete.sql."""

    def locked(self, ctx: StepContext, window: Window) -> AbstractContextManager[None]:
        """Nobody exports the partition meanwhile. Raises PartitionBusy, SourceError."""

    def deleted(self, ctx: StepContext, batch: BatchRow, row: ExportRow) -> Ranges | None:
        """Records whose rows the transaction of a batch deleted, by the source's word or by the rows: none if it was
        rolled back. None if it still goes on."""


def engine_of(ctx: StepContext) -> Engine:
    """The engine of a table's source."""
    if ctx.source.engine == "mysql":
        from export_pipelines.steps.mysql.engine import MysqlEngine

        return MysqlEngine()
    from export_pipelines.steps.postgres.engine import PostgresEngine

    return PostgresEngine()
