"""What a statement may do on a real server: read, and delete the rows of one table, within bounds."""

from __future__ import annotations

import pytest

from export_pipelines.errors import CleanupRefused, SourceError, SpecError
from tests.support.tables import DAY, Kit

TABLE = "CREATE TABLE t (id int PRIMARY KEY, note text, at timestamptz)"
ROWS = "INSERT INTO t SELECT i, 'note ' || i, '2025-01-01 12:00Z' FROM generate_series(1, 5) AS i"


@pytest.fixture
def rows(kit: Kit) -> Kit:
    """Rows 1 to 5, and a delete.sql of all."""
    kit.sql(TABLE, ROWS)
    kit.delete = "DELETE FROM t"
    return kit


@pytest.mark.parametrize(
    "select",
    [
        "SELECT id, f() FROM t",
        "SELECT DISTINCT id, f() FROM t",
        "SELECT id, nextval('s') FROM t",
        "SELECT id, setval('s', 7) FROM t",
        "SELECT id, lo_from_bytea(0, 'x') FROM t",
    ],
)
def test_a_function_that_writes_is_stopped_by_the_server(rows: Kit, select: str) -> None:
    rows.sql(
        "CREATE SEQUENCE s",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql VOLATILE AS 'DELETE FROM t WHERE id = 1 RETURNING id'",
    )
    rows.select = select
    with pytest.raises(SourceError, match="read-only transaction"):
        rows.export()
    assert len(rows.rows()) == 5
    assert rows.all_files() == []


@pytest.mark.parametrize("missing", ["select", "delete"])
def test_a_statement_without_bounds_is_refused_with_partitions(rows: Kit, missing: str) -> None:
    bounded = " WHERE at >= %(window_start)s AND at < %(window_end)s"
    rows.window = DAY
    rows.select, rows.delete = "SELECT * FROM t" + bounded, "DELETE FROM t" + bounded
    if missing == "select":
        rows.select = "SELECT * FROM t -- %(window_start)s"
    else:
        rows.delete = "DELETE FROM t /* %(window_end)s */"
    with pytest.raises(SpecError, match=f"{missing}.sql uses no parameter"):
        rows.export()


def test_a_column_that_delete_sql_does_not_know_is_an_error_and_deletes_nothing(rows: Kit) -> None:
    rows.select, rows.delete = "SELECT * FROM t", "DELETE FROM t WHERE nowhere > 1"
    rows.exported()
    with pytest.raises(SourceError, match="nowhere"):
        rows.cleanup()
    assert len(rows.rows()) == 5


@pytest.mark.parametrize("delete", ["DELETE FROM t; DELETE FROM t", "DELETE FROM t RETURNING *", "TRUNCATE t"])
def test_a_delete_sql_that_is_not_one_plain_delete_deletes_nothing(rows: Kit, delete: str) -> None:
    rows.select = "SELECT * FROM t"
    rows.exported()
    rows.delete = delete
    with pytest.raises(SpecError):
        rows.cleanup()
    assert len(rows.rows()) == 5


def test_without_a_delete_sql_nothing_can_be_deleted(rows: Kit) -> None:
    rows.select, rows.delete = "SELECT * FROM t", None
    rows.exported()
    with pytest.raises(CleanupRefused, match=r"no delete\.sql"):
        rows.cleanup()


def test_a_percent_sign_in_both_statements_means_itself(rows: Kit) -> None:
    rows.select = "SELECT * FROM t WHERE note LIKE 'note%' AND id %% 2 = 1"
    rows.delete = "DELETE FROM t WHERE note LIKE 'note%' AND id % 2 = 1"
    assert rows.exported().rows == 3
    assert rows.cleanup().deleted == 3
    assert rows.rows() == [2, 4]


@pytest.mark.parametrize(
    "where",
    [
        "note = E'note 1' OR note = U&'note\\0020\\0032'",
        "note = $q$note 1$q$ OR note = 'note 2' -- 'x",
        "id IN (SELECT id FROM t AS u WHERE u.id < 3 ORDER BY id)",
        "EXISTS (SELECT FROM t AS u WHERE u.id = t.id AND u.id < 3)",
        "/* õ */ id < 3 /* ; */ ;",
    ],
)
def test_odd_spellings_delete_just_what_they_say(rows: Kit, where: str) -> None:
    rows.select, rows.delete = f"SELECT * FROM t WHERE {where}", f"DELETE FROM t WHERE {where}"
    assert rows.exported().rows == 2
    result = rows.cleanup()
    assert (result.deleted, result.complete) == (2, True)
    assert rows.rows() == [3, 4, 5]


def test_a_delete_with_common_tables_and_using_deletes_each_row_once(rows: Kit) -> None:
    rows.sql("CREATE TABLE o (id int)", "INSERT INTO o VALUES (1), (1), (2), (9)")
    rows.select = "SELECT t.* FROM t WHERE id IN (SELECT id FROM o)"
    rows.delete = "WITH old AS (SELECT id FROM o) DELETE FROM t AS x USING old WHERE x.id = old.id"
    assert rows.exported().rows == 2
    plan = rows.plan()
    result = rows.cleanup()
    assert (plan.would_delete, result.deleted, result.complete) == (2, 2, True)
    assert rows.rows() == [3, 4, 5]
