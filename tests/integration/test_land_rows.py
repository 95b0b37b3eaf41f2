"""Rows of other databases: full pulls, those behind the last value with late commits, changes; of three engines."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pymysql
import pytest

from export_pipelines.errors import RequestError, SourceError
from export_pipelines.formats.parsing import parse
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.load import FileSpec, LoadDefinition, LoadSpec
from export_pipelines.steps.land import LandContext, LandResult, check_landed, land, landed_files
from export_pipelines.stores.filesystem import FilesystemStore
from export_pipelines.windows import Window
from tests.support.parsing import rows as rows_of
from tests.support.servers import run_sql

ID = "shop/orders"


def context(tmp_path: Path, database: Any, source: dict[str, Any], **more: Any) -> LandContext:
    source = {"type": "database", **({"connection": "c"} if database else {}), **source}
    spec = LoadSpec.model_validate({"source": source, "target": {"table": "shop.orders"}})
    definition = LoadDefinition(
        name="orders", group="shop", folder=tmp_path, spec=spec, select_sql=more.pop("select", None)
    )
    return LandContext(definition, FilesystemStore(tmp_path / "landing"), database=database, **more)


def rows(ctx: LandContext, result: LandResult) -> list[tuple[str | None, ...]]:
    """The rows of what landed, sorted."""
    found: list[tuple[str | None, ...]] = []
    for entry in result.landed:
        parsed = parse(FileSpec(), None, lambda key=entry.file.key: io.BytesIO(ctx.store.get(key)), entry.name)
        assert parsed.passthrough
        found += rows_of(parsed)
        assert entry.rows is not None
    return sorted(found, key=str)


@pytest.fixture
def orders(database: str) -> str:
    """A table of three orders in PostgreSQL."""
    run_sql(database, "CREATE SCHEMA shop")
    run_sql(database, 'CREATE TABLE shop."Orders" (id bigserial, at timestamptz DEFAULT now(), word text)')
    run_sql(database, """INSERT INTO shop."Orders" (word) VALUES ('a"b,c'), (NULL), ('')""")
    return database


def test_all_rows_of_postgresql_land_exactly_and_once(tmp_path: Path, orders: str) -> None:
    ctx = context(tmp_path, PostgresSource(orders), {"table": "shop.Orders"})
    result = land(ctx)
    assert [(row[0], row[2]) for row in rows(ctx, result)] == [("1", 'a"b,c'), ("2", None), ("3", "")]
    assert [(entry.name, entry.rows) for entry in result.landed] == [("shop.Orders.csv", 3)]
    assert land(ctx) == LandResult((), 1)
    assert check_landed(ctx.store, landed_files(ctx.store, ID)) == []


def test_a_select_takes_the_window(tmp_path: Path, orders: str) -> None:
    select = """SELECT id, '100%' AS share FROM shop."Orders" -- all
      WHERE at >= %(window_start)s AND at < %(window_end)s ;"""
    now = datetime.now(UTC)
    for start, expected in [(now - timedelta(days=1), 3), (now + timedelta(days=1), 0)]:
        window = Window(start.date().isoformat(), start, start + timedelta(days=2))
        ctx = context(tmp_path, PostgresSource(orders), {}, select=select, window=window)
        (entry,) = land(ctx).landed
        assert (entry.rows, entry.partition, entry.name) == (
            expected,
            window.partition,
            f"{window.partition}/orders.csv",
        )


@pytest.mark.parametrize("column", ["id", "at"])
def test_a_row_that_is_committed_late_is_not_missed_and_none_lands_twice(
    tmp_path: Path, orders: str, column: str
) -> None:
    ctx = context(
        tmp_path,
        PostgresSource(orders),
        {"table": "shop.Orders", "mode": "incremental", "column": column, "lag_seconds": 0},
    )
    assert len(rows(ctx, land(ctx))) == 3
    with closing(psycopg2.connect(orders)) as late, late.cursor() as cursor:
        cursor.execute("""INSERT INTO shop."Orders" (word) VALUES ('late')""")
        run_sql(orders, """INSERT INTO shop."Orders" (word) VALUES ('early')""")
        assert [row[2] for row in rows(ctx, land(ctx))] == ["early"]
        run_sql(orders, """INSERT INTO shop."Orders" (word) VALUES ('next')""")
        assert [row[2] for row in rows(ctx, land(ctx))] == ["next"]
        late.commit()
    run_sql(orders, """INSERT INTO shop."Orders" (word) VALUES ('last')""")
    assert sorted(str(row[2]) for row in rows(ctx, land(ctx))) == ["last", "late"]
    assert land(ctx) == LandResult((), 1)


def test_a_late_row_lands_even_if_nothing_else_is_new(tmp_path: Path, orders: str) -> None:
    source = {"table": "shop.Orders", "mode": "incremental", "column": "id", "lag_seconds": 0}
    ctx = context(tmp_path, PostgresSource(orders), source)
    land(ctx)
    with closing(psycopg2.connect(orders)) as late, late.cursor() as cursor:
        cursor.execute("""INSERT INTO shop."Orders" (word) VALUES ('late')""")
        run_sql(orders, """INSERT INTO shop."Orders" (word) VALUES ('early')""")
        land(ctx)
        late.commit()
    assert [row[2] for row in rows(ctx, land(ctx))] == ["late"]


def test_rows_that_changed_land_again_and_a_row_may_come_back(tmp_path: Path, orders: str) -> None:
    ctx = context(tmp_path, PostgresSource(orders), {"table": "shop.Orders", "mode": "changes"})
    assert len(rows(ctx, land(ctx))) == 3
    assert land(ctx) == LandResult((), 1)
    for word in ("x", "y", "x"):
        run_sql(orders, 'UPDATE shop."Orders" SET word = %s WHERE id = 1', (word,))
        assert [row[2] for row in rows(ctx, land(ctx))] == [word]
    run_sql(orders, 'DELETE FROM shop."Orders" WHERE id = 3')
    (entry,) = land(ctx).landed
    assert entry.rows == 0
    run_sql(orders, """INSERT INTO shop."Orders" SELECT 3, at, '' FROM shop."Orders" LIMIT 1""")
    assert [row[0] for row in rows(ctx, land(ctx))] == ["3"]


def test_two_incremental_pulls_at_once_land_rows_once(tmp_path: Path, orders: str) -> None:
    from export_pipelines.steps.land_storing import Chain

    source = {"table": "shop.Orders", "mode": "incremental", "column": "id"}
    ctx = context(tmp_path, PostgresSource(orders), source)
    before = Chain.read(ctx.store, ID)
    (entry,) = land(ctx).landed
    values = {name: getattr(entry, name) for name in ("run_id", "source", "name", "url", "file", "fetched", "state")}
    assert before.add({**values, "partition": ""}) == (entry, False)


def test_a_table_of_sqlite_lands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "source.sqlite"
    monkeypatch.setenv("SOURCE_URL", f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x REAL, raw BLOB, word TEXT)")
        database.execute("INSERT INTO t VALUES (1, 0.1, x'00ff', ''), (2, NULL, NULL, 'a:b %')")
    ctx = context(tmp_path, None, {"url": {"env": "SOURCE_URL"}, "table": "t", "mode": "incremental", "column": "id"})
    assert rows(ctx, land(ctx)) == [("1", "0.1", "\\x00ff", ""), ("2", None, None, "a:b %")]
    assert land(ctx) == LandResult((), 1)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO t (id) VALUES (3)")
    assert [row[0] for row in rows(ctx, land(ctx))] == ["3"]


@pytest.mark.debian
def test_a_table_of_mariadb_lands(tmp_path: Path, mysql_database: str) -> None:
    source = MysqlSource(mysql_database)
    with closing(source.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE t (id INT PRIMARY KEY, n DECIMAL(20,5), at DATETIME(3), d TIME, b BLOB, word TEXT, j JSON)"
        )
        cursor.execute("INSERT INTO t VALUES (1, 1.10000, '2024-02-29 01:02:03.004', '-100:00:01', x'00', 'õ%s', '{}')")
        cursor.execute("INSERT INTO t (id) VALUES (2)")
    ctx = context(tmp_path, source, {"table": "t", "mode": "incremental", "column": "at"})
    assert rows(ctx, land(ctx)) == [
        ("1", "1.10000", "2024-02-29 01:02:03.004000", "-100:00:01", "\\x00", "õ%s", "{}"),
    ]
    ctx = context(tmp_path / "full", source, {}, select="SELECT id FROM t WHERE word LIKE '%%' OR word IS NULL;")
    assert rows(ctx, land(ctx)) == [("1",), ("2",)]
    assert pymysql.__name__ not in str(landed_files(ctx.store, ID)[0].url)


def test_a_database_that_is_not_there_is_an_error_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, kind, match in [
        ("sqlite:////nowhere/x.sqlite", SourceError, "there is no database"),
        ("nonsense", RequestError, "not valid"),
        ("mysql+pymysql://u:hunter2@127.0.0.1:1/x", SourceError, "cannot connect"),
        ("postgresql://u:hunter2@127.0.0.1:1/x", SourceError, "cannot connect"),
        ("oracle+oracledb://u:hunter2@127.0.0.1:1/x", RequestError, "not installed"),
    ]:
        monkeypatch.setenv("SOURCE_URL", url)
        with pytest.raises(kind, match=match) as caught:
            land(context(tmp_path, None, {"url": {"env": "SOURCE_URL"}, "table": "t"}))
        assert "hunter2" not in str(caught.value)


def test_another_loaded_table_lands_without_the_columns_of_loading(tmp_path: Path, database: str) -> None:
    run_sql(database, "CREATE TABLE data (row_id bigint, file_id bigint, n int, loaded_at date)")
    run_sql(database, "INSERT INTO data VALUES (1, 1, 7, '2025-01-01')")
    spec = LoadSpec.model_validate({"source": {"type": "table", "table": "a/b"}, "target": {"table": "shop.orders"}})
    definition = LoadDefinition(name="orders", group="shop", folder=tmp_path, spec=spec)
    store = FilesystemStore(tmp_path / "landing")
    ctx = LandContext(definition, store, database=PostgresSource(database), relation="public.data")
    assert rows(ctx, land(ctx)) == [("7", "2025-01-01")]
