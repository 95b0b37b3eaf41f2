"""Uploads by programs, with a token instead of the page; and uploads whose landing store is a bucket, as here."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.uploads import Uploads
from export_pipelines.errors import RequestError
from export_pipelines.local.postgres import Address
from export_pipelines.local.project import write_dagster_yaml
from export_pipelines.specs.uploads import upload_definition
from export_pipelines.steps.land_upload import drop_pieces, land_upload, open_pieces, piece_key, store_piece
from export_pipelines.stores import open_store
from tests.support.api import caller, problem
from tests.support.command_line import CommandLine
from tests.support.pages import Served, csrf, log_in, served
from tests.support.servers import Seaweed, new_database
from tests.support.threads import wait_until
from tests.support.uploads import AREA_FILES, SETTINGS, execute

HOW_TO = Path(__file__).parents[2] / "docs/how-to/upload.md"
DATA = b"Ward,Beds\n" + b"".join(b"ward %d,%d\n" % (n, n) for n in range(80_000))
"""More than one piece."""
PIECE = 1 << 20


@pytest.fixture(scope="module")
def up(
    postgres: Address, migrated_database: str, seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("uploads")
    variables = {**seaweed.environment(), "ARCHIVE_URL": seaweed.new_bucket()}
    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(root, source, catalog, lambda port: SETTINGS, AREA_FILES, variables) as found,
    ):
        write_dagster_yaml(found.service.settings)
        yield found


@pytest.fixture
def ann(up: Served) -> Iterator[httpx.Client]:
    with caller(up, "ann", "upload") as client:
        yield client


def announced(dataset: str, data: bytes) -> dict[str, Any]:
    own = {"area": "people/inbox", "organisation": "health", "dataset": dataset, "file_name": "beds.csv"}
    return {**own, "size": len(data), "fingerprint": hashlib.sha256(data).hexdigest()}


def sent(client: httpx.Client, dataset: str, data: bytes) -> str:
    """Send a whole file; the address of its upload."""
    begun = client.post("/uploads", json=announced(dataset, data))
    assert begun.status_code == 201, begun.text
    for offset in range(0, len(data), PIECE):
        answer = client.put(begun.headers["location"], params={"offset": offset}, content=data[offset : offset + PIECE])
        assert answer.status_code == 200, answer.text
    return begun.headers["location"]


def rows(up: Served, dataset: str, columns: str) -> list[tuple[object, ...]]:
    with up.service.resource("source").session() as session:
        session.begin()
        return list(session.execute(f"SELECT {columns} FROM uploads.set_health_{dataset} ORDER BY 1"))


def test_a_program_sends_compares_and_loads_a_file(up: Served, ann: httpx.Client) -> None:
    begun = ann.post("/uploads", json=announced("whole", DATA)).json()
    url = f"/uploads/{begun['id']}"
    assert ann.put(url, params={"offset": 0}, content=DATA[:PIECE]).json()["received"] == PIECE
    misplaced = ann.put(url, params={"offset": 0}, content=DATA[:PIECE])
    assert problem(misplaced, 409)["hint"] == f"go on at byte {PIECE}"
    problem(ann.get(f"{url}/columns"), 409)
    problem(ann.post(f"{url}/loads", json={}), 409)
    assert ann.post("/uploads", json=announced("whole", DATA)).json() == {**begun, "received": PIECE}
    assert ann.put(url, params={"offset": PIECE}, content=DATA[PIECE:]).json()["state"] == "received"
    found = ann.get(f"{url}/columns").json()
    assert [(each["name"], each["in_file"], each["type"]) for each in found["columns"]] == [
        ("ward", "Ward", "text"),
        ("beds", "Beds", "bigint"),
    ]
    problem(ann.post(f"{url}/loads", json={"types": {"nurses": "text"}}), 422)
    problem(ann.post(f"{url}/loads", json={"version": found["version"] + 1}), 409)
    started = ann.post(f"{url}/loads", json={"types": {"beds": "numeric"}, "version": found["version"]})
    assert (started.status_code, started.headers["location"], started.json()["state"]) == (202, url, "pending")
    execute(up, begun["id"])
    assert ann.get(url).json()["state"] == "succeeded"
    assert rows(up, "whole", "count(*), sum(beds), min(pg_typeof(beds)::text)") == [
        (80_000, sum(range(80_000)), "numeric")
    ]
    store = up.service.resource("archive")
    wait_until(lambda: not list(store.list(f"uploads/{begun['id']}/")))
    problem(ann.post(f"{url}/loads", json={}), 409)
    listed = ann.get("/uploads").json()
    assert "health/whole" in listed["areas"][0]["datasets"] and listed["waiting"] == []
    for action in ("upload.received", "upload.load"):
        assert {(each["who"], each["address"]) for each in up.audit(action)} == {("ann", "127.0.0.1")}


def test_a_program_lists_compares_and_restores_versions(up: Served, ann: httpx.Client) -> None:
    own = {"area": "people/inbox", "organisation": "health", "dataset": "kept"}
    assert ann.get("/uploads/sets/versions", params=own).json() == []
    for data in (b"Ward,Beds\nA,1\n", b"Ward,Beds\nA,2\nB,3\n"):
        url = sent(ann, "kept", data)
        assert ann.post(f"{url}/loads", json={}).status_code == 202
        execute(up, url.rsplit("/", 1)[1])
    found = ann.get("/uploads/sets/versions", params=own).json()
    assert [(each["number"], each["rows"], each["current"]) for each in found] == [(2, 2, True), (1, 1, False)]
    assert {each["file_name"] for each in found} == {"beds.csv"}
    differ = ann.get("/uploads/sets/versions/difference", params={**own, "old": 1, "new": 2}).json()
    assert (differ["columns"], differ["added"], differ["removed"]) == (["ward", "beds"], 2, 1)
    assert differ["removed_rows"] == [["A", "1"]]
    back = ann.post("/uploads/sets/versions/restore", json={**own, "version": 1})
    assert [each["current"] for each in back.json()] == [False, True]
    assert rows(up, "kept", "ward, beds") == [("A", 1)]
    assert [(each["who"], each["detail"]) for each in up.audit("upload.restored")] == [("ann", {"version": 1})]


def test_versions_that_are_not_there_and_data_sets_of_others_are_refused(up: Served, ann: httpx.Client) -> None:
    own = {"area": "people/inbox", "organisation": "health", "dataset": "nothing"}
    problem(ann.get("/uploads/sets/versions/difference", params={**own, "old": 1, "new": 2}), 422)
    problem(ann.get("/uploads/sets/versions", params={**own, "organisation": "banks"}), 422)
    problem(ann.get("/uploads/sets/versions", params={**own, "area": "people/other"}), 404)
    problem(ann.post("/uploads/sets/versions/restore", json={**own, "version": 1}), 422)
    problem(ann.post("/uploads/sets/versions/restore", json={**own, "version": 0}), 422)
    with caller(up, "bob", "upload") as bob, caller(up, "ann", "read") as reader:
        for client in (bob, reader):
            problem(client.get("/uploads/sets/versions", params=own), 403)
            problem(client.post("/uploads/sets/versions/restore", json={**own, "version": 1}), 403)


def test_the_status_of_an_area_is_that_of_its_data_sets(up: Served, ann: httpx.Client) -> None:
    url = sent(ann, "told", b"Ward,Beds\nA,1\nB,2\n")
    assert ann.post(f"{url}/loads", json={}).status_code == 202
    execute(up, url.rsplit("/", 1)[1])
    told = CommandLine(up.folder.root)("load", "status", "people/inbox", "--json").json
    (found,) = [each for each in told if each["table"] == "people/inbox/health_told"]
    assert (found["landed"], found["loaded"], found["waiting"], found["rows"]) == (1, 1, 0, 2)
    assert found["target"] == "uploads.set_health_told"


def test_an_area_that_was_moved_goes_on_with_its_data_sets(up: Served, ann: httpx.Client) -> None:
    url = sent(ann, "moving", b"Ward,Beds\nA,1\n")
    assert ann.post(f"{url}/loads", json={}).status_code == 202
    execute(up, url.rsplit("/", 1)[1])
    old = up.folder.root / "assets/people/inbox"
    text, new = (old / "defs.yaml").read_text(), old.with_name("forms")
    old.rename(new)
    try:
        (new / "defs.yaml").write_text(f"{text}  moved_from: people/inbox\n")
        assert up.service.refresh()
        (area,) = ann.get("/uploads").json()["areas"]
        assert area["id"] == "people/forms" and "health/moving" in area["datasets"]
        with caller(up, "reader", "tables") as reader:
            assert reader.get("/api/v1/table-data/uploads/set_health_moving").status_code == 200
    finally:
        (new / "defs.yaml").write_text(text)
        new.rename(old)
        assert up.service.refresh()


def test_types_that_are_chosen_after_a_crash_between_landing_and_run_count(up: Served, ann: httpx.Client) -> None:
    url = sent(ann, "again", b"Ward,Beds\nA,1\n")
    upload = url.rsplit("/", 1)[1]
    columns = [("ward", "Ward", "text"), ("beds", "Beds", "bigint")]
    made = upload_definition(up.service.project.loads["people/inbox"].load, "health", "again", columns)
    land_upload(made, up.service.resource("archive"), upload, 14, f"{upload}-1/beds.csv", columns)
    assert ann.post(f"{url}/loads", json={"types": {"beds": "text"}}).status_code == 202
    execute(up, upload)
    assert rows(up, "again", "beds, pg_typeof(beds)::text") == [("1", "text")]


@pytest.mark.debian
def test_the_script_of_the_how_to_sends_a_file_and_waits_for_its_load(up: Served, tmp_path: Path) -> None:
    section = HOW_TO.read_text().split("\n## Send by a program\n")[1].split("\n## ")[0]
    script = "\n".join(re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))
    (tmp_path / "beds.csv").write_bytes(DATA)
    (tmp_path / ".curlrc").write_text('noproxy = "*"\n')
    command = ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8080", up.url)]
    env = {**os.environ, "CURL_HOME": str(tmp_path), "TOKEN": up.token("ann", "upload")}
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(subprocess.run, command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)

        def started() -> list[Any]:
            found = up.service.uploads.of(["people/inbox"], "health", "beds")
            return [each for each in found if each.run_id] or ([None] if ran.done() else [])

        wait_until(started)
        assert not ran.done(), ran.result()
        execute(up, started()[0].id)
        done = ran.result()
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] == "succeeded"
    assert rows(up, "beds", "count(*)") == [(80_000,)]


def test_a_token_without_the_scope_may_not_by_a_program_nor_on_the_page(up: Served, ann: httpx.Client) -> None:
    url = sent(ann, "scope", b"a\n1\n")
    with caller(up, "ann", "read", "request") as other, up.client() as page:
        for answer in (
            other.get("/uploads"),
            other.post("/uploads", json=announced("scope", b"a\n1\n")),
            other.get(url),
            other.put(url, params={"offset": 0}, content=b"x"),
            other.get(f"{url}/columns"),
            other.post(f"{url}/loads", json={}),
            other.delete(url),
        ):
            assert "'upload'" in problem(answer, 403)["detail"]
        log_in(page, up.token("ann", "read", "request"))
        assert "nothing that you may upload to" in page.get("/uploads").text
        assert page.get(url).status_code == 403
    wait_until(lambda: "ann" in {each["who"] for each in up.audit("refused") if each["subject"] == url})


def test_who_is_not_named_may_not_and_knows_of_no_upload_of_others(up: Served, ann: httpx.Client) -> None:
    url = sent(ann, "others", b"a\n1\n")
    with caller(up, "bob", "upload") as bob:
        assert bob.get("/uploads").json() == {"areas": [], "waiting": []}
        problem(bob.post("/uploads", json=announced("others", b"a\n1\n")), 403)
        problem(bob.get(url), 404)
        problem(bob.put(url, params={"offset": 0}, content=b"x"), 404)
        problem(bob.post(f"{url}/loads", json={}), 404)
        problem(bob.delete(url), 404)
    assert ann.delete(url).json()["state"] == "dropped"
    problem(ann.delete(url), 409)


def test_a_cookie_changes_nothing_without_a_form_and_a_token_no_form(up: Served, ann: httpx.Client) -> None:
    url = sent(ann, "cookie", b"a\n1\n")
    with up.client() as page:
        log_in(page, up.token("ann", "read", "upload"))
        json = {"accept": "application/json"}
        assert page.get(url, headers=json).json()["state"] == "received"
        for answer in (
            page.post("/uploads", json=announced("cookie", b"a\n1\n"), headers=json),
            page.put(url, params={"offset": 0}, content=b"x", headers=json),
            page.post(f"{url}/loads", json={}, headers=json),
            page.delete(url, headers=json),
        ):
            problem(answer, 401)
        form = {"csrf": csrf(page.get("/uploads")), "base": "0"}
    problem(ann.post(f"{url}/load", data=form), 401)
    problem(ann.post(f"{url}/drop", data=form), 401)
    assert ann.get(url).json()["state"] == "received"


@pytest.mark.parametrize("data", [b"a,a\n1,2\n", b"\x1f\x8b\x08broken"], ids=["twice", "gzip"])
def test_a_file_that_cannot_be_read_is_told_so_and_not_loaded(ann: httpx.Client, data: bytes) -> None:
    url = sent(ann, "hostile", data)
    said = problem(ann.get(f"{url}/columns"), 422)["detail"]
    assert problem(ann.post(f"{url}/loads", json={}), 422)["detail"] == said


def test_an_upload_that_was_given_up_sends_nobody_to_a_place_where_it_goes_on(ann: httpx.Client) -> None:
    url = ann.post("/uploads", json=announced("gone", b"a\n1\n")).headers["location"]
    assert ann.delete(url).json()["state"] == "dropped"
    said = problem(ann.put(url, params={"offset": 0}, content=b"a\n"), 422)
    assert (said["detail"], said["hint"]) == ("this upload was given up", "begin it anew")


def test_an_old_upload_that_somebody_goes_on_with_is_not_given_up(catalog_url: str) -> None:
    pool = CatalogPool(catalog_url)
    with closing(pool):
        uploads, values = Uploads(pool), {**announced("old", DATA), "username": "ann"}
        begun = uploads.begin(values, 20)
        pool.rows("UPDATE upload SET updated_at = now() - interval '8 days' RETURNING id")
        assert uploads.begin(values, 20).id == begun.id
        uploads.forget(7)
        assert uploads.begin(values, 20).id == begun.id
        pool.rows("UPDATE upload SET updated_at = now() - interval '8 days' RETURNING id")
        uploads.forget(7)
        assert uploads.begin(values, 20).id != begun.id


def test_a_piece_in_a_bucket_that_never_counted_is_replaced(bucket_url: str) -> None:
    store = open_store(bucket_url)
    store_piece(store, "one", 0, b"never counted")
    store_piece(store, "one", 0, b"a,b\n")
    assert store.get(piece_key("one", 0)) == b"a,b\n"


def test_pieces_in_a_bucket_are_read_by_their_offsets_and_dropped_alone(bucket_url: str) -> None:
    store = open_store(bucket_url)
    for offset, data in ((1_048_576, b"c"), (0, b"a"), (99_999, b"b"), (104_857_600, b"d")):
        store_piece(store, "one", offset, data)
    store_piece(store, "one-more", 0, b"other")
    with open_pieces(store, "one", 4) as stream:
        assert stream.read() == b"abcd"
    with pytest.raises(RequestError, match="4 of the file's 5 bytes are kept"):
        open_pieces(store, "one", 5)
    drop_pieces(store, "one")
    assert [each.key for each in store.list("uploads/")] == [piece_key("one-more", 0)]
