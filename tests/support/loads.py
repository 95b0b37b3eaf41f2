"""A table to load in a folder and a database of its own: land bytes under a name, load them, look."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from export_pipelines.manifest import FileProof, LandedManifest
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.steps.chain import append
from export_pipelines.steps.load import LoadContext, load_file
from export_pipelines.steps.load_context import LoadResult
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.servers import run_sql

START = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass
class LoadKit:
    """A definition whose spec may be changed between loads, which makes it another version."""

    folder: Path
    url: str
    spec: dict[str, Any]
    migrations: tuple[tuple[str, str], ...] = ()
    version: str = "v1"
    secret: bytes = b""
    options: dict[str, Any] = field(default_factory=dict)
    landed: int = 0

    @property
    def store(self) -> FilesystemStore:
        return FilesystemStore(self.folder / "landing")

    @property
    def context(self) -> LoadContext:
        return LoadContext(
            self.definition, PostgresSource(self.url), self.store, "run", secret=self.secret, **self.options
        )

    @property
    def definition(self) -> LoadDefinition:
        base = {"source": {"type": "folder", "path": "/nowhere"}, "target": {"table": "shop.orders"}}
        spec = LoadSpec.model_validate({**base, **self.spec})
        return LoadDefinition(
            name="orders", group="shop", folder=self.folder, spec=spec, migrations=self.migrations, version=self.version
        )

    def land(self, data: bytes | str, name: str = "orders.csv") -> LandedManifest:
        """Store a file and its manifest, as landing does."""
        data = data.encode() if isinstance(data, str) else data
        self.landed += 1
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"shop/orders/files/{self.landed}"
        self.store.put(key, data)
        proof = FileProof(key=key, size=len(data), sha256=sha256, raw_size=len(data), raw_sha256=sha256)
        fetched = START + timedelta(days=self.landed)

        def make(sequence: int, previous: str, written: datetime) -> LandedManifest:
            return LandedManifest(
                sequence=sequence, previous_sha256=previous, table="shop/orders", written=written, run_id="run",
                source="folder", name=name, url="", version=str(self.landed), file=proof, fetched=fetched,
            )  # fmt: skip

        return append(self.store, "shop/orders", None, make)[0]

    def load(self, data: bytes | str | LandedManifest, name: str = "orders.csv", *, force: bool = False) -> LoadResult:
        landed = data if isinstance(data, LandedManifest) else self.land(data, name)
        return load_file(self.context, landed, force=force)

    def sql(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return run_sql(self.url, statement, parameters)

    def rows(self, columns: str = "id, name", order: str = "1, 2") -> list[tuple[Any, ...]]:
        return self.sql(f"SELECT {columns} FROM shop.orders ORDER BY {order}")

    def quarantine(self) -> list[tuple[Any, ...]]:
        return self.sql("SELECT file_line, column_name, reason FROM shop.orders__quarantine ORDER BY file_line")
