"""What must stand before anything of a project can run: databases, catalog, Dagster's home, environment."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from string import Template

from export_pipelines.errors import SourceError, SpecError
from export_pipelines.settings import (
    DAGSTER_DATABASE,
    SOURCE_DATABASE,
    Settings,
    apply,
    with_storage_defaults,
)
from export_pipelines.specs.documents import load_documents, validate
from export_pipelines.specs.service import ServiceSpec

# Its presence in dagster.yaml says that the file is ours to replace.
MARKER = "# Written by export-pipelines"
TABLE_RUNS = 10
"""Runs of tables at the same time, as dagster.yaml limits them: each is a process."""
_MAX_SOCKET_PATH = 100


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
        write_dagster_yaml(settings)
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


def write_dagster_yaml(settings: Settings) -> Path:
    """Write our dagster.yaml into Dagster's home, unless there is one that is not ours; returns its path.

    The limits of requests are the service's own settings; with a document that is broken, their defaults.
    """
    home = settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    path = home / "dagster.yaml"
    ours = _dagster_yaml(settings)
    if path.exists():
        present = path.read_text()
        if present == ours or not present.startswith(MARKER):
            return path
    new = home / f"dagster.yaml.{os.getpid()}"
    new.write_text(ours)
    new.replace(path)
    return path


def _dagster_yaml(settings: Settings) -> str:
    service = service_of(settings.root)
    limits = [{"key": "export_pipelines/request_queue", "value": "requests", "limit": service.concurrency}]
    if service.per_user is not None:
        each = {"applyLimitPerUniqueValue": True}
        limits.append({"key": "export_pipelines/user", "value": each, "limit": service.per_user})
    text = resources.files("export_pipelines.local").joinpath("dagster.yaml").read_text()
    return Template(text).substitute(
        socket=json.dumps(str(worker_socket(settings))),
        # Runs of tables never take the places of requests.
        runs=TABLE_RUNS + service.concurrency,
        limits=json.dumps(limits),
    )


def service_of(root: Path) -> ServiceSpec:
    """The service's settings as resources/ gives them; the defaults where it says nothing, or something broken."""
    for file in sorted((root / "resources").rglob("defs.yaml")):
        with suppress(SpecError):
            for document in load_documents(file):
                if document.type == "export_pipelines.Service":
                    found = validate(ServiceSpec, document)
                    return found if isinstance(found, ServiceSpec) else ServiceSpec()
    return ServiceSpec()


def worker_socket(settings: Settings) -> Path:
    """Where the worker of this project and machine listens. Short, since such paths have 107 bytes at most."""
    path = settings.state / "worker.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"export-pipelines-{os.getuid()}" / f"{name}.sock"
