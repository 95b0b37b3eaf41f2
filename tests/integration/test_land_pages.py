"""All pages of an API as one file: the whole lands or nothing does, and a style takes it as the whole table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.formats.compression import decompressed
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.specs.table import Compression
from export_pipelines.steps.land import LandContext, LandResult, check_landed, land, landed_files
from export_pipelines.steps.load import LoadContext, load_file
from export_pipelines.steps.load_context import LoadResult
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.http_source import Answer, Asked, HttpSourceServer, http_source_server, noted_pauses
from tests.support.load_project import load_folder
from tests.support.servers import run_sql

KIND = {"Content-Type": "application/json"}
OFFSET = {"by": "offset", "parameter": "offset"}


@pytest.fixture
def http() -> Iterator[HttpSourceServer]:
    with http_source_server() as server:
        yield server


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, which are noted instead of waited for."""
    return noted_pauses(monkeypatch)


class Shop:
    """An API with two records a page, and the table that is made of it."""

    def __init__(self, folder: Path, database: str, http: HttpSourceServer) -> None:
        self.items: list[Any] = [{"id": number, "name": f"n{number}"} for number in range(1, 6)]
        self.calls = 0
        self.total: Any = None
        self.broken: dict[int, list[Answer]] = {}
        """What is answered instead of the page at an offset, one after the other."""
        self.store = FilesystemStore(folder / "landing")
        self.target = PostgresSource(database)
        self._folder, self._database = folder, database
        self.spec: dict[str, Any] = {
            "source": {"type": "rest", "url": f"{http.url}/api", "paging": OFFSET},
            "file": {"records": "data.items"},
            "columns": {"id": {"type": "bigint"}, "name": {}},
            "target": {"table": "shop.orders"},
        }
        http.answers["/api"] = self.answer

    def answer(self, asked: Asked) -> Answer:
        self.calls += 1
        place = int(asked.query.get("offset", 0))
        if self.broken.get(place):
            return self.broken[place].pop(0)
        body = {"request": self.calls, "data": {"items": self.items[place : place + 2]}, "total": self.total}
        return Answer(json.dumps(body, indent=2).encode(), headers=KIND)

    @property
    def definition(self) -> LoadDefinition:
        spec = LoadSpec.model_validate(self.spec)
        return LoadDefinition(name="orders", group="shop", folder=self._folder, spec=spec, version="v1")

    def land(self) -> LandResult:
        return land(LandContext(self.definition, self.store, target=self.target))

    def load(self) -> LoadResult:
        """Land what must be new, and load it."""
        (entry,) = self.land().landed
        return load_file(LoadContext(self.definition, self.target, self.store, "run"), entry)

    def lines(self) -> list[bytes]:
        """What landed last."""
        entry = landed_files(self.store, "shop/orders")[-1]
        with self.store.open(entry.file.key) as stream:
            return b"".join(decompressed(stream, Compression.GZIP, name=entry.name)).split(b"\n")[:-1]

    def rows(self) -> list[tuple[Any, ...]]:
        return run_sql(self._database, "SELECT id, name FROM shop.orders ORDER BY id")


@pytest.fixture
def shop(tmp_path: Path, database: str, http: HttpSourceServer) -> Shop:
    return Shop(tmp_path, database, http)


STYLES: list[dict[str, Any]] = [
    {"style": "replace"},
    {"style": "snapshot", "key": ["id"]},
    {"style": "shadow", "key": ["id"]},
    {"style": "partition", "partition_by": "all"},
    {"style": "history", "key": ["id"], "absent": "close"},
]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style["style"])
def test_all_pages_are_the_whole_of_a_table_and_land_again_only_when_records_change(
    shop: Shop, style: dict[str, Any]
) -> None:
    shop.spec |= style
    assert shop.load().rows == 5
    assert shop.rows() == [(number, f"n{number}") for number in range(1, 6)]
    # Each reply tells its own number, and that is no change.
    assert shop.land() == LandResult((), 1)
    shop.items[4] = {"id": 7, "name": "new"}
    assert shop.load().rows == 5
    current = "WHERE valid_to IS NULL" if style["style"] == "history" else ""
    assert run_sql(shop.target.url, f"SELECT id FROM shop.orders {current} ORDER BY 1") == [
        (1,),
        (2,),
        (3,),
        (4,),
        (7,),
    ]
    assert [entry.rows for entry in landed_files(shop.store, "shop/orders")] == [5, 5]


