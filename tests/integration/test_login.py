"""Logging in to the page by a token: sessions, forms that are one's own, and what is written down of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from export_pipelines.api import login
from export_pipelines.local.postgres import Address
from tests.support.pages import Served, csrf, log_in, served
from tests.support.servers import new_database


@pytest.fixture(scope="module")
def page(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(tmp_path_factory.mktemp("page"), source, catalog) as up,
    ):
        yield up


@pytest.fixture
def client(page: Served) -> Iterator[httpx.Client]:
    with page.client() as made:
        yield made


def test_a_token_logs_in_and_leads_to_where_one_wanted_to_go(page: Served, client: httpx.Client) -> None:
    first = client.get("/data/demo/flights?carrier=UA")
    assert first.status_code == 303
    assert first.headers["location"] == "/login?next=/data/demo/flights%3Fcarrier%3DUA"
    shown = client.get(first.headers["location"])
    data = {"csrf": csrf(shown), "token": page.token("ann"), "next": "/data/demo/flights?carrier=UA"}
    answer = client.post("/login", data=data)
    assert (answer.status_code, answer.headers["location"]) == (303, "/data/demo/flights?carrier=UA")
    assert client.get("/").status_code == 200
    assert [each["who"] for each in page.audit("login")][-1] == "ann"


def test_a_wrong_token_is_refused_and_written_down_without_its_text(page: Served, client: httpx.Client) -> None:
    answer = log_in(client, "ep_wrong-and-secret")
    assert answer.status_code == 401
    assert "This token opens nothing" in answer.text
    last = page.audit("login")[-1]
    assert (last["outcome"], last["who"], last["address"]) == ("refused", "unknown", "127.0.0.1")
    assert "wrong-and-secret" not in str(last) + answer.text
    assert client.get("/").status_code == 303


def test_the_session_is_a_new_one_after_login(page: Served, client: httpx.Client) -> None:
    client.get("/login")
    before = client.cookies["export_pipelines_session"]
    answer = log_in(client, page.token())
    cookie = answer.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=lax", "max-age=43200"))
    assert "secure" not in cookie
    with page.client() as other:
        # Who knew the cookie before the login has nothing of it.
        other.cookies.set("export_pipelines_session", before)
        assert other.get("/").status_code == 303


def test_a_form_of_another_page_changes_nothing(page: Served, client: httpx.Client) -> None:
    log_in(client, page.token())
    for data in ({}, {"csrf": ""}, {"csrf": "guess"}):
        assert client.post("/data/demo/flights", data={"form": "1", **data}).status_code == 403
        assert client.post("/logout", data={"form": "1", **data}).status_code == 403
    own = csrf(client.get("/"))
    foreign = client.post("/data/demo/flights", data={"csrf": own}, headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403
    # No other kind of body is taken for a form.
    assert client.post("/logout", content=f"csrf={own}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_a_cookie_changes_nothing_through_the_api(page: Served, client: httpx.Client) -> None:
    log_in(client, page.token())
    json = {"Accept": "application/json"}
    assert client.post("/requests", json={"dataset": "demo/flights"}, headers=json).status_code == 401
    assert client.get("/datasets", headers=json).status_code == 200
    assert client.get("/datasets", headers=json | {"Sec-Fetch-Site": "cross-site"}).status_code == 401


def test_after_logging_out_a_copy_of_the_cookie_opens_nothing(page: Served, client: httpx.Client) -> None:
    log_in(client, page.token())
    copied = client.cookies["export_pipelines_session"]
    answer = client.post("/logout", data={"csrf": csrf(client.get("/"))})
    assert answer.headers["location"] == "/login?out=1"
    assert "logged out" in client.get("/login?out=1").text
    with page.client() as other:
        other.cookies.set("export_pipelines_session", copied)
        assert other.get("/").status_code == 303
    assert page.audit("logout")[-1]["who"] == "ann"


def test_the_session_ends_with_the_token_it_was_begun_by(page: Served, client: httpx.Client) -> None:
    text = page.token("bob")
    log_in(client, text)
    assert client.get("/").status_code == 200
    token = page.service.tokens.verify(text)
    assert token is not None
    page.service.tokens.revoke(token.id, login.Actor("boss"))
    assert client.get("/").status_code == 303


def test_a_session_is_over_after_its_time(page: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "SESSION_SECONDS", -1)
    log_in(client, page.token())
    assert client.get("/").status_code == 303


def test_a_forged_cookie_is_none(page: Served, client: httpx.Client) -> None:
    log_in(client, page.token())
    value = client.cookies["export_pipelines_session"]
    for forged in (value[:-2] + "xx", "e30=" + value[value.index(".") :], "null", "{}"):
        with page.client() as other:
            other.cookies.set("export_pipelines_session", forged)
            assert other.get("/").status_code == 303


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "javascript:alert(1)", "",
     "evil", "/login?next=/", "/logout", "///evil.example", "/\n/evil.example"],
)  # fmt: skip
def test_a_login_leads_to_no_other_site(page: Served, target: str) -> None:
    assert login.local_path(target) == "/"
    with page.client() as client:
        data = {"csrf": csrf(client.get("/login", params={"next": target})), "token": page.token(), "next": target}
        assert client.post("/login", data=data).headers["location"] == "/"


def test_guessing_tokens_is_limited(page: Served) -> None:
    with page.client() as client:
        states = [log_in(client, f"ep_guess{n}").status_code for n in range(12)]
        assert states.count(429) >= 1
        answer = client.get("/")
        assert answer.status_code == 303  # looking is not
    page.service.limits._limiter.storage.reset()


def test_paths_stay_when_they_are_local() -> None:
    for path in ("/", "/requests?status=failed", "/data/demo/flights?a=1&b=%2F#x"):
        assert login.local_path(path) == path


def test_secure_pages_have_secure_cookies(postgres: Address, migrated_database: str, tmp_path: Path) -> None:
    settings = "  public_url: https://exports.example.org\n"
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(tmp_path, source, catalog, lambda port: settings) as up,
        up.client() as client,
    ):
        cookie = client.get("/login").headers["set-cookie"]
        assert cookie.startswith("__Host-export_pipelines_session=")
        assert "; secure" in cookie.lower() and "path=/" in cookie.lower() and "domain" not in cookie.lower()
