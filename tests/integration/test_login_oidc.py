"""Logging in to the page by OpenID Connect, at a real provider."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from export_pipelines.local.children import free_port
from export_pipelines.local.postgres import Address
from tests.support.pages import Served, csrf, served
from tests.support.servers import new_database

# The provider is behind with what it stands on.
pytestmark = pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")

ANN = {"email": "ann@example.org", "email_verified": True, "groups": ["analysts", "finance"]}
OLGA = {"email": "olga@example.org", "email_verified": True, "groups": ["operators"]}
MALLORY = {"email": "ann@example.org", "email_verified": False, "groups": ["operators"]}
NOBODY = {"groups": ["operators"]}


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """Address of the provider; its users are one's own address of mail each."""
    from authlib.deprecate import AuthlibDeprecationWarning  # sets a filter of its own

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AuthlibDeprecationWarning)
        from oidc_provider_mock import User, run_server_in_thread
    users = {"ann": ANN, "olga": OLGA, "mallory": MALLORY, "nobody": NOBODY}
    known = [User(sub=name, claims=claims) for name, claims in users.items()]
    with run_server_in_thread(require_nonce=True, user_claims=known) as server:
        yield f"http://localhost:{server.server_port}"


def settings(issuer: str) -> str:
    return f"""\
  public_url: http://127.0.0.1:PORT
  oidc:
    issuer: {issuer}
    client_id: exports
    client_secret: {{env: OIDC_SECRET}}
    operators: ["group:operators"]
"""


