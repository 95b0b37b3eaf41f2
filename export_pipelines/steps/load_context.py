"""What the load step is given, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.steps.context import Progress, silent
from export_pipelines.stores.base import Store

Action = Literal["loaded", "unchanged", "upserted", "already", "superseded"]
"""`loaded`: the table was changed. `unchanged`: a shadow was equal, nothing was swapped. `upserted`: of a shadow, few
rows were different, and only those were changed. `already`: this file is in the table, and nothing was done.
`superseded`: a newer file is in a table that is what its newest file holds, or, of `revised: replace`, a newer one of
its name is; this one is ignored."""


@dataclass(frozen=True)
class LoadContext:
    """A table to load with all that loading it needs. Knows nothing of Dagster."""

    load: LoadDefinition
    target: PostgresSource
    """The database of the table; its role may create schemas and tables there."""
    store: Store
    """Where landed files are."""
    run_id: str = ""
    progress: Callable[[Progress], None] = field(default=silent)
    secret: bytes = field(default=b"", repr=False)
    """Key of `transform: hash`, from EXPORT_PIPELINES_SECRET."""
    current_version: Callable[[], str] | None = None
    """Gives the version of the definition as it is on disk now. Asked just before the commit: a load whose definition
    was changed meanwhile is given up."""
    expected: str = ""
    """Of a copy of a table as it is: number and digest of the rows that the file gives."""


@dataclass(frozen=True)
class LoadResult:
    """What a load did."""

    action: Action
    rows: int
    """Rows of the file that are in the table now."""
    quarantined: int
    """Rows of the file that are in `<table>__quarantine` now."""
    added: int
    changed: int
    removed: int
    """Rows of the table that were removed, marked, or closed."""
    table_version: int
    """Number of the version that readers see: the table behind the view is `<table>__v<number>`."""
    digest: str
    """Digest of the table's content, whatever the order of its rows, in hex; of style `shadow`, else empty."""
    registry_id: int
    """Of the entry in operations.datafile_registry, which `file_id` of the rows is."""
    columns: tuple[tuple[str, str], ...] = ()
    """Names and types of the table, those that loading adds left out."""


@dataclass(frozen=True)
class TableVersion:
    """A version of a loaded table that is kept."""

    number: int
    relation: str
    """`schema.name__vN`, quoted."""
    rows: int
    digest: str
    created: datetime
    registry_id: int | None
    file_name: str
    current: bool


@dataclass(frozen=True)
class RowDiff:
    """How two versions differ, old against new. With `key`, rows of the same key are `changed`; without, a changed row
    is one that is removed and one that is added. The samples have at most as many rows as were asked for."""

    columns: tuple[str, ...]
    added: int
    removed: int
    changed: int
    added_rows: tuple[tuple[str | None, ...], ...] = ()
    removed_rows: tuple[tuple[str | None, ...], ...] = ()
    changed_rows: tuple[tuple[tuple[str | None, ...], tuple[str | None, ...]], ...] = ()
    """Old and new row."""
