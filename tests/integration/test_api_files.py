"""Downloads: whole, in parts, by signed links, encrypted or handed out by S3; and when files expire."""

from __future__ import annotations

import base64
import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from export_pipelines import links
from export_pipelines.local.postgres import Address
from tests.support.api import answered, api, ask, caller, ended, problem
from tests.support.pages import Served, served
from tests.support.servers import new_database

__all__ = ["api"]


@pytest.fixture(scope="module")
def ann(api: Served) -> Iterator[httpx.Client]:
    """Somebody who asks."""
    with caller(api) as client:
        yield client


@pytest.fixture(scope="module")
def done(api: Served, ann: httpx.Client) -> dict[str, Any]:
    """A request that succeeded."""
    told = ask(ann, limit=1500, columns=["id", "carrier", "departure"])
    answered(api, told["id"])
    return ended(ann, told["id"])


@pytest.fixture(scope="module")
def content(ann: httpx.Client, done: dict[str, Any]) -> bytes:
    """Its file."""
    return ann.get(done["links"]["download"]).content


def made(api: Served, client: httpx.Client, note: str) -> dict[str, Any]:
    """A request of a test's own that succeeded."""
    told = ask(client, filters={"note__ne": note}, limit=50)
    answered(api, told["id"])
    return ended(client, told["id"])


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is noted after an answer."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_download_is_what_the_request_says(api: Served, ann: httpx.Client, done: dict[str, Any]) -> None:
    answer = ann.get(done["links"]["download"])
    digest = hashlib.sha256(answer.content)
    assert answer.status_code == 200 and len(answer.content) == done["file"]["bytes"]
    assert digest.hexdigest() == done["file"]["sha256"]
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    assert answer.headers["content-type"].startswith("text/csv")
    assert f"filename*=UTF-8''{done['file']['name']}" in answer.headers["content-disposition"]
    assert answer.headers["x-content-type-options"] == "nosniff" and "private" in answer.headers["cache-control"]
    row = api.service.requests.get(done["id"])
    assert row is not None and row.file is not None and row.file.proof.encryption == "age"
    assert answer.content not in api.service.store.get(row.file.proof.key)  # what is stored is encrypted


def test_head_tells_the_same_without_a_download(api: Served, ann: httpx.Client, done: dict[str, Any]) -> None:
    before = len(api.audit("download.started"))
    answer = ann.head(done["links"]["download"])
    assert answer.status_code == 200 and answer.content == b""
    assert int(answer.headers["content-length"]) == done["file"]["bytes"] and answer.headers["etag"]
    assert len(api.audit("download.started")) == before


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-99", 0, 100), ("bytes=100-", 100, None), ("bytes=-50", -50, None), ("bytes=5-999999999", 5, None)],
)
def test_a_part_is_that_part(
    ann: httpx.Client, done: dict[str, Any], content: bytes, asked: str, start: int, end: int | None
) -> None:
    answer = ann.get(done["links"]["download"], headers={"Range": asked})
    assert answer.status_code == 206 and answer.content == content[start:end]
    first = start if start >= 0 else len(content) + start
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(content)}"
    assert answer.headers["etag"] == f'"{done["file"]["sha256"]}"'


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=-", "nonsense"])
def test_a_range_that_is_not_understood_gives_the_whole(
    ann: httpx.Client, done: dict[str, Any], content: bytes, asked: str
) -> None:
    answer = ann.get(done["links"]["download"], headers={"Range": asked})
    assert answer.status_code == 200 and answer.content == content


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
def test_a_part_that_is_not_there_is_refused(ann: httpx.Client, done: dict[str, Any], asked: str) -> None:
    answer = ann.get(done["links"]["download"], headers={"Range": asked})
    problem(answer, 416)
    assert answer.headers["content-range"] == f"bytes */{done['file']['bytes']}"


def test_a_part_is_of_the_same_file_or_the_whole_comes(ann: httpx.Client, done: dict[str, Any], content: bytes) -> None:
    address, etag = done["links"]["download"], f'"{done["file"]["sha256"]}"'
    assert ann.get(address, headers={"Range": "bytes=9-", "If-Range": etag}).content == content[9:]
    assert ann.get(address, headers={"Range": "bytes=9-", "If-Range": '"other"'}).content == content
    assert ann.get(address, headers={"If-None-Match": etag}).status_code == 304
    assert ann.get(address, headers={"If-None-Match": f'"x", W/{etag}'}).status_code == 304


def test_a_signed_link_needs_no_token(api: Served, done: dict[str, Any], content: bytes) -> None:
    answer = httpx.get(api.url + done["links"]["file"], trust_env=False)
    assert answer.content == content
    assert httpx.head(api.url + done["links"]["file"], trust_env=False).status_code == 200
    assert api.audit("download.finished")[-1]["who"] == "link"


def test_a_link_that_was_changed_or_has_expired_opens_nothing(api: Served, done: dict[str, Any]) -> None:
    with httpx.Client(base_url=api.url, trust_env=False) as client:
        link, key = done["links"]["file"], api.service.keys.key("links")
        problem(client.get(link[:-1] + ("0" if link[-1] != "0" else "1")), 403)
        problem(client.get(link.replace("expires=", "expires=9")), 403)
        problem(client.get(link.replace(done["id"], "a" * 26)), 403)
        problem(client.get(link.replace(done["file"]["name"], "other.csv")), 404)
        problem(client.get(links.sign(key, done["id"], done["file"]["name"], int(time.time()) - 1)), 410)
        problem(client.get(links.sign(key, done["id"], done["file"]["name"], links.PUBLIC)), 410)  # not public now
        problem(client.get(links.sign(key, "a" * 26, "x", int(time.time()) + 99)), 404)
        problem(client.get(f"/files/{done['id']}/..%2F..%2Fetc%2Fpasswd?expires=1&signature=x"), 404)
        problem(client.get(link.partition("&")[0]), 422)


