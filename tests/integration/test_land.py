"""Landing files: each content of each name once, whole, in order, whatever the source does."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.manifest import LandedManifest
from export_pipelines.sources.files import Gone
from export_pipelines.sources.files_folder import FolderFiles
from export_pipelines.sources.http_client import Call, Client
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.specs.load_sources import HttpOptions
from export_pipelines.steps import land_storing
from export_pipelines.steps.chain import manifest_key
from export_pipelines.steps.chain_check import check_chain, unaccounted
from export_pipelines.steps.land import (
    LandContext,
    LandResult,
    check_landed,
    land,
    landed_files,
    list_files,
)
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.http_source import Answer, Asked, HttpSourceServer, http_source_server, noted_pauses
from tests.support.servers import Seaweed

ID = "shop/orders"


@pytest.fixture
def http() -> Iterator[HttpSourceServer]:
    with http_source_server() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries are noted instead of waited for."""
    return noted_pauses(monkeypatch)


def context(tmp_path: Path, source: dict[str, Any], **more: Any) -> LandContext:
    spec = LoadSpec.model_validate({"source": source, "target": {"table": "shop.orders"}, "file": more.pop("file", {})})
    definition = LoadDefinition(
        name="orders", group="shop", folder=tmp_path, spec=spec, select_sql=more.pop("select", None)
    )
    return LandContext(definition, FilesystemStore(tmp_path / "landing"), **more)


def folder(tmp_path: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "drop").mkdir(exist_ok=True)
    return {"type": "folder", "path": str(tmp_path / "drop"), "settle_seconds": 0, **more}


def content(ctx: LandContext, entry: LandedManifest) -> bytes:
    return ctx.store.get(entry.file.key)


def names(result: LandResult) -> list[str]:
    return [entry.name for entry in result.landed]


# Folders


def test_the_same_content_lands_once_and_other_content_again(tmp_path: Path) -> None:
    ctx = context(tmp_path, folder(tmp_path))
    file = tmp_path / "drop" / "a.csv"
    for text, landed in [("A", 1), ("A", 0), ("B", 1), ("A", 1), ("A", 0)]:
        file.write_text(text)
        assert len(land(ctx).landed) == landed
    entries = landed_files(ctx.store, ID)
    assert [content(ctx, entry) for entry in entries] == [b"A", b"B", b"A"]
    assert [entry.sequence for entry in entries] == [1, 2, 3]
    assert len({entry.file.key for entry in entries}) == 2
    assert check_landed(ctx.store, landed_files(ctx.store, ID)) == []
    checked = check_chain(ctx.store, ID)
    assert (checked.problems, unaccounted(ctx.store, ID, checked)) == ([], [])


def test_a_file_that_is_still_being_written_waits(tmp_path: Path) -> None:
    ctx = context(tmp_path, folder(tmp_path, settle_seconds=60))
    (tmp_path / "drop" / "new.csv").write_text("x")
    (tmp_path / "drop" / "old.csv").write_text("x")
    os.utime(tmp_path / "drop" / "old.csv", (1, 1))
    result = land(ctx)
    assert (names(result), result.waiting) == (["old.csv"], ("new.csv",))


def test_names_of_any_kind_are_labels_and_never_paths(tmp_path: Path) -> None:
    ctx = context(tmp_path, folder(tmp_path, pattern="**/*"))
    wanted = ["..%2f..%2fetc", "õ ä.csv", "sub/..x/a b.csv", "x" * 200]
    for name in wanted:
        path = tmp_path / "drop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "drop" / "link.csv").symlink_to("/etc/passwd")
    assert sorted(names(land(ctx))) == sorted(wanted)
    assert {content(ctx, entry).decode() for entry in landed_files(ctx.store, ID)} == set(wanted)
    assert all(
        path.is_relative_to(tmp_path / "landing" / "shop" / "orders") for path in (tmp_path / "landing").rglob("*.json")
    )


def test_patterns_tell_folders(tmp_path: Path) -> None:
    drop = folder(tmp_path)["path"]
    for name in ("a.csv", "b.txt", "in/c.csv", "in/deep/d.csv"):
        (Path(drop) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(drop) / name).write_text(name)
    for pattern, expected in [
        ("*.csv", ["a.csv"]),
        ("**/*.csv", ["a.csv", "in/c.csv", "in/deep/d.csv"]),
        ("in/*", ["in/c.csv"]),
    ]:
        assert list_files(context(tmp_path, folder(tmp_path, pattern=pattern))) == expected


