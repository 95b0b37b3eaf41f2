"""A small kit for tests of the steps: a table in a real database, with stores in a folder, ready for each step."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.catalog.migrate import migrate
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.local.postgres import Address
from export_pipelines.manifest import ArtifactManifest, ExportRecord
from export_pipelines.signing import read_signer
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.table import TableDefinition, TableSpec
from export_pipelines.steps import chain
from export_pipelines.steps.archive import ArchiveResult, archive_partition
from export_pipelines.steps.cleanup import CleanupPlan, CleanupResult, cleanup_partition, plan_cleanup
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.expire import ExpireResult, expire_table
from export_pipelines.steps.export import export_partition
from export_pipelines.steps.merge import OnConflict
from export_pipelines.steps.pieces import Archived, Choice
from export_pipelines.steps.restore import RestoreResult, restore_partition, restore_table
from export_pipelines.stores import open_store
from export_pipelines.windows import SNAPSHOT, Window
from tests.support.servers import new_database

DAY = Window("2025-01-01", datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC))
NEXT_DAY = Window("2025-01-02", datetime(2025, 1, 2, tzinfo=UTC), datetime(2025, 1, 3, tzinfo=UTC))
WHOLE = Window(SNAPSHOT)


@dataclass
class Kit:
    """One table with its database, its catalog and its two stores. `spec` holds what defs.yaml would say."""

    database: str
    catalog_url: str
    folder: Path
    spec: dict[str, Any] = field(default_factory=dict)
    select: str | None = None
    delete: str | None = None
    window: Window = WHOLE
    name: str = "t"
    keyring: Keyring = NO_KEYS
    signing_key: Path | None = None

    @property
    def table(self) -> TableDefinition:
        """The definition as the loader would give it."""
        given = {"cleanup": "after_archive", **self.spec}
        if self.window.end is not None:
            given.setdefault("partitions", {"every": "day", "start": "2025-01-01"})
        return TableDefinition(
            name=self.name,
            group="g",
            folder=self.folder / "defs",
            spec=TableSpec.model_validate(given),
            select_sql=self.select,
            delete_sql=self.delete,
            version="1",
        )

    @property
    def context(self) -> StepContext:
        """What a step is given, made anew."""
        return StepContext(
            table=self.table,
            source=PostgresSource(self.database),
            exports=open_store((self.folder / "exports").as_uri()),
            archive=open_store((self.folder / "archive").as_uri()),
            catalog=Catalog(self.catalog_url),
            run_id="run",
            keyring=self.keyring,
            signer=read_signer(self.signing_key.read_bytes(), "the key") if self.signing_key else None,
        )

    @contextmanager
    def opened(self) -> Iterator[StepContext]:
        """A context whose catalog is closed at the end."""
        context = self.context
        try:
            yield context
        finally:
            context.catalog.close()

    # The steps

    def export(self, window: Window | None = None) -> ExportRecord:
        with self.opened() as context:
            return export_partition(context, window or self.window)

    def archive(self, window: Window | None = None) -> ArchiveResult:
        with self.opened() as context:
            return archive_partition(context, window or self.window)

    def exported(self, window: Window | None = None) -> ExportRecord:
        """Export and archive."""
        record = self.export(window)
        self.archive(window)
        return record

    def cleanup(self, window: Window | None = None) -> CleanupResult:
        with self.opened() as context:
            return cleanup_partition(context, window or self.window)

    def plan(self, window: Window | None = None) -> CleanupPlan:
        with self.opened() as context:
            return plan_cleanup(context, window or self.window)

    def expire(self, **options: Any) -> ExpireResult:
        with self.opened() as context:
            return expire_table(context, **options)

    # The database

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each by itself; return the rows of the last."""
        return run_each(self.database, *statements)

    def catalog_sql(self, statement: str) -> list[tuple[Any, ...]]:
        return run_each(self.catalog_url, "SET search_path TO export_pipelines", statement)

    def rows(self, query: str = "SELECT id FROM t ORDER BY id") -> list[Any]:
        """The rows of a query; values alone if it has one column."""
        found = self.sql(query)
        return [row[0] if len(row) == 1 else row for row in found]

    # The archive

    def entries(self) -> list[chain.Entry]:
        return list(chain.entries(open_store((self.folder / "archive").as_uri()), self.table.id))

    def archived_records(self, partition: str | None = None) -> list[list[str]]:
        """All records of all archived files (of a partition), as text."""
        found = []
        for entry in self.entries():
            if not isinstance(entry, ArtifactManifest) or partition not in (None, entry.export.partition):
                continue
            found += self.file_records(entry.file.key)
        return found

    def file_records(self, key: str, store: str = "archive") -> list[list[str]]:
        """The records of one file of CSV with a header, gzip-compressed."""
        with gzip.open(self.folder / store / key, "rt", newline="") as stream:
            return list(csv.reader(stream))[1:]

    def restored(self, partition: str | None = None, columns: str = "*") -> list[tuple[Any, ...]]:
        """The rows that a restore of a partition (or of all) gives, sorted."""
        into = f"restored_{os.urandom(4).hex()}"
        restore_partition(
            open_store((self.folder / "archive").as_uri()),
            self.table.id,
            partition,
            PostgresSource(self.database),
            into,
            keyring=self.keyring,
        )
        return sorted(self.sql(f"SELECT {columns} FROM {into}"))

    def bring_back(self) -> RestoreResult:
        """Restore everything over the table `back`, replacing what it has."""
        return restore_table(
            Archived(open_store((self.folder / "archive").as_uri()), self.table.id),
            Choice(),
            PostgresSource(self.database),
            "back",
            on_conflict=OnConflict.REPLACE,
        )

    def visible_files(self, store: str = "exports") -> list[str]:
        """Published objects of a store."""
        return [info.key for info in open_store((self.folder / store).as_uri()).list()]

    def all_files(self) -> list[str]:
        """Names of all files in both stores, temporaries included."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


def run_each(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements on one connection, each by itself; return the rows of the last."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def one_catalog(postgres: Address) -> Iterator[str]:
    """One migrated catalog for many tests, which differ in the name of their table."""
    with new_database(postgres) as url:
        migrate(url)
        yield url


@pytest.fixture
def kit(database: str, one_catalog: str, tmp_path: Path) -> Kit:
    """A kit on an empty database, with a table name of its own in the catalog."""
    return Kit(database, one_catalog, tmp_path, name=f"t_{os.urandom(6).hex()}")