def test_every_download_is_noted_with_who_and_how_much(api: Served, ann: httpx.Client, content: bytes) -> None:
    found = made(api, ann, "noted")
    size = len(ann.get(found["links"]["download"]).content)
    until(lambda: api.audit("download.finished")[-1]["subject"] == found["id"])
    rows = api.service.pool.rows("SELECT * FROM download WHERE request_id = %(id)s", {"id": found["id"]})
    assert [(each["username"], each["bytes"], each["address"]) for each in rows] == [("ann", size, "127.0.0.1")]
    assert rows[0]["finished_at"] is not None
    last = api.audit("download.finished")[-1]
    assert last["subject"] == found["id"] and last["outcome"] == "ok" and last["detail"]["bytes"] == size


def test_a_client_that_goes_away_is_noted(api: Served, postgres: Address, ann: httpx.Client) -> None:
    told = ask(ann, dataset="wide")
    answered(api, told["id"])
    found = ended(ann, told["id"])
    assert found["file"]["bytes"] > 8_000_000
    link = found["links"]["file"]
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(f"GET {link} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    until(lambda: api.audit("download.finished")[-1]["subject"] == found["id"])
    last = api.audit("download.finished")[-1]
    assert last["outcome"] == "failed" and last["detail"]["bytes"] < found["file"]["bytes"]
    assert "went away" in last["detail"]["reason"] or last["detail"]["reason"]
    assert api.service.downloads.active() == 0


def test_a_file_expires_and_says_so(api: Served, ann: httpx.Client) -> None:
    found = made(api, ann, "expires")
    past = datetime.now(UTC) - timedelta(seconds=1)
    api.service.pool.rows("UPDATE request SET expires_at = %(at)s WHERE id = %(id)s", {"at": past, "id": found["id"]})
    assert "expired" in problem(ann.get(f"/requests/{found['id']}/download"), 410)["detail"]
    problem(httpx.get(api.url + found["links"]["file"], trust_env=False), 410)
    told = ended(ann, found["id"])
    assert told["expired"] and told["links"]["download"] is None and told["links"]["file"] is None
    assert ask(ann, filters={"note__ne": "expires"}, limit=50)["id"] != found["id"]  # nor is it served again


def test_a_file_does_not_expire_under_a_download(api: Served, ann: httpx.Client) -> None:
    from export_pipelines.catalog.audit import Actor

    found, actor = made(api, ann, "held"), Actor("ann")
    api.service.pool.rows("UPDATE request SET expires_at = now() WHERE id = %(id)s", {"id": found["id"]})
    number = api.service.downloads.begin(found["id"], actor)
    assert number is not None
    assert api.service.requests.expired(found["id"]) is None
    assert found["id"] not in [each.id for each in api.service.requests.expiring()]
    api.service.downloads.finish(number, found["id"], actor, 5, complete=False)
    assert api.service.requests.expired(found["id"]) is not None
    assert api.service.downloads.begin(found["id"], actor) is None  # and none begins any more


def test_a_file_that_is_gone_or_altered_is_never_half_an_answer(api: Served, ann: httpx.Client) -> None:
    found = made(api, ann, "gone")
    row = api.service.requests.get(found["id"])
    assert row is not None and row.file is not None
    store, key = api.service.store, row.file.proof.key
    altered = bytearray(store.get(key))
    altered[-5] ^= 1
    store.delete(key)
    assert problem(ann.get(found["links"]["download"]), 410)["detail"] == "the file is gone from the store"
    store.put(key, bytes(altered))
    with caller(api) as other:
        found_problem = problem(other.get(found["links"]["download"]), 500)
    assert found_problem["reference"] and key not in str(found_problem)


def test_files_that_are_not_encrypted_come_from_s3_itself(
    postgres: Address, migrated_database: str, bucket_url: str, tmp_path: Any
) -> None:
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(tmp_path, source, catalog, lambda port: "    encryption: 'off'\n    store: bucket\n", {
            "resources/bucket/defs.yaml":
            f"type: export_pipelines.S3Store\nattributes: {{resource_key: bucket, url: '{bucket_url}'}}\n",
        }) as up,
        caller(up) as ann,
    ):  # fmt: skip
        told = ask(ann, limit=10)
        answered(up, told["id"])
        found = ended(ann, told["id"])
        answer = ann.get(found["links"]["download"])
        assert answer.status_code == 307 and "Signature" in answer.headers["location"]
        file = httpx.get(answer.headers["location"], trust_env=False)
        assert file.status_code == 200, file.text
        assert hashlib.sha256(file.content).hexdigest() == found["file"]["sha256"]
        assert found["file"]["name"] in file.headers["content-disposition"]
        assert up.audit("download.finished")[-1]["detail"]["reason"] == "redirected to the store"
        assert ann.head(found["links"]["download"]).headers["etag"] == f'"{found["file"]["sha256"]}"'
