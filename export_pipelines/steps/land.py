"""Land: copy what a source has into the landing store, as it is, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from export_pipelines.manifest import LandedManifest
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.steps.context import Progress, silent
from export_pipelines.stores.base import Store
from export_pipelines.windows import Window


@dataclass(frozen=True)
class LandContext:
    """A table whose files are to land, with all that it needs. Knows nothing of Dagster."""

    load: LoadDefinition
    store: Store
    """Where landed files go."""
    target: PostgresSource | None = None
    """The database of the table: what `repeat.sql` asks."""
    database: PostgresSource | MysqlSource | None = None
    """Of a `database` source with `connection`: the database that is read."""
    window: Window | None = None
    """The partition, where the table has windows."""
    names: tuple[str, ...] = ()
    """Land these files only (file partitions); all when empty."""
    run_id: str = ""
    progress: Callable[[Progress], None] = field(default=silent)


@dataclass(frozen=True)
class LandResult:
    """What a landing found and did."""

    landed: tuple[LandedManifest, ...]
    """What is new, in the order in which it landed."""
    unchanged: int
    """Files that were landed before with the same content."""
    vanished: tuple[str, ...] = ()
    """Names that landed before and that the source has no more. Nothing happens to them."""
    waiting: tuple[str, ...] = ()
    """Files that are still being written: they are taken the next time."""


def land(ctx: LandContext, *, force: bool = False) -> LandResult:
    """Copy what is new at the source. The same name with the same content is landed once; with other content it is a new
    landing: A → B → A is three. With `force`, content is fetched even where the source says that it did not change.

    Crash: each file is there with its manifest, or it is not there for anybody; a file that was published without its
    manifest is adopted by the next landing instead of being stored twice.

    Raises:
        SourceError: the source refused or failed, or its answer is not what was asked for.
        StoreError: the landing store failed.
        RequestError: what the definition asks for cannot be done.
    """
    raise NotImplementedError


def list_files(ctx: LandContext) -> list[str]:
    """The names that a source lists now: the keys of file partitions. Empty of sources that list no files."""
    raise NotImplementedError


def landed_files(store: Store, table_id: str) -> list[LandedManifest]:
    """All landings of a table, in the order in which they landed.

    Raises:
        IntegrityError: the chain of manifests is broken.
    """
    raise NotImplementedError


def check_landed(store: Store, table_id: str) -> list[str]:
    """What is wrong with the landed files of a table: each is read again and compared with its manifest."""
    raise NotImplementedError
