"""Who may call, from where, how often, and how much."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from export_pipelines.catalog.audit import SYSTEM
from export_pipelines.local.postgres import Address
from tests.support.api import api, caller, problem
from tests.support.pages import Served, served
from tests.support.servers import new_database
from tests.support.threads import wait_until

__all__ = ["api"]


@pytest.fixture
def service(postgres: Address, migrated_database: str, tmp_path: Path) -> Callable[[str], object]:
    """A service of a test's own, with settings of its own."""

    @contextmanager
    def start(settings: str) -> Iterator[Served]:
        with (
            new_database(postgres) as source,
            new_database(postgres, migrated_database) as catalog,
            served(tmp_path, source, catalog, lambda port: settings) as up,
        ):
            yield up

    return start


def get(up: Served, path: str, **headers: str) -> httpx.Response:
    """A call without a token."""
    return httpx.get(up.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()}, trust_env=False)


@pytest.mark.parametrize("path", ["/datasets", "/datasets/flights", "/requests", "/exports", "/exports/x", "/metrics"])
def test_without_a_token_nothing_is_told(api: Served, path: str) -> None:
    answer = get(api, path)
    problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("text", ["ep_wrong", "ep_", "x" * 5000, "ep_ü", "null"])
def test_a_wrong_token_is_nobody(api: Served, text: str) -> None:
    answer = httpx.get(
        f"{api.url}/datasets", headers={"Authorization": f"Bearer {text}".encode("latin-1")}, trust_env=False
    )
    problem(answer, 401)


def test_other_schemes_are_nobody(api: Served) -> None:
    token = api.token("ann")
    problem(get(api, "/datasets", Authorization=f"Basic {token}"), 401)
    problem(get(api, "/datasets", Authorization=token), 401)
    problem(get(api, f"/datasets?token={token}"), 401)
    assert get(api, "/datasets", Authorization=f"bearer {token}").status_code == 200


def test_a_scope_opens_its_own_doors_only(api: Served) -> None:
    with caller(api, "rob", "read") as reader, caller(api, "sam", "exports") as starter:
        assert reader.get("/datasets").status_code == 200
        assert "request" in problem(reader.post("/requests", json={"dataset": "flights"}), 403)["detail"]
        problem(reader.get("/requests"), 403)
        problem(reader.get("/exports"), 403)
        problem(starter.get("/datasets"), 403)
        assert starter.get("/exports").json() == []
    with caller(api, "op", "operator") as operator:
        assert operator.get("/exports").status_code == operator.get("/requests").status_code == 200


def test_a_revoked_or_expired_token_opens_nothing_within_a_second(api: Served) -> None:
    token, text = api.service.tokens.create("gone", "ann", ["read"], SYSTEM)
    soon, short = api.service.tokens.create(
        "short", "ann", ["read"], SYSTEM, expires_at=datetime.now(UTC) + timedelta(seconds=3)
    )
    for each in (text, short):
        assert get(api, "/datasets", Authorization=f"Bearer {each}").status_code == 200
    api.service.tokens.revoke(token.id, SYSTEM)
    time.sleep(1.1)
    problem(get(api, "/datasets", Authorization=f"Bearer {text}"), 401)
    wait_until(lambda: soon.expires_at and datetime.now(UTC) > soon.expires_at)
    problem(get(api, "/datasets", Authorization=f"Bearer {short}"), 401)
    assert soon.id not in [each.id for each in api.service.tokens.all()]


def test_refusals_are_in_the_audit_log_but_cannot_flood_it(api: Served) -> None:
    before = len(api.audit("refused"))
    with httpx.Client(base_url=api.url, trust_env=False) as nobody:
        for _ in range(60):
            nobody.get("/datasets")
    wait_until(lambda: len(api.audit("refused")) > before)
    time.sleep(0.5)  # and no more than so many of them
    found = api.audit("refused")
    assert 0 < len(found) - before <= 30
    assert found[-1]["detail"]["status"] == 401 and found[-1]["address"] == "127.0.0.1"
    assert found[-1]["who"] == "unknown" and found[-1]["outcome"] == "refused"


def test_calls_are_limited_by_user(service: Callable[[str], object]) -> None:
    with service("    rates: {requests_per_user: 5/minute}\n") as up, caller(up) as ann, caller(up, "bob") as bob:
        answers = [ann.get("/datasets") for _ in range(6)]
        assert [each.status_code for each in answers] == [200] * 5 + [429]
        assert [each.headers["ratelimit-remaining"] for each in answers[:5]] == ["4", "3", "2", "1", "0"]
        assert "calls of this user" in problem(answers[5], 429)["detail"]
        assert 1 <= int(answers[5].headers["retry-after"]) <= 60
        assert bob.get("/datasets").status_code == 200


def test_calls_are_limited_by_address_whoever_makes_them(service: Callable[[str], object]) -> None:
    with service("    rates: {requests_per_address: 5/minute}\n") as up:
        answers = [get(up, "/nowhere").status_code for _ in range(7)]
        assert answers == [404] * 5 + [429, 429]
        assert get(up, "/health/live").status_code == 200  # who watches over it is not limited


