"""A kit for tests of requests: a data set in a real database, with a catalog, a store and the service's keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import Asked, RequestRow, Requests
from export_pipelines.formats.compression import decompressed
from export_pipelines.formats.encryption import Keyring
from export_pipelines.service_keys import load_service_keys
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.opensearch import OpenSearchSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.dataset import DataSetDefinition, DataSetSpec
from export_pipelines.specs.query import Query, RawFilter, filter_from_text, parse_query
from export_pipelines.specs.service import ServiceSpec
from export_pipelines.steps.reading import open_stored
from export_pipelines.steps.request import (
    Preview,
    RequestContext,
    RequestSource,
    count,
    estimate,
    preview,
    recipients_of,
    run_request,
)
from export_pipelines.stores import open_store
from tests.support.mariadb import mysql_connection
from tests.support.tables import run_each

SOURCES: dict[str, Any] = {"postgresql": PostgresSource, "mysql": MysqlSource, "opensearch": OpenSearchSource}


@dataclass
class RequestKit:
    """One data set. `spec` holds what its defs.yaml would say, `service` what that of the service would."""

    url: str
    catalog_url: str
    folder: Path
    engine: str = "postgresql"
    spec: dict[str, Any] = field(default_factory=dict)
    service: dict[str, Any] = field(default_factory=dict)
    select: str | None = None
    name: str = field(default_factory=lambda: f"d_{os.urandom(6).hex()}")

    def __post_init__(self) -> None:
        self.keys = load_service_keys(self.folder / "state")
        self.store = open_store((self.folder / "exports").as_uri())
        self.pool = CatalogPool(self.catalog_url)
        self.requests = Requests(self.pool)

    @property
    def dataset(self) -> DataSetDefinition:
        """The definition as the loader would give it."""
        spec = DataSetSpec.model_validate(self.spec)
        definition = {"name": self.name, "group": "g", "folder": self.folder / "defs", "spec": spec}
        return DataSetDefinition.model_validate({**definition, "select_sql": self.select, "engine": self.engine})

    @property
    def source(self) -> RequestSource:
        made: RequestSource = SOURCES[self.engine](self.url)
        return made

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each by itself; return the rows of the last."""
        if self.engine == "postgresql":
            return run_each(self.url, *statements)
        with mysql_connection(self.url) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    # Asking

    def query(self, *filters: str | RawFilter, **options: Any) -> Query:
        """A question, its filters as one writes them in a shell."""
        raw = [filter_from_text(each) if isinstance(each, str) else each for each in filters]
        return parse_query(self.dataset, filters=raw, **options)

    def ask(self, *filters: str | RawFilter, **options: Any) -> RequestRow:
        """A request that waits."""
        query = self.query(*filters, **options)
        return self.requests.ask(query, os.urandom(6).hex(), Asked(Actor("ann")), secret=self.keys.key("ids"))[0]

    def context(self, run_id: str = "run", **changes: Any) -> RequestContext:
        service = ServiceSpec.model_validate(self.service)
        given: dict[str, Any] = {
            "dataset": self.dataset,
            "source": self.source,
            "store": self.store,
            "requests": self.requests,
            "service": service,
            "keyring": self.keyring,
            "recipients": recipients_of(service, self.dataset, self.keys.recipient),
            "run_id": run_id,
        }
        return RequestContext(**{**given, **changes})

    @property
    def keyring(self) -> Keyring:
        return Keyring((str(self.folder / "state/keys/service.age"),))

    def run(self, row: RequestRow, **changes: Any) -> RequestRow:
        """Answer a request that waits; what it is then."""
        begun = self.requests.begin(row.id, "run")
        assert begun is not None
        run_request(self.context(**changes), begun)
        return self.got(row)

    def answer(self, *filters: str | RawFilter, **options: Any) -> RequestRow:
        """Ask, and answer."""
        return self.run(self.ask(*filters, **options))

    def got(self, row: RequestRow) -> RequestRow:
        found = self.requests.get(row.id)
        assert found is not None
        return found

    # What comes of it

    def stored(self, row: RequestRow) -> bytes:
        """The file as people download it: decrypted, and still compressed."""
        assert row.file is not None
        with open_stored(self.store, row.file.proof, self.keyring) as stream:
            return b"".join(iter(stream.read, b""))

    def text(self, row: RequestRow) -> str:
        """The file's text, unpacked."""
        assert row.file is not None
        with open_stored(self.store, row.file.proof, self.keyring) as stream:
            return b"".join(decompressed(stream, row.query.compression, name="it")).decode()

    def lines(self, *filters: str | RawFilter, **options: Any) -> list[str]:
        """The lines of an answer in CSV, without its header."""
        return self.text(self.answer(*filters, **options)).splitlines()[1:]

    def files(self) -> list[str]:
        return [info.key for info in self.store.list("requests/")]

    def preview(self, *filters: str | RawFilter, rows: int = 20, **options: Any) -> Preview:
        return preview(self.dataset, self.source, self.query(*filters, **options), rows)

    def count(self, at_most: int, *filters: str | RawFilter, **options: Any) -> int:
        return count(self.dataset, self.source, self.query(*filters, **options), at_most)

    def estimate(self, *filters: str | RawFilter, **options: Any) -> int:
        return estimate(self.dataset, self.source, self.query(*filters, **options))


@contextmanager
def request_kit(url: str, catalog_url: str, folder: Path, engine: str = "postgresql") -> Iterator[RequestKit]:
    """A kit whose connections are closed at the end."""
    kit = RequestKit(url, catalog_url, folder, engine)
    try:
        yield kit
    finally:
        kit.pool.close()
