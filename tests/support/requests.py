"""Requests in the catalog as tests want them: asked, begun and ended without a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import Asked, RequestFile, RequestRow, Requests
from export_pipelines.manifest import FileProof
from export_pipelines.service_keys import ServiceKeys, load_service_keys
from export_pipelines.specs.dataset import DataSetDefinition, DataSetSpec, FilterSpec
from export_pipelines.specs.query import RawFilter, parse_query

FILE = RequestFile(
    proof=FileProof(
        key="requests/default/x/1-flights.csv.gz", size=900, sha256="a" * 64, raw_size=1234, raw_sha256="b" * 64
    ),
    name="flights.csv.gz",
    media_type="text/csv",
    columns=("carrier",),
)


@dataclass
class Desk:
    """Where requests are asked and ended."""

    pool: CatalogPool
    keys: ServiceKeys
    requests: Requests = field(init=False)
    spec: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.requests = Requests(self.pool)

    @property
    def dataset(self) -> DataSetDefinition:
        filters = {"carrier": FilterSpec()}
        spec = DataSetSpec(table="public.flights", title="Flights <New York>", filters=filters, **self.spec)
        return DataSetDefinition(name="flights", group="demo", folder=Path(), spec=spec)

    def ask(
        self, user: str = "ann", carrier: str = "UA", *, email: str | None = None, webhook: str | None = None
    ) -> RequestRow:
        query = parse_query(self.dataset, filters=[RawFilter("carrier", "eq", carrier)], columns=())
        asked = Asked(Actor(user, "192.0.2.1"), email=email, webhook=webhook)
        return self.requests.ask(query, "1", asked, secret=self.keys.key("ids"))[0]

    def succeed(self, row: RequestRow, rows: int = 1234) -> RequestRow:
        self.requests.begin(row.id, "run")
        ended = self.requests.succeed(row.id, "run", "file:///x", FILE, rows, 5000, keep_hours=72)
        assert ended is not None
        return ended

    def fail(self, row: RequestRow) -> RequestRow:
        self.requests.begin(row.id, "run")
        ended = self.requests.fail(row.id, "the source is <away>", "ask again later")
        assert ended is not None
        return ended


def desk(catalog_url: str, folder: Path) -> Desk:
    """A desk over a catalog, with keys of its own."""
    return Desk(CatalogPool(catalog_url), load_service_keys(folder))
