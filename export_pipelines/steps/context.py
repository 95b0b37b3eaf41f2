"""What every step is given, and how it tells of its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from export_pipelines.catalog import Catalog
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.signing import Signer
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.table import TableDefinition
from export_pipelines.stores.base import Store

Source = PostgresSource | MysqlSource


@dataclass(frozen=True)
class Progress:
    """How far a step is: `stage` is one of export, archive, verify, cleanup, restore, expire; rows and bytes so far."""

    stage: str
    table: str
    partition: str
    rows: int
    bytes: int
    total: int = 0
    """Of a load: bytes of the landed file, of which `bytes` are read. Again fewer where it is read once more."""


def silent(progress: Progress) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class StepContext:
    """A table with all that a step of it needs. Steps know nothing of Dagster."""

    table: TableDefinition
    source: Source
    exports: Store
    archive: Store
    catalog: Catalog
    run_id: str = ""
    upstream_run_id: str = ""
    progress: Callable[[Progress], None] = field(default=silent)
    keyring: Keyring = field(default=NO_KEYS, repr=False)
    """What opens encrypted files. Without a key all works but what must read their rows."""
    reports: Source | None = None
    """The database with the table of reports, where it is not `source`."""
    deleter: Source | None = None
    """The same database by a role that may delete, where `source` may only read."""
    signer: Signer | None = None
    """What signs the entries of the chain; nothing does without it."""

    @property
    def deleting(self) -> StepContext:
        """The same, with what deletes as its source."""
        return replace(self, source=self.deleter) if self.deleter else self
