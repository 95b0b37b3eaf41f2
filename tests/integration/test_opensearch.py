"""A data set in OpenSearch: each hit once, whatever befalls the connection; exact values; typed filters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import RequestError, SourceError, SpecError
from export_pipelines.sources.opensearch import OpenSearchSource
from export_pipelines.specs.query import RawFilter
from export_pipelines.steps.request import columns_of
from tests.support.asking import RequestKit, request_kit
from tests.support.command_line import CommandLine
from tests.support.dagster_project import new_project
from tests.support.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.support.opensearch import Search, bulk_lines, opensearch_server

MANY = 10_250
"""More than a window of results may have."""

PROPERTIES = {
    "id": {"type": "long"},
    "name": {"type": "keyword"},
    "title": {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
    "body": {"type": "text"},
    "price": {"type": "double"},
    "ok": {"type": "boolean"},
    "at": {"type": "date"},
    "place": {"properties": {"city": {"type": "keyword"}, "zip": {"type": "integer"}}},
    "parts": {"type": "nested", "properties": {"n": {"type": "double"}}},
}
DOCUMENTS: list[dict[str, Any]] = [
    {"id": 9007199254740993, "name": 'O\'Hara, "x"', "title": "Hello World", "body": "some text", "price": 0.1},
    {"id": 2, "name": "", "title": "hello world", "ok": True, "at": "2025-01-02T12:00:00Z", "price": 1e300},
    {"id": 3, "name": "a*b?c\\d", "ok": False, "at": "2025-01-03T00:00:00+02:00", "place": {"city": "Tartu", "zip": 5}},
    {"id": 4, "name": ["one", "two"], "place.city": "Tallinn", "parts": [{"n": 1}, {"n": 12345678901234567890}]},
    {"id": 5, "name": None, "place": [{"city": "A"}, {"city": "B"}], "at": 1735948800000},
]
FILTERS: dict[str, Any] = {
    "id": {"type": "integer"},
    "name": {"type": "text"},
    "title": {"type": "text"},
    "price": {"type": "decimal"},
    "ok": {"type": "boolean"},
    "at": {"type": "timestamp"},
    "day": {"type": "date", "column": "at"},
    "city": {"type": "text", "column": "place.city"},
}


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """A server with an index `few` of DOCUMENTS, and one of MANY numbers."""
    seed = tmp_path_factory.mktemp("seed") / "many.ndjson"
    seed.write_text(bulk_lines("many", ({"id": number} for number in range(1, MANY + 1))))
    with opensearch_server(seed) as server:
        server.index("few", PROPERTIES, DOCUMENTS)
        yield server


@pytest.fixture
def kit(search: Search, one_catalog: str, tmp_path: Path) -> Iterator[RequestKit]:
    """The data set of `few`, by id."""
    with request_kit(search.url, one_catalog, tmp_path, "opensearch") as made:
        made.spec = {"index": "few", "filters": FILTERS, "order_by": ["id"], "columns": ["id"]}
        yield made


@pytest.fixture
def proxy(search: Search) -> Iterator[FaultyProxy]:
    with faulty_proxy(search.url) as made:
        yield made


# Values


def test_values_are_those_that_were_stored(kit: RequestKit) -> None:
    kit.spec["columns"] = ["_id", "id", "name", "price", "ok", "at", "place.city", "place.zip", "parts"]
    kit.spec["fields"] = {"_id": "keyword"} | {
        column.name: column.type for column in columns_of(kit_all(kit), kit.source)
    }
    lines = kit.text(kit.answer(neutralise_formulas=False)).splitlines()
    assert lines == [
        "_id,id,name,price,ok,at,place.city,place.zip,parts",
        '2,2,"",1e+300,true,2025-01-02T12:00:00Z,,,',
        "3,3,a*b?c\\d,,false,2025-01-03T00:00:00+02:00,Tartu,5,",
        '4,4,"[""one"", ""two""]",,,,Tallinn,,"[{""n"": 1}, {""n"": 12345678901234567890}]"',
        '5,5,,,,1735948800000,"[""A"", ""B""]",,',
        '1,9007199254740993,"O\'Hara, ""x""",0.1,,,,,',
    ]


def kit_all(kit: RequestKit) -> Any:
    """The data set with all fields of the mapping."""
    spec = kit.dataset.spec.model_copy(update={"columns": (), "fields": {}})
    return kit.dataset.model_copy(update={"spec": spec})


