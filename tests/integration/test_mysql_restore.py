"""Restore into MariaDB: rows come back each once, among rows that are there already too, or nothing does."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import RequestError, TargetError
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.drill import drill
from export_pipelines.steps.merge import OnConflict
from export_pipelines.steps.pieces import Archived, Choice
from export_pipelines.steps.restore import RestoreResult, restore_table
from export_pipelines.stores import open_store
from tests.support.mariadb import mysql_connection
from tests.support.mysql_tables import MysqlKit, kit, one_catalog
from tests.support.servers import run_sql
from tests.support.step_tables import new_step_table

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian

ROWS = [(1, "a", b"\x00\xff"), (2, "ä", None), (3, None, b"")]


@pytest.fixture
def table(kit: MysqlKit) -> MysqlKit:
    """Three archived rows of table t."""
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, note VARCHAR(50), data BLOB)",
        "INSERT INTO t VALUES (1, 'a', X'00FF'), (2, 'ä', NULL), (3, NULL, '')",
    )
    kit.spec = {"table": "t"}
    kit.exported()
    return kit


def restore(kit: MysqlKit, into: str, policy: str = "fail", **more: Any) -> RestoreResult:
    archived = Archived(open_store((kit.folder / "archive").as_uri()), kit.table.id)
    target = MysqlSource(kit.database)
    return restore_table(archived, Choice(), target, into, on_conflict=OnConflict(policy), **more)


def tables(kit: MysqlKit) -> list[Any]:
    return [name for (name,) in kit.sql("SHOW TABLES")]


def test_a_table_that_is_missing_is_made(table: MysqlKit) -> None:
    assert restore(table, "back") == RestoreResult(3, True, ("snapshot",), 1, 3)
    assert table.sql("SELECT * FROM back ORDER BY id") == ROWS


@pytest.mark.parametrize("name", ["Back", "`a b``c`", "{database}.`x`"])
def test_the_target_is_named_as_mysql_names_tables(table: MysqlKit, name: str) -> None:
    name = name.format(database=table.database.rpartition("/")[2])
    restore(table, name)
    assert table.sql(f"SELECT COUNT(*) FROM {name}") == [(3,)]


@pytest.mark.parametrize("name", ["a.b.c", "", "a; DROP TABLE t"])
def test_what_is_no_name_is_an_error(table: MysqlKit, name: str) -> None:
    with pytest.raises(RequestError, match="no name"):
        restore(table, name)


def test_a_table_with_the_key_takes_an_auto_increment_of_zero(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT)", "SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'",
        "INSERT INTO t VALUES (0), (5)",
    )  # fmt: skip
    kit.spec = {"table": "t"}
    kit.exported()
    kit.sql("CREATE TABLE back LIKE t")
    assert not restore(kit, "back").created
    assert kit.sql("SELECT id FROM back") == [(0,), (5,)]


def test_rows_that_are_there_already_are_an_error(table: MysqlKit) -> None:
    table.sql("UPDATE t SET note = 'A' WHERE id = 1", "DELETE FROM t WHERE id = 3")
    with pytest.raises(TargetError, match=r"2 of 3 rows .* already, 1 of them with other values"):
        restore(table, "t")
    assert table.sql("SELECT id, note FROM t") == [(1, "A"), (2, "ä")]


@pytest.mark.parametrize(
    ("policy", "note", "result"),
    [
        ("skip", "A", RestoreResult(3, False, ("snapshot",), 1, 1, 2, 0, 1, ("id",))),
        ("replace", "a", RestoreResult(3, False, ("snapshot",), 1, 1, 1, 1, 1, ("id",))),
    ],
)
def test_rows_of_the_same_key_are_skipped_or_replaced(
    table: MysqlKit, policy: str, note: str, result: RestoreResult
) -> None:
    # Only equal to the collation.
    table.sql(
        "UPDATE t SET note = 'A' WHERE id = 1", "DELETE FROM t WHERE id = 3", "INSERT INTO t VALUES (9, 'other', '')"
    )
    assert restore(table, "t", policy) == result
    assert table.sql("SELECT id, note FROM t ORDER BY id") == [(1, note), (2, "ä"), (3, None), (9, "other")]
    again = restore(table, "t", policy)
    assert (again.inserted, again.skipped, again.differing) == (0, 3, 1 if policy == "skip" else 0)


@pytest.mark.parametrize("column", ["data", "note"])
def test_a_difference_of_one_byte_is_a_difference(table: MysqlKit, column: str) -> None:
    table.sql(f"UPDATE t SET {column} = IF({column} IS NULL, '', NULL) WHERE id IN (2, 3)")
    assert restore(table, "t", "skip").differing == 2
    assert restore(table, "t", "replace").replaced == 2
    assert table.sql("SELECT * FROM t ORDER BY id") == ROWS


def test_every_type_is_compared_byte_for_byte(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY, f FLOAT, d DOUBLE, b BIT(9), g GEOMETRY, t DATETIME(6), e ENUM('x','y'), "
        "j JSON, u UUID, n DECIMAL(20,10), y YEAR)",
        "INSERT INTO t SELECT seq, 0.1, 0.1e0, b'11', POINT(1,2), '2024-01-01', 'x', '{\"a\": 1}', UUID(), 1.5, 2000 "
        "FROM seq_1_to_11",
    )
    kit.exported()
    kit.sql(
        "UPDATE t SET f = 0.10000001e0 WHERE id = 1", "UPDATE t SET d = 0.1e0 + 2e-17 WHERE id = 2",
        "UPDATE t SET b = b'10' WHERE id = 3", "UPDATE t SET g = ST_GeomFromText('POINT(1 2)', 4326) WHERE id = 4",
        "UPDATE t SET t = '2024-01-01 00:00:00.000001' WHERE id = 5", "UPDATE t SET e = 'y' WHERE id = 6",
        "UPDATE t SET j = '{\"a\":1}' WHERE id = 7", "UPDATE t SET u = UUID() WHERE id = 8",
        "UPDATE t SET n = 1.5000000001 WHERE id = 9", "UPDATE t SET y = NULL WHERE id = 10",
    )  # fmt: skip
    assert restore(kit, "t", "replace").replaced == 10
    assert restore(kit, "t", "skip").differing == 0


def test_a_table_with_rows_and_no_key_is_refused(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql("CREATE TABLE t (note TEXT)", "INSERT INTO t VALUES ('a'), ('a'), (NULL)")
    kit.exported()
    with pytest.raises(TargetError, match="no unique index"):
        restore(kit, "t")
    kit.sql("DELETE FROM t")
    assert restore(kit, "t").rows == 3
    assert kit.sql("SELECT note, COUNT(*) FROM t GROUP BY note ORDER BY note") == [(None, 1), ("a", 2)]


def test_a_declared_key_tells_rows_apart(table: MysqlKit) -> None:
    table.sql("CREATE TABLE back (id INT, note TEXT, data BLOB)", "INSERT INTO back VALUES (1, 'x', '')")
    assert restore(table, "back", "replace", key=("id",)).replaced == 1
    assert table.sql("SELECT * FROM back ORDER BY id") == ROWS


def test_a_key_of_text_needs_no_index(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql("CREATE TABLE t (name TEXT, n INT)", "INSERT INTO t VALUES ('a', 1), ('b', 2)")
    kit.exported()
    kit.sql("UPDATE t SET n = 3 WHERE name = 'a'", "DELETE FROM t WHERE name = 'b'")
    assert restore(kit, "t", "replace", key=("name",)).inserted == 1
    assert kit.sql("SELECT * FROM t ORDER BY n") == [("a", 1), ("b", 2)]


def test_keys_that_are_the_same_to_the_collation_are_refused(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql("CREATE TABLE t (name VARCHAR(9) COLLATE utf8mb4_bin PRIMARY KEY)", "INSERT INTO t VALUES ('a'), ('A')")
    kit.exported()
    kit.sql(
        "CREATE TABLE back (name VARCHAR(9) COLLATE utf8mb4_general_ci PRIMARY KEY)", "INSERT INTO back VALUES ('a')"
    )
    with pytest.raises(TargetError, match="the same values"):
        restore(kit, "back", "replace")


def test_a_load_that_fails_leaves_no_table(table: MysqlKit, monkeypatch: pytest.MonkeyPatch) -> None:
    [entry] = table.entries()
    file = Path(table.folder / "archive" / entry.file.key)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Exception, match=r"manifest says|gzip"):
        restore(table, "back")
    assert tables(table) == ["t"]


def test_a_load_that_fails_leaves_an_existing_table_as_it_was(table: MysqlKit) -> None:
    table.sql("CREATE TABLE back (id INT, note VARCHAR(1), data BLOB NOT NULL)")
    with pytest.raises(TargetError, match="cannot be null"):
        restore(table, "back")
    assert table.sql("SELECT COUNT(*) FROM back") == [(0,)]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("CREATE TABLE back (id INT, note TEXT, data BLOB) ENGINE = MyISAM", "no transactions"),
        ("CREATE VIEW back AS SELECT * FROM t", "is a view"),
        ("CREATE TABLE back (id INT, note TEXT)", r"no columns \['data'\]"),
    ],
)
def test_a_target_that_is_not_fit_is_refused(table: MysqlKit, made: str, message: str) -> None:
    table.sql(made)
    with pytest.raises(TargetError, match=message):
        restore(table, "back")


def test_columns_are_found_whatever_their_case(table: MysqlKit) -> None:
    table.sql(
        "CREATE TABLE back (ID INT PRIMARY KEY, NOTE TEXT, DATA BLOB, more INT)", "INSERT INTO back (ID) VALUES (1)"
    )
    assert restore(table, "back", "replace").key == ("id",)
    assert table.sql("SELECT ID, NOTE, DATA FROM back ORDER BY ID") == ROWS


def test_a_trigger_that_changes_values_is_noticed(table: MysqlKit) -> None:
    table.sql(
        "CREATE TABLE back LIKE t", "CREATE TRIGGER x BEFORE INSERT ON back FOR EACH ROW SET NEW.note = 'changed'"
    )
    with pytest.raises(TargetError, match="stores 3 rows with other values"):
        restore(table, "back")
    assert table.sql("SELECT COUNT(*) FROM back") == [(0,)]


@pytest.mark.parametrize("filled", [True, False])
def test_a_null_never_becomes_the_present_time(kit: MysqlKit, filled: bool) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, at TIMESTAMP NULL)", "INSERT INTO t VALUES (1, NULL)")
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("CREATE TABLE back (id INT PRIMARY KEY, at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)")
    rows = [(2, datetime(2025, 1, 1))] if filled else []
    kit.sql(*(f"INSERT INTO back VALUES ({id}, '{at}')" for id, at in rows))
    with pytest.raises(TargetError, match="TIMESTAMP NOT NULL"):
        restore(kit, "back")
    assert kit.sql("SELECT * FROM back") == rows


def test_generated_columns_are_computed_and_compared(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql("CREATE TABLE t (id INT, twice INT AS (id * 2) STORED)", "INSERT INTO t (id) VALUES (1), (2), (2)")
    kit.exported()
    kit.sql("CREATE TABLE back LIKE t", "CREATE TABLE other (id INT, twice INT AS (id * 3) VIRTUAL)")
    assert restore(kit, "back").rows == 3
    assert kit.sql("SELECT * FROM back ORDER BY id") == [(1, 2), (2, 4), (2, 4)]
    with pytest.raises(TargetError, match="stores 3 rows with other values"):
        restore(kit, "other")


def test_nobody_writes_into_an_empty_target_meanwhile(table: MysqlKit, monkeypatch: pytest.MonkeyPatch) -> None:
    table.sql("CREATE TABLE back LIKE t")
    from export_pipelines.steps import restore_mysql

    load, seen = restore_mysql.load, []

    def interrupted(*given: Any) -> int:
        with closing(mysql_connection(table.database)) as other, other.cursor() as cursor:
            cursor.execute("SET innodb_lock_wait_timeout = 1")
            try:
                cursor.execute("INSERT INTO back VALUES (99, '', '')")
            except Exception as error:
                seen.append(error.args[0])
        return load(*given)

    monkeypatch.setattr(restore_mysql, "load", interrupted)
    restore(table, "back")
    assert seen == [1205]
    assert table.sql("SELECT * FROM back ORDER BY id") == ROWS


def test_a_foreign_key_without_its_row_is_one_clear_error(table: MysqlKit) -> None:
    table.sql(
        "CREATE TABLE parent (id INT PRIMARY KEY)",
        "CREATE TABLE back (id INT, note TEXT, data BLOB, FOREIGN KEY (id) REFERENCES parent (id))",
    )
    with pytest.raises(TargetError, match="foreign key constraint") as raised:
        restore(table, "back")
    assert "restore those first" in raised.value.hint


def test_rows_of_several_files_come_back_each_once(table: MysqlKit) -> None:
    assert table.cleanup().deleted == 3
    table.sql("INSERT INTO t VALUES (4, 'new', NULL)")
    table.exported()
    assert restore(table, "back").rows == 4
    assert table.sql("SELECT id FROM back ORDER BY id") == [(1,), (2,), (3,), (4,)]
    assert restore(table, "t", "skip").inserted == 3


def test_many_rows_are_loaded_by_many_statements(kit: MysqlKit) -> None:
    kit.spec = {"table": "t"}
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY, note VARCHAR(200))",
        "INSERT INTO t SELECT seq, REPEAT(CONCAT(seq, '\"\\n'), seq % 9) FROM seq_1_to_50000",
    )
    kit.exported()
    assert restore(kit, "back").rows == 50000
    checked = "SELECT COUNT(*), SUM(CRC32(CONCAT(id, note))) FROM {}"
    assert kit.sql(checked.format("back")) == kit.sql(checked.format("t"))


def test_an_archive_of_postgresql_is_refused(kit: MysqlKit, tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE t (id int PRIMARY KEY)")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "t"})
    table.into_archive()
    with pytest.raises(TargetError, match="exported from PostgreSQL"):
        restore_table(table.archived(), Choice(), MysqlSource(kit.database), "back")
    assert tables(kit) == []


def test_the_statement_beside_the_file_makes_the_table_and_loads_it(table: MysqlKit) -> None:
    [entry] = table.entries()
    folder = Path(table.folder / "archive" / entry.file.key).parent
    [script] = folder.glob("*.sql")
    lines = script.read_text().splitlines()
    file = table.folder / "file.csv"
    file.write_bytes(
        b"".join(Archived(open_store((table.folder / "archive").as_uri()), table.table.id).raw(entry, print))
    )
    load = next(line.removeprefix("-- ") for line in lines if line.startswith("-- LOAD DATA LOCAL"))
    body = "\n".join(line for line in lines if not line.startswith("--"))
    with closing(mysql_connection(table.database, local_infile=True)) as connection, connection.cursor() as cursor:
        for statement in [*filter(str.strip, body.split(";\n")), load.replace("'file.csv'", f"'{file}'")]:
            cursor.execute(statement)
        cursor.execute(f"SELECT * FROM `{table.name}` ORDER BY id")
        # LOAD DATA cannot tell an empty string from NULL.
        assert cursor.fetchall() == tuple(ROWS)


def test_a_drill_reads_back_the_same_bytes(table: MysqlKit) -> None:
    archived = Archived(open_store((table.folder / "archive").as_uri()), table.table.id)
    result = drill(archived, MysqlSource(table.database))
    assert (result.rows, result.files, result.same_bytes) == (3, 1, True)
    assert tables(table) == ["t"]


def test_a_drill_of_several_generations_reads_back_what_is_left_of_each(table: MysqlKit) -> None:
    assert table.cleanup().deleted == 3
    table.sql("INSERT INTO t VALUES (4, 'new', NULL)")
    table.exported()
    archived = Archived(open_store((table.folder / "archive").as_uri()), table.table.id)
    assert drill(archived, MysqlSource(table.database)).rows == 4


def test_a_drill_in_postgresql_is_refused(table: MysqlKit, database: str) -> None:
    archived = Archived(open_store((table.folder / "archive").as_uri()), table.table.id)
    with pytest.raises(RequestError, match="exported from mysql"):
        drill(archived, PostgresSource(database))
