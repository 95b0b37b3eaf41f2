"""`import-dapu`: definitions made of a tree of dapu, checked by the project that they are written into."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.command_line import CommandLine
from tests.support.dagster_project import Folder, query
from tests.support.load_project import new_load_project, variables

CONNECTIONS = """
- {name: shopdb, driver: pg, host: db.example.org, port: 5433, database: shop, username: etl, password: s3cret-word}
- {name: sheets, driver: files, path: /srv/sheets}
"""
ORDERS = """
actions:
- do: export
  file: input.sql
  to: direct
  cols: [id, client, total]
  pkcols: [id]
  changedetection: ts
  ts_col: changed
  odd_key: 1
- do: runsql
  file: [after.sql]
run: {keep_pause: 2 days, morning: true, workhours: no, evening: false, priority: 1}
"""
SALES = """
actions:
- do: excel
  source: {name: sales.xlsx, sheet: 2, start_row: 3}
  delete: month
  delete_date_column: sold
  cols:
  - {name: client, from: A, transform: hash}
  - {name: sold, from: C, transform: date}
"""
STATIONS = """
actions:
- do: restapi
  api_source: {api: weather, path: "stations/{{area}}", retry: 2, timeout: {connect: 5, read: 20}}
  repeat: [{params: {area: north}}, {params: {area: south}}]
- do: json
  extract: items
  pkcols: [code]
  cols:
  - {name: code, from: extract, data: code, type: text}
  - {name: height, from: extract, data: place.height, type: numeric}
  - {name: area, from: params, data: area}
"""
ROUTE_API = """
type: http
weather:
  url: https://weather.example.org/v1
  headers: {X-Key: header-secret}
  auth: {method: bearer, token: "%W_TOKEN%"}
