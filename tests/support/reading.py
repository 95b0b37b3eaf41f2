"""A service that serves loaded tables, and programs that read them by signed calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import mohawk

from export_pipelines.catalog.audit import SYSTEM
from export_pipelines.local.postgres import Address
from tests.support.loads import LoadKit
from tests.support.pages import Served, served
from tests.support.servers import new_database

SETTINGS = """
    page_rows: 10
    trusted_proxies: [127.0.0.2]
    rates: {failed_logins_per_address: 10000/minute, requests_per_address: 50000/minute}
"""

WAREHOUSE = """
type: export_pipelines.PostgresConnection
attributes: {resource_key: warehouse, url: {env: DATABASE_URL}}
"""

COLUMNS = {
    "id": {"type": "bigint", "description": "Number of the order."},
    "name": {"type": "text"},
    "price": {"type": "numeric(10,2)"},
    "sold": {"type": "timestamptz"},
    "extra": {"type": "json"},
}


def rows(first: int, count: int, name: str = "n") -> str:
    """A CSV file of orders."""
    lines = (
        f'{n},"{name} ""{n}"" é",{n}.50,2025-01-01 00:00:{n % 60:02}+00,' + (f'"[{n},\n1]"' if n % 3 else "")
        for n in range(first, first + count)
    )
    return "id,name,price,sold,extra\n" + "\n".join(lines) + "\n"


@dataclass
class Reading:
    """The service, and a table `shop.orders` that is loaded by tests."""

    up: Served
    kit: LoadKit
    client: str
    key: str

    def url(self, path: str) -> str:
        return self.up.url + path

    def signed(self, url: str, method: str = "GET", **changes: Any) -> mohawk.Sender:
        """A call as the client signs it."""
        credentials = {"id": self.client, "key": self.key, "algorithm": "sha256"}
        return mohawk.Sender(
            changes.pop("credentials", credentials), url, method, content="", content_type="", **changes
        )

    def get(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        """The answer to a signed call, whose own signature is checked."""
        url = path if path.startswith("http") else self.url(path)
        sender = self.signed(url, method)
        answer = httpx.request(
            method, url, headers={"Authorization": sender.request_header, **headers}, trust_env=False, timeout=60
        )
        if "server-authorization" in answer.headers:
            sender.accept_response(
                answer.headers["server-authorization"],
                content=answer.content,
                content_type=answer.headers.get("content-type", ""),
                accept_untrusted_content="table-stream" in url,
            )
        return answer

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """All pages from a first one on."""
        following: str | None = path
        while following:
            answer = self.get(following)
            assert answer.status_code == 200, answer.text
            page = json.loads(answer.text)
            yield page
            following = page["next"]

    def raw(self, path: str, header: str | None = None, **headers: str) -> httpx.Response:
        """A call with any header Authorization."""
        sent = headers | ({"Authorization": header} if header is not None else {})
        return httpx.get(self.url(path), headers=sent, trust_env=False)


@contextmanager
def reading(
    postgres: Address, catalog_template: str, root: Path, spec: dict[str, Any] | None = None
) -> Iterator[Reading]:
    """A service whose table is published; a client may read the schema `shop`."""
    wanted = {"columns": COLUMNS, "target": {"table": "shop.orders", "published": True}, **(spec or {})}
    document = {
        "type": "export_pipelines.LoadTable",
        "attributes": {"source": {"type": "folder", "path": "/nowhere"}, **wanted},
    }
    hidden = json.loads(json.dumps(document))
    hidden["attributes"]["target"] = {"table": "shop.hidden"}
    other = json.loads(json.dumps(document))
    other["attributes"]["target"] = {"table": "other.things", "published": True}
    files = {
        "resources/warehouse/defs.yaml": WAREHOUSE,
        "resources/landing/defs.yaml": LANDING,
        "assets/shop/orders/defs.yaml": json.dumps(document),
        "assets/shop/hidden/defs.yaml": json.dumps(hidden),
        "assets/shop/things/defs.yaml": json.dumps(other),
    }
    with (
        new_database(postgres) as source,
        new_database(postgres, catalog_template) as catalog,
        served(root, source, catalog, lambda port: SETTINGS, files) as up,
    ):
        assert not up.service.project.broken, up.service.project.broken
        kit = LoadKit(root, source, wanted)
        client, key = up.service.hawk.create("reader", ["shop.*"], SYSTEM)
        yield Reading(up, kit, client.id, key)


LANDING = """
type: export_pipelines.FilesystemStore
attributes: {resource_key: landing, path: {env: EXPORT_PATH}}
"""


def local(url: str) -> str:
    """Path and query of a URL."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"
