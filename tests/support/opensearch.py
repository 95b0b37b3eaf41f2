"""A real server that answers as OpenSearch, in memory, on 127.0.0.1; it ends with the process that started it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmem_server import OsmemServer


@dataclass(frozen=True)
class Search:
    """A running server."""

    server: OsmemServer

    @property
    def url(self) -> str:
        return self.server.url

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Any request, its answer as JSON."""
        return self.server.request(method, path, body)

    def index(self, name: str, properties: Mapping[str, Any], documents: Iterable[Mapping[str, Any]] = ()) -> None:
        """Make an index of some documents, whose ids count from 1."""
        self.request("PUT", f"/{name}", {"mappings": {"properties": properties}})
        for number, document in enumerate(documents, start=1):
            self.request("PUT", f"/{name}/_doc/{number}?refresh=true", document)


@contextmanager
def opensearch_server(seed: Path | None = None) -> Iterator[Search]:
    """Run a server until the block is left. `seed` is a file of lines as `_bulk` takes them."""
    with OsmemServer.start(seed=seed, japanese=False) as server:
        try:
            yield Search(server)
        finally:
            server.close()
            if server.process.stdout:
                server.process.stdout.close()


def bulk_lines(index: str, documents: Iterable[Mapping[str, Any]]) -> str:
    """Documents as `_bulk` takes them, ids from 1."""
    return "".join(
        json.dumps({"index": {"_index": index, "_id": str(number)}}) + "\n" + json.dumps(document) + "\n"
        for number, document in enumerate(documents, start=1)
    )
