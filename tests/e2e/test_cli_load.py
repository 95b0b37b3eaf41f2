"""`load` on the command line: list, run, status, versions, rollback, diff, ignore."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.dagster_project import query
from tests.support.http_source import http_source_server
from tests.support.load_project import ORDERS, new_load_project, variables
from tests.support.sftp_server import PASSWORD, USER, public, sftp_server


@pytest.fixture
def cli(tmp_path: Path, database: str, storage_url: str) -> CommandLine:
    """A project with `shop/orders`, and a file for it."""
    root = tmp_path / "project"
    root.mkdir()
    new_load_project(root)
    made = CommandLine(root, variables(root, database, storage_url, database))
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
    assert (status.json[0]["loaded"], status.json[0]["failed"], status.json[0]["waiting"]) == (1, 1, 0)
    assert cli("load", "ignore", "orders", "bad.csv").code == 0
    assert cli("load", "run", "orders").code == 0
    assert cli("load", "status", "orders", "--json").json[0]["waiting"] == 0


def test_a_variable_that_is_not_set_is_named(cli: CommandLine) -> None:
    done = cli("load", "run", "orders", WAREHOUSE_URL="")
    assert done.code == 1
    assert "the variable WAREHOUSE_URL of resource 'warehouse' is not set" in done.err and "hint: " in done.err
    (cli.root / "assets/shop/orders/defs.yaml").write_text(ORDERS.replace("DROPS", "NO_SUCH_VARIABLE"))
    checked = cli("check", "orders")
    assert checked.code == 1
    assert "defs.yaml:4: source.path: the variable NO_SUCH_VARIABLE is not set" in checked.err


def test_a_broken_definition_is_told_when_all_are_loaded_and_keeps_no_other_back(cli: CommandLine) -> None:
    (cli.root / "assets/shop/other").mkdir()
    (cli.root / "assets/shop/other/defs.yaml").write_text("type: export_pipelines.LoadTable\nattributes: {}\n")
    done = cli("load", "run", "--all", "--json")
    assert (done.code, done.json[0]["loaded"]) == (1, 1)
    assert all("shop/other is left out" in each.err for each in (done, cli("load", "status"), cli("verify")))


def test_a_file_that_waits_is_told(cli: CommandLine) -> None:
    definition = cli.root / "assets/shop/orders/defs.yaml"
    definition.write_text(ORDERS.replace("settle_seconds: 0", "settle_seconds: 600"))
    done = cli("load", "run", "orders")
    assert done.code == 0
    assert "left for the next run: may.csv" in done.err


def test_a_definition_whose_folder_was_moved_goes_on_with_its_files(cli: CommandLine, database: str) -> None:
    assert cli("load", "run", "orders").code == 0
    (cli.root / "assets/shop").rename(cli.root / "assets/sales")
    (cli.root / "drops" / "june.csv").write_text("id,name\n3,Cid\n")
    refused = cli("load", "run", "orders")
    assert refused.code == 1
    assert "moved_from: shop/orders" in refused.err
    assert cli("load", "status", "--json").json[0]["landed"] == 0
    assert query(database, "SELECT count(*) FROM shop.orders") == [(2,)]
    (cli.root / "assets/sales/orders/defs.yaml").write_text(ORDERS + "  moved_from: shop/orders\n")
    done = cli("load", "run", "orders", "--json")
    assert (done.code, done.json[0]["landed"], done.json[0]["loaded"]) == (0, 1, 1)
    assert query(database, "SELECT id FROM shop.orders ORDER BY 1") == [(1,), (2,), (3,)]
    status = cli("load", "status", "--json").json[0]
    assert (status["landed"], status["loaded"], status["failures"]) == (2, 2, [])
    assert cli("verify", "orders", "--json").code == 0


def test_versions_are_listed_compared_and_rolled_back(cli: CommandLine, database: str) -> None:
    (cli.root / "assets/shop/orders/defs.yaml").write_text(ORDERS + "  style: replace\n  key: [id]\n")
    assert cli("load", "run", "orders").code == 0
    (cli.root / "drops" / "may.csv").write_text("id,name\n2,Bobby\n3,Cid\n")
    assert cli("load", "run", "orders").code == 0
    versions = cli("load", "versions", "orders", "--json").json
    assert [(each["number"], each["rows"], each["current"]) for each in versions] == [(1, 2, False), (2, 2, True)]
    diff = cli("load", "diff", "orders", "1", "2", "--json").json
    assert (diff["added"], diff["removed"], diff["changed"]) == (1, 1, 1)
    unanswered = cli("load", "rollback", "orders", "1")
    assert unanswered.code == 1 and "run it with --yes" in unanswered.err
    assert cli("load", "rollback", "orders", "1", "--yes").code == 0
    assert query(database, "SELECT name FROM shop.orders ORDER BY 1") == [("Ann",), ("Bob",)]
    refused = cli("load", "rollback", "orders", "7")
    assert refused.code == 1 and "hint: " in refused.err


@pytest.mark.slow
def test_a_transform_is_planned_checked_run_after_what_it_reads_and_rolled_back(
    cli: CommandLine, database: str
) -> None:
    folder = cli.root / "assets/shop/totals"
    folder.mkdir()
    (folder / "defs.yaml").write_text(
        "type: export_pipelines.Transform\nattributes: {target: {table: shop.totals}, key: [name]}\n"
    )
    (folder / "transform.sql").write_text("SELECT name, count(*) AS orders\nFROM shop.orders GROUP BY nam")
    offline = cli("check", "--offline")
    assert offline.code == 0 and "ok: 2 tables" in offline.out
    early = cli("check", "shop/totals")
    assert early.code == 0 and 'transform.sql:2: relation "shop.orders" does not exist' in early.err
    done = cli("load", "run", "--all", "--json")
    assert done.code == 1
    assert [each["table"] for each in done.json] == ["shop/orders", "shop/totals"]
    wrong = cli("check", "shop/totals")
    assert wrong.code == 1 and 'transform.sql:2: column "nam" does not exist' in wrong.err
    (folder / "transform.sql").write_text("SELECT name, count(*) AS orders\nFROM shop.orders GROUP BY name")
    plan = cli("plan", "shop/totals", "--json").json
    assert (plan["after"], plan["version"], plan["columns"][1]) == (
        ["shop/orders"],
        1,
        {"name": "orders", "type": "bigint"},
    )
    for _ in range(2):
        (result,) = cli("load", "run", "totals", "--json").json
        assert (result["rows"], result["errors"]) == (2, [])
    assert query(database, "SELECT name, orders FROM shop.totals ORDER BY 1") == [("Ann", 1), ("Bob", 1)]
    assert [each["number"] for each in cli("load", "versions", "shop/totals", "--json").json] == [1, 2]
    assert cli("load", "rollback", "shop/totals", "1", "--yes").code == 0
    assert cli("load", "status", "totals").code == 1
    assert cli("pause", "totals").code == 0 and "shop/totals" in cli("pause").out


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


def test_scaffold_takes_a_file_by_http_and_a_table_of_a_database(cli: CommandLine, database: str) -> None:
    query(database, "CREATE TABLE public.items (id bigint, price numeric(8,2), sold timestamptz)")
    query(database, "INSERT INTO public.items VALUES (7, 2.50, '2025-01-01T00:00Z')")
    with http_source_server() as server:
        server.put("/rates.csv", "Währung;rate\nEUR;1.5\nSEK;0.1\n".encode("cp1252"))
        place = ("--from-url", f"{server.url}/rates.csv")
        assert "encoding" in cli("scaffold", "bank/rates", *place).err
        made = cli("scaffold", "bank/rates", *place, "--key", "wahrung", "--encoding", "cp1252")
        assert made.code == 0, made.err
        made = cli("scaffold", "shop/items", "--from-table", "public.items")
        assert made.code == 0, made.err
        done = cli("load", "run", "bank/rates", "shop/items")
    assert done.code == 0, done.err
    assert query(database, "SELECT wahrung, rate::text FROM bank.rates ORDER BY 1") == [("EUR", "1.5"), ("SEK", "0.1")]
    assert query(database, "SELECT id, price::text FROM shop.items") == [(7, "2.50")]
    assert "numeric(8,2)" in (cli.root / "assets/shop/items/defs.yaml").read_text()


def test_scaffold_takes_a_file_of_an_sftp_server_whose_files_are_partitions(cli: CommandLine, database: str) -> None:
    served = cli.root.parent / "served"
    (served / "out").mkdir(parents=True)
    for name in ("may", "june"):
        (served / "out" / f"{name}.csv.gz").write_bytes(gzip.compress(f"month,total\n{name},7\n".encode()))
        os.utime(served / "out" / f"{name}.csv.gz", (1, 1))
    with sftp_server(served) as server:
        known = cli.root.parent / ".ssh" / "known_hosts"
        known.parent.mkdir()
        known.write_text(f"[127.0.0.1]:{server.port} {public(server.key)}\n")
        place = {"HOME": str(cli.root.parent), "SFTP_PASSWORD": PASSWORD}
        url = f"sftp://{USER}@127.0.0.1:{server.port}/out/may.csv.gz"
        made = cli("scaffold", "shop/totals", "--from-url", url, **place)
        assert made.code == 0, made.err
        done = cli("load", "run", "shop/totals", "--file", "june.csv.gz", **place)
        assert done.code == 0, done.err
        assert query(database, "SELECT month, total FROM shop.totals") == [("june", 7)]
        done = cli("load", "run", "shop/totals", **place)
    assert done.code == 0, done.err
    assert query(database, "SELECT month FROM shop.totals ORDER BY 1") == [("june",), ("may",)]


def test_verify_reads_landed_files_and_names_one_that_was_changed(cli: CommandLine) -> None:
    assert cli("load", "run", "orders").code == 0
    sound = cli("verify", "--json")
    assert sound.code == 0, sound.err
    assert sound.json == [{"table": "shop/orders", "landed": 1, "problems": [], "intact": True}]
    (landed,) = (file for file in (cli.root / "landing").rglob("*may.csv*") if file.is_file())
    landed.chmod(0o600)
    landed.write_bytes(b"other bytes")
    broken = cli("verify", "orders")
    assert broken.code == 1 and "not what its manifest says" in broken.err and "1 problem" in broken.out


def test_tidy_says_what_would_go_and_asks_before_it_goes(cli: CommandLine) -> None:
    assert cli("load", "run", "orders").code == 0
    looked = cli("tidy", "--dry-run", "--json")
    assert looked.code == 0, looked.err
    assert (looked.json["dry_run"], looked.json["log_events"], looked.json["runs"]) == (True, 0, 0)
    assert looked.json["all_runs"] == 1 and looked.json["events"] > 0
    query(cli.variables["DAGSTER_PG_URL"], "UPDATE runs SET end_time = end_time - 100 * 86400")
    asked = cli("tidy")
    assert asked.code == 1 and "nobody is there to agree" in asked.err
    done = cli("tidy", "--yes", "--json").json
    assert done["log_events"] > 0 and done["runs"] == 0
    assert cli("tidy", "--history-days", "10").code == 1
