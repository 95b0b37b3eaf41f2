"""A table with a real source, stores and catalog, for tests of what becomes of its archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export_pipelines.catalog import Catalog
from export_pipelines.manifest import ExportRecord
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.table import TableDefinition, TableSpec
from export_pipelines.steps.archive import ArchiveResult, archive_partition
from export_pipelines.steps.chain import artifact_at, manifest_key
from export_pipelines.steps.cleanup import CleanupResult, cleanup_partition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.export import export_partition
from export_pipelines.steps.merge import OnConflict
from export_pipelines.steps.pieces import Archived, Choice
from export_pipelines.steps.restore import RestoreResult, restore_partition, restore_table
from export_pipelines.stores import open_store
from export_pipelines.windows import SNAPSHOT, Window, window_of
from tests.support.servers import run_sql

EVERYTHING = Choice()


@dataclass(frozen=True)
class StepTable:
    """A table's context, with the steps and SQL at hand."""

    ctx: StepContext
    folder: Path

    @property
    def url(self) -> str:
        """The source database."""
        return self.ctx.source.url

    @property
    def id(self) -> str:
        return self.ctx.table.id

    def window(self, partition: str) -> Window:
        return window_of(self.ctx.table.spec.partitions, partition)

    def sql(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement in the source."""
        return run_sql(self.url, statement, parameters)

    def export(self, partition: str = SNAPSHOT) -> ExportRecord:
        return export_partition(self.ctx, self.window(partition))

    def archive(self, partition: str = SNAPSHOT) -> ArchiveResult:
        return archive_partition(self.ctx, self.window(partition))

    def cleanup(self, partition: str = SNAPSHOT) -> CleanupResult:
        return cleanup_partition(self.ctx, self.window(partition))

    def into_archive(self, partition: str = SNAPSHOT) -> ExportRecord:
        """Export and archive a partition."""
        record = self.export(partition)
        self.archive(partition)
        return record

    def restore(self, into: str, partition: str | None = SNAPSHOT, *, url: str = "") -> RestoreResult:
        """Restore into the source's database, or that of `url`."""
        return restore_partition(self.ctx.archive, self.id, partition, PostgresSource(url or self.url), into)

    def archived(self) -> Archived:
        """The table in its archive, as a restore is given it."""
        spec = self.ctx.table.spec
        return Archived(self.ctx.archive, self.id, self.ctx.keyring, spec.partitions)

    def merge(self, into: str, on_conflict: str = "fail", choice: Choice = EVERYTHING, **more: Any) -> RestoreResult:
        """Restore into a table of the source's database that may have rows."""
        target = PostgresSource(self.url)
        return restore_table(self.archived(), choice, target, into, on_conflict=OnConflict(on_conflict), **more)

    def archived_file(self, sequence: int = 1, ending: str = "") -> Path:
        """Path of an archived object that belongs to the attempt of a manifest."""
        key = artifact_at(self.ctx.archive, self.id, sequence).file.key
        return self.folder / "archive" / f"{key}{ending}"

    def manifest(self, sequence: int) -> Path:
        """Path of a manifest."""
        return self.folder / "archive" / manifest_key(self.id, sequence)

    def with_definition(self, **changes: Any) -> StepTable:
        """The same table with other values in its definition (`spec` merged into the present one)."""
        table = self.ctx.table
        if spec := changes.pop("spec", None):
            changes["spec"] = TableSpec.model_validate({**table.spec.model_dump(exclude_unset=True), **spec})
        return replace(self, ctx=replace(self.ctx, table=table.model_copy(update=changes)))


def new_step_table(
    folder: Path,
    url: str,
    catalog_url: str,
    spec: Mapping[str, Any],
    *,
    name: str = "events",
    group: str = "shop",
    select: str | None = None,
    delete: str | None = None,
    archive_url: str = "",
) -> StepTable:
    """A table `group/name` whose stores are folders below `folder` (the archive elsewhere if `archive_url` says so);
    `spec` is what defs.yaml would say."""
    definition = TableDefinition(
        name=name,
        group=group,
        folder=folder / "assets" / group / name,
        spec=TableSpec.model_validate(spec),
        select_sql=select,
        delete_sql=delete,
        version="1",
    )
    ctx = StepContext(
        table=definition,
        source=PostgresSource(url),
        exports=open_store(str(folder / "exports")),
        archive=open_store(archive_url or str(folder / "archive")),
        catalog=Catalog(catalog_url),
        run_id="run-of-the-test",
    )
    return StepTable(ctx, folder)
