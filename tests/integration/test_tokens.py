"""API tokens in the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from export_pipelines.api.local_token import fresh_local_token, token_file
from export_pipelines.api.tokens import TokenCache
from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.tokens import Tokens
from export_pipelines.errors import RequestError
from tests.support.threads import wait_until

BY = Actor("op", "192.0.2.1")


@pytest.fixture
def pool(catalog_url: str) -> Iterator[CatalogPool]:
    """A catalog of the test's own."""
    pool = CatalogPool(catalog_url)
    yield pool
    pool.close()


def test_the_text_of_a_token_is_kept_nowhere(pool: CatalogPool) -> None:
    token, text = Tokens(pool).create("ci", "ann", ["read"], BY)
    assert text.startswith("ep_") and len(text) > 40
    dump = str(pool.rows("SELECT * FROM api_token")) + str(pool.rows("SELECT * FROM audit"))
    assert text not in dump and text.removeprefix("ep_") not in dump and token.id in dump


def test_a_token_is_found_by_its_text_alone(pool: CatalogPool) -> None:
    tokens = Tokens(pool)
    token, text = tokens.create("ci", "ann", ["read", "request"], BY, groups=["g"], environment="lab")
    found = tokens.verify(text)
    assert found == token and found is not None and found.scopes == ("read", "request") and found.groups == ("g",)
    for wrong in (text[:-1], text + "x", text.upper(), "", "ep_", token.id, "ep_ü", "x" * 999, text + "\0"):
        assert tokens.verify(wrong) is None


def test_a_revoked_token_and_an_expired_one_are_none(pool: CatalogPool) -> None:
    tokens = Tokens(pool)
    first, one = tokens.create("ci", "ann", ["read"], BY)
    _, two = tokens.create("ci", "bob", ["read"], BY)
    _, past = tokens.create("old", "ann", ["read"], BY, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert tokens.verify(past) is None
    assert [each.id for each in tokens.revoke(first.id, BY)] == [first.id]
    assert tokens.verify(one) is None and tokens.verify(two) is not None
    tokens.revoke("ci", BY)
    assert tokens.verify(two) is None
    with pytest.raises(RequestError, match="no valid token"):
        tokens.revoke("ci", BY)
    assert tokens.all() == [] and len(tokens.all(revoked=True)) == 3


def test_making_and_revoking_are_in_the_audit_log(pool: CatalogPool) -> None:
    token, _ = Tokens(pool).create("ci", "ann", ["read"], BY)
    Tokens(pool).revoke(token.id, BY)
    found = pool.rows("SELECT who, action, subject, address FROM audit ORDER BY id")
    assert [(each["who"], each["action"], each["subject"], each["address"]) for each in found] == [
        ("op", "token.created", token.id, "192.0.2.1"),
        ("op", "token.revoked", token.id, "192.0.2.1"),
    ]


def test_a_token_that_was_revoked_while_it_was_looked_up_is_not_remembered(pool: CatalogPool) -> None:
    tokens = Tokens(pool)
    _, text = tokens.create("ci", "ann", ["read"], BY)

    class Slow(Tokens):
        def verify(self, text: str):  # type: ignore[no-untyped-def]
            found = super().verify(text)
            cache.forget()  # it is revoked just now
            return found

    cache = TokenCache(Slow(pool))
    assert cache.verify(text) is not None and cache.known(text) is None


def test_a_remembered_token_is_none_once_it_has_expired(pool: CatalogPool) -> None:
    tokens = Tokens(pool)
    _, text = tokens.create("ci", "ann", ["read"], BY, expires_at=datetime.now(UTC) + timedelta(seconds=2))
    cache = TokenCache(tokens)
    assert cache.verify(text) is not None and cache.known(text) is not None
    wait_until(lambda: cache.known(text) is None)


def test_a_fresh_local_token_replaces_the_last_one(pool: CatalogPool, tmp_path: Path) -> None:
    tokens = Tokens(pool)
    first = fresh_local_token(tokens, tmp_path)
    second = fresh_local_token(tokens, tmp_path)
    assert tokens.verify(first) is None
    found = tokens.verify(second)
    assert found is not None and "operator" in found.scopes
    file = token_file(tmp_path)
    assert file.read_text().strip() == second and file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["local.token"]