def test_each_line_of_the_file_is_a_reply_but_for_its_line_breaks(shop: Shop) -> None:
    shop.spec |= {"style": "replace", "columns": {"n": {"type": "numeric"}, "text": {}}}
    text = '{"data": {"items": [\r\n {"n": 1.10, "text": "a\\nb é"},\n\n {"n": 12345678901234567890123}]}}'
    shop.broken = {0: [Answer(b"\xef\xbb\xbf" + text.encode(), headers=KIND)]}
    shop.items = [None, None, {"n": 3}]
    shop.load()
    assert shop.lines()[0].decode() == text.replace("\n", " ")
    assert [json.loads(line)["data"]["items"] for line in shop.lines()[1:]] == [[{"n": 3}], []]
    found = run_sql(shop.target.url, "SELECT n::text, text FROM shop.orders ORDER BY 1")
    assert found == [("1.10", "a\nb é"), ("12345678901234567890123", None), ("3", None)]
    assert check_landed(shop.store, landed_files(shop.store, "shop/orders")) == []


def test_a_page_that_fails_lands_nothing_and_the_table_stays(shop: Shop, waited: list[float]) -> None:
    shop.spec |= {"style": "replace"}
    shop.load()
    shop.items = shop.items[1:]
    error = Answer(b'{"error": "quota"}', headers=KIND)
    for bad in (
        Answer(status=404),
        error,
        Answer(b'{"data": {"items": {"id": 1}}}', headers=KIND),
        Answer(b"{", headers=KIND),
    ):
        shop.broken = {2: [bad]}
        with pytest.raises(SourceError):
            shop.land()
    assert len(landed_files(shop.store, "shop/orders")) == 1
    assert len(shop.rows()) == 5
    shop.broken = {2: [Answer(status=429, headers={"Retry-After": "7"})]}
    shop.load()
    assert waited == [7.0]
    assert len(shop.rows()) == 4


def test_a_snapshot_of_pages_that_would_remove_too_much_is_refused(shop: Shop) -> None:
    shop.spec |= {"style": "snapshot", "key": ["id"]}
    shop.load()
    shop.items = shop.items[:2]
    with pytest.raises(TargetError, match="remove"):
        shop.load()
    assert len(shop.rows()) == 5


@pytest.mark.parametrize("after", [4, 5])
def test_a_listing_that_says_another_number_than_it_gives_does_not_land(shop: Shop, after: int) -> None:
    shop.spec["source"] |= {"paging": {**OFFSET, "total": "total"}}
    shop.spec |= {"style": "replace"}
    shop.total = 5
    changed = {"data": {"items": shop.items[3:]}, "total": after}
    end = {"data": {"items": []}, "total": after}
    shop.broken = {2: [Answer(json.dumps(changed).encode(), headers=KIND)]}
    shop.broken[4] = [Answer(json.dumps(end).encode(), headers=KIND)]
    with pytest.raises(SourceError, match="changed while it was read"):
        shop.land()
    shop.broken = {}
    assert shop.load().rows == 5


