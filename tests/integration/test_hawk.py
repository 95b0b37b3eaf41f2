"""Signed calls to the service: who is let in, what is told to those who are not, and that each call counts once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import mohawk
import mohawk.base
import mohawk.bewit
import pytest

from export_pipelines.catalog.audit import SYSTEM
from export_pipelines.catalog.hawk import HawkClients
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import CatalogError, RequestError
from export_pipelines.local.postgres import Address
from tests.support.api import problem
from tests.support.reading import Reading, reading, rows

DATA = "/api/v1/table-data/shop/orders"


@pytest.fixture(scope="module")
def shop(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    root: Path = tmp_path_factory.mktemp("reading")
    with reading(postgres, migrated_database, root, {"style": "replace"}) as found:
        found.kit.load(rows(1, 25))
        yield found


def refused(answer: httpx.Response, status: int = 401) -> None:
    """An answer that says no, and nothing of the key or of what would have been right."""
    told = problem(answer, status)
    if status == 401:
        assert told["detail"] == "the signature is not accepted"
        assert answer.headers["www-authenticate"].startswith("Hawk")
    assert "mac" not in answer.text.lower().replace("stomach", "")
    assert "server-authorization" not in answer.headers


def bewit(shop: Reading, url: str, seconds: int = 60, **changes: str) -> str:
    credentials = {"id": shop.client, "key": shop.key, "algorithm": "sha256", **changes}
    resource = mohawk.base.Resource(
        url=url, method="GET", credentials=credentials, timestamp=int(time.time()) + seconds, nonce="", ext=""
    )
    return str(mohawk.bewit.get_bewit(resource))


def test_a_signed_call_is_answered_and_the_answer_is_signed(shop: Reading) -> None:
    answer = shop.get(DATA)  # checks the signature of the answer
    assert answer.status_code == 200 and answer.headers["server-authorization"].startswith("Hawk mac=")
    assert 'hash="' in answer.headers["server-authorization"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/table-data/shop/nothing", 404), (f"{DATA}?next-id=x", 422), ("/api/v1/table-data/other/things", 403),
        ("/api/v1/table-structure/shop/orders", 200),
    ],
)  # fmt: skip
def test_refusals_of_signed_calls_are_signed_too(shop: Reading, path: str, status: int) -> None:
    answer = shop.get(path)
    assert answer.status_code == status
    assert 'hash="' in answer.headers["server-authorization"]


def test_a_call_without_a_payload_needs_no_hash_and_may_have_a_content_type(shop: Reading) -> None:
    sender = mohawk.Sender(
        {"id": shop.client, "key": shop.key, "algorithm": "sha256"}, shop.url(DATA), "GET", always_hash_content=False
    )
    assert "hash" not in sender.request_header
    assert shop.raw(DATA, sender.request_header, **{"Content-Type": "application/json"}).status_code == 200


def test_a_payload_must_be_the_one_that_was_signed(shop: Reading) -> None:
    for content, kind, status in (("{}", "text/plain", 200), ("[]", "text/plain", 401), ("{}", "text/html", 401)):
        credentials = {"id": shop.client, "key": shop.key, "algorithm": "sha256"}
        sender = mohawk.Sender(
            credentials, shop.url(DATA), "GET", content="{}", content_type="text/plain; charset=utf-8"
        )
        headers = {"Authorization": sender.request_header, "Content-Type": kind}
        answer = httpx.request("GET", shop.url(DATA), headers=headers, content=content, trust_env=False)
        assert answer.status_code == status
    bare = shop.signed(shop.url(DATA), always_hash_content=False)
    headers = {"Authorization": bare.request_header}
    refused(httpx.request("GET", shop.url(DATA), headers=headers, content="x", trust_env=False))


def test_a_call_counts_once(shop: Reading) -> None:
    header = shop.signed(shop.url(DATA)).request_header
    assert shop.raw(DATA, header).status_code == 200
    refused(shop.raw(DATA, header))


def test_a_call_that_comes_many_times_at_once_counts_once(shop: Reading) -> None:
    header = shop.signed(shop.url(DATA)).request_header
    with ThreadPoolExecutor(8) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: shop.raw(DATA, header), range(8))]
    assert sorted(statuses) == [200] + [401] * 7


def test_a_nonce_that_one_process_saw_no_other_takes(shop: Reading) -> None:
    service, now = shop.up.service, int(time.time())
    pool = CatalogPool(service.settings.dagster_pg_url or "", service.settings.catalog_schema, size=1)
    try:
        other = HawkClients(pool, service.keys.key("hawk"))
        assert other.first_time(shop.client, now, "n1") and not service.hawk.first_time(shop.client, now, "n1")
        assert service.hawk.first_time(shop.client, now + 1, "n1") and service.hawk.first_time("another", now, "n1")
    finally:
        pool.close()


def test_nonces_are_forgotten_when_their_time_is_long_over(shop: Reading) -> None:
    hawk, now = shop.up.service.hawk, int(time.time())
    hawk.first_time(shop.client, now - 400, "old")
    hawk._swept = 0.0
    hawk.first_time(shop.client, now, "new")
    found = shop.up.service.pool.rows("SELECT nonce FROM hawk_nonce WHERE nonce IN ('old', 'new')")
    assert [row["nonce"] for row in found] == ["new"]


@pytest.mark.parametrize("skew", [-90, 90])
def test_a_call_of_another_time_is_refused_with_our_time_signed(shop: Reading, skew: int) -> None:
    sender = shop.signed(shop.url(DATA), _timestamp=int(time.time()) + skew)
    answer = shop.raw(DATA, sender.request_header)
    refused_time = answer.headers["www-authenticate"]
    assert answer.status_code == 401 and "Stale timestamp" in refused_time
    credentials = {"id": shop.client, "key": shop.key, "algorithm": "sha256"}
    told = mohawk.util.parse_authorization_header(refused_time)
    assert abs(int(told["ts"]) - time.time()) < 5
    assert told["tsm"] == mohawk.util.calculate_ts_mac(told["ts"], credentials).decode()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org{path}", "http://{host}{path}?next-id=1", "http://{host}/api/v1/x",
        "http://127.0.0.1:1{path}",
    ],
)  # fmt: skip
def test_a_call_that_was_signed_for_elsewhere_is_refused(shop: Reading, url: str) -> None:
    host = shop.up.url.removeprefix("http://")
    refused(shop.raw(DATA, shop.signed(url.format(host=host, path=DATA)).request_header))


def test_unknown_clients_and_wrong_keys_are_told_the_same(shop: Reading) -> None:
    wrong = {"id": shop.client, "key": "x" * 64, "algorithm": "sha256"}
    unknown = {"id": "nobody", "key": shop.key, "algorithm": "sha256"}
    answers = [
        shop.raw(DATA, shop.signed(shop.url(DATA), credentials=each).request_header) for each in (wrong, unknown)
    ]
    for answer in answers:
        refused(answer)
    assert answers[0].content == answers[1].content
    assert answers[0].headers["www-authenticate"] == answers[1].headers["www-authenticate"]


@pytest.mark.parametrize(
    "header",
    ["Hawk", "Hawk id", 'Hawk id="1", ts="x", nonce="1", mac="1"', 'Hawk id="1", ts="1", nonce="1"', "hawk \x7f"],
)
def test_what_is_no_hawk_is_a_bad_request(shop: Reading, header: str) -> None:
    refused(shop.raw(DATA, header), 400)


def test_other_schemes_are_nobody(shop: Reading) -> None:
    problem(shop.raw(DATA, "Basic YTpi"), 401)


def test_signed_calls_open_tables_alone(shop: Reading) -> None:
    for path in ("/datasets", "/metrics", "/exports"):
        problem(shop.raw(path, shop.signed(shop.url(path)).request_header), 401)


def test_a_client_reads_what_it_may_whether_it_is_there_or_not(shop: Reading) -> None:
    hawk = shop.up.service.hawk
    one, key = hawk.create("one", ["shop.orders"], SYSTEM)
    credentials = {"id": one.id, "key": key, "algorithm": "sha256"}

    def status(path: str) -> int:
        return shop.raw(path, shop.signed(shop.url(path), credentials=credentials).request_header).status_code

    assert status(DATA) == 200
    assert status("/api/v1/table-data/shop/hidden") == status("/api/v1/table-data/shop/nothing") == 403
    assert status("/api/v1/table-data/pg_catalog/pg_class") == status("/api/v1/table-structure/other/things") == 403


def test_two_keys_are_live_after_a_rotation_and_the_old_one_ends(shop: Reading) -> None:
    hawk = shop.up.service.hawk
    client, first = hawk.create("turning", ["*"], SYSTEM)

    def status(key: str) -> int:
        sender = shop.signed(shop.url(DATA), credentials={"id": client.id, "key": key, "algorithm": "sha256"})
        answer = shop.raw(DATA, sender.request_header)
        if answer.status_code == 200:  # signed by the key that the caller has
            sender.accept_response(
                answer.headers["server-authorization"], content=answer.content, content_type="application/json"
            )
        return answer.status_code

    _, second = hawk.rotate(client.id, SYSTEM, timedelta(days=1))
    assert status(first) == status(second) == 200
    _, third = hawk.rotate(client.id, SYSTEM, timedelta(days=1))
    assert (status(first), status(second), status(third)) == (401, 200, 200)
    _, fourth = hawk.rotate(client.id, SYSTEM, timedelta(0))
    assert (status(third), status(fourth)) == (401, 200)
    hawk.revoke(client.id, SYSTEM)
    assert status(fourth) == 401
    for again in (hawk.revoke, lambda *rest: hawk.rotate(*rest, timedelta(0))):
        with pytest.raises(RequestError, match="no valid client"):
            again(client.id, SYSTEM)  # type: ignore[operator]
    assert [entry["action"] for entry in shop.up.audit("client.revoked")] == ["client.revoked"]


def test_the_catalog_has_no_key_that_opens(shop: Reading) -> None:
    service = shop.up.service
    found = service.pool.rows("SELECT key FROM hawk_client WHERE id = %(id)s", {"id": shop.client})
    assert shop.key.encode() not in bytes(found[0]["key"])
    with pytest.raises(CatalogError, match="another secret"):
        HawkClients(service.pool, b"x" * 32).find(shop.client)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_bewit_opens_one_address_until_its_time_is_over(shop: Reading, method: str) -> None:
    for url in (shop.url(DATA), shop.url(DATA + "?orientation=records")):
        sign = "&" if "?" in url else "?"
        opened = httpx.request(method, f"{url}{sign}bewit={bewit(shop, url)}", trust_env=False)
        assert opened.status_code == 200
        assert "bewit" not in opened.text
    url = shop.url(DATA)
    refused_by: dict[str, Any] = {"trust_env": False}
    assert httpx.request(method, f"{url}?bewit={bewit(shop, url, -1)}", **refused_by).status_code == 401
    assert httpx.request(method, f"{url}?bewit={bewit(shop, url, key='x')}", **refused_by).status_code == 401
    assert httpx.request(method, f"{url}?next-id=9&bewit={bewit(shop, url)}", **refused_by).status_code == 401


def test_bewits_are_for_reading_and_stand_alone(shop: Reading) -> None:
    url = shop.url(DATA)
    text = bewit(shop, url)
    assert httpx.post(f"{url}?bewit={text}", trust_env=False).status_code == 405
    refused(shop.raw(f"{DATA}?bewit={text}", shop.signed(f"{url}?bewit={text}").request_header), 400)
    refused(shop.raw(f"{DATA}?bewit=", None), 400)
    refused(shop.raw(f"{DATA}?bewit=%00", None), 400)
    refused(shop.raw(f"{DATA}?bewit={text[:20]}", None), 400)


def test_behind_a_trusted_proxy_the_address_that_the_client_saw_counts(shop: Reading) -> None:
    seen = f"https://data.example.org{DATA}"
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "data.example.org"}

    def through(local_address: str) -> httpx.Response:
        signed = {"Authorization": shop.signed(seen).request_header, **headers}
        with httpx.Client(transport=httpx.HTTPTransport(local_address=local_address), trust_env=False) as client:
            return client.get(shop.url(DATA), headers=signed)

    assert through("127.0.0.2").status_code == 200
    assert through("127.0.0.2").json()["next"].startswith("https://data.example.org/")
    refused(through("127.0.0.3"))


def test_refusals_are_in_the_audit_log_without_what_was_sent(shop: Reading) -> None:
    sender = shop.signed(shop.url(DATA), credentials={"id": "spy", "key": "k", "algorithm": "sha256"})
    refused(shop.raw(DATA, sender.request_header))
    deadline = time.monotonic() + 60
    while not (found := shop.up.audit("refused")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found and "spy" not in str(found)


def test_when_a_client_called_last_is_known(shop: Reading) -> None:
    client, key = shop.up.service.hawk.create("seldom", ["*"], SYSTEM)
    assert client.used_at is None
    credentials = {"id": client.id, "key": key, "algorithm": "sha256"}
    shop.raw(DATA, shop.signed(shop.url(DATA), credentials=credentials).request_header)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if next(each for each in shop.up.service.hawk.all() if each.id == client.id).used_at:
            return
        time.sleep(0.05)
    raise AssertionError