def test_fields_and_their_types_are_those_of_the_mapping(kit: RequestKit) -> None:
    found = {column.name: column.type for column in columns_of(kit_all(kit), kit.source)}
    assert found == {
        "id": "long",
        "name": "keyword",
        "title": "text",
        "body": "text",
        "price": "double",
        "ok": "boolean",
        "at": "date",
        "place.city": "keyword",
        "place.zip": "integer",
        "parts": "nested",
    }


@pytest.mark.parametrize("format", ["csv", "json", "jsonl", "parquet"])
def test_each_format_is_verified(kit: RequestKit, format: str) -> None:
    kit.spec["columns"] = ["id", "title", "price", "ok", "parts"]
    row = kit.answer(format=format)
    assert row.rows == 5
    if format == "json":
        assert json.loads(kit.text(row))[0]["ok"] is True


# Filters


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["id=3"], [3]),
        (["id=9007199254740993"], [9007199254740993]),
        (["id=9007199254740992"], []),
        (["id!=3", "id<5"], [2, 4]),
        (["id:in=2,4,99"], [2, 4]),
        (["name:is_null=true"], [5]),
        (["name:is_null=false", "id<4"], [2, 3]),
        (["name:contains=*b?c\\"], [3]),
        (["name:contains=*c"], []),
        (["name:starts_with=O'H"], [9007199254740993]),
        (["name=two"], [4]),
        (["title=Hello World"], [9007199254740993]),
        (["title:starts_with=hello"], [2]),
        (["price>=0.1", "price<0.2"], [9007199254740993]),
        (["ok=false"], [3]),
        (["at=2025-01-02T12:00:00"], [2]),
        (["at>=2025-01-02T22:00:00Z", "at<2025-01-03T00:00:00Z"], [3]),
        (["day=2025-01-02"], [2, 3]),
        (["day>2025-01-02"], [5]),
        (["city=Tartu"], [3]),
        (["city!=Tartu"], [4, 5]),
        (["city:in=A,Tallinn"], [4, 5]),
    ],
)
def test_a_filter_finds_what_it_says(kit: RequestKit, filters: list[str], ids: list[int]) -> None:
    assert [int(line) for line in kit.lines(*filters)] == ids


@pytest.mark.parametrize("value", ["* OR id:3", '"}}, {"match_all": {', "name:*", "\\", "(a", "/.*/"])
@pytest.mark.parametrize("operator", ["eq", "contains", "starts_with", "in"])
def test_a_value_is_never_a_query(kit: RequestKit, value: str, operator: str) -> None:
    given = [value] if operator == "in" else value
    found = kit.lines(RawFilter("name", operator, given))
    assert found == (["3"] if (value, operator) == ("\\", "contains") else [])


def test_an_analysed_text_without_a_keyword_cannot_be_compared(kit: RequestKit) -> None:
    kit.spec["filters"] = {"body": {"type": "text"}}
    with pytest.raises(SpecError, match="without a keyword"):
        kit.lines("body=some text")


# All of an index


@pytest.fixture
def many(kit: RequestKit) -> RequestKit:
    kit.spec = {"index": "many", "filters": {"id": {"type": "integer"}}}
    return kit


def numbers(kit: RequestKit, *filters: str, **options: Any) -> list[int]:
    return sorted(int(line) for line in kit.lines(*filters, **options))


def test_an_index_larger_than_a_window_is_read_whole(many: RequestKit) -> None:
    assert numbers(many) == list(range(1, MANY + 1))


def test_a_limit_gives_the_first_by_the_order(many: RequestKit) -> None:
    many.spec["order_by"] = ["id"]
    assert many.lines(limit=700) == [str(number) for number in range(1, 701)]


def test_views_are_given_back(many: RequestKit, search: Search) -> None:
    numbers(many, limit=600)
    assert search.request("GET", "/_search/point_in_time/_all").get("pits", []) == []


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_error_that_goes_away_loses_and_doubles_nothing(many: RequestKit, proxy: FaultyProxy, status: int) -> None:
    many.url = proxy.endpoint
    answers = iter([None, None, refused(status), None, refused(status), refused(status)])
    proxy.choose = lambda line: next(answers, None) if "_search" in line else None
    assert numbers(many) == list(range(1, MANY + 1))
    assert len(proxy.requests) > 6


