"""What a landing gets, and what it gives back."""

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
    """Of a `database` source with `connection`, and of a `table` source: the database that is read."""
    relation: str = ""
    """Of a `table` source: `schema.name` of that table in `database`."""
    window: Window | None = None
    """The partition, where the table has windows."""
    names: tuple[str, ...] = ()
    """Land these files only (file partitions); all when empty."""
    run_id: str = ""
    progress: Callable[[Progress], None] = field(default=silent)
    beside: Callable[[bytes], None] | None = None
    """Is given the rows of a `database` source as well, in pieces as they come; an empty one is the end of them."""

    @property
    def partition(self) -> str:
        """Key of the window; empty without windows."""
        return "" if self.window is None or self.window.is_snapshot else self.window.partition

    def report(self, size: int) -> None:
        """Tell that so many bytes have come so far."""
        self.progress(Progress("land", self.load.id, self.partition, 0, size))


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
