"""Loaded tables over HTTP: pages, structure, streams; what is not published is not there."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from export_pipelines.local.postgres import Address
from tests.support.api import caller, problem
from tests.support.reading import Reading, local, reading, rows

DATA = "/api/v1/table-data/shop/orders"


@pytest.fixture(scope="module")
def shop(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    root: Path = tmp_path_factory.mktemp("reading")
    target = {"table": "shop.orders", "published": True, "keep_versions": 2}
    with reading(postgres, migrated_database, root, {"style": "replace", "target": target}) as found:
        yield found


def ids(shop: Reading, path: str = DATA + "?orientation=records") -> list[int]:
    return [row["id"] for page in shop.pages(path) for row in page["results"]]


def test_pages_by_key_give_each_row_once_and_end_with_null(shop: Reading) -> None:
    shop.kit.load(rows(1, 25))
    pages = list(shop.pages(DATA))
    assert [len(page["values"]) for page in pages] == [10, 10, 5]
    assert pages[0]["headers"] == ["id", "name", "price", "sold", "extra"]
    assert [row[0] for page in pages for row in page["values"]] == list(range(1, 26))
    assert pages[2]["next"] is None
    assert pages[0]["next"].startswith(shop.url(DATA) + "?orientation=tabular&next-id=11&version=")


def test_values_are_those_of_json(shop: Reading) -> None:
    shop.kit.load(rows(1, 3))
    text = shop.get(DATA + "?orientation=records").text
    first, _, third = json.loads(text, parse_float=Decimal)["results"]
    assert first == {
        "id": 1,
        "name": 'n "1" é',
        "price": Decimal("1.50"),
        "sold": "2025-01-01T00:00:01+00:00",
        "extra": [1, 1],
    }
    assert third["extra"] is None
    assert json.loads(shop.get(DATA).text)["values"][2][4] is None


def test_a_page_that_is_full_to_its_last_row_is_the_last_one(shop: Reading) -> None:
    shop.kit.load(rows(1, 10))
    assert [len(page["values"]) for page in shop.pages(DATA)] == [10]


def test_an_empty_table_is_one_empty_page(shop: Reading) -> None:
    shop.kit.load(rows(1, 0))
    assert shop.get(DATA).json() == {"headers": ["id", "name", "price", "sold", "extra"], "values": [], "next": None}
    assert shop.get(DATA + "?orientation=records").json() == {"results": [], "next": None}


def test_a_reader_in_the_middle_of_a_swap_reads_on_in_the_version_it_began(shop: Reading) -> None:
    shop.kit.load(rows(1, 25))
    pages = shop.pages(DATA + "?orientation=records")
    seen = [row["id"] for row in next(pages)["results"]]
    shop.kit.load(rows(101, 25))
    seen += [row["id"] for page in pages for row in page["results"]]
    assert seen == list(range(1, 26))
    assert ids(shop) == list(range(101, 126))


def test_a_version_that_is_not_kept_any_more_is_gone(shop: Reading) -> None:
    shop.kit.load(rows(1, 25))
    following = shop.get(DATA).json()["next"]
    for number in range(4):
        shop.kit.load(rows(number, 2))
    assert "not kept" in problem(shop.get(following), 410)["detail"]


def test_a_version_that_was_never_told_cannot_be_asked_for(shop: Reading) -> None:
    shop.kit.load(rows(1, 25))
    following = local(shop.get(DATA).json()["next"])
    number = following.partition("version=")[2].partition("-")[0]
    for wrong in ("1", f"{number}-", f"{number}-{'0' * 24}", "x", "-1-a", "9" * 30):
        problem(shop.get(f"{DATA}?version={wrong}"), 422)
    assert shop.get(following.replace("next-id=11", "next-id=21")).json()["values"][0][0] == 21


def test_a_poller_never_sees_neither_old_nor_new(shop: Reading) -> None:
    shop.kit.load(rows(0, 8, "a"))
    seen: list[set[str]] = []
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            page = shop.get(DATA + "?orientation=records").json()
            seen.append({row["name"][0] for row in page["results"]})
            assert len(page["results"]) == 8

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        for letter in "bcdefg":
            shop.kit.load(rows(0, 8, letter))
    finally:
        ended.set()
        thread.join()
    assert seen and all(len(letters) == 1 for letters in seen)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/table-data/shop/hidden", "/api/v1/table-data/shop/nothing", "/api/v1/table-data/shop/orders__v1",
        "/api/v1/table-data/shop/orders__quarantine", "/api/v1/table-data/shop/%22orders%22",
        "/api/v1/table-structure/shop/hidden", "/api/v1/table-stream/shop/hidden",
    ],
)  # fmt: skip
def test_what_is_not_published_is_not_there(shop: Reading, path: str) -> None:
    problem(shop.get(path), 404)


@pytest.mark.parametrize("schema", ["pg_catalog", "information_schema", "operations", "pg_toast"])
def test_system_schemas_are_not_there_for_anybody(shop: Reading, schema: str) -> None:
    with caller(shop.up, "op", "operator") as operator:
        problem(operator.get(f"/api/v1/table-data/{schema}/pg_class"), 404)
        problem(operator.get(f"/api/v1/table-structure/{schema}/datafile_registry"), 404)


def test_a_published_table_that_was_never_loaded_is_not_there_yet(shop: Reading) -> None:
    with caller(shop.up, "tab", "tables") as client:
        assert "nothing was loaded" in problem(client.get("/api/v1/table-data/other/things"), 404)["detail"]


@pytest.mark.parametrize(
    "query", ["orientation=wide", "next-id=-1", "next-id=x", "next-id=9223372036854775808", "version=%00"]
)
def test_wrong_parameters_are_told(shop: Reading, query: str) -> None:
    assert problem(shop.get(f"{DATA}?{query}"), 422)["errors"]


def test_a_token_needs_the_scope_of_tables(shop: Reading) -> None:
    shop.kit.load(rows(1, 3))
    with caller(shop.up, "rob", "read", "request") as reader, caller(shop.up, "tab", "tables") as tables:
        assert "tables" in problem(reader.get(DATA), 403)["detail"]
        assert len(tables.get(DATA).json()["values"]) == 3
        problem(tables.get("/datasets"), 403)
    answer = shop.raw(DATA)
    problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Hawk")


def test_structure_tells_columns_types_and_descriptions(shop: Reading) -> None:
    shop.kit.load(rows(1, 3))
    found = shop.get("/api/v1/table-structure/shop/orders").json()
    assert (found["schema"], found["table"], found["rows"]) == ("shop", "orders", 3)
    assert found["columns"][0] == {
        "name": "id", "type": "bigint", "nullable": True, "description": "Number of the order.",
    }  # fmt: skip
    assert [column["type"] for column in found["columns"][2:]] == [
        "numeric(10,2)", "timestamp with time zone", "json",
    ]  # fmt: skip


def test_a_page_has_an_etag_that_changes_with_it(shop: Reading) -> None:
    shop.kit.load(rows(1, 3))
    etag = shop.get(DATA).headers["etag"]
    same = shop.get(DATA, **{"If-None-Match": f'"x", W/{etag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    shop.kit.load(rows(2, 3))
    assert shop.get(DATA, **{"If-None-Match": etag}).status_code == 200


def test_a_page_is_compressed_for_who_takes_that(shop: Reading) -> None:
    shop.kit.load(rows(1, 10, "n" * 200))
    plain = shop.get(DATA, **{"Accept-Encoding": "gzip;q=0, br"})
    packed = shop.get(DATA, **{"Accept-Encoding": "br, gzip"})
    assert "content-encoding" not in plain.headers and packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"])
    assert packed.content == plain.content and packed.headers["etag"] != plain.headers["etag"]


def test_head_is_a_page_without_its_body(shop: Reading) -> None:
    shop.kit.load(rows(1, 3))
    answer = shop.get(DATA, "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["etag"] and int(answer.headers["content-length"]) > 10


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_whole_table_as_lines_of_json(shop: Reading, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export_pipelines.api.reading.STREAM_ROWS", 7)
    shop.kit.load(rows(1, 30))
    answer = shop.get("/api/v1/table-stream/shop/orders", **{"Accept-Encoding": encoding})
    assert answer.headers["content-type"] == "application/x-ndjson"
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert [row["id"] for row in found] == list(range(1, 31))
    assert found[0]["extra"] == [1, 1]


def test_a_whole_table_as_an_arrow_stream(shop: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export_pipelines.api.reading.STREAM_ROWS", 7)
    shop.kit.load(rows(1, 30))
    answer = shop.get("/api/v1/table-stream/shop/orders?format=arrow", **{"Accept-Encoding": "identity"})
    table = pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    assert table.num_rows == 30
    assert table.schema.types[:4] == [pa.int64(), pa.string(), pa.decimal128(10, 2), pa.timestamp("us", "UTC")]
    first = table.slice(0, 1).to_pylist()[0]
    assert first["price"] == Decimal("1.50") and first["sold"] == datetime(2025, 1, 1, 0, 0, 1, tzinfo=UTC)


def test_an_empty_table_is_an_empty_stream(shop: Reading) -> None:
    shop.kit.load(rows(1, 0))
    assert shop.get("/api/v1/table-stream/shop/orders").content == b""
    arrow = shop.get("/api/v1/table-stream/shop/orders?format=arrow").content
    assert pa.ipc.open_stream(io.BytesIO(arrow)).read_all().num_rows == 0


def test_a_stream_whose_reader_goes_away_ends_its_transaction(shop: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export_pipelines.api.reading.STREAM_ROWS", 50)
    shop.kit.load(rows(1, 60_000, "x" * 200))
    with (
        caller(shop.up, "tab", "tables") as client,
        client.stream("GET", "/api/v1/table-stream/shop/orders", headers={"Accept-Encoding": "identity"}) as answer,
    ):
        next(answer.iter_bytes())
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%' AND query LIKE '%%t.row_id%%'"
    )
    for _ in range(100):
        if shop.kit.sql(waiting) == [(0,)]:
            break
        threading.Event().wait(0.05)
    assert shop.kit.sql(waiting) == [(0,)]


def test_streams_at_the_same_time_are_limited(shop: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export_pipelines.api.reading._streams", threading.BoundedSemaphore(1))
    monkeypatch.setattr("export_pipelines.api.reading.STREAM_ROWS", 50)
    shop.kit.load(rows(1, 60_000, "x" * 200))
    path = "/api/v1/table-stream/shop/orders"
    with caller(shop.up, "tab", "tables") as client, client.stream("GET", path):
        answer = shop.get(path)
        assert problem(answer, 429)["detail"] and answer.headers["retry-after"] == "10"
    shop.kit.load(rows(1, 3))
    for _ in range(100):
        if (answer := shop.get(path)).status_code == 200:
            break
        threading.Event().wait(0.05)
    assert len(answer.text.splitlines()) == 3


def test_a_table_of_many_columns_is_read_whole(shop: Reading) -> None:
    names = [f"c{n}" for n in range(1200)]
    before = shop.kit.spec
    shop.kit.spec = {**before, "columns": {}, "target": {"table": "other.things", "published": True}}
    try:
        shop.kit.load(",".join(names) + "\n" + ",".join(map(str, range(1200))) + "\n")
    finally:
        shop.kit.spec = before
    with caller(shop.up, "tab", "tables") as client:
        page = client.get("/api/v1/table-data/other/things").json()
        record = client.get("/api/v1/table-data/other/things?orientation=records").json()["results"][0]
    assert page["headers"] == names and page["values"] == [[str(n) for n in range(1200)]]
    assert record == dict(zip(names, page["values"][0], strict=True))


def test_next_is_the_address_that_the_caller_sees_behind_a_proxy(shop: Reading) -> None:
    shop.kit.load(rows(1, 25))
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "data.example.org"}
    with caller(shop.up, "tab", "tables") as client:
        untrusted = client.get(DATA, headers=headers).json()["next"]
        proxy = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=proxy, headers={**client.headers, **headers}, trust_env=False) as trusted:
            following = trusted.get(shop.url(DATA)).json()["next"]
    assert untrusted.startswith(shop.url(DATA))
    assert following.startswith(f"https://data.example.org{DATA}?")


def test_the_healthcheck_tells_anybody_and_tells_nothing_else(shop: Reading) -> None:
    answer = shop.raw("/healthcheck")
    assert (answer.status_code, answer.json()) == (200, {"status": "OK"})


def test_gzip_of_a_page_is_a_gzip_file(shop: Reading) -> None:
    shop.kit.load(rows(1, 10, "n" * 200))
    sender = shop.signed(shop.url(DATA))
    headers = {"Authorization": sender.request_header, "Accept-Encoding": "gzip"}
    with httpx.stream("GET", shop.url(DATA), headers=headers, trust_env=False) as answer:
        assert json.loads(gzip.decompress(b"".join(answer.iter_raw())))["headers"][0] == "id"
