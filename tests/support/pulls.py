"""A table of a source, a table that it is pulled into, and both at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export_pipelines.manifest import LandedManifest
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.steps.land import LandContext, landed_files
from export_pipelines.steps.load import LoadContext, load_file
from export_pipelines.steps.load_context import LoadResult
from export_pipelines.steps.load_live import PulledAndLoaded, pull_and_load
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.servers import run_sql

ROWS = 30_000
"""Some megabytes: more than what waits on the way to the table."""


@dataclass
class PullKit:
    """`origin` of one database is pulled into `shop.orders` of another. May be sent to another process."""

    folder: Path
    source: str
    target: str
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> FilesystemStore:
        return FilesystemStore(self.folder / "landing")

    @property
    def definition(self) -> LoadDefinition:
        pull = {"type": "database", "connection": "source", "table": "origin", **self.spec.get("pull", {})}
        style = {name: value for name, value in self.spec.items() if name != "pull"}
        columns = {"id": {"type": "bigint"}, "word": {"type": "text"}}
        base = {"source": pull, "target": {"table": "shop.orders"}, "columns": columns}
        spec = LoadSpec.model_validate({**base, **style})
        return LoadDefinition(name="orders", group="shop", folder=self.folder, spec=spec, version="v1")

    @property
    def landing(self) -> LandContext:
        return LandContext(self.definition, self.store, database=PostgresSource(self.source), run_id="run")

    @property
    def loading(self) -> LoadContext:
        return LoadContext(self.definition, PostgresSource(self.target), self.store, "run")

    def make_origin(self) -> None:
        run_sql(self.source, "CREATE TABLE origin (id text, word text)")
        self.add(1, ROWS)

    def add(self, first: int, last: int) -> None:
        """Rows of some hundred bytes."""
        word = "repeat(md5(n::text), 4)"
        run_sql(self.source, f"INSERT INTO origin SELECT n, {word} FROM generate_series({first}, {last}) n")

    def pull(self) -> PulledAndLoaded:
        return pull_and_load(self.landing, self.loading)

    def landed(self) -> list[LandedManifest]:
        return landed_files(self.store, "shop/orders")

    def load(self, landed: LandedManifest) -> LoadResult:
        return load_file(self.loading, landed)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return run_sql(self.target, statement)

    def rows(self) -> int:
        """Rows of the table, none of them twice. 0 if there is no table."""
        if self.sql("SELECT to_regclass('shop.orders')") == [(None,)]:
            return 0
        ((count, different),) = self.sql("SELECT count(*), count(DISTINCT id) FROM shop.orders")
        assert count == different
        return int(count)

    def entries(self) -> list[tuple[Any, ...]]:
        """Of the registry: state, place in the chain, rows."""
        return self.sql("SELECT state, sequence, rows FROM operations.datafile_registry ORDER BY sequence")
