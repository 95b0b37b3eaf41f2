"""The catalog for the commands of exports on demand that need nothing else of the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export_pipelines.catalog.pool import CatalogPool
    from export_pipelines.settings import Settings


@contextmanager
def running_catalog() -> Iterator[tuple[CatalogPool, Settings]]:
    """The catalog, started and migrated if it is embedded. Raises what `local.project.running` raises."""
    from export_pipelines.cli.project import quiet
    from export_pipelines.local.project import running
    from export_pipelines.settings import load_settings

    quiet()
    found = load_settings()
    with running(found, migrate_catalog=found.embedded_dagster) as settings, catalog_pool(settings) as pool:
        yield pool, settings


def catalog_pool(settings: Settings) -> CatalogPool:
    """One connection to the catalog of settings that are complete; to be closed."""
    from export_pipelines.catalog.pool import CatalogPool

    assert settings.dagster_pg_url
    return CatalogPool(settings.dagster_pg_url, settings.catalog_schema, size=1)
