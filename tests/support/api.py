"""The service up in a thread, for tests of its API; requests are answered when a test wants it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from export_pipelines.local.postgres import Address
from tests.support.pages import Served, served
from tests.support.servers import new_database

SETTINGS = """
    small_rows: 500
    wait_seconds: 10
    open_exports: false
    environments: [default, lab]
    rates: {requests_per_user: 5000/minute, requests_per_address: 50000/minute, exports_per_user: 5000/minute}
"""


FILES = {
    "assets/demo/wide/defs.yaml": "type: export_pipelines.DataSet\nattributes: {row_limit: 20000}\n",
    "assets/demo/wide/select.sql": "SELECT n, repeat(md5(n::text), 30) AS text FROM generate_series(1, 10000) n\n",
}


@pytest.fixture(scope="module")
def api(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service for the tests of a module, which ask for different things."""
    root: Path = tmp_path_factory.mktemp("project")
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(
            root, source, catalog, lambda port: SETTINGS + f"    public_url: http://127.0.0.1:{port}\n", FILES
        ) as up,
    ):
        yield up


def caller(up: Served, user: str = "ann", *scopes: str, **values: Any) -> httpx.Client:
    """A program of a user's."""
    token = up.token(user, *scopes, **values)
    return httpx.Client(
        base_url=up.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60, verify=False
    )


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """The request that answers a question."""
    answer = client.post("/requests", json={"dataset": "flights", **body})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ended(client: httpx.Client, request: str, seconds: float = 60) -> dict[str, Any]:
    """A request when it has ended."""
    deadline = time.monotonic() + seconds
    while (answer := client.get(f"/requests/{request}")).status_code == 202:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem that an answer must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status and found["title"] and found["detail"]
    return found


def answered(up: Served, request: str) -> None:
    """Answer one request as a run does."""
    row = up.service.requests.get(request)
    assert row is not None
    up.answer(up.begin(row))
