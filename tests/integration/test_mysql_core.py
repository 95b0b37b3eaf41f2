"""Export, archive and cleanup of tables of MariaDB, with the proof of each row."""

from __future__ import annotations

import pytest

from tests.support.mysql_tables import MysqlKit, kit, one_catalog
from tests.support.tables import DAY

__all__ = ["kit", "one_catalog"]
pytestmark = pytest.mark.debian


@pytest.fixture
def table(kit: MysqlKit) -> MysqlKit:
    """A hundred rows of a day, in a table with a key."""
    kit.sql(
        "CREATE TABLE t (id BIGINT UNSIGNED PRIMARY KEY AUTO_INCREMENT, at DATETIME(3) NOT NULL, name VARCHAR(50), "
        "amount DECIMAL(10,2)) DEFAULT CHARSET utf8mb4",
        "INSERT INTO t (at, name, amount) SELECT TIMESTAMP('2025-01-01') + INTERVAL seq MINUTE, "
        "IF(seq % 10 = 0, NULL, CONCAT('n, \"', seq, '\" ü')), seq / 4 FROM seq_1_to_100",
    )
    kit.spec = {"table": "t", "time_column": "at"}
    kit.window = DAY
    return kit


def test_what_is_exported_is_deleted_and_can_be_read(table: MysqlKit) -> None:
    record = table.exported()
    assert (record.rows, record.source.engine, record.identity.mode, record.identity.key) == (
        100,
        "mysql",
        "record",
        ("id",),
    )
    assert [column.type for column in record.columns] == [
        "bigint(20) unsigned",
        "datetime(3)",
        "varchar(50)",
        "decimal(10,2)",
    ]
    result = table.cleanup()
    assert (result.deleted, result.late, result.not_exported, result.proof) == (100, 0, 0, "record")
    assert table.rows("SELECT COUNT(*) FROM t") == [0]
    found = table.archived_records()
    assert found[0] == ["1", "2025-01-01 00:01:00.000", 'n, "1" ü', "0.25"]
    assert found[9][2] == ""


def test_rows_that_changed_or_came_stay_and_are_taken_by_the_next_export(table: MysqlKit) -> None:
    table.exported()
    table.sql(
        "UPDATE t SET amount = 99 WHERE id = 7", "INSERT INTO t (id, at, name) VALUES (101, '2025-01-01 12:00', 'late')"
    )
    result = table.cleanup()
    assert (result.deleted, result.late, result.not_exported) == (99, 2, 0)
    assert table.rows("SELECT id FROM t ORDER BY id") == [7, 101]
    assert table.exported().rows == 2
    assert table.cleanup().deleted == 2