"""


def make_routes(root: Path) -> Path:
    """A project of dapu with each kind of route."""
    folder = Folder(root)
    routes = root / "routes"
    folder.write("connections.yaml", CONNECTIONS)
    folder.write("routes/shop/route.yaml", "name: The shop\ntype: sql\nalias: shopdb\n")
    folder.write("routes/shop/sales/orders/haulwork.yaml", ORDERS)
    folder.write(
        "routes/shop/sales/orders/input.sql",
        "SELECT o.id, o.customer, o.total FROM orders o WHERE o.{{ts_column}} > '{{last_ts_value}}'",
    )
    folder.write("routes/shop/sales/orders/after.sql", "ANALYZE {{target_schema}}.{{target_table}}")
    folder.write(
        "routes/shop/sales/orders/ver/001.sql",
        "CREATE TABLE {{target_schema}}.{{target_table}} (n bigserial, id bigint, client text, total numeric(11,2))",
    )
    hashed = "actions: [{do: export, file: input.sql, to: direct, cols: [id], changedetection: hash}]\n"
    folder.write("routes/shop/sales/keyless/haulwork.yaml", hashed)
    folder.write("routes/shop/sales/keyless/input.sql", "SELECT id FROM orders")
    folder.write("routes/shop/sales/old/haulwork.yaml", "status: old\nactions: [{do: runsql, file: x.sql}]\n")
    folder.write("routes/sheets/route.yaml", "type: file\nalias: sheets\n")
    folder.write("routes/sheets/sales/sold/haulwork.yaml", SALES)
    folder.write("routes/api/route.yaml", ROUTE_API)
    folder.write("routes/api/weather/stations/haulwork.yaml", STATIONS)
    folder.write(
        "routes/api/weather/report/haulwork.yaml",
        "depends: [api.weather.stations, api.weather.nothing]\n"
        "actions: [{do: shadow, input: input.sql, pkcol: [code], before: [make.sql]}]\n",
    )
    folder.write("routes/api/weather/report/input.sql", "SELECT code, height FROM weather.stations")
    folder.write(
        "routes/api/weather/stations_past/haulwork.yaml",
        "actions: [{do: history, curr: weather.stations, key_columns: [code], data_columns: [height]}]\n",
    )
    return routes


@pytest.fixture
def cli(tmp_path: Path, database: str, catalog_url: str) -> CommandLine:
    """A project to import into."""
    root = tmp_path / "project"
    root.mkdir()
    new_load_project(root)
    return CommandLine(root, {**variables(root, database, catalog_url, database), "SHOPDB_URL": database})


def test_a_project_of_dapu_becomes_definitions_and_what_is_left_is_listed(cli: CommandLine, tmp_path: Path) -> None:
    routes = make_routes(tmp_path / "dapu")
    tried = cli("import-dapu", str(routes))
    assert "would be written" in tried.out and not (cli.root / "assets" / "shop" / "sales").exists()
    done = cli("import-dapu", str(routes), "--write", "--timezone", "Europe/Tallinn", "--json")
    assert done.code == 1, done.err  # a task has the status `old`

    def spec(name: str) -> dict[str, object]:
        found = yaml.safe_load((cli.root / "assets" / name / "defs.yaml").read_text())
        return dict(found["attributes"])

    orders = spec("shop/sales/orders")
    assert orders["source"] == {
        "type": "database", "connection": "shopdb", "mode": "incremental", "column": "changed"
    }  # fmt: skip
    assert orders["columns"] == {
        "id": {"type": "bigint"},
        "client": {"type": "text", "source": "customer"},
        "total": {"type": "decimal(11, 2)"},
    }
    assert (orders["style"], orders["key"], orders["keep_pause"], orders["priority"]) == ("upsert", ["id"], "2 days", 2)
    assert orders["day"] == {"windows": ["morning"], "timezone": "Europe/Tallinn"}
    select = (cli.root / "assets/shop/sales/orders/select.sql").read_text()
    assert "o.changed > '1990-01-01 00:00:00'" in select
    keyless = spec("shop/sales/keyless")
    # All rows each time: the new ones alone would take the place of the others.
    assert (keyless["style"], keyless["source"]) == ("replace", {"type": "database", "connection": "shopdb"})
    assert spec("shop/sales/orders_runsql")["depends"] == ["shop/sales/orders"]
    sold = spec("sheets/sales/sold")
    assert sold["file"] == {"format": "excel", "header": False, "skip_rows": 2, "sheet": 1}
    assert list(sold["columns"]) == ["client", "unused_b", "sold"]  # type: ignore[call-overload]
    assert sold["partition_by"] == "month(sold)"
    stations = spec("api/weather/stations")
    assert stations["source"]["auth"] == {"type": "bearer", "token": {"env": "W_TOKEN"}}  # type: ignore[index]
    assert stations["source"]["url"] == "https://weather.example.org/v1/stations/{area}"  # type: ignore[index]
    assert spec("api/weather/report")["depends"] == ["api/weather/stations"]
    report = (cli.root / "assets" / "import-dapu.md").read_text()
    for left in ("odd_key", "ver/001.sql", "status is 'old'", "make.sql", "api.weather.nothing", "'area'", "X_KEY"):
        assert left in report, left
    written = "".join(file.read_text() for file in cli.root.rglob("*") if file.is_file() and "home" not in file.parts)
    assert "s3cret-word" not in written and "header-secret" not in written
    assert "s3cret-word" not in done.out + done.err
    checked = cli("check", "--offline")
    assert checked.code == 0, checked.err + checked.out
    again = cli("import-dapu", str(routes), "--write")
    assert again.code == 1 and "exists" in again.err


def test_what_was_imported_can_be_loaded(cli: CommandLine, tmp_path: Path, database: str) -> None:
    query(database, "CREATE TABLE orders (id bigint, customer text, total numeric, changed timestamptz)")
    query(database, "INSERT INTO orders SELECT n, 'c' || n, n * 1.5, now() FROM generate_series(1, 3) n")
    cli("import-dapu", str(make_routes(tmp_path / "dapu")), "--write")
    select = cli.root / "assets/shop/sales/orders/select.sql"
    select.write_text(select.read_text().replace("o.total FROM", "o.total, o.changed FROM"))
    defs = cli.root / "assets/shop/sales/orders/defs.yaml"
    defs.write_text(defs.read_text() + "  drift: discard_value\n")
    done = cli("load", "run", "shop/sales/orders")
    assert done.code == 0, done.err
    assert query(database, "SELECT id, client, total FROM sales.orders ORDER BY id")[0][:2] == (1, "c1")
