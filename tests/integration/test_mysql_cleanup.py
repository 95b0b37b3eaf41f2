"""What a cleanup of MariaDB deletes, leaves, refuses and reports."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.errors import CleanupRefused, IntegrityError, SourceError, SpecError
from export_pipelines.local import binaries
from export_pipelines.local.mariadb import Server
from export_pipelines.sources.mysql_errors import DENIED
from export_pipelines.sql_mysql import parse_select
from export_pipelines.sql_mysql import select as select_module
from tests.support.mariadb import run_mysql
from tests.support.mysql_tables import MysqlKit, kit, one_catalog
from tests.support.tables import DAY, NEXT_DAY

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian

TABLE = "CREATE TABLE t (id INT PRIMARY KEY, note VARCHAR(50), at DATETIME NOT NULL)"
ROWS = "INSERT INTO t SELECT seq, CONCAT('note ', seq), '2025-01-01 12:00' FROM seq_1_to_5"


@pytest.fixture
def daily(kit: MysqlKit) -> MysqlKit:
    """Rows 1 to 5 of a day, in a table whose statements are derived."""
    kit.sql(TABLE, ROWS)
    kit.spec.update(table="t", time_column="at")
    kit.window = DAY
    return kit


def batched(kit: MysqlKit, rows: int, **more: object) -> None:
    kit.spec["cleanup"] = {"mode": "after_archive", "batch_rows": rows, **more}


def receipts(kit: MysqlKit) -> int:
    return sum(entry.deleted_rows for entry in kit.entries() if entry.kind == "cleanup")


# Keys of all kinds

KEYS = {
    "tinyint": ("TINYINT", ["-128", "-1", "0", "1", "127"]),
    "unsigned bigint": ("BIGINT UNSIGNED", ["0", "9223372036854775807", "9223372036854775808", "18446744073709551615"]),
    "zerofill": ("INT(8) ZEROFILL", ["0", "42", "4294967295"]),
    "decimal": ("DECIMAL(30,10)", ["-1.5", "0", "99999999999999999999.0000000001"]),
    "float": ("FLOAT", ["0.1", "-3.4e38", "1e-30", "16777216"]),
    "double": ("DOUBLE", ["0.1", "1e308", "-2.2250738585072014e-308", "0.30000000000000004"]),
    "bit": ("BIT(10)", ["b'0'", "b'1'", "b'1111111111'", "b'1000000000'"]),
    "date": ("DATE", ["'2025-01-01'", "'0000-00-00'", "'2025-00-00'", "'9999-12-31'"]),
    "datetime": ("DATETIME(6)", ["'2025-01-01 00:00:00.000001'", "'1000-01-01'", "'2025-01-01'"]),
    "timestamp": ("TIMESTAMP(3)", ["'2025-01-01 00:00:00.001'", "'1970-01-01 00:00:01'", "'2025-01-01'"]),
    "time": ("TIME(2)", ["'-838:59:59'", "'00:00:00.01'", "'838:59:59'"]),
    "year": ("YEAR", ["0", "1901", "2155"]),
    "enum": ("ENUM('a','b''c','')", ["'a'", "'b''c'", "''"]),
    "set": ("SET('a','b')", ["''", "'a'", "'a,b'"]),
    "uuid": ("UUID", ["UUID()", "'00000000-0000-0000-0000-000000000000'"]),
    "inet6": ("INET6", ["'::1'", "'fe80::1'", "'::ffff:1.2.3.4'"]),
    "binary": ("BINARY(4)", ["''", "X'0a0d005c'", "X'ffffffff'", "'a'"]),
    "varbinary": ("VARBINARY(40)", ["''", "X'00'", "X'0000'", "'a'", "'a '", "'A'"]),
    "general": (
        "VARCHAR(60) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
        ["''", "'A'", "'b '", "' b'", "'it''s \"it\"'",
         "'line\\nline\\r\\n'", "'back\\\\slash\\\\n'", "'emoji 🦆'", "'%s%%'", "'a,b'"],
    ),
    "no pad": ("VARCHAR(60) COLLATE utf8mb4_nopad_bin", ["'a'", "'a '", "'a\\n'", "'A'", "'\\0'", "'\\\\n'", "'\\n'"]),
    "latin1": ("VARCHAR(60) CHARACTER SET latin1 COLLATE latin1_swedish_ci", ["'a'", "'ö'", "'€'", "'ß'", "''"]),
    "ucs2": ("VARCHAR(60) CHARACTER SET ucs2", ["'a'", "'ö'", "'ж'"]),
    "char": ("CHAR(10)", ["'a'", "'b  '", "''"]),
}  # fmt: skip


@pytest.mark.parametrize("batch_rows", [1, 1000])
@pytest.mark.parametrize("kind", KEYS)
def test_rows_are_known_by_keys_of_each_type(kit: MysqlKit, kind: str, batch_rows: int) -> None:
    column, values = KEYS[kind]
    kit.sql(f"CREATE TABLE t (k {column} NOT NULL, note VARCHAR(9), UNIQUE (k))")
    mode = "SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'"
    kit.sql(mode, *(f"INSERT INTO t VALUES ({value}, 'x')" for value in values))
    kit.spec["table"] = "t"
    batched(kit, batch_rows)
    record = kit.exported()
    assert (record.rows, record.identity.key) == (len(values), ("k",))
    kit.sql(f"UPDATE t SET note = 'changed' WHERE k = {values[-1]}")
    changed = int(kit.rows("SELECT COUNT(*) FROM t WHERE note = 'changed'")[0])
    assert kit.plan().would_delete == len(values) - changed
    result = kit.cleanup()
    assert (result.deleted, result.late, result.not_exported) == (len(values) - changed, changed, 0)
    assert kit.rows("SELECT COUNT(*) FROM t") == [changed]
    kit.exported()
    assert kit.cleanup().complete
    assert kit.rows("SELECT COUNT(*) FROM t") == [0]


def test_composite_keys_of_several_types_and_charsets(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (a VARCHAR(20) CHARACTER SET latin1, b DATE, c VARBINARY(5), d INT, v TEXT, "
        "PRIMARY KEY (d, a, b, c))",
        "INSERT INTO t SELECT CONCAT('ö,\"', seq % 7), DATE('2025-01-01') + INTERVAL seq % 5 DAY, CHAR(seq % 11), "
        "seq, 'v' "
        "FROM seq_1_to_300",
    )
    kit.spec["table"] = "t"
    batched(kit, 70)
    assert kit.exported().identity.key == ("d", "a", "b", "c")
    kit.sql("UPDATE t SET c = 'new' WHERE d = 9", "DELETE FROM t WHERE d = 10", "UPDATE t SET v = 'w' WHERE d = 11")
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 297
    assert (result.late, result.not_exported, result.batches) == (2, 0, 5)
    assert kit.rows("SELECT d FROM t ORDER BY d") == [9, 11]
    assert receipts(kit) == 297


def test_a_key_that_changed_in_case_alone_is_another_row(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (k VARCHAR(9) PRIMARY KEY) COLLATE utf8mb4_general_ci", "INSERT INTO t VALUES ('a'), ('b')")
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("UPDATE t SET k = 'A' WHERE k = 'a'")
    assert kit.cleanup().deleted == 1
    assert kit.rows("SELECT k FROM t") == ["A"]


def test_a_key_whose_trailing_spaces_changed_is_another_row(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (k VARCHAR(9) PRIMARY KEY)", "INSERT INTO t VALUES ('a'), ('b')")
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("UPDATE t SET k = 'a  ' WHERE k = 'a'")
    assert kit.cleanup().deleted == 1
    assert kit.rows("SELECT k FROM t") == ["a  "]


def test_unique_keys_with_nulls_or_prefixes_are_no_keys(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (a INT NULL UNIQUE, b VARCHAR(50) NOT NULL, UNIQUE (b(2)))",
        "INSERT INTO t VALUES (NULL, 'ab1'), (NULL, 'cd2'), (3, 'ef')",
    )
    kit.spec["table"] = "t"
    assert kit.exported().identity.key == ()
    assert kit.cleanup().deleted == 3


def test_a_key_that_was_dropped_since_the_export_proves_nothing(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql("ALTER TABLE t DROP PRIMARY KEY", "INSERT INTO t SELECT * FROM t WHERE id = 1")
    with pytest.raises(CleanupRefused, match="no unique index") as error:
        daily.cleanup()
    assert "export the partition again" in error.value.hint
    assert daily.rows() == [1, 1, 2, 3, 4, 5]
    daily.exported()
    assert daily.cleanup().deleted == 6


def test_names_of_keys_may_have_any_sign(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE `t` (`k%s ``ö` INT PRIMARY KEY, `a b` INT)", "INSERT INTO t VALUES (1, 2), (3, 4)")
    kit.spec["table"] = "t"
    kit.exported()
    assert kit.cleanup().deleted == 2


# Without a key


def test_equal_rows_go_as_often_as_they_are_archived(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (note TEXT, n INT)", "INSERT INTO t VALUES ('a', 1), ('a', 1), (NULL, NULL), ('b', 2)")
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("INSERT INTO t VALUES ('a', 1), (NULL, NULL), ('c', 3)")
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 4
    assert (result.late + result.not_exported, result.complete) == (3, False)
    assert sorted(kit.rows("SELECT COALESCE(note, '-') FROM t")) == ["-", "a", "c"]
    assert kit.exported().rows == 3
    assert kit.cleanup().complete
    assert len(kit.restored(columns="COALESCE(n, 0)")) == 7


@pytest.mark.parametrize("late", [0, 3, 40])
def test_many_rows_without_a_key_go_in_batches_and_late_ones_stay(kit: MysqlKit, late: int) -> None:
    kit.sql("CREATE TABLE t (n INT, note TEXT)")
    kit.spec["table"] = "t"
    batched(kit, 7)
    kit.sql("INSERT INTO t SELECT seq % 20, 'x' FROM seq_1_to_100")
    kit.exported()
    # Some stand before the others, where they are read first in each transaction.
    kit.sql(
        "CREATE TABLE copy AS SELECT * FROM t",
        "TRUNCATE t",
        *([f"INSERT INTO t SELECT seq + 1000, 'late' FROM seq_1_to_{late}"] if late else []),
        "INSERT INTO t SELECT * FROM copy",
        "INSERT INTO t VALUES (3, 'x')",
    )
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 100
    assert kit.rows("SELECT COUNT(*) FROM t") == [late + 1]
    assert receipts(kit) == 100
    assert kit.cleanup().deleted == 0


def test_an_equal_row_that_came_late_is_not_taken_for_one_of_an_earlier_generation(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (n INT)", "INSERT INTO t VALUES (1), (1)")
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("INSERT INTO t VALUES (2)")
    kit.exported()
    kit.sql("INSERT INTO t VALUES (1)")
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 3
    assert kit.rows("SELECT n FROM t") == [1]
    assert sorted(kit.restored()) == [(1,), (1,), (2,)]
    kit.exported()
    assert kit.cleanup().deleted == 1
    assert sorted(kit.restored()) == [(1,), (1,), (1,), (2,)]


def test_rows_that_only_an_earlier_generation_has_are_deleted_by_it(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (n INT, hidden INT)", "INSERT INTO t VALUES (1, 0), (2, 0), (2, 0)")
    kit.select, kit.delete = "SELECT * FROM t WHERE hidden = 0", "DELETE FROM t"
    kit.exported()
    kit.sql("CREATE TABLE copy AS SELECT * FROM t", "DELETE FROM t WHERE n = 2")
    kit.exported()
    kit.sql("INSERT INTO t SELECT * FROM copy WHERE n = 2")
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 3
    assert len(kit.restored()) == 3


def test_columns_of_all_kinds_prove_rows_without_a_key(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (a BIT(5), b FLOAT, c DOUBLE, d JSON, e BLOB, f POINT, g TIMESTAMP NULL, "
        "h VARCHAR(9) CHARACTER SET utf16, "
        "i DECIMAL(5,2), j YEAR, k TIME(6), l ENUM('x'))",
        "INSERT INTO t VALUES (b'101', 0.1, 0.1, '{\"a\": 1}', X'00ff', POINT(1, 2), '2025-01-01', "
        "'ж', 1.5, 2025, '10:00:00.5', 'x')",
        "INSERT INTO t VALUES (" + ", ".join(["NULL"] * 12) + ")",
        "INSERT INTO t SELECT * FROM t",
    )  # fmt: skip
    kit.spec["table"] = "t"
    assert kit.exported().rows == 4
    kit.sql("UPDATE t SET b = 0.10000001 WHERE b IS NOT NULL LIMIT 1")
    result = kit.cleanup()
    assert (result.deleted, result.late) == (3, 1)


# Ranges, and rows between


@pytest.mark.parametrize("batch_rows", [2, 3, 50_000])
def test_rows_between_that_are_late_or_not_matched_stay(kit: MysqlKit, batch_rows: int) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, kind CHAR(1), note TEXT)")
    kit.sql("INSERT INTO t SELECT seq, IF(seq % 5 = 0, 'k', 'g'), 'x' FROM seq_1_to_60 WHERE seq % 7 > 0")
    kit.select, kit.delete = "SELECT * FROM t", "DELETE FROM t WHERE kind = 'g'"
    batched(kit, batch_rows)
    kit.exported()
    kit.sql("INSERT INTO t VALUES (7, 'g', 'late'), (14, 'k', 'late')", "UPDATE t SET note = 'y' WHERE id = 8")
    kept = kit.rows("SELECT id FROM t WHERE kind = 'k' OR id IN (7, 8) ORDER BY id")
    plan, result = kit.plan(), kit.cleanup()
    assert kit.rows() == kept
    assert plan.would_delete == result.deleted
    assert (result.late, result.not_exported) == (2, 0)


def test_a_dense_range_without_foreign_rows_is_deleted_in_whole(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (id BIGINT PRIMARY KEY)", "INSERT INTO t SELECT CAST(seq AS SIGNED) - 500 FROM seq_1_to_1000"
    )
    kit.spec["table"] = "t"
    batched(kit, 100)
    kit.exported()
    kit.sql("INSERT INTO t VALUES (501), (-500)")
    result = kit.cleanup()
    assert (result.deleted, result.batches, result.late) == (1000, 10, 2)
    assert kit.rows() == [-500, 501]


def test_a_partition_clause_bounds_a_dense_range_too(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (id INT PRIMARY KEY) PARTITION BY LIST (id % 2) "
        "(PARTITION even VALUES IN (0), PARTITION odd VALUES IN (1))",
        "INSERT INTO t SELECT seq FROM seq_1_to_20",
    )
    kit.select, kit.delete = "SELECT * FROM t", "DELETE FROM t PARTITION (even)"
    assert kit.exported().rows == 20
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 10
    assert kit.rows() == list(range(1, 20, 2))


def test_partitioned_tables_are_cleaned_up_like_others(kit: MysqlKit) -> None:
    kit.sql(
        "CREATE TABLE t (id INT, at DATETIME NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE COLUMNS (at) "
        "(PARTITION old VALUES LESS THAN ('2025-01-02'), PARTITION new VALUES LESS THAN MAXVALUE)",
        "INSERT INTO t SELECT seq, TIMESTAMP('2025-01-01') + INTERVAL seq HOUR FROM seq_1_to_40",
    )
    kit.spec.update(table="t", time_column="at")
    kit.window = DAY
    assert kit.exported().rows == 23
    assert kit.cleanup().deleted == 23
    assert kit.rows("SELECT COUNT(*) FROM t") == [17]


# What disagrees, what is late


@pytest.mark.parametrize(
    ("select", "delete", "deleted", "late", "not_exported"),
    [
        ("{0} AND id <> 2", "{0}", 4, 0, 1),
        ("{0}", "{0} AND id <> 2", 4, 0, 0),
        ("{0} AND id > 2", "{0} AND id < 4", 1, 0, 2),
        ("{0}", "DELETE FROM t WHERE at < %(window_end)s + INTERVAL 1 DAY", 5, 0, 1),
        ("{0} ORDER BY id LIMIT 2", "{0}", 2, 2, 1),
        ("{0}", "{0} AND EXISTS (SELECT 1 FROM o WHERE o.id = t.id) # a comment", 2, 0, 0),
        ("{0}", "DELETE FROM t WHERE id = 1 AND at < %(window_end)s OR id = 6 -- all", 1, 0, 1),
    ],
)
def test_where_the_statements_disagree_only_archived_rows_are_deleted(
    kit: MysqlKit, select: str, delete: str, deleted: int, late: int, not_exported: int
) -> None:
    kit.sql(TABLE, ROWS, "INSERT INTO t VALUES (6, 'next day', '2025-01-02 12:00')")
    kit.sql("CREATE TABLE o (id INT)", "INSERT INTO o VALUES (1), (1), (3)")
    where = " WHERE at >= %(window_start)s AND at < %(window_end)s"
    kit.window = DAY
    kit.select = select.format("SELECT * FROM t" + where)
    kit.delete = delete.format("DELETE FROM t" + where)
    kit.exported()
    in_file = {int(row[0]) for row in kit.archived_records()}
    before = set(kit.rows())
    plan, result = kit.plan(), kit.cleanup()
    gone = before - set(kit.rows())
    assert gone <= in_file
    assert (result.deleted, len(gone)) == (deleted, deleted)
    # What LIMIT left out would be in the next export.
    assert (result.late, result.not_exported) in [(late, not_exported), (late + not_exported, 0)]
    assert plan.would_delete == result.deleted
    assert plan.late + plan.not_exported == result.late + result.not_exported


def test_rows_that_others_deleted_are_not_counted(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql("DELETE FROM t WHERE id IN (1, 5)")
    result = daily.cleanup()
    assert (result.deleted, result.late, result.not_exported, result.complete) == (3, 0, 0, True)


def test_another_row_with_the_same_key_stays(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql("DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (1, 'another', '2025-01-01 13:00')")
    result = daily.cleanup()
    assert (result.deleted, result.late) == (4, 1)
    assert daily.rows() == [1]


def test_a_plan_counts_a_row_of_two_generations_once(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql("INSERT INTO t VALUES (6, 'late', '2025-01-01 13:00')")
    daily.exported()
    assert daily.plan().would_delete == 6
    assert daily.cleanup().deleted == 6
    assert len(daily.restored()) == 6


def test_a_second_run_on_the_same_day_adds_a_file_and_destroys_none(daily: MysqlKit) -> None:
    daily.exported()
    assert daily.cleanup().deleted == 5
    second = daily.exported()
    assert (second.rows, second.generation, second.unchanged) == (0, 2, False)
    assert [row[0] for row in daily.restored()] == [1, 2, 3, 4, 5]


def test_shadow_mode_deletes_nothing_and_reports_what_the_plan_does(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql("INSERT INTO t VALUES (6, 'late', '2025-01-01 13:00')", "UPDATE t SET note = 'x' WHERE id = 1")
    plan = daily.plan()
    daily.spec["cleanup"] = "off"
    result = daily.cleanup()
    assert (result.shadow, result.complete, result.would_delete, result.late) == (True, False, 4, 2)
    assert (plan.would_delete, plan.late, plan.not_exported) == (4, 2, 0)
    assert result.matched == len(daily.rows()) == 6


def test_a_hold_refuses_and_says_why(daily: MysqlKit) -> None:
    daily.exported()
    catalog = Catalog(daily.catalog_url)
    catalog.place_hold(daily.table.id, None, "court case 7", "ann")
    catalog.close()
    with pytest.raises(CleanupRefused, match=r"ann.*court case 7"):
        daily.cleanup()
    assert len(daily.rows()) == 5


# Tables that changed


@pytest.mark.parametrize(
    "change",
    [
        "ADD COLUMN extra INT",
        "DROP COLUMN note",
        "RENAME COLUMN note TO remark",
        "MODIFY id BIGINT",
        "MODIFY note VARCHAR(50) CHARACTER SET latin1",
        "MODIFY at DATETIME(3) NOT NULL",
        "MODIFY note VARCHAR(50) AFTER at",
    ],
)
def test_columns_that_were_altered_since_the_export_are_refused(daily: MysqlKit, change: str) -> None:
    daily.exported()
    daily.sql(f"ALTER TABLE t {change}")
    with pytest.raises(CleanupRefused, match="altered since the export") as error:
        daily.cleanup()
    assert "export the partition again" in error.value.hint
    assert len(daily.rows()) == 5
    daily.exported()
    assert daily.cleanup().deleted == 5


@pytest.mark.parametrize("change", ["ENGINE = InnoDB", "ADD INDEX (note)", "COMMENT = 'x'", "ROW_FORMAT = COMPRESSED"])
def test_a_rebuild_that_changes_no_column_changes_nothing(daily: MysqlKit, change: str) -> None:
    daily.exported()
    daily.sql(f"ALTER TABLE t {change}")
    assert daily.cleanup().deleted == 5


def test_rows_of_a_table_that_was_made_anew_are_known_by_their_content(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql(
        "RENAME TABLE t TO old",
        TABLE,
        "INSERT INTO t SELECT * FROM old WHERE id < 4",
        "UPDATE t SET note = 'z' WHERE id = 3",
    )
    assert daily.cleanup().deleted == 2
    assert daily.rows() == [3]


def test_a_table_that_is_gone_is_an_error(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql("DROP TABLE t")
    with pytest.raises(SourceError, match="exist"):
        daily.cleanup()


def test_the_last_row_goes_too_and_its_number_is_not_given_again(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, note TEXT)", "INSERT INTO t (note) VALUES ('a'), ('b')")
    kit.spec["table"] = "t"
    kit.exported()
    assert kit.cleanup().deleted == 2
    kit.sql("INSERT INTO t (note) VALUES ('c')")
    assert kit.rows() == [3]


def test_a_restart_of_the_server_gives_no_number_again(tmp_path: Path) -> None:
    """InnoDB of MariaDB since 10.2.4, and of MySQL since 8.0, keeps the counter on disk."""
    tmp_path.chmod(0o711)
    server = Server(tmp_path, fsync=False, die_with_parent=True)
    try:
        url = server.ensure_running(["d"]).url("d")
        run_mysql(url, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY)")
        run_mysql(url, "INSERT INTO t VALUES (NULL), (NULL)")
        run_mysql(url, "DELETE FROM t")
        server.stop()
        url = server.ensure_running().url("d")
        run_mysql(url, "INSERT INTO t VALUES (NULL)")
        assert run_mysql(url, "SELECT id FROM t") == [(3,)]
    finally:
        server.stop()
        for made in binaries.data_folders(tmp_path):
            binaries.remove(made)


# Side effects

EFFECTS = {
    "trigger": (["CREATE TRIGGER audit BEFORE DELETE ON t FOR EACH ROW INSERT INTO log VALUES (OLD.id)"], 5),
    "after trigger": (["CREATE TRIGGER audit AFTER DELETE ON t FOR EACH ROW INSERT INTO log VALUES (OLD.id)"], 5),
    "cascade": (
        ["CREATE TABLE o (t INT, CONSTRAINT audit FOREIGN KEY (t) REFERENCES t (id) ON DELETE CASCADE)",
         "INSERT INTO o VALUES (1)"],
        5,
    ),
    "set null": (
        ["CREATE TABLE o (t INT, CONSTRAINT audit FOREIGN KEY (t) REFERENCES t (id) ON DELETE SET NULL)",
         "INSERT INTO o VALUES (1)"],
        5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("keyed", [True, False])
def test_what_a_delete_sets_off_is_refused_unless_it_is_named(kit: MysqlKit, effect: str, keyed: bool) -> None:
    statements, deleted = EFFECTS[effect]
    table = TABLE if keyed else TABLE.replace("id INT PRIMARY KEY", "id INT, KEY (id)")
    kit.sql(table, ROWS, "CREATE TABLE log (id INT)", *statements)
    kit.spec["table"] = "t"
    kit.exported()
    assert any("'audit'" in refusal for refusal in kit.plan().refusals)
    with pytest.raises(CleanupRefused, match="'audit'"):
        kit.cleanup()
    assert len(kit.rows()) == 5
    batched(kit, 100, acknowledge=["another"])
    with pytest.raises(CleanupRefused, match="'audit'"):
        kit.cleanup()
    batched(kit, 100, acknowledge=["audit"])
    assert kit.plan().refusals == ()
    assert kit.cleanup().deleted == deleted == 5 - len(kit.rows())


def test_a_trigger_that_fails_stops_the_batch_whole(kit: MysqlKit) -> None:
    kit.sql(TABLE, ROWS)
    kit.sql(
        "CREATE TRIGGER audit BEFORE DELETE ON t FOR EACH ROW "
        "IF OLD.id = 3 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not that one'; END IF"
    )
    kit.spec["table"] = "t"
    batched(kit, 100, acknowledge=["audit"])
    kit.exported()
    with pytest.raises(SourceError, match="not that one"):
        kit.cleanup()
    assert len(kit.rows()) == 5
    assert receipts(kit) == 0


def test_a_foreign_key_of_another_database_is_seen(kit: MysqlKit, mysql_database: str) -> None:
    other = mysql_database.rpartition("/")[2] + "_child ö"
    kit.sql("CREATE TABLE `we-ird tä` (id INT PRIMARY KEY)", "INSERT INTO `we-ird tä` VALUES (1)")
    here = kit.rows("SELECT DATABASE()")[0]
    kit.sql(
        f"CREATE DATABASE `{other}`",
        f"CREATE TABLE `{other}`.o (t INT, "
        f"CONSTRAINT gone FOREIGN KEY (t) REFERENCES `{here}`.`we-ird tä` (id) ON DELETE CASCADE)",
    )
    try:
        kit.spec["table"] = "`we-ird tä`"
        kit.exported()
        with pytest.raises(CleanupRefused, match="'gone'"):
            kit.cleanup()
        assert kit.rows("SELECT id FROM `we-ird tä`") == [1]
    finally:
        kit.sql(f"DROP DATABASE `{other}`")


@pytest.mark.parametrize("batch_rows", [2, 100])
def test_a_foreign_key_that_forbids_the_delete_stops_its_batch_whole(kit: MysqlKit, batch_rows: int) -> None:
    kit.sql(TABLE, ROWS, "CREATE TABLE o (t INT, FOREIGN KEY (t) REFERENCES t (id))", "INSERT INTO o VALUES (4)")
    kit.spec["table"] = "t"
    batched(kit, batch_rows)
    kit.exported()
    with pytest.raises(SourceError, match="foreign key") as error:
        kit.cleanup()
    assert not error.value.transient
    assert "refer" in error.value.hint
    assert kit.rows() == ([3, 4, 5] if batch_rows == 2 else [1, 2, 3, 4, 5])
    kit.sql("DROP TABLE o")
    assert kit.cleanup().complete
    assert receipts(kit) == 5


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("CREATE TABLE t (id INT PRIMARY KEY) ENGINE = MyISAM", "MyISAM"),
        ("CREATE TABLE t (id INT PRIMARY KEY) ENGINE = Aria", "Aria"),
        ("CREATE VIEW t AS SELECT id FROM base", "view"),
    ],
)
def test_what_has_no_transactions_or_no_rows_of_its_own_is_refused(kit: MysqlKit, kind: str, reason: str) -> None:
    kit.sql("CREATE TABLE base (id INT PRIMARY KEY)", "INSERT INTO base VALUES (1)", kind)
    if "VIEW" not in kind:
        kit.sql("INSERT INTO t VALUES (1)")
    kit.spec["table"] = "t"
    assert kit.exported().rows == 1
    with pytest.raises(CleanupRefused, match=reason):
        kit.cleanup()
    assert kit.rows() == [1]


def test_a_table_that_lost_its_transactions_since_the_export_is_refused(daily: MysqlKit) -> None:
    daily.exported()
    daily.sql("ALTER TABLE t ENGINE = MyISAM")
    with pytest.raises(CleanupRefused, match="MyISAM"):
        daily.cleanup()
    assert len(daily.rows()) == 5


# Functions in delete.sql

WRITES = "BEGIN IF n > 10 THEN INSERT INTO log VALUES (n); END IF; RETURN 1; END"


@pytest.mark.parametrize("declared", ["", "READS SQL DATA", "DETERMINISTIC", "MODIFIES SQL DATA"])
@pytest.mark.parametrize("where", ["f(id) = 1", "`F` (id) = 1", "g(id) = 1", "1 IN (SELECT n FROM v)"])
def test_a_function_that_writes_is_refused_in_delete_sql(kit: MysqlKit, declared: str, where: str) -> None:
    kit.sql(
        TABLE,
        ROWS,
        "CREATE TABLE log (id INT)",
        f"CREATE FUNCTION f(n INT) RETURNS INT {declared} {WRITES}",
        "CREATE FUNCTION g(n INT) RETURNS INT READS SQL DATA RETURN f(n)",
        "CREATE VIEW v AS SELECT g(id) AS n FROM t",
    )
    kit.select, kit.delete = "SELECT * FROM t", f"DELETE FROM t WHERE {where}"
    kit.exported()
    for step in (kit.cleanup, kit.plan):
        with pytest.raises((CleanupRefused, SourceError)):
            step()
    assert (kit.rows(), kit.rows("SELECT COUNT(*) FROM log")) == ([1, 2, 3, 4, 5], [0])


@pytest.mark.parametrize("name", ["{0}", "{1}.{0}", "`{1}` . `{0}`"])
def test_a_function_counts_as_reading_only_if_somebody_says_so(kit: MysqlKit, name: str) -> None:
    """RELEASE_ALL_LOCKS would let a second cleanup in; to the server it is no writing."""
    kit.sql(TABLE, ROWS, "CREATE FUNCTION frees(n INT) RETURNS INT RETURN n + RELEASE_ALL_LOCKS() * 0")
    called = name.format("frees", kit.rows("SELECT DATABASE()")[0])
    kit.select, kit.delete = "SELECT * FROM t", f"DELETE FROM t WHERE {called}(id) > 0"
    kit.exported()
    for step in (kit.cleanup, kit.plan):
        with pytest.raises(CleanupRefused, match=r"calls .*\.frees, which may do more than read"):
            step()
    kit.sql("ALTER FUNCTION frees READS SQL DATA")
    assert kit.cleanup().deleted == 5


# The archive is not what it was


@pytest.mark.parametrize("what", ["csv.gz", "identities.zst"])
@pytest.mark.parametrize("keyed", [True, False])
def test_nothing_is_deleted_when_the_archive_is_not_what_it_was(kit: MysqlKit, what: str, keyed: bool) -> None:
    kit.sql(TABLE if keyed else TABLE.replace(" PRIMARY KEY", ""), ROWS)
    kit.spec["table"] = "t"
    kit.exported()
    path: Path = next(kit.folder.glob(f"archive/**/*.{what}"))
    path.chmod(0o600)
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(IntegrityError):
        kit.cleanup()
    assert len(kit.rows()) == 5


# Cumulative windows, opaque queries

SUPERSEDED = (
    "t.updated_at < %(export_boundary)s AND EXISTS (SELECT 1 FROM (SELECT * FROM t) AS newer "
    "WHERE newer.base_id = t.base_id AND newer.updated_at > t.updated_at)"
)


@pytest.fixture(params=["keyed", "keyless"])
def versions(kit: MysqlKit, request: pytest.FixtureRequest) -> MysqlKit:
    """Versioned rows: 1 and 2 have two versions on the first day, 3 has one."""
    key = ", PRIMARY KEY (base_id, updated_at)" if request.param == "keyed" else ""
    kit.sql(
        f"CREATE TABLE t (base_id INT, updated_at DATETIME, note TEXT{key})",
        "INSERT INTO t VALUES (1, '2025-01-01 01:00', 'a'), (1, '2025-01-01 02:00', 'b'), "
        "(2, '2025-01-01 01:00', 'a'), (2, '2025-01-01 03:00', 'b'), (3, '2025-01-01 01:00', 'a')",
    )
    kit.select, kit.delete = f"SELECT * FROM t WHERE {SUPERSEDED}", f"DELETE FROM t WHERE {SUPERSEDED}"
    kit.spec["cumulative"] = True
    kit.window = DAY
    return kit


def test_the_newest_version_stays_and_a_superseded_one_waits_for_its_export(versions: MysqlKit) -> None:
    assert versions.exported().rows == 2
    versions.sql("INSERT INTO t VALUES (3, '2025-01-01 05:00', 'b')")
    plan, result = versions.plan(), versions.cleanup()
    assert plan.would_delete == result.deleted == 2
    assert (result.late, result.not_exported) == (1, 0)
    assert versions.exported(NEXT_DAY).rows == 1
    assert versions.cleanup(NEXT_DAY).deleted == 1
    assert versions.rows("SELECT base_id, note FROM t ORDER BY base_id") == [(1, "b"), (2, "b"), (3, "b")]


def test_rows_of_an_earlier_cumulative_partition_are_not_written_again(versions: MysqlKit) -> None:
    versions.exported()
    versions.sql("INSERT INTO t VALUES (3, '2025-01-02 05:00', 'b'), (3, '2025-01-02 06:00', 'c')")
    assert versions.exported(NEXT_DAY).rows == 2
    assert sorted(row[0] for row in versions.archived_records()) == ["1", "2", "3", "3"]
    plan, result = versions.plan(NEXT_DAY), versions.cleanup(NEXT_DAY)
    assert plan.would_delete == result.deleted == 4
    assert result.complete
    assert len(versions.restored()) == 4


def test_opaque_queries_are_proved_by_key(kit: MysqlKit) -> None:
    kit.sql(TABLE, ROWS, "CREATE TABLE o (id INT, v INT)", "INSERT INTO o VALUES (1, 1), (1, 2), (2, 3), (3, NULL)")
    kit.select = "SELECT t.id, SUM(o.v) AS total FROM t JOIN o ON o.id = t.id GROUP BY t.id"
    kit.delete = "DELETE FROM t"
    record = kit.exported()
    assert (record.identity.mode, record.identity.key, record.rows) == ("key", ("id",), 3)
    kit.sql("UPDATE t SET note = 'changed' WHERE id = 2")
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 2
    assert (result.late, result.not_exported) == (1, 2)
    assert kit.rows() == [2, 4, 5]


@pytest.mark.parametrize(
    ("select", "why"),
    [
        ("SELECT note, COUNT(*) AS n FROM t GROUP BY note", "not in the file"),
        ("SELECT DISTINCT id + 0 AS id, note FROM t", "not plainly those"),
        ("SELECT id, note FROM t UNION SELECT id, note FROM t", "not plainly those"),
    ],
)
def test_opaque_queries_without_the_key_prove_nothing(kit: MysqlKit, select: str, why: str) -> None:
    kit.sql(TABLE, ROWS)
    kit.select, kit.delete = select, "DELETE FROM t"
    assert kit.exported().identity.mode == "none"
    with pytest.raises(CleanupRefused, match=why):
        kit.cleanup()
    assert len(kit.rows()) == 5


def test_a_declared_key_that_no_index_vouches_for_proves_nothing(kit: MysqlKit) -> None:
    kit.sql(TABLE, ROWS)
    kit.select, kit.delete = "SELECT DISTINCT note FROM t", "DELETE FROM t"
    kit.spec["key"] = ["note"]
    kit.exported()
    with pytest.raises(CleanupRefused, match="no unique index"):
        kit.cleanup()


def test_a_row_behind_several_records_of_a_join_is_deleted_once(kit: MysqlKit) -> None:
    kit.sql(TABLE, ROWS)
    kit.sql("CREATE TABLE o (n INT)", "INSERT INTO o VALUES (1), (2)")
    kit.select, kit.delete = "SELECT t.*, o.n FROM t, o", "DELETE FROM t"
    batched(kit, 3)
    assert kit.exported().rows == 10
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 5
    assert kit.rows() == []


@pytest.mark.parametrize("exported_before_this_was_known", [True, False])
def test_records_of_a_join_prove_no_row_without_a_key(
    kit: MysqlKit, monkeypatch: pytest.MonkeyPatch, exported_before_this_was_known: bool
) -> None:
    """Two records of one row would prove an equal row that came late."""
    kit.sql("CREATE TABLE t (id INT)", "INSERT INTO t VALUES (1)", "CREATE TABLE o (n INT)")
    kit.sql("INSERT INTO o VALUES (1), (2)")
    kit.select, kit.delete = "SELECT t.*, o.n FROM t, o", "DELETE FROM t"
    with monkeypatch.context() as patch:
        if exported_before_this_was_known:
            patch.setattr(select_module, "_repeats", lambda tree: False)
            parse_select.cache_clear()
        assert kit.exported().identity.mode == ("record" if exported_before_this_was_known else "none")
    parse_select.cache_clear()
    kit.sql("INSERT INTO t VALUES (1)")
    with pytest.raises(CleanupRefused, match="has no key"):
        kit.cleanup()
    assert kit.rows() == [1, 1]


def test_a_name_that_is_a_table_and_a_derived_table_proves_no_row_by_another(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, note VARCHAR(9))", "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    kit.select = "SELECT t.* FROM t AS x JOIN (SELECT 3 - id AS id, note FROM t LIMIT 9) AS t ON t.id = x.id"
    kit.delete = "DELETE FROM t WHERE id = 1"
    assert kit.exported().rows == 2
    assert kit.cleanup().deleted == 1
    assert kit.rows() == [2]


# Masks, zones


@pytest.mark.parametrize("keyed", [True, False])
def test_a_column_that_is_masked_or_left_out_counts_all_the_same(kit: MysqlKit, keyed: bool) -> None:
    key = ", PRIMARY KEY (id)" if keyed else ""
    kit.sql(f"CREATE TABLE t (id INT, email TEXT, secret TEXT, `per%cent` TEXT{key})")
    kit.sql("INSERT INTO t SELECT seq, CONCAT(seq, '@x'), 's', 'p' FROM seq_1_to_5")
    kit.spec.update(table="t", mask_columns={"email": "MD5(email)"}, exclude_columns=["secret"])
    kit.exported()
    kit.sql("UPDATE t SET email = 'other' WHERE id = 1", "UPDATE t SET secret = 'other' WHERE id = 2")
    plan, result = kit.plan(), kit.cleanup()
    assert plan.would_delete == result.deleted == 3
    assert (result.late, kit.rows()) == (2, [1, 2])
    assert not any("@" in value for record in kit.archived_records() for value in record)


def test_a_column_that_the_account_may_not_see_is_an_error(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, note TEXT)", "INSERT INTO t VALUES (1, 'a')")
    kit.spec["table"] = "t"
    user, url = f"u{os.urandom(4).hex()}", urlsplit(kit.database)
    database, owner = url.path.strip("/"), kit.database
    kit.sql(
        f"CREATE USER {user}@'%' IDENTIFIED BY 'x'",
        *(f"GRANT {right} ON {database}.t TO {user}@'%'" for right in ("SELECT (id, note)", "DELETE", "TRIGGER")),
        f"GRANT PROCESS ON *.* TO {user}@'%'",
    )
    try:
        kit.database = f"mysql://{user}:x@{url.hostname}:{url.port}/{database}"
        kit.exported()
        run_mysql(owner, "ALTER TABLE t ADD secret TEXT DEFAULT 'in no file'")
        with pytest.raises(SourceError) as error:
            kit.cleanup()
        assert error.value.code in DENIED
    finally:
        kit.database = owner
        kit.sql(f"DROP USER {user}@'%'")
    assert kit.rows() == [1]


def test_a_column_to_mask_that_is_missing_is_an_error(kit: MysqlKit) -> None:
    kit.sql(TABLE)
    kit.spec.update(table="t", exclude_columns=["secret"])
    with pytest.raises(SpecError, match="secret"):
        kit.export()


def test_an_invisible_column_that_no_file_has_counts_all_the_same(kit: MysqlKit) -> None:
    kit.sql("CREATE TABLE t (id INT PRIMARY KEY, hidden INT INVISIBLE DEFAULT 7)", "INSERT INTO t (id) VALUES (1), (2)")
    kit.spec["table"] = "t"
    assert [column.name for column in kit.exported().columns] == ["id"]
    kit.sql("UPDATE t SET hidden = 8 WHERE id = 2")
    assert kit.cleanup().deleted == 1
    assert kit.rows() == [2]