def refused(status: int) -> Fault:
    body = b'{"error": {"type": "busy", "reason": "try later"}, "status": 503}'
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    return Fault(answer=head.encode() + b"\r\n\r\n" + body)


@pytest.mark.parametrize("fault", [Fault(lose_answer=True), Fault(cut_after=1000)])
def test_a_lost_answer_loses_and_doubles_nothing(many: RequestKit, proxy: FaultyProxy, fault: Fault) -> None:
    many.url = proxy.endpoint
    answers = iter([None, None, fault, None, fault])
    proxy.choose = lambda line: next(answers, None) if "_search" in line else None
    assert numbers(many) == list(range(1, MANY + 1))


def test_a_server_that_stays_away_is_an_error_that_may_go_away(
    many: RequestKit, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export_pipelines.sources.opensearch._FIRST_DELAY", 0.01)
    many.url = proxy.endpoint
    proxy.choose = lambda line: refused(503)
    with pytest.raises(SourceError, match="try later") as told:
        numbers(many)
    assert told.value.transient
    assert many.files() == []


def test_without_points_in_time_a_scroll_is_read(many: RequestKit, proxy: FaultyProxy) -> None:
    many.url = proxy.endpoint
    proxy.choose = lambda line: refused(400) if "point_in_time" in line and line.startswith("POST") else None
    assert numbers(many) == list(range(1, MANY + 1))
    assert any("scroll" in line for line in proxy.requests)
    assert numbers(many, limit=700) != []


def test_a_page_of_a_scroll_that_was_lost_is_told(many: RequestKit, proxy: FaultyProxy) -> None:
    many.url = proxy.endpoint
    faults = iter([None, Fault(lose_answer=True)])

    def choose(line: str) -> Fault | None:
        if "point_in_time" in line and line.startswith("POST"):
            return refused(400)
        return next(faults, None) if "_search/scroll" in line else None

    proxy.choose = choose
    with pytest.raises(SourceError) as told:
        numbers(many)
    assert told.value.transient
    assert many.files() == []


def test_an_index_that_is_deleted_in_the_middle_is_told(kit: RequestKit, search: Search, proxy: FaultyProxy) -> None:
    search.index("short", {"id": {"type": "long"}}, [{"id": number} for number in range(60)])
    kit.spec = {"index": "short"}
    kit.url = proxy.endpoint
    left = ["short"]

    def choose(line: str) -> Fault | None:
        if line.startswith("POST /_search ") and left:
            search.request("DELETE", f"/{left.pop()}")
        return None

    proxy.choose = choose
    with pytest.raises(SourceError, match="reading 'short': the index is gone") as told:
        kit.answer()
    assert not told.value.transient
    assert kit.files() == []


def test_an_index_that_is_not_there_is_told(kit: RequestKit) -> None:
    kit.spec["index"] = "none"
    with pytest.raises(SourceError, match="no such index") as told:
        kit.answer()
    assert not told.value.transient


def test_too_many_hits_are_refused_before_the_work(many: RequestKit) -> None:
    many.spec["row_limit"] = 100
    with pytest.raises(RequestError, match="than the 100 that are allowed"):
        many.answer()
    assert (many.count(50), many.count(50, "id<=20"), many.estimate("id<=30")) == (51, 20, 30)


def test_a_preview_has_the_first_rows(many: RequestKit) -> None:
    many.spec["order_by"] = ["id"]
    assert many.preview(rows=3).rows == [["1"], ["2"], ["3"]]


# The connection


def test_doctor_tells_whether_an_opensearch_answers(search: Search, tmp_path: Path) -> None:
    folder = new_project(tmp_path)
    text = "type: export_pipelines.OpenSearch\nattributes: {resource_key: search, url: {env: SEARCH_URL}}\n"
    folder.write("resources/search/defs.yaml", text)

    def told(url: str) -> dict[str, str]:
        found = CommandLine(tmp_path, {"SEARCH_URL": url})("doctor", "--json").json
        return next(each for each in found if each["what"] == "connection search")

    assert told(search.url)["detail"].startswith("OpenSearch ")
    away = told("http://nobody:secret@127.0.0.1:9")
    assert (away["result"], "secret" in str(away)) == ("failed", False)


def test_a_server_without_tls_is_told(search: Search) -> None:
    source = OpenSearchSource(search.url.replace("http:", "https:"))
    with pytest.raises(SourceError), source.session(timeout=3) as session:
        session.version()