def test_a_file_that_goes_after_it_was_listed_is_told_as_gone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    source = FolderFiles(str(tmp_path), "*", 0)
    (found,) = source.list()
    (tmp_path / "a").unlink()
    with pytest.raises(Gone), source.open(found, ""):
        pass


def test_chosen_names_land_alone_and_vanished_ones_are_told(tmp_path: Path) -> None:
    ctx = context(tmp_path, folder(tmp_path))
    for name in ("a", "b"):
        (tmp_path / "drop" / name).write_text(name)
    only = LandContext(ctx.load, ctx.store, names=("b", "gone"))
    result = land(only)
    assert (names(result), result.vanished) == (["b"], ("gone",))
    land(ctx)
    (tmp_path / "drop" / "a").unlink()
    assert land(ctx).vanished == ("a",)
    assert len(landed_files(ctx.store, ID)) == 2


def test_what_a_killed_landing_stored_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context(tmp_path, folder(tmp_path))
    (tmp_path / "drop" / "a.csv").write_text("x")

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(land_storing.Chain, "add", killed)
        with pytest.raises(Killed):
            land(ctx)
    assert landed_files(ctx.store, ID) == []
    (entry,) = land(ctx).landed
    assert content(ctx, entry) == b"x"
    assert len([info for info in ctx.store.list() if "/landed/" in info.key]) == 1


def test_landings_go_on_behind_a_manifest_that_an_older_program_wrote_with_fewer_fields(tmp_path: Path) -> None:
    ctx = context(tmp_path, folder(tmp_path))
    (tmp_path / "drop/a.csv").write_text("a")
    land(ctx)
    manifest = Path(ctx.store.locate(manifest_key(ID, 1)))
    entry = json.loads(manifest.read_text())
    del entry["state_file"]
    manifest.write_text(json.dumps(entry))
    (tmp_path / "drop/b.csv").write_text("b")
    assert names(land(ctx)) == ["b.csv"]
    assert [each.name for each in landed_files(ctx.store, ID)] == ["a.csv", "b.csv"]


def test_a_stored_file_that_was_altered_is_not_adopted(tmp_path: Path) -> None:
    ctx = context(tmp_path, folder(tmp_path))
    (tmp_path / "drop" / "a.csv").write_text("x")
    (entry,) = land(ctx).landed
    (tmp_path / "landing" / entry.file.key).write_bytes(b"y")
    assert "not what its manifest says" in check_landed(ctx.store, landed_files(ctx.store, ID))[0]
    (tmp_path / "drop" / "a.csv").write_text("z")
    land(ctx)
    (tmp_path / "drop" / "a.csv").write_text("x")
    with pytest.raises(Exception, match="SHA-256 differs"):
        land(ctx)


