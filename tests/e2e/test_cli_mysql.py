"""The command line on tables of MariaDB, and where a machine lacks their server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export_pipelines.local.children import free_port
from tests.support.command_line import CommandLine, Result
from tests.support.dagster_project import RESOURCES, new_project
from tests.support.mariadb import run_mysql

pytestmark = pytest.mark.debian

SHOP = """
---
type: export_pipelines.MysqlConnection
attributes: {resource_key: shop, url: {env: SHOP_DATABASE_URL}, connect_timeout: 3, optional: true}
"""
ORDERS = """
type: export_pipelines.ExportTable
attributes:
  connection: shop
  table: orders
  time_column: at
  partitions: {every: day, start: 2025-01-01, end: 2025-01-04}
  cleanup: after_archive
"""
PRICES = """
type: export_pipelines.ExportTable
attributes: {connection: shop, table: prices, dump: {report: {table: reports}}}
"""
TABLES = (
    "CREATE TABLE orders (id INT PRIMARY KEY, at DATETIME NOT NULL)",
    "INSERT INTO orders SELECT seq, '2025-01-02 12:00' FROM seq_1_to_5",
    "CREATE TABLE prices (id INT PRIMARY KEY, price DECIMAL(10,2))",
    "INSERT INTO prices VALUES (1, 9.99)",
)


@pytest.fixture
def cli(tmp_path: Path, mysql_database: str, storage_url: str) -> CommandLine:
    """A project with `shop/orders`, which is cleaned up, and the snapshot `shop/prices`, which has reports."""
    for statement in TABLES:
        run_mysql(mysql_database, statement)
    root = tmp_path / "project"
    root.mkdir()
    folder = new_project(root)
    folder.write("resources/defs.yaml", RESOURCES + SHOP)
    folder.write("assets/shop/orders/defs.yaml", ORDERS)
    folder.write("assets/shop/prices/defs.yaml", PRICES)
    return CommandLine(
        root,
        {
            "SHOP_DATABASE_URL": mysql_database,
            "DATABASE_URL": storage_url,
            "DAGSTER_PG_URL": storage_url,
            "EXPORT_PATH": str(root / "exports"),
            "ARCHIVE_URL": (root / "archive").as_uri(),
            "DAGSTER_HOME": str(root / "home"),
        },
    )


def one_error(result: Result, *parts: str) -> None:
    """It failed by one clear error with a hint, and printed no result."""
    assert (result.code, result.out) == (1, ""), result.out + result.err
    assert result.err.count("error: ") == 1 and "hint: " in result.err, result.err
    assert "agster" not in result.err and "s3cret" not in result.err
    for part in parts:
        assert part in result.err


def down() -> str:
    return f"mysql://me:s3cret@127.0.0.1:{free_port()}/shop"


def test_doctor_tries_connections_of_mysql_too(cli: CommandLine) -> None:
    well = cli("doctor", "--json")
    (found,) = [each for each in well.json if each["what"] == "connection shop"]
    assert (well.code, found["result"]) == (0, "ok") and "MariaDB 1" in found["detail"]
    ill = cli("doctor", SHOP_DATABASE_URL=down())
    assert ill.code == 1 and "connection shop" in ill.err
    assert "s3cret" not in ill.out + ill.err
    assert run_mysql(cli.variables["SHOP_DATABASE_URL"], "SELECT 1")
    assert ":***@" in found["detail"]


def test_a_connection_that_a_machine_may_lack_is_in_nobodys_way_but_of_who_names_its_tables(cli: CommandLine) -> None:
    del cli.variables["SHOP_DATABASE_URL"]
    doctor = cli("doctor", "--json")
    (found,) = [each for each in doctor.json if each["what"] == "connection shop"]
    assert (doctor.code, found["result"]) == (0, "ok") and "SHOP_DATABASE_URL is not set" in found["detail"]
    unset = "the variable SHOP_DATABASE_URL of resource 'shop' is not set"
    one_error(cli("run", "orders"), unset)
    one_error(cli("dump", "prices"), unset)
    one_error(cli("roles", "--connection", "shop"), unset)
    every = cli("run", "--all")
    assert every.code == 0, every.err
    assert "shop/orders, shop/prices are passed over: the variable SHOP_DATABASE_URL is not set" in every.err
    checked = cli("check")
    assert checked.code == 0 and unset in checked.err


def test_roles_prints_all_or_nothing(cli: CommandLine) -> None:
    one_error(cli("roles", SHOP_DATABASE_URL=down()), "cannot connect to mysql://me:***@")
    one_error(cli("roles", "--connection", "shpo"), "no table uses a connection 'shpo'", "did you mean 'shop'")


def test_check_tells_once_a_connection_what_its_account_has_and_of_a_report_what_it_lacks(cli: CommandLine) -> None:
    checked = cli("check")
    assert checked.code == 1
    assert checked.err.count("the account has SUPER") == 1
    assert "resources/defs.yaml:" in checked.err.partition("the account has SUPER")[0].splitlines()[-1]
    made = checked.err.partition("or make it: ")[2].splitlines()[0]
    run_mysql(cli.variables["SHOP_DATABASE_URL"], made)
    assert cli("check").code == 0
    dumped = cli("dump", "prices", "--json")
    assert dumped.code == 0, dumped.err
    entered = run_mysql(cli.variables["SHOP_DATABASE_URL"], "SELECT file_path, dump_type FROM reports")
    assert entered == [(dumped.json[0]["done"][0]["files"][0]["path"], "prices")]


def test_the_printed_accounts_export_enter_reports_and_restore(cli: CommandLine) -> None:
    admin, names = cli.variables["SHOP_DATABASE_URL"], [f"{who}_{os.urandom(4).hex()}" for who in ("r", "d", "l", "p")]
    back = f"back_{os.urandom(4).hex()}"
    run_mysql(admin, "CREATE TABLE reports LIKE prices")
    run_mysql(admin, "ALTER TABLE reports DROP COLUMN id, CHANGE price file_path VARCHAR(500)")
    defs = cli.root / "assets/shop/prices/defs.yaml"
    columns = "name: null, type: null, size: null, rows: null, range_start: null, range_end: null, date: null"
    defs.write_text(PRICES.replace("table: reports", f"table: reports, connection: entering, columns: {{{columns}}}"))
    more = "".join(SHOP.replace("shop", name).replace("SHOP", name.upper()) for name in ("entering", "loading"))
    (cli.root / "resources/defs.yaml").write_text(RESOURCES + SHOP + more)
    cli.variables |= {"ENTERING_DATABASE_URL": admin, "LOADING_DATABASE_URL": admin}
    options = [
        w for o, n in zip(("reader", "deleter", "loader", "reporter"), names, strict=True) for w in (f"--{o}", n)
    ]
    printed = cli("roles", *options, "--restore-schema", back, "--connection", "shop", "--connection", "entering")
    assert printed.code == 0, printed.err
    try:
        for line in printed.out.splitlines():
            if line.strip() and not line.startswith("--"):
                run_mysql(admin, line.removesuffix(";"))
        reader, _, loader, reporter = names
        for name in (reader, loader, reporter):
            run_mysql(admin, f"ALTER USER `{name}`@'%' IDENTIFIED BY 'x' ACCOUNT UNLOCK")
        place = admin.split("@")[1]
        cli.variables["SHOP_DATABASE_URL"] = f"mysql://{reader}:x@{place}"
        cli.variables["ENTERING_DATABASE_URL"] = f"mysql://{reporter}:x@{place}"
        cli.variables["LOADING_DATABASE_URL"] = f"mysql://{loader}:x@{place.rpartition('/')[0]}/{back}"
        assert cli("check", "prices").err == ""
        ran = cli("run", "prices")
        assert ran.code == 0, ran.err + ran.out
        assert len(run_mysql(admin, "SELECT * FROM reports")) == 1
        for policy in ("fail", "replace"):
            restored = cli("restore", "prices", "--all", "--into", f"{back}.prices", "--connection", "loading",
                           "--on-conflict", policy)  # fmt: skip
            assert restored.code == 0, restored.err
        assert len(run_mysql(admin, f"SELECT * FROM `{back}`.prices")) == 1
    finally:
        run_mysql(admin, f"DROP DATABASE IF EXISTS `{back}`")
        for name in names:
            run_mysql(admin, f"DROP USER IF EXISTS `{name}`@'%'")


def test_a_plan_of_a_table_that_is_never_cleaned_up_is_refused_once(cli: CommandLine) -> None:
    assert cli("run", "orders", "--stage", "export").code == 0
    one_error(cli("plan", "prices"), "shop/prices has no statement to delete with")


def test_a_plan_in_mysql_names_what_proves_the_rows(cli: CommandLine) -> None:
    for stage in ("export", "archive"):
        assert cli("run", "orders", "--stage", stage).code == 0
    shown = cli("plan", "orders").out
    assert "\nDELETE FROM " in shown and "<" not in shown.partition("The statement")[2].replace(" < ", "")
    assert shown.endswith("\nlimited to the keys of archived rows whose content is still the same\n")


def test_a_new_project_of_mysql_passes_its_own_checks(tmp_path: Path, mysql_database: str, catalog_url: str) -> None:
    made = CommandLine(tmp_path)("init", "shop", "--mysql")
    assert made.code == 0 and "SHOP_DATABASE_URL" in made.out, made.err
    cli = CommandLine(tmp_path / "shop", {"DATABASE_URL": catalog_url, "DAGSTER_PG_URL": catalog_url})
    assert cli("check", "--offline").code == 0
    one_error(cli("run", "--all"), "the variable SHOP_DATABASE_URL of resource 'shop' is not set")
    cli.variables["SHOP_DATABASE_URL"] = mysql_database
    checked = cli("check")
    assert checked.code == 0 and "1 table" in checked.out, checked.err
    ran = cli("run", "--all", "--json")
    assert ran.code == 0 and ran.json[0]["rows"] > 10, ran.err