@pytest.fixture(scope="module")
def page(
    postgres: Address, migrated_database: str, provider: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with (
        pytest.MonkeyPatch.context() as patch,
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
    ):
        patch.setenv("OIDC_SECRET", "secret")
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        root = tmp_path_factory.mktemp("oidc")
        with served(root, source, catalog, lambda port: settings(provider).replace("PORT", str(port))) as up:
            yield up


def to_provider(client: httpx.Client, following: str = "/") -> str:
    """Begin a login; the address of the provider."""
    return client.get("/login/oidc", params={"next": following}).headers["location"]


def from_provider(address: str, sub: str, **data: str) -> str:
    """What a person does at the provider; the address back."""
    with httpx.Client(trust_env=False) as browser:
        return browser.post(address, data={"sub": sub, **data}).headers["location"]


def log_in(client: httpx.Client, sub: str, following: str = "/") -> httpx.Response:
    return client.get(from_provider(to_provider(client, following), sub))


def test_the_login_leads_to_the_provider_and_back_to_where_one_wanted_to_go(page: Served, provider: str) -> None:
    with page.client() as client:
        shown = client.get("/login?next=/requests")
        assert "Log in with localhost" in shown.text and "ep_…" not in shown.text
        address = to_provider(client, "/requests")
        asked = parse_qs(urlsplit(address).query)
        assert address.startswith(f"{provider}/oauth2/authorize?")
        assert asked["code_challenge_method"] == ["S256"]
        assert all(asked[name][0] for name in ("state", "nonce", "code_challenge"))
        assert asked["redirect_uri"] == [f"{page.url}/login/callback"]
        answer = client.get(from_provider(address, "ann"))
        assert (answer.status_code, answer.headers["location"]) == (303, "/requests")
        text = client.get("/").text
        assert "ann@example.org" in text
        assert 'href="/operator"' not in text
        assert client.get("/operator").status_code == 403
    entry = page.audit("login")[-1]
    assert (entry["who"], entry["outcome"], entry["detail"]["by"]) == ("ann@example.org", "ok", "oidc")


def test_groups_of_the_provider_decide_who_may_ask_and_who_is_an_operator(page: Served) -> None:
    with page.client() as ann, page.client() as olga:
        log_in(ann, "ann")
        assert ann.get("/data/finance/salaries").status_code == 200
        log_in(olga, "olga")
        assert olga.get("/operator").status_code == 200


def test_an_address_that_the_provider_has_not_verified_is_nobodys(page: Served) -> None:
    with page.client() as client:
        answer = log_in(client, "mallory")
        assert answer.status_code == 403
        assert "has not verified" in answer.text
        assert client.get("/").status_code == 303
    assert page.audit("login")[-1]["outcome"] == "refused"


def test_somebody_without_a_name_is_refused(page: Served) -> None:
    with page.client() as client:
        answer = log_in(client, "nobody")
        assert answer.status_code == 403
        assert "does not say who you are" in answer.text


def test_a_login_that_another_browser_began_is_refused(page: Served) -> None:
    with page.client() as victim, page.client() as attacker:
        back = from_provider(to_provider(attacker), "olga")
        answer = victim.get(back)
        assert answer.status_code == 403
        assert "not begun in this browser" in answer.text
        assert victim.get("/").status_code == 303


def test_a_code_of_another_login_is_refused(page: Served) -> None:
    with page.client() as victim, page.client() as attacker:
        own = parse_qs(urlsplit(to_provider(victim)).query)["state"][0]
        code = parse_qs(urlsplit(from_provider(to_provider(attacker), "olga")).query)["code"][0]
        answer = victim.get("/login/callback", params={"code": code, "state": own})
        assert answer.status_code == 403
        assert victim.get("/").status_code == 303


def test_a_login_is_not_finished_twice(page: Served) -> None:
    with page.client() as client:
        back = from_provider(to_provider(client), "ann")
        assert client.get(back).status_code == 303
        assert client.get(back).status_code == 403


def test_who_refuses_at_the_provider_is_told_so(page: Served) -> None:
    with page.client() as client:
        answer = client.get(from_provider(to_provider(client), "ann", action="deny"))
        assert answer.status_code == 403
        assert "refused" in answer.text


def test_the_session_is_a_new_one_and_its_forms_too(page: Served) -> None:
    with page.client() as client:
        log_in(client, "ann")
        before = csrf(client.get("/"))
        log_in(client, "ann")
        after = csrf(client.get("/"))
        assert client.post("/logout", data={"csrf": before}).status_code == 403
        assert client.post("/logout", data={"csrf": after}).status_code == 303


def test_a_login_leads_to_no_other_site_after_the_provider(page: Served) -> None:
    with page.client() as client:
        assert log_in(client, "ann", "https://evil.example").headers["location"] == "/"


def test_a_token_made_in_the_page_asks_as_its_user_and_is_shown_once(page: Served) -> None:
    with page.client() as client:
        log_in(client, "ann")
        made = client.post("/tokens", data={"csrf": csrf(client.get("/tokens")), "name": "notebook", "days": "7"})
        text = made.text.split('id="token-text"', 1)[1].split(">", 1)[1].split("<", 1)[0]
        assert text.startswith("ep_")
        assert text not in client.get("/tokens").text
        json = {"Accept": "application/json", "Authorization": f"Bearer {text}"}
        with httpx.Client(base_url=page.url, headers=json, trust_env=False) as program:
            found = program.get("/datasets")
            assert found.status_code == 200 and "finance/salaries" in found.text
            token = page.service.tokens.verify(text)
            assert token is not None and set(token.scopes) == {"read", "request"}
            with page.client() as other:
                log_in(other, "olga")
                data = {"csrf": csrf(other.get("/tokens"))}
                assert other.post(f"/tokens/{token.id}/revoke", data=data).status_code == 404
            client.post(f"/tokens/{token.id}/revoke", data={"csrf": csrf(client.get("/tokens"))})
            assert page.service.tokens.verify(text) is None


@contextmanager
def foreign_discovery(provider: str) -> Iterator[str]:
    """An address that leads to a provider which says that it is somebody else."""
    document = httpx.get(f"{provider}/.well-known/openid-configuration", trust_env=False).content

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_provider_that_is_another_than_configured_is_not_believed(
    postgres: Address, migrated_database: str, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OIDC_SECRET", "secret")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    with (
        foreign_discovery(provider) as issuer,
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(tmp_path, source, catalog, lambda port: settings(issuer).replace("PORT", str(port))) as up,
        up.client() as client,
    ):
        assert log_in(client, "olga").status_code == 403
        assert client.get("/").status_code == 303


def test_a_provider_that_is_away_is_told(
    postgres: Address, migrated_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OIDC_SECRET", "secret")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    issuer = f"http://127.0.0.1:{free_port()}"
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(tmp_path, source, catalog, lambda port: settings(issuer).replace("PORT", str(port))) as up,
        up.client() as client,
    ):
        answer = client.get("/login/oidc")
        assert answer.status_code == 502
        assert "failed" in answer.text
        assert "secret" not in answer.text
