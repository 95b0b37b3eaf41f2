"""Copies of loaded tables in a second database: from the database, or page by page from the service; always compared
by digests before they are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import IntegrityError, SourceError, TargetError
from export_pipelines.local.postgres import Address
from export_pipelines.manifest import LandedManifest
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sources.table_api import ServedPage, TableApi
from export_pipelines.specs.load import LoadDefinition, LoadSpec
from export_pipelines.steps.land import LandContext, land
from export_pipelines.steps.load import LoadContext, load_file
from export_pipelines.steps.load_context import LoadResult
from export_pipelines.steps.transform import TransformContext, run_transform
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.loads import LoadKit
from tests.support.reading import Reading, reading
from tests.support.servers import run_sql

COLUMNS = {
    "id": {"type": "bigint"},
    "name": {"type": "text"},
    "price": {"type": "numeric(10,2)"},
    "sold": {"type": "timestamptz"},
    "extra": {"type": "json"},
    "tags": {"type": "text[]"},
    "good": {"type": "boolean"},
    "ratio": {"type": "double precision"},
    "stamp": {"type": "bytea"},
}
ROWS = [
    r'1,"a ""b"" é, c",1.50,2025-01-01 00:00:00+02,"{""a"":  1.10}","{x,NULL,""q \"" \\ r""}",t,0.1,\x00ff',
    r'2,"",0.00,infinity,"[1, 2]",{},f,NaN,',
    r"3,,,,,,,,",
    r'4,"line',
    r'end",99999999.99,2025-06-01 12:00:00.123456+00,"""text""","{{a,b},{c,d}}",t,1e300,\x',
]
HEADER = "id,name,price,sold,extra,tags,good,ratio,stamp"


@pytest.fixture(scope="module")
def shop(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """A service with the table `shop.orders`, ten rows a page."""
    target = {"table": "shop.orders", "published": True, "keep_versions": 1}
    spec: dict[str, Any] = {"style": "replace", "target": target, "columns": COLUMNS}
    with reading(postgres, migrated_database, tmp_path_factory.mktemp("copies"), spec) as found:
        yield found


def fill(shop: Reading, count: int = 25, name: str = "n") -> None:
    """Load a new version: all kinds of values, and some more rows."""
    more = [f"{n},{name},1,,,,,," for n in range(10, 10 + count)]
    shop.kit.load("\n".join([HEADER, *ROWS, *more]) + "\n")


class Copy:
    """A copy of `shop.orders` in a database of its own."""

    def __init__(self, url: str, folder: Path, shop: Reading, source: dict[str, Any], **spec: Any) -> None:
        self.url, self.shop, self.relation = url, shop, "shop.orders"
        self.store = FilesystemStore(folder / "copied")
        target = {"connection": "datasets", "table": "shop.copied"}
        made = LoadSpec.model_validate({"source": source, "target": target, "style": "replace", **spec})
        self.load = LoadDefinition(name="copied", group="shop", folder=folder, spec=made, version="v1")

    def land(self) -> list[LandedManifest]:
        database = PostgresSource(self.shop.kit.url)
        return list(land(LandContext(self.load, self.store, database=database, relation=self.relation)).landed)

    def change(self, relation: str, **spec: Any) -> None:
        """Make it a copy of another table, or by another definition."""
        self.relation, source = relation, self.load.spec.source.model_dump()
        source |= {"table": relation} if source["type"] == "table_api" else {}
        made = LoadSpec.model_validate({**self.load.spec.model_dump(), "source": source, **spec})
        self.load = self.load.model_copy(update={"spec": made})

    def put(self, landed: LandedManifest) -> LoadResult:
        return load_file(LoadContext(self.load, PostgresSource(self.url), self.store), landed)

    def rows(self) -> list[tuple[Any, ...]]:
        return content(self.url, "shop.copied")


def content(url: str, table: str) -> list[tuple[Any, ...]]:
    columns = ", ".join(f"{name}::text" if name != "extra" else "extra::jsonb::text" for name in COLUMNS)
    return run_sql(url, f"SELECT {columns} FROM {table} ORDER BY id")


@pytest.fixture(params=["table", "table_api"])
def copy(
    request: pytest.FixtureRequest, shop: Reading, second_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Copy:
    """A copy by either way."""
    monkeypatch.setenv("SHOP_KEY", shop.key)
    sources = {
        "table": {"type": "table", "table": "shop/orders"},
        "table_api": {
            "type": "table_api",
            "url": shop.up.url,
            "table": "shop.orders",
            "client": shop.client,
            "key": {"env": "SHOP_KEY"},
        },
    }
    return Copy(second_database, tmp_path, shop, sources[request.param])


def test_a_copy_has_the_same_rows_and_types_and_an_unchanged_table_lands_once(shop: Reading, copy: Copy) -> None:
    fill(shop)
    (landed,) = copy.land()
    assert landed.rows == 29 and landed.state["digest"].startswith("29 ")
    result = copy.put(landed)
    assert (result.rows, result.quarantined) == (29, 0)
    assert dict(result.columns) == {
        **{name: column["type"] for name, column in COLUMNS.items()},
        "sold": "timestamp with time zone",
    }
    assert copy.rows() == content(shop.kit.url, "shop.orders")
    assert copy.land() == []
    fill(shop, 3)
    (landed,) = copy.land()
    assert copy.put(landed).rows == 7 and len(copy.rows()) == 7


def test_a_copy_that_is_something_else_is_never_shown(shop: Reading, copy: Copy) -> None:
    fill(shop)
    (landed,) = copy.land()
    copy.put(landed)
    fill(shop, 5, "other")
    (landed,) = copy.land()
    wrong = landed.model_copy(update={"state": {**landed.state, "digest": "9 1"}})
    with pytest.raises(IntegrityError, match="not what it was made of: it has 9 rows, there were 9, and the digests"):
        copy.put(wrong)
    assert len(copy.rows()) == 29
    assert run_sql(copy.url, "SELECT state FROM operations.datafile_registry ORDER BY id") == [
        ("processed",),
        ("failed",),
    ]
    assert copy.put(landed).rows == 9


STYLES: dict[str, dict[str, Any]] = {
    "shadow": {"key": ["id"]},
    "snapshot": {"key": ["id"], "removal": {"share": 1}},
    "partition": {"partition_by": "all"},
    "append": {"revised": "replace"},
    "upsert": {"key": ["id"]},
    "history": {"key": ["id"]},
}


@pytest.mark.parametrize("style", STYLES)
def test_the_rows_of_a_copy_are_compared_in_every_style(
    shop: Reading, second_database: str, tmp_path: Path, style: str
) -> None:
    source = {"type": "table", "table": "shop/orders"}
    copy = Copy(second_database, tmp_path, shop, source, style=style, **STYLES[style])
    for count in (5, 8, 2):
        fill(shop, count)
        (landed,) = copy.land()
        wrong = landed.model_copy(update={"state": {**landed.state, "digest": f"{landed.rows} 1"}})
        before = copy.rows() if count != 5 else []
        with pytest.raises(IntegrityError, match=f"has {landed.rows} rows, there were {landed.rows}, and the digests"):
            copy.put(wrong)
        assert (copy.rows() if count != 5 else []) == before
        copy.put(landed)
        if style not in ("upsert", "history"):
            assert copy.rows() == content(shop.kit.url, "shop.orders")


TIMES = {"style": "history", "key": ["id"], "absent": "close", "removal": {"share": 1}}
MARKS = {"style": "snapshot", "key": ["id"], "removal": {"share": 1, "mark": True}}


def past(shop: Reading, folder: Path, name: str, **spec: Any) -> LoadKit:
    """Another published table of the service."""
    columns = {"id": {"type": "int"}, "name": {}}
    wanted = {"target": {"table": f"shop.{name}", "published": True}, "columns": columns, **spec}
    document = {"source": {"type": "folder", "path": "/nowhere"}, **wanted}
    made = shop.up.service.settings.root / f"assets/shop/{name}"
    made.mkdir()
    (made / "defs.yaml").write_text(json.dumps({"type": "export_pipelines.LoadTable", "attributes": document}))
    shop.up.service.refresh()
    return LoadKit(folder / name, shop.kit.url, wanted)


def texts(url: str, table: str, own: list[str]) -> list[tuple[Any, ...]]:
    values = ", ".join(f"{column}::text" for column in ["id", "name", *own])
    return run_sql(url, f"SELECT {values} FROM {table} ORDER BY 1, 2, 3")


@pytest.mark.parametrize(
    ("by", "own", "old"), [(TIMES, ["valid_from", "valid_to"], [0, 2, 2]), (MARKS, ["removed_at"], [0, 1, 0])]
)
def test_a_copy_has_the_times_of_a_history_and_the_marks_of_a_snapshot(
    shop: Reading, copy: Copy, tmp_path: Path, by: dict[str, Any], own: list[str], old: list[int]
) -> None:
    name = f"{by['style']}_by_{copy.load.spec.source.type}"
    source = past(shop, tmp_path, name, **by)
    copy.change(f"shop.{name}")
    for rows, ended in zip(("1,Ann\n2,Bob\n", "1,Anna\n", "1,Anna\n2,Bob\n"), old, strict=True):
        source.load(f"id,name\n{rows}")
        (landed,) = copy.land()
        assert {column for column, _ in copy.put(landed).columns} == {"id", "name", *own}
        assert texts(copy.url, "shop.copied", own) == texts(source.url, f"shop.{name}", own)
        assert run_sql(copy.url, f"SELECT count({own[-1]}) FROM shop.copied") == [(ended,)]
        wrong = landed.model_copy(update={"state": {**landed.state, "digest": f"{landed.rows} 1"}})
        with pytest.raises(IntegrityError, match="the digests differ"):
            load_file(LoadContext(copy.load, PostgresSource(copy.url), copy.store), wrong, force=True)
    assert copy.land() == []


@pytest.mark.parametrize(("by", "own"), [(TIMES, "valid_from"), (MARKS, "removed_at")])
def test_a_copy_that_adds_times_or_marks_itself_wants_another_name_for_those_of_its_source(
    shop: Reading, second_database: str, tmp_path: Path, by: dict[str, Any], own: str
) -> None:
    name = f"{by['style']}_of_itself"
    source = past(shop, tmp_path, name, **by)
    source.load("id,name\n1,Ann\n")
    copy = Copy(second_database, tmp_path, shop, {"type": "table", "table": f"shop/{name}"})
    copy.change(f"shop.{name}", **by)
    (landed,) = copy.land()
    with pytest.raises(TargetError, match=f"has a column '{own}', and style {by['style']} adds one") as caught:
        copy.put(landed)
    assert f"other_{own}: {{source: {own}}}" in str(caught.value.hint)
    renamed = {"id": {"type": "int"}, "since": {"source": own, "type": "timestamptz"}}
    copy.change(f"shop.{name}", columns=renamed, drift="discard_value")
    assert copy.put(landed).rows == 1
    there = run_sql(source.url, f"SELECT {own} FROM shop.{name}")
    assert run_sql(copy.url, "SELECT since FROM shop.copied") == there


def test_a_copy_that_lacks_the_times_gets_them_where_it_may_evolve(
    shop: Reading, second_database: str, tmp_path: Path
) -> None:
    source = past(shop, tmp_path, "later", style="upsert", key=["id"])
    copy = Copy(second_database, tmp_path, shop, {"type": "table", "table": "shop/later"})
    copy.change("shop.later", style="upsert", key=["id"])
    source.load("id,name\n1,Ann\n2,Bob\n")
    copy.put(*copy.land())
    source.spec |= TIMES
    source.load("id,name\n1,Ann\n3,Cid\n")
    (landed,) = copy.land()
    with pytest.raises(TargetError, match="lacks columns of the definition: 'valid_from', 'valid_to'"):
        copy.put(landed)
    copy.change("shop.later", drift="evolve")
    assert copy.put(landed).rows == 3
    own = ["valid_from", "valid_to"]
    found = texts(copy.url, "shop.copied", own)
    assert found == texts(source.url, "shop.later", own) and found[1][3] and found[2][2]


def test_of_a_copy_with_rows_in_quarantine_the_number_is_compared(
    second_database: str, database: str, tmp_path: Path, shop: Reading
) -> None:
    run_sql(database, "CREATE TABLE twice AS SELECT n % 3 AS id FROM generate_series(1, 4) n")
    more = {"style": "upsert", "key": ["id"], "quarantine": {"max_rows": 2}}
    copy = Copy(second_database, tmp_path, shop, {"type": "table", "table": "shop/orders"}, **more)
    ctx = LandContext(copy.load, copy.store, database=PostgresSource(database), relation="public.twice")
    (landed,) = land(ctx).landed
    wrong = landed.model_copy(update={"state": {**landed.state, "digest": "5 1"}})
    with pytest.raises(IntegrityError, match="it has 3 rows, there were 5"):
        copy.put(wrong)
    done = copy.put(landed)
    assert (done.rows, done.quarantined) == (3, 1)


@pytest.fixture
def over_http(shop: Reading, second_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """A copy from the service."""
    monkeypatch.setenv("SHOP_KEY", shop.key)
    source = {"type": "table_api", "url": shop.up.url, "table": "shop.orders", "client": shop.client}
    return Copy(second_database, tmp_path, shop, {**source, "key": {"env": "SHOP_KEY"}})


def between_pages(monkeypatch: pytest.MonkeyPatch, *actions: Any) -> None:
    """Do something behind the first page, the first times that pages are read."""
    left, pages = list(actions), TableApi.pages

    def slow(api: TableApi, version: str) -> Iterator[ServedPage]:
        for number, page in enumerate(pages(api, version)):
            yield page
            if number == 0 and left:
                left.pop(0)()

    monkeypatch.setattr(TableApi, "pages", slow)


def test_a_swap_between_pages_gives_the_old_version_or_the_new_one(
    shop: Reading, over_http: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(shop, 25, "first")

    def swap() -> None:  # one old version is kept: it can still be read
        fill(shop, 25, "second")

    def swap_twice() -> None:  # what was begun is gone
        fill(shop, 25, "third")
        fill(shop, 30, "fourth")

    between_pages(monkeypatch, swap)
    (landed,) = over_http.land()
    over_http.put(landed)
    assert {row[1] for row in over_http.rows() if int(row[0]) >= 10} == {"first"}
    between_pages(monkeypatch, swap_twice)
    (landed,) = over_http.land()
    over_http.put(landed)
    assert over_http.rows() == content(shop.kit.url, "shop.orders") and landed.rows == 34


def test_rows_that_change_between_pages_make_it_begin_anew(
    shop: Reading, over_http: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(shop)
    pointer = "SELECT current_version FROM operations.loaded_table WHERE target_table = 'shop.orders'"
    ((number,),) = run_sql(shop.kit.url, pointer)

    def change() -> None:
        run_sql(shop.kit.url, f"UPDATE shop.orders__v{number} SET price = price + 1 WHERE id >= 10")

    between_pages(monkeypatch, change)
    (landed,) = over_http.land()
    over_http.put(landed)
    assert over_http.rows() == content(shop.kit.url, "shop.orders")
    between_pages(monkeypatch, *[change] * 9)
    change()
    with pytest.raises(SourceError, match="was changed 5 times") as caught:
        over_http.land()
    assert caught.value.transient


def test_a_wrong_key_or_table_is_refused_without_telling_the_key(
    shop: Reading, over_http: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "not the key at all")
    with pytest.raises(SourceError, match="answers 401") as caught:
        over_http.land()
    assert "not the key" not in str(caught.value)
    monkeypatch.setenv("SHOP_KEY", shop.key)
    spec = over_http.load.spec
    other = spec.source.model_copy(update={"table": "shop.hidden"})
    over_http.load = over_http.load.model_copy(update={"spec": spec.model_copy(update={"source": other})})
    with pytest.raises(SourceError, match="answers 404"):
        over_http.land()


def test_an_answer_that_was_changed_on_the_way_is_refused(
    shop: Reading, over_http: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(shop)
    from export_pipelines.sources import http_client

    read = http_client.Client.read

    def changed(self: Any, call: Any, limit: int) -> Any:
        body, response = read(self, call, limit)
        return body.replace(b'"rows":29', b'"rows":28'), response

    monkeypatch.setattr(http_client.Client, "read", changed)
    with pytest.raises(SourceError, match="signature of an answer"):
        over_http.land()


def test_a_published_table_of_a_transform_is_served(shop: Reading) -> None:
    fill(shop, 5)
    folder = shop.up.service.settings.root / "assets/shop/totals"
    folder.mkdir()
    (folder / "defs.yaml").write_text(
        "type: export_pipelines.Transform\nattributes: {target: {table: shop.totals, published: true}}\n"
    )
    (folder / "transform.sql").write_text(
        "SELECT name, count(*) AS orders, date '2025-01-01' AS loaded_at FROM shop.orders GROUP BY name ORDER BY 2, 1"
    )
    shop.up.service.refresh()
    made = shop.up.service.project.transforms["shop/totals"].transform
    assert shop.get("/api/v1/table-data/shop/totals").status_code == 404
    run_transform(TransformContext(made, PostgresSource(shop.kit.url)))
    page = shop.get("/api/v1/table-data/shop/totals?orientation=records").json()
    assert page["results"][-1] == {"name": "n", "orders": 5, "loaded_at": "2025-01-01"} and page["next"] is None
    assert shop.get("/api/v1/table-structure/shop/totals").json()["rows"] == len(page["results"])