def test_requests_for_exports_are_limited(service: Callable[[str], object]) -> None:
    settings = "    rates: {exports_per_user: 3/minute}\n    max_pending_per_user: 2\n"
    with service(settings) as up, caller(up) as ann:
        answers = [ann.post("/requests", json={"dataset": "flights", "limit": n + 1}) for n in range(4)]
        assert [each.status_code for each in answers] == [202, 202, 429, 429]
        assert "under way" in answers[2].json()["detail"] and answers[2].headers["retry-after"]
        assert "requests for exports" in answers[3].json()["detail"]


def test_after_many_wrong_tokens_even_right_ones_wait(service: Callable[[str], object]) -> None:
    with service("    rates: {failed_logins_per_address: 3/minute}\n") as up, caller(up) as ann:
        assert ann.get("/datasets").status_code == 200
        for _ in range(3):
            problem(get(up, "/datasets", Authorization="Bearer ep_wrong"), 401)
        assert "failed logins" in problem(ann.get("/datasets"), 429)["detail"]


def test_forwarded_addresses_count_only_behind_trusted_proxies(service: Callable[[str], object]) -> None:
    with service("    trusted_proxies: [127.0.0.1, 10.0.0.0/8]\n    rates: {requests_per_address: 2/minute}\n") as up:

        def status(forwarded: str) -> int:
            return get(up, "/nowhere", X_Forwarded_For=forwarded).status_code

        # The right-most one that is no proxy is the caller; what stands left of it, they wrote themselves.
        assert [status(f"1.2.3.{n}, 198.51.100.7, 10.1.1.1") for n in range(3)] == [404, 404, 429]
        assert status("198.51.100.8") == 404
        assert status("nonsense, 198.51.100.7") == 429
        with caller(up) as ann:
            ann.headers.update(
                {"X-Forwarded-For": "203.0.113.5", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "x.org"}
            )
            answer = ann.post("/requests", json={"dataset": "flights", "limit": 1})
            assert answer.headers["content-location"].startswith("https://x.org/requests/")
            assert up.audit("request.created")[-1]["address"] == "203.0.113.5"


def test_forwarded_addresses_of_anybody_do_not_count(service: Callable[[str], object]) -> None:
    with service("    rates: {requests_per_address: 2/minute}\n") as up:
        assert [get(up, "/nowhere", X_Forwarded_For=f"1.2.3.{n}").status_code for n in range(3)] == [404, 404, 429]


def test_big_bodies_headers_and_addresses_are_refused(api: Served) -> None:
    with caller(api) as ann:
        big = b'{"dataset": "' + b"x" * 70_000 + b'"}'
        json = {"Content-Type": "application/json"}
        problem(ann.post("/requests", content=big, headers=json), 413)
        problem(ann.post("/requests", content=iter([big[:1000], big[1000:]]), headers=json), 413)
        problem(ann.get("/datasets", headers={"X": "x" * 20_000}), 431)
        problem(ann.get("/datasets?" + "x" * 17_000), 414)
        assert ann.get("/datasets", headers={"X": "x" * 1000}).status_code == 200


def test_a_head_without_an_end_is_broken_off(api: Served) -> None:
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        answer = b""
        try:
            for _ in range(200):
                client.sendall(b"x" * 1000)
            answer = client.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "path",
    ["/datasets/../../etc/passwd", "/datasets/%2e%2e%2f%2e%2e%2fetc", "/datasets/demo%00", "/datasets/%5c%5chost",
     "/requests/..%2f..%2f", "//datasets", "/datasets/demo//flights", "/static/../../app.py", "/static/%2e%2e/app.py"],
)  # fmt: skip
def test_path_tricks_lead_nowhere(api: Served, path: str) -> None:
    token = api.token("ann")
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), timeout=60) as client:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
        client.sendall(request.encode())
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 422")) and b"root:" not in answer


@pytest.mark.parametrize("host", ["[", "a b", "x/../y", "[::1", "x:99999999", "<script>", "a,b"])
def test_a_host_that_is_none_is_refused(api: Served, host: str) -> None:
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), timeout=60) as client:
        client.sendall(f"GET /requests HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_every_answer_has_the_headers_of_safety(api: Served) -> None:
    with caller(api) as ann:
        for answer in (ann.get("/datasets"), get(api, "/nowhere"), get(api, "/health/live"), ann.get("/openapi.json")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-frame-options"] == "DENY" and answer.headers["referrer-policy"]
            assert "server" not in answer.headers


def test_a_catalog_that_is_away_is_said_without_its_inside(service: Callable[[str], object], postgres: Address) -> None:
    with service("") as up, caller(up) as ann:
        assert ann.get("/requests").status_code == 200
        from tests.support.servers import run_sql

        name = up.service.settings.dagster_pg_url.partition("?")[0].rpartition("/")[2]
        run_sql(postgres.url("postgres"), f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            run_sql(
                postgres.url("postgres"),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,),
            )  # fmt: skip
            found = problem(ann.get("/requests"), 503)
            assert "retry-after" in ann.get("/requests").headers and name not in str(found)
            assert get(up, "/health/ready").status_code == 503 and get(up, "/health/live").status_code == 200
        finally:
            run_sql(postgres.url("postgres"), f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        deadline = time.monotonic() + 60
        while ann.get("/requests").status_code != 200:  # and it comes back by itself
            assert time.monotonic() < deadline
            time.sleep(0.1)