def test_two_landings_at_once_land_each_file_once(tmp_path: Path) -> None:
    ctx = context(tmp_path, folder(tmp_path))
    for number in range(10):
        (tmp_path / "drop" / f"{number}.csv").write_text(str(number))
    threads = [threading.Thread(target=land, args=(ctx,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.name for entry in landed_files(ctx.store, ID)) == [f"{number}.csv" for number in range(10)]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no folder"):
        land(context(tmp_path, {"type": "folder", "path": str(tmp_path / "gone")}))


# S3


def test_objects_of_a_bucket_land(tmp_path: Path, seaweed: Seaweed, bucket_url: str) -> None:
    client, bucket = seaweed.client(), bucket_url.removeprefix("s3://")
    for key, body in [("in/a.csv", b"1"), ("in/sub/b.csv", b"2"), ("in/õ b.csv", b"3"), ("other.csv", b"4")]:
        client.put_object(Bucket=bucket, Key=key, Body=body)
    ctx = context(tmp_path, {"type": "s3", "url": f"{bucket_url}/in", "pattern": "**/*.csv"})
    assert sorted(names(land(ctx))) == ["a.csv", "sub/b.csv", "õ b.csv"]
    client.put_object(Bucket=bucket, Key="in/a.csv", Body=b"changed")
    result = land(ctx)
    assert ([content(ctx, entry) for entry in result.landed], result.unchanged) == ([b"changed"], 2)


# HTTP


def index(http: HttpSourceServer, *items: Any, **more: Any) -> dict[str, Any]:
    http.put("/index.json", json.dumps({"files": items}), "application/json")
    return {"type": "http", "url": f"{http.url}/index.json", "index": "json", "items": "files", **more}


def test_a_json_index_lists_files(tmp_path: Path, http: HttpSourceServer) -> None:
    http.put("/d/a.csv", "a\n1\n", ETag='"v1"')
    http.put("/d/b%20c.csv", "a\n2\n")
    source = index(
        http, {"link": "d/a.csv"}, {"link": "/d/b%20c.csv"}, {"link": "x.txt"}, item_url="link", pattern="*.csv"
    )
    ctx = context(tmp_path, source)
    result = land(ctx)
    assert names(result) == ["a.csv", "b c.csv"]
    assert [entry.version for entry in result.landed] == ['"v1"', ""]
    assert land(ctx) == LandResult((), 2)
    assert http.asked[-2].headers["if-none-match"] == '"v1"'


def test_a_version_of_the_index_saves_the_call(tmp_path: Path, http: HttpSourceServer) -> None:
    http.put("/a", "a\n1\n")
    ctx = context(tmp_path, index(http, {"url": "a", "n": "a.csv", "v": 7}, item_name="n", item_version="v"))
    assert [entry.version for entry in land(ctx).landed] == ["7"]
    assert land(ctx).unchanged == 1
    assert http.paths().count("/a") == 1
    land(ctx, force=True)
    assert http.paths().count("/a") == 2


def test_an_html_index_lists_links_to_files(tmp_path: Path, http: HttpSourceServer) -> None:
    page = (
        '<a href="?C=N">sort</a><a href="../">up</a><A HREF="a.csv">a</a><a href="http://elsewhere.example/b.csv">b</a>'
    )
    http.put("/files/", page, "text/html")
    http.put("/files/a.csv", "a\n")
    ctx = context(tmp_path, {"type": "http", "url": f"{http.url}/files/", "index": "html", "pattern": "*.csv"})
    assert names(land(ctx)) == ["a.csv"]


def test_one_file_needs_no_index(tmp_path: Path, http: HttpSourceServer) -> None:
    http.put("/a.csv", "a\n")
    ctx = context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv?token=secret"})
    (entry,) = land(ctx).landed
    assert (entry.name, entry.url) == ("a.csv", f"{http.url}/a.csv")


@pytest.mark.parametrize(
    "link", ["http://127.0.0.1:1/x.csv", "http://169.254.169.254/x", "file:///etc/passwd", "//evil/x"]
)
def test_an_index_cannot_make_us_call_other_hosts(tmp_path: Path, http: HttpSourceServer, link: str) -> None:
    with pytest.raises(SourceError, match=r"another host|no URL that can be called"):
        land(context(tmp_path, index(http, {"url": link})))


def test_a_redirect_cannot_make_us_call_other_hosts_and_carries_no_secrets(
    tmp_path: Path, http: HttpSourceServer
) -> None:
    with http_source_server() as other:
        other.put("/b.csv", "b\n")
        http.answers["/a.csv"] = Answer(status=302, headers={"Location": f"{other.url}/b.csv"})
        source = {"type": "http", "url": f"{http.url}/a.csv", "headers": {"X-Key": "secret"}}
        with pytest.raises(SourceError, match="leads to another host"):
            land(context(tmp_path, source))
        assert other.asked == []
        host = other.url.removeprefix("http://")
        assert len(land(context(tmp_path, {**source, "hosts": [host]})).landed) == 1
        assert "x-key" not in other.asked[0].headers
        assert http.asked[-1].headers["x-key"] == "secret"


def test_what_is_busy_is_tried_again_after_what_it_says(
    tmp_path: Path, http: HttpSourceServer, no_waiting: list[float]
) -> None:
    good = Answer(b"a\n", headers={"Content-Type": "text/csv"})
    http.answers["/a.csv"] = [
        Answer(status=503, headers={"Retry-After": "7"}),
        Answer(status=429),
        Answer(status=500),
        good,
    ]
    assert len(land(context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv"})).landed) == 1
    assert no_waiting == [7.0, 2.0, 4.0]


def test_what_stays_busy_fails_in_the_end(tmp_path: Path, http: HttpSourceServer) -> None:
    http.answers["/a.csv"] = Answer(status=503)
    with pytest.raises(SourceError, match="answers 503, after 2 tries") as caught:
        land(context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv", "attempts": 2}))
    assert caught.value.transient


def test_a_wrong_password_is_not_tried_again(tmp_path: Path, http: HttpSourceServer) -> None:
    http.answers["/a.csv"] = Answer(status=401)
    with pytest.raises(SourceError, match="answers 401"):
        land(context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv"}))
    assert len(http.asked) == 1


def test_a_cut_download_is_taken_up_where_it_was_cut(tmp_path: Path, http: HttpSourceServer) -> None:
    body = b"a,b\n" + b"1,2\n" * 100_000
    headers = {"Content-Type": "text/csv", "ETag": '"v1"'}
    http.answers["/a.csv"] = [
        Answer(body, headers=headers, cut=100_000, ranges=True),
        Answer(body, headers=headers, cut=50_000, ranges=True),
        Answer(body, headers=headers, ranges=True),
    ]
    ctx = context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv"})
    (entry,) = land(ctx).landed
    assert content(ctx, entry) == body
    assert [each.headers.get("range") for each in http.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert http.asked[1].headers["if-range"] == '"v1"'


def test_a_file_that_changes_while_it_is_cut_begins_anew(tmp_path: Path, http: HttpSourceServer) -> None:
    old, new = b"a\n" + b"1\n" * 50_000, b"a\n" + b"2\n" * 50_000
    http.answers["/a.csv"] = [
        Answer(old, headers={"ETag": '"v1"'}, cut=10_000, ranges=True),
        Answer(new, headers={"ETag": '"v2"'}, ranges=True),
    ]
    ctx = context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv"})
    (entry,) = land(ctx).landed
    assert (content(ctx, entry), entry.version) == (new, '"v2"')


def test_a_cut_download_that_cannot_be_taken_up_begins_anew(tmp_path: Path, http: HttpSourceServer) -> None:
    http.answers["/a.csv"] = [Answer(b"a\n1\n" * 1000, cut=100), Answer(b"a\n1\n")]
    ctx = context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv"})
    assert [content(ctx, entry) for entry in land(ctx).landed] == [b"a\n1\n"]


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("a.csv", b"<!DOCTYPE html><title>Sorry</title>", "text/csv"),
        ("a.csv", b"Sorry", "text/html; charset=utf-8"),
        ("a.csv", b'{"error": "quota"}', "application/json"),
        ("a.json", b"Sorry", "text/plain"),
        ("a.json.gz", b"<html>", "application/gzip"),
        ("a.parquet", b"Sorry", "application/octet-stream"),
        ("a.xlsx", b"Sorry", "application/octet-stream"),
        ("a.gml", b"<ows:ExceptionReport>", "text/xml"),
    ],
)
def test_an_error_page_with_status_200_does_not_land(
    tmp_path: Path, http: HttpSourceServer, name: str, body: bytes, kind: str
) -> None:
    http.put(f"/{name}", body, kind)
    with pytest.raises(SourceError, match=r"where .* is expected"):
        land(context(tmp_path, {"type": "http", "url": f"{http.url}/{name}", "attempts": 1}))


def test_a_file_that_left_after_it_was_listed_is_told_and_the_others_land(
    tmp_path: Path, http: HttpSourceServer
) -> None:
    http.put("/b.csv", "b\n")
    result = land(context(tmp_path, index(http, {"url": "a.csv"}, {"url": "b.csv"})))
    assert (names(result), result.vanished) == (["b.csv"], ("a.csv",))


@pytest.mark.parametrize(
    ("items", "match"),
    [
        ([{"url": "x/a.csv"}, {"url": "y/a.csv"}], "lists two files named 'a.csv'"),
        ([{"other": 1}], "has no URL"),
        ([{"url": "a%0Ab.csv"}], "which is no name"),
    ],
)
def test_a_listing_that_makes_no_sense_is_an_error(
    tmp_path: Path, http: HttpSourceServer, items: list[Any], match: str
) -> None:
    http.put("/x/a.csv", "a\n")
    http.put("/y/a.csv", "a\n")
    with pytest.raises(SourceError, match=match):
        land(context(tmp_path, index(http, *items)))


def test_a_file_beyond_the_limit_does_not_land(tmp_path: Path, http: HttpSourceServer) -> None:
    http.put("/a.csv", "a\n" * 100)
    with pytest.raises(SourceError, match="larger than 10 bytes"):
        land(context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv", "max_bytes": 10}))
    with pytest.raises(SourceError) as raised:
        Client(HttpOptions(), http.url).read(Call(f"{http.url}/a.csv"), 10)
    assert "ask for less" in raised.value.hint


def test_secrets_of_the_source_are_sent_and_not_shown(
    tmp_path: Path, http: HttpSourceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_PASSWORD", "hunter2")
    http.answers["/a.csv"] = Answer(status=403)
    auth = {"type": "basic", "user": "u", "password": {"env": "SOURCE_PASSWORD"}}
    with pytest.raises(SourceError) as caught:
        land(context(tmp_path, {"type": "http", "url": f"{http.url}/a.csv?key=hunter2", "auth": auth}))
    assert http.asked[0].headers["authorization"] == "Basic dTpodW50ZXIy"
    assert "hunter2" not in str(caught.value)


# REST


def paged(total: int, size: int = 2) -> Any:
    """An API of so many records, whatever page size is asked for at most `size` at a time."""

    def answer(asked: Asked) -> Answer:
        start = int(asked.query.get("offset", 0)) or int(asked.query.get("page", 0)) * size
        start = int(asked.query.get("after", start))
        items = [{"id": number} for number in range(start, min(start + size, total))]
        body: dict[str, Any] = {"items": items}
        if start + size < total:
            body |= {"next": f"/api?after={start + size}", "cursor": start + size}
        return Answer(json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    return answer


@pytest.mark.parametrize(
    "paging",
    [
        {"by": "link"},
        {"by": "cursor", "next": "cursor", "parameter": "after"},
        {"by": "offset", "parameter": "offset", "size_parameter": "limit", "size": 100},
        {"by": "page", "parameter": "page"},
    ],
)
def test_all_pages_of_an_api_land(tmp_path: Path, http: HttpSourceServer, paging: dict[str, Any]) -> None:
    http.answers["/api"] = paged(5)
    source = {"type": "rest", "url": f"{http.url}/api", "params": {"q": "x y"}, "paging": paging}
    ctx = context(tmp_path, source, file={"records": "items"})
    result = land(ctx)
    ids = [item["id"] for entry in result.landed for item in json.loads(content(ctx, entry))["items"]]
    assert ids == [0, 1, 2, 3, 4]
    assert names(result) == ["page-000001.json", "page-000002.json", "page-000003.json"]
    assert http.asked[0].query["q"] == "x y"
    assert land(ctx) == LandResult((), 3)


def test_a_link_may_stand_in_the_header(tmp_path: Path, http: HttpSourceServer) -> None:
    kind = {"Content-Type": "application/json"}
    http.answers["/api"] = Answer(b"[1]", headers={**kind, "Link": '<api2?x=1>; rel="next"'})
    http.answers["/api2"] = Answer(b"[2]", headers=kind)
    source = {"type": "rest", "url": f"{http.url}/api", "paging": {"by": "link"}}
    with pytest.raises(SourceError, match="goes in circles"):
        http.answers["/api2"] = Answer(b"[2]", headers={**kind, "Link": '<api2?x=1>; rel="next"'})
        land(context(tmp_path, source))
    http.answers["/api2"] = Answer(b'[{"n": 2}]', headers=kind)
    assert len(landed_files(context(tmp_path, source).store, ID)) == 2


@pytest.mark.parametrize("paging", [{"by": "link"}, {"by": "cursor", "next": "cursor", "parameter": "after"}])
def test_each_page_is_asked_for_with_the_whole_call(
    tmp_path: Path, http: HttpSourceServer, paging: dict[str, Any]
) -> None:
    http.answers["/api"] = paged(5)
    source = {"type": "rest", "url": f"{http.url}/api", "method": "POST", "body": "all of it", "paging": paging}
    assert len(land(context(tmp_path, source, file={"records": "items"})).landed) == 3
    assert [each.body for each in http.asked] == [b"all of it"] * 3


def test_a_link_to_another_host_is_refused(tmp_path: Path, http: HttpSourceServer) -> None:
    http.put("/api", '{"next": "http://127.0.0.1:9/x"}', "application/json")
    with pytest.raises(SourceError, match="another host"):
        land(context(tmp_path, {"type": "rest", "url": f"{http.url}/api", "paging": {"by": "link"}}))


def test_an_api_that_ignores_its_page_is_noticed(tmp_path: Path, http: HttpSourceServer) -> None:
    http.put("/api", '[{"id": 1}]', "application/json")
    with pytest.raises(SourceError, match="same page again"):
        land(context(tmp_path, {"type": "rest", "url": f"{http.url}/api", "paging": {"by": "page"}}))


def test_a_call_is_repeated_over_values_and_counts(tmp_path: Path, http: HttpSourceServer) -> None:
    http.answers["/of/a%2F..%2Fb"] = Answer(b'[{"x": 1}]', headers={"Content-Type": "application/json"})
    http.answers["/of/c"] = Answer(b'[{"x": 2}]', headers={"Content-Type": "application/json"})
    source = {
        "type": "rest",
        "url": f"{http.url}/of/{{name}}",
        "repeat": {"values": [{"name": "a/../b"}, {"name": "c"}]},
    }
    ctx = context(tmp_path, source)
    assert names(land(ctx)) == ["name=a/../b/page-000001.json", "name=c/page-000001.json"]
    http.answers["/n"] = lambda asked: Answer(json.dumps([asked.body.decode()]).encode())
    source = {
        "type": "rest",
        "url": f"{http.url}/n",
        "method": "POST",
        "body": {"i": "{index}"},
        "repeat": {"first": 1, "last": 2},
    }
    land(context(tmp_path, source))
    assert [each.body for each in http.asked[-2:]] == [b'{"i":"1"}', b'{"i":"2"}']


def test_pages_of_long_values_are_told_apart(tmp_path: Path, http: HttpSourceServer) -> None:
    http.answers["/api"] = paged(5)
    values = [{"q": "x" * 400 + end} for end in ("\t1", "\n1")]
    source = {
        "type": "rest", "url": f"{http.url}/api", "params": {"q": "{q}"}, "repeat": {"values": values},
        "paging": {"by": "page", "parameter": "page"},
    }  # fmt: skip
    ctx = context(tmp_path, source, file={"records": "items"})
    landed = names(land(ctx))
    assert len(landed) == len(set(landed)) == 6
    assert all(len(name) <= 300 and name.endswith(".json") for name in landed)
    assert land(ctx) == LandResult((), 6)


def test_a_call_is_repeated_over_the_rows_of_a_query(tmp_path: Path, http: HttpSourceServer, database: str) -> None:
    http.answers["/api"] = lambda asked: Answer(json.dumps([asked.query]).encode())
    repeat = {"sql": "SELECT n AS id, 'k' || n AS key FROM generate_series(1, 2) n"}
    source = {"type": "rest", "url": f"{http.url}/api", "params": {"id": "{id}", "key": "{key}"}, "repeat": repeat}
    ctx = context(tmp_path, source, target=PostgresSource(database))
    assert names(land(ctx)) == ["id=1/key=k1/page-000001.json", "id=2/key=k2/page-000001.json"]
    assert http.asked[1].query == {"id": "2", "key": "k2"}


def test_a_name_without_a_value_is_an_error(tmp_path: Path, http: HttpSourceServer) -> None:
    with pytest.raises(RequestError, match=r"\{day\} has no value"):
        land(context(tmp_path, {"type": "rest", "url": f"{http.url}/x/{{day}}"}))


# WFS


def test_features_land_by_pages(tmp_path: Path, http: HttpSourceServer) -> None:
    def answer(asked: Asked) -> Answer:
        start, size = int(asked.query["startIndex"]), int(asked.query["count"])
        features = [{"type": "Feature", "properties": {"n": n}} for n in range(start, min(start + size, 5))]
        body = {"type": "FeatureCollection", "features": features}
        return Answer(json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    http.answers["/wfs"] = answer
    source = {"type": "wfs", "url": f"{http.url}/wfs?map=x", "type_name": "t:wells", "page_features": 2}
    ctx = context(tmp_path, source)
    assert names(land(ctx)) == [f"t_wells-{number:06d}.geojson" for number in (1, 2, 3)]
    assert (http.asked[0].query["map"], http.asked[0].query["typeNames"]) == ("x", "t:wells")


def test_an_exception_report_of_a_wfs_is_an_error(tmp_path: Path, http: HttpSourceServer) -> None:
    http.put("/wfs", "<ows:ExceptionReport>no such layer</ows:ExceptionReport>", "text/xml")
    for form in ("application/json", "application/gml+xml; version=3.2"):
        source = {"type": "wfs", "url": f"{http.url}/wfs", "type_name": "x", "output_format": form}
        with pytest.raises(SourceError, match=r"no JSON|report of an error"):
            land(context(tmp_path, source))
