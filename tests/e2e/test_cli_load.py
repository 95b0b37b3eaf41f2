"""`load` on the command line: list, run, status, versions, rollback, diff, ignore."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.dagster_project import query
from tests.support.load_project import ORDERS, new_load_project, variables


@pytest.fixture
def cli(tmp_path: Path, database: str, catalog_url: str) -> CommandLine:
    """A project with `shop/orders`, and a file for it."""
    root = tmp_path / "project"
    root.mkdir()
    new_load_project(root)
    made = CommandLine(root, variables(root, database, catalog_url, database))
    (root / "drops" / "may.csv").write_text("id,name\n1,Ann\n2,Bob\n")
    return made


def test_load_lists_runs_and_tells_the_status_of_tables(cli: CommandLine, database: str) -> None:
    (listed,) = cli("load", "list", "--json").json
    assert (listed["table"], listed["source"], listed["partitions"]) == ("shop/orders", "folder", "by file")
    done = cli("load", "run", "orders", "--json")
    assert done.code == 0, done.err
    (result,) = done.json
    assert (result["landed"], result["loaded"], result["rows"], result["errors"]) == (1, 1, 2, [])
    assert query(database, "SELECT id, name FROM shop.orders ORDER BY 1") == [(1, "Ann"), (2, "Bob")]
    (again,) = cli("load", "run", "--all", "--json").json
    assert (again["landed"], again["loaded"]) == (0, 0)
    (forced,) = cli("load", "run", "orders", "--force", "--file", "may.csv", "--json").json
    assert forced["loaded"] == 1
    (status,) = cli("load", "status", "--json").json
    assert (status["landed"], status["loaded"], status["waiting"], status["rows"]) == (1, 1, 0, 2)
    assert cli("check").code == 0 and cli("list").code == 0


def test_a_file_that_fails_is_named_with_exit_code_1_and_can_be_left_out(cli: CommandLine) -> None:
    (cli.root / "drops" / "bad.csv").write_text("id,name\nx,Eve\ny,Eve\n")
    done = cli("load", "run", "orders")
    assert done.code == 1
    assert "bad.csv" in done.err
    status = cli("load", "status", "orders", "--json")
    assert (status.json[0]["loaded"], status.json[0]["failed"], status.json[0]["waiting"]) == (1, 1, 1)
    assert cli("load", "ignore", "orders", "bad.csv").code == 0
    assert cli("load", "run", "orders").code == 0
    assert cli("load", "status", "orders", "--json").json[0]["waiting"] == 0


def test_versions_are_listed_compared_and_rolled_back(cli: CommandLine, database: str) -> None:
    (cli.root / "assets/shop/orders/defs.yaml").write_text(ORDERS + "  style: replace\n  key: [id]\n")
    assert cli("load", "run", "orders").code == 0
    (cli.root / "drops" / "may.csv").write_text("id,name\n2,Bobby\n3,Cid\n")
    assert cli("load", "run", "orders").code == 0
    versions = cli("load", "versions", "orders", "--json").json
    assert [(each["number"], each["rows"], each["current"]) for each in versions] == [(1, 2, False), (2, 2, True)]
    diff = cli("load", "diff", "orders", "1", "2", "--json").json
    assert (diff["added"], diff["removed"], diff["changed"]) == (1, 1, 1)
    assert cli("load", "rollback", "orders", "1", "--yes").code == 0
    assert query(database, "SELECT name FROM shop.orders ORDER BY 1") == [("Ann",), ("Bob",)]
    refused = cli("load", "rollback", "orders", "7", "--yes")
    assert refused.code == 1 and "hint: " in refused.err


def test_an_unknown_table_is_one_clear_error(cli: CommandLine) -> None:
    wrong = cli("load", "run", "order")
    assert wrong.code == 1
    assert "did you mean 'orders'?" in wrong.err or "did you mean 'shop/orders'?" in wrong.err


def test_tables_are_paused_and_resumed_with_a_reason(cli: CommandLine) -> None:
    assert "nothing is paused" in cli("pause").err
    assert cli("pause", "orders", "--reason", "the shop moves").code == 0
    assert "the shop moves" in cli("pause").out
    resumed = cli("resume", "orders")
    assert resumed.code == 0 and "nothing is paused" in resumed.err
    assert cli("pause", "--route", "nowhere").code == 1


def test_scaffold_writes_a_definition_that_loads_the_file(tmp_path: Path, database: str, catalog_url: str) -> None:
    root = tmp_path / "project"
    (root / "assets").mkdir(parents=True)
    (root / "workspace.yaml").write_text("load_from: []\n")
    cli = CommandLine(root, variables(root, database, catalog_url, database))
    (root / "resources").mkdir()
    (root / "resources" / "defs.yaml").write_text(
        "type: export_pipelines.CatalogDatabase\nattributes: {url: {env: DAGSTER_PG_URL}}\n"
    )
    drop = root / "drops" / "sales.csv"
    drop.write_text("No,Sold on,Total €\n1,2025-01-31,2.50\n2,2025-02-01,\n")
    made = cli("scaffold", "shop/sales", "--from-file", str(drop))
    assert made.code == 0, made.err
    text = (
        (root / "assets/shop/sales/defs.yaml").read_text().replace("attributes:\n", "attributes:\n  quarantine: {}\n")
    )
    (root / "assets/shop/sales/defs.yaml").write_text(text.replace("pattern:", "settle_seconds: 0\n    pattern:"))
    done = cli("load", "run", "shop/sales")
    assert done.code == 0, done.err
    rows = query(database, "SELECT no, sold_on::text, total::text FROM shop.sales ORDER BY 1")
    assert rows == [(1, "2025-01-31", "2.50"), (2, "2025-02-01", None)]
    assert cli("scaffold", "shop/sales", "--from-file", str(drop)).code == 1
    copied = cli("scaffold", "shop/again", "--from-table", "shop.sales__v1", "--connection", "warehouse")
    assert copied.code == 1 and "row_id" in copied.err


def test_grants_are_compared_with_the_definition_and_made_so(cli: CommandLine, database: str) -> None:
    roles = [f"reader_{name}_{database.rpartition('_')[2]}" for name in ("a", "b")]
    for role in roles:
        query(database, f"CREATE ROLE {role}")
    definition = cli.root / "assets/shop/orders/defs.yaml"
    definition.write_text(ORDERS.replace("shop.orders}", f"shop.orders, grants: [{roles[0]}]}}"))
    assert cli("load", "run", "orders").code == 0
    assert "as declared" in cli("grants").err
    definition.write_text(ORDERS.replace("shop.orders}", f"shop.orders, grants: [{roles[1]}]}}"))
    printed = cli("grants", "orders")
    assert printed.code == 1
    assert "REVOKE SELECT ON" in printed.out and "GRANT USAGE ON SCHEMA" in printed.out
    assert cli("grants", "--apply").code == 0
    may = "SELECT has_table_privilege(%s, 'shop.orders', 'SELECT')"
    assert [query(database, may.replace("%s", f"'{role}'")) for role in roles] == [[(False,)], [(True,)]]
    assert cli("grants").code == 0


def test_check_covers_tables_to_load_by_name_and_their_errors_with_lines(cli: CommandLine) -> None:
    assert "ok: 1 table" in cli("check", "shop/orders", "--offline").out
    (cli.root / "assets/shop/orders/defs.yaml").write_text(ORDERS.replace("quarantine: {max", "quarantin: {max"))
    wrong = cli("check", "--offline")
    assert wrong.code == 1
    assert "assets/shop/orders/defs.yaml:9: quarantin: unknown field" in wrong.err
    assert cli("load", "run", "orders").code == 1