def test_pages_of_all_rows_of_a_query_are_one_whole(shop: Shop, http: HttpSourceServer) -> None:
    run_sql(shop.target.url, "CREATE TABLE public.ids AS SELECT n AS id FROM generate_series(1, 3) n")
    for number in range(1, 4):
        http.put(f"/of/{number}", json.dumps({"id": number, "name": "x"}), "application/json")
    repeat = {"sql": "SELECT id FROM public.ids ORDER BY id"}
    shop.spec |= {
        "source": {"type": "rest", "url": f"{http.url}/of/{{id}}", "repeat": repeat},
        "file": {},
        "style": "replace",
    }
    assert shop.load().rows == 3
    run_sql(shop.target.url, "DELETE FROM public.ids WHERE id = 2")
    shop.load()
    assert shop.rows() == [(1, "x"), (3, "x")]
    run_sql(shop.target.url, "DELETE FROM public.ids")
    with pytest.raises(SourceError, match="was not called"):
        shop.land()


def test_columns_of_pages_are_those_of_all_of_them_and_a_bad_record_is_told_with_its_page(shop: Shop) -> None:
    shop.spec |= {"style": "replace", "columns": {}, "quarantine": {"max_rows": 1}}
    shop.items = [{"id": 1}, {"id": 2}, {"id": 3, "name": "c"}, "odd"]
    result = shop.load()
    assert (result.rows, result.quarantined) == (3, 1)
    assert shop.rows() == [("1", None), ("2", None), ("3", "c")]
    assert run_sql(shop.target.url, "SELECT file_line, record FROM shop.orders__quarantine") == [(2, '"odd"')]


def test_features_of_all_pages_are_one_whole(shop: Shop, http: HttpSourceServer) -> None:
    def answer(asked: Asked) -> Answer:
        start = int(asked.query["startIndex"])
        features = [{"type": "Feature", "properties": {"id": n, "name": "w"}} for n in range(start, min(start + 2, 5))]
        return Answer(json.dumps({"type": "FeatureCollection", "features": features}).encode(), headers=KIND)

    http.answers["/wfs"] = answer
    shop.spec |= {
        "source": {"type": "wfs", "url": f"{http.url}/wfs", "type_name": "t:wells"},
        "file": {},
        "style": "replace",
    }
    assert shop.load().rows == 5
    assert shop.rows()[-1] == (4, "w")


def test_styles_that_add_rows_take_one_file_where_that_is_said(shop: Shop) -> None:
    shop.spec |= {"style": "upsert", "key": ["id"]}
    shop.spec["source"]["one_file"] = True
    assert shop.load().added == 5


API = """
type: export_pipelines.LoadTable
attributes:
  source: {type: rest, url: {env: API_URL}, paging: {by: offset, parameter: offset}}
  file: {records: data.items}
  target: {table: shop.orders}
  style: replace
"""


def test_the_rows_of_all_pages_are_compared_with_those_of_the_table(
    shop: Shop,
    http: HttpSourceServer,
    tmp_path: Path,
    catalog_url: str,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = load_folder(tmp_path / "project", shop.target.url, catalog_url, monkeypatch)
    monkeypatch.setenv("API_URL", f"{http.url}/api")
    folder.write("assets/shop/orders/defs.yaml", API)
    job = folder.load().definitions().resolve_job_def("shop__orders_load")
    result = job.execute_in_process(instance=instance)
    found = {each.check_name: each.passed for each in result.get_asset_check_evaluations()}
    assert found == {"quarantine_empty": True, "rows_match_file": True}
    assert shop.rows()[-1] == ("5", "n5")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"file": {"format": "csv"}}, "must be JSON"),
        ({"source": {"type": "wfs", "url": "http://x", "type_name": "t", "output_format": "gml3"}}, "must be JSON"),
        ({"partitions": {"every": "day", "start": "2025-01-01"}}, "use style partition"),
    ],
)
def test_what_cannot_be_one_whole_is_refused(shop: Shop, more: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LoadSpec.model_validate({**shop.spec, "style": "replace", **more})


def test_a_single_reply_is_a_whole_in_any_format(shop: Shop, http: HttpSourceServer) -> None:
    http.put("/all", "id,name\n1,a\n")
    shop.spec |= {"source": {"type": "rest", "url": f"{http.url}/all"}, "file": {"format": "csv"}, "style": "replace"}
    shop.load()
    assert shop.rows() == [(1, "a")]
