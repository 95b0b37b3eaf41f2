"""What must stand before anything of a project can run: databases, catalog, Dagster's home, environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path

from export_pipelines.errors import SourceError
from export_pipelines.settings import (
    DAGSTER_DATABASE,
    SOURCE_DATABASE,
    Settings,
    apply,
    with_storage_defaults,
)

# Its presence in dagster.yaml says that the file is ours to replace.
MARKER = "# Written by export-pipelines"


@contextmanager
def running(settings: Settings, *, migrate_catalog: bool = True) -> Iterator[Settings]:
    """Start what is embedded, migrate the catalog, write dagster.yaml, and set the environment; yields full settings.

    The embedded server is used until the block is left, and stops when no other process uses it. When both database
    URLs were given, nothing is started, and nothing of the embedded server is imported.

    Raises:
        SourceError: the embedded server does not start.
        CatalogError: the catalog cannot be reached or migrated.
    """
    with ExitStack() as stack:
        if settings.embedded:
            from export_pipelines.local.postgres import embedded

            address = stack.enter_context(
                embedded(settings.state, databases=[SOURCE_DATABASE, DAGSTER_DATABASE], fsync=True)
            )
            if settings.embedded_source:
                settings = replace(settings, database_url=address.url(SOURCE_DATABASE))
            if settings.embedded_dagster:
                settings = replace(settings, dagster_pg_url=with_storage_defaults(address.url(DAGSTER_DATABASE)))
        if (settings.state / "mariadb").exists():
            stack.enter_context(_demo_mariadb(settings.state))
        write_dagster_yaml(settings.dagster_home)
        settings.export_path.mkdir(parents=True, exist_ok=True)
        apply(settings)
        if migrate_catalog and settings.dagster_pg_url:
            from export_pipelines.catalog.migrate import migrate

            migrate(settings.dagster_pg_url, settings.catalog_schema)
        yield settings


@contextmanager
def _demo_mariadb(state: Path) -> Iterator[None]:
    """The MariaDB that `demo --mysql` has made, for as long as the block; where it cannot run any more, or its variable
    names another server, things stay as they are."""
    from export_pipelines.local.mariadb import DEMO_DATABASE, DEMO_URL, local_mariadb

    with ExitStack() as stack:
        if DEMO_URL not in os.environ:
            with suppress(SourceError):
                os.environ[DEMO_URL] = stack.enter_context(local_mariadb(state)).url(DEMO_DATABASE)
                stack.callback(os.environ.pop, DEMO_URL, None)
        yield


def write_dagster_yaml(home: Path) -> Path:
    """Write our dagster.yaml into Dagster's home, unless there is one that is not ours; returns its path."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "dagster.yaml"
    ours = resources.files("export_pipelines.local").joinpath("dagster.yaml").read_text()
    if path.exists():
        present = path.read_text()
        if present == ours or not present.startswith(MARKER):
            return path
    new = home / f"dagster.yaml.{os.getpid()}"
    new.write_text(ours)
    new.replace(path)
    return path
