"""Which rows a cleanup may delete: those whose row version a verified archive holds, by row, by key, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export_pipelines.errors import CleanupRefused, SourceError, SpecError
from tests.support.servers import run_sql
from tests.support.tables import Kit

PAIR = "CREATE TABLE t (id int PRIMARY KEY, note text, at timestamptz DEFAULT '2025-01-01 12:00Z')"


def with_rows(kit: Kit, number: int = 5) -> Kit:
    """The table t with rows 1 to `number`."""
    kit.sql(PAIR, f"INSERT INTO t SELECT i, 'note ' || i FROM generate_series(1, {number}) AS i")
    return kit


def test_derived_statements_delete_what_they_exported(kit: Kit) -> None:
    with_rows(kit).spec["table"] = "t"
    record = kit.exported()
    assert record.identity.mode == "row"
    result = kit.cleanup()
    assert (result.deleted, result.late, result.not_exported, result.proof) == (5, 0, 0, "row")
    assert result.complete
    assert kit.rows() == []
    assert kit.restored(columns="id") == [(i,) for i in range(1, 6)]


SELECTS = {
    "plain": ("SELECT id, note FROM t", "row"),
    "alias": ("SELECT x.id FROM t AS x WHERE x.id < 9", "row"),
    "only": ("SELECT id FROM ONLY t", "row"),
    "qualified": ("SELECT id FROM public.t", "row"),
    "star": ("SELECT * FROM t", "row"),
    "star and system column": ("SELECT *, ctid FROM t", "row"),
    "all": ("SELECT ALL id FROM t", "row"),
    "copy": ("COPY (SELECT id, note FROM t) TO STDOUT WITH CSV HEADER", "row"),
    "copy of a table": ("COPY t TO STDOUT WITH (FORMAT csv, HEADER true)", "row"),
    "copy of columns": ("COPY t (note, id) TO STDOUT WITH CSV HEADER", "row"),
    "comments and semicolon": ("/* a */ SELECT -- b\n id FROM t; -- c", "row"),
    "inner join": ("SELECT t.id, o.id AS o FROM t JOIN o ON o.id = t.id", "row"),
    "left join": ("SELECT t.id, o.id AS o FROM t LEFT JOIN o ON o.id = t.id", "row"),
    "right join, own side": ("SELECT t.id, o.id AS o FROM o RIGHT JOIN t ON o.id = t.id", "row"),
    "cross join": ("SELECT t.id FROM t, o", "row"),
    "lateral": ("SELECT t.id, n FROM t, LATERAL generate_series(1, 2) AS n", "row"),
    "set-returning": ("SELECT id, generate_series(1, 3) AS n FROM t", "row"),
    "window function": ("SELECT id, row_number() OVER (ORDER BY id) FROM t", "row"),
    "order and limit": ("SELECT id FROM t ORDER BY id DESC LIMIT 3", "row"),
    "with": ("WITH few AS (SELECT id FROM o) SELECT t.id FROM t JOIN few USING (id)", "row"),
    "subquery in where": ("SELECT id FROM t WHERE id IN (SELECT id FROM o)", "row"),
    "order by number": ("SELECT id FROM t ORDER BY 1", "key"),
    "nullable side": ("SELECT t.id FROM o LEFT JOIN t ON o.id = t.id", "key"),
    "full join": ("SELECT t.id FROM o FULL JOIN t ON o.id = t.id", "key"),
    "self-join": ("SELECT t.id FROM t JOIN t AS u ON u.id = t.id", "key"),
    "distinct": ("SELECT DISTINCT id, note FROM t", "key"),
    "distinct on": ("SELECT DISTINCT ON (note) id, note FROM t", "key"),
    "group by": ("SELECT id, count(*) FROM t GROUP BY id", "key"),
    "having": ("SELECT id FROM t GROUP BY id HAVING count(*) = 1", "key"),
    "subquery in from": ("SELECT s.id FROM (SELECT * FROM t) AS s", "key"),
    "common table": ("WITH t AS (SELECT * FROM public.t) SELECT id FROM t", "key"),
    "parentheses": ("(SELECT id FROM t)", "key"),
    "table": ("TABLE t", "key"),
    "alias of join": ("SELECT j.id FROM (t CROSS JOIN (SELECT 1 AS one) AS s) AS j", "key"),
    "alias of columns": ("SELECT a.id FROM t AS a (id, ctid)", "key"),
    "sample": ("SELECT id FROM t TABLESAMPLE BERNOULLI (100)", "key"),
    "aggregate": ("SELECT count(*) AS n FROM t", "none"),
    "values": ("VALUES (1)", "none"),
    "without key": ("SELECT DISTINCT note FROM t", "none"),
    "another table": ("SELECT id FROM o", "none"),
    "function": ("SELECT id FROM generate_series(1, 3) AS id", "none"),
}


@pytest.mark.parametrize("case", SELECTS)
def test_identities_ride_along_where_rows_are_rows_of_the_table(case: str, kit: Kit) -> None:
    """Otherwise keys prove them; otherwise nothing does, and cleanup refuses. Either way only rows in the file go."""
    kit.select, expected = SELECTS[case]
    kit.delete = "DELETE FROM t"
    with_rows(kit).sql("CREATE TABLE o AS SELECT i AS id FROM generate_series(2, 4) AS i")
    record = kit.exported()
    assert record.identity.mode == expected, record.identity.reason
    if expected == "none":
        assert record.identity.reason
        with pytest.raises(CleanupRefused, match="cannot be proved"):
            kit.cleanup()
        assert len(kit.rows()) == 5
        return
    position = [column.name for column in record.columns].index("id")
    in_file = {int(row[position]) for row in kit.archived_records() if row[position]}
    result = kit.cleanup()
    assert set(kit.rows()) == {1, 2, 3, 4, 5} - in_file
    assert result.deleted == len(in_file)
    assert result.late + result.not_exported == 5 - len(in_file)
    assert result.proof == expected


@pytest.mark.parametrize(
    "select",
    [
        "SELECT DISTINCT o.id, t.note FROM t JOIN o ON o.t = t.id",
        "SELECT * FROM (SELECT o.id FROM t JOIN o ON o.t = t.id) AS s",
        "SELECT DISTINCT t.id + 1 AS id FROM t WHERE t.id = 1",
        "SELECT id FROM o UNION ALL SELECT id FROM o",
        "SELECT DISTINCT o.id, t.id FROM t JOIN o ON o.t = t.id",
    ],
)
def test_a_column_that_only_has_the_name_of_the_key_proves_nothing(kit: Kit, select: str) -> None:
    kit.select, kit.delete = select, "DELETE FROM t"
    with_rows(kit).sql("CREATE TABLE o (id int, t int)", "INSERT INTO o VALUES (2, 1)")
    record = kit.exported()
    assert record.identity.mode == "none"
    with pytest.raises(CleanupRefused):
        kit.cleanup()
    assert len(kit.rows()) == 5


def test_a_declared_key_is_believed_where_the_server_cannot_trace_it(kit: Kit) -> None:
    kit.spec["key"] = ["id"]
    kit.select = "SELECT id, note FROM t WHERE id < 3 UNION ALL SELECT id, note FROM t WHERE id = 5"
    kit.delete = "DELETE FROM t"
    with_rows(kit)
    assert kit.exported().identity.mode == "key"
    assert kit.cleanup().deleted == 3
    assert kit.rows() == [3, 4]


def test_a_declared_key_that_the_server_traces_to_another_table_is_not_believed(kit: Kit) -> None:
    kit.spec["key"] = ["id"]
    kit.select, kit.delete = "SELECT DISTINCT o.id FROM t JOIN o ON o.t = t.id", "DELETE FROM t"
    with_rows(kit).sql("CREATE TABLE o (id int, t int)", "INSERT INTO o VALUES (2, 1)")
    assert kit.exported().identity.mode == "none"


def test_a_key_without_a_unique_index_is_refused(kit: Kit) -> None:
    kit.spec["key"] = ["note"]
    kit.select, kit.delete = "SELECT DISTINCT note FROM t", "DELETE FROM t"
    record = with_rows(kit).exported()
    assert record.identity.mode == "none"
    assert "no unique index" in record.identity.reason


@pytest.mark.parametrize("index", ["(note) WHERE id > 2", "(lower(note))", "(note, id)"])
def test_an_index_that_does_not_make_the_key_unique_is_refused(kit: Kit, index: str) -> None:
    kit.spec["key"] = ["note"]
    kit.select, kit.delete = "SELECT DISTINCT note FROM t", "DELETE FROM t"
    with_rows(kit).sql(f"CREATE UNIQUE INDEX ON t {index}")
    assert kit.exported().identity.mode == "none"


def test_null_and_empty_keys_stay(kit: Kit) -> None:
    kit.sql(
        "CREATE TABLE t (id text UNIQUE, n int)",
        "INSERT INTO t VALUES (NULL, 1), (NULL, 2), ('', 3), ('a', 4)",
    )
    kit.spec["key"] = ["id"]
    kit.select, kit.delete = "SELECT DISTINCT id FROM t", "DELETE FROM t"
    assert kit.exported().identity.mode == "key"
    result = kit.cleanup()
    assert (result.deleted, result.not_exported) == (1, 3)
    assert kit.rows("SELECT n FROM t ORDER BY n") == [1, 2, 3]


def test_text_keys_may_hold_anything(kit: Kit) -> None:
    odd = ["a\nb", 'quote"d', "comma, ", "\\.", "õäö 漢字", "tab\t", "\r\n", "%", "'", " ", "NULL", "\x1f"]
    kit.sql("CREATE TABLE t (id text PRIMARY KEY)")
    for text in odd:
        kit.sql("INSERT INTO t VALUES ($q$" + text + "$q$)")
    kit.select, kit.delete = "SELECT DISTINCT id FROM t WHERE id <> ' '", "DELETE FROM t"
    assert kit.exported().identity.mode == "key"
    assert kit.cleanup().deleted == len(odd) - 1
    assert kit.rows() == [" "]


def test_parts_of_a_composite_key_cannot_run_into_each_other(kit: Kit) -> None:
    kit.sql(
        "CREATE TABLE t (a text, b text, PRIMARY KEY (a, b))",
        "INSERT INTO t VALUES (E'x\\x1fy', 'z'), ('x', E'y\\x1fz')",
    )
    kit.select, kit.delete = "SELECT DISTINCT a, b FROM t WHERE a = 'x'", "DELETE FROM t"
    assert kit.exported().identity.mode == "key"
    assert kit.cleanup().deleted == 1
    assert kit.rows("SELECT a FROM t") == ["x\x1fy"]


def test_records_of_any_size_have_a_key(kit: Kit) -> None:
    kit.sql(PAIR, "INSERT INTO t VALUES (1, repeat('long ', 100000))")
    kit.select, kit.delete = "SELECT DISTINCT id, note FROM t", "DELETE FROM t"
    kit.exported()
    assert kit.cleanup().deleted == 1


def test_a_file_of_one_column_may_have_a_null_for_a_key(kit: Kit) -> None:
    with_rows(kit).sql("CREATE TABLE o AS SELECT i AS id FROM generate_series(4, 7) AS i")
    kit.select, kit.delete = "SELECT t.id FROM o LEFT JOIN t ON o.id = t.id", "DELETE FROM t"
    kit.exported()
    assert kit.cleanup().deleted == 2
    assert kit.rows() == [1, 2, 3]


def test_a_name_without_a_schema_is_not_taken_for_another_schemas_table(kit: Kit) -> None:
    """Rows of one transaction at the same place in both tables have the same ctid and xmin."""
    kit.sql(
        "CREATE SCHEMA a",
        "CREATE TABLE a.t (id int PRIMARY KEY)",
        "CREATE TABLE public.t (id int PRIMARY KEY)",
        "DO $$ BEGIN INSERT INTO a.t VALUES (1), (2); INSERT INTO public.t VALUES (1), (2); END $$",
    )
    kit.select, kit.delete = "SELECT id FROM a.t", "DELETE FROM t"
    kit.exported()
    with pytest.raises(CleanupRefused):
        kit.cleanup()
    assert kit.rows("SELECT id FROM public.t ORDER BY id") == [1, 2]


INHERITANCE = (
    "CREATE TABLE t (id int PRIMARY KEY, note text)",
    "CREATE TABLE child () INHERITS (t)",
    "DO $$ BEGIN INSERT INTO t VALUES (1, 'parent'); INSERT INTO child VALUES (2, 'child'); END $$",
)


@pytest.mark.parametrize(
    ("select", "delete", "left"),
    [
        ("SELECT * FROM t WHERE id = 2", "DELETE FROM ONLY t", [1, 2]),
        ("SELECT * FROM t", "DELETE FROM ONLY t", [2]),
        ("SELECT * FROM ONLY t", "DELETE FROM t", [2]),
        ("SELECT * FROM t WHERE id = 2", "DELETE FROM t", [1]),
        ("SELECT * FROM t", "DELETE FROM t", []),
    ],
)
def test_rows_of_parent_and_child_at_the_same_place_are_told_apart(
    kit: Kit, select: str, delete: str, left: list[int]
) -> None:
    kit.select, kit.delete = select, delete
    kit.sql(*INHERITANCE)
    assert kit.exported().identity.mode == "row"
    kit.cleanup()
    assert kit.rows() == left


@pytest.mark.parametrize(("select", "left"), [("SELECT * FROM ONLY t", [2]), ("SELECT * FROM t WHERE id = 2", [1])])
def test_rows_of_parent_and_child_are_told_apart_after_a_rewrite(kit: Kit, select: str, left: list[int]) -> None:
    kit.select, kit.delete = select, "DELETE FROM t"
    kit.sql(*INHERITANCE)
    kit.exported()
    kit.sql("VACUUM FULL t", "VACUUM FULL child")
    assert kit.cleanup().proof == "content"
    assert kit.rows() == left


def test_a_key_of_an_inheritance_parent_is_no_key_of_its_children(kit: Kit) -> None:
    kit.sql(*INHERITANCE, "INSERT INTO child VALUES (1, 'same key')")
    kit.select, kit.delete = "SELECT DISTINCT * FROM ONLY t", "DELETE FROM t"
    assert kit.exported().identity.mode == "none"


PARTITIONED = (
    "CREATE TABLE t (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
    "CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (200)",
    "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 3) AS i UNION ALL SELECT 100 + i, 'x' "
    "FROM generate_series(1, 3) AS i",
)


def test_equal_places_in_two_partitions_are_told_apart(kit: Kit) -> None:
    kit.sql(*PARTITIONED)
    kit.select, kit.delete = "SELECT id FROM t WHERE id > 100", "DELETE FROM t"
    assert kit.exported().identity.tableoid
    result = kit.cleanup()
    assert (result.deleted, result.not_exported, result.proof) == (3, 3, "row")
    assert kit.rows() == [1, 2, 3]


def test_keys_prove_rows_of_a_partitioned_table(kit: Kit) -> None:
    kit.sql(*PARTITIONED)
    kit.select, kit.delete = "SELECT DISTINCT id FROM t WHERE id IN (1, 102)", "DELETE FROM t"
    assert kit.exported().identity.mode == "key"
    assert kit.cleanup().deleted == 2
    assert kit.rows() == [2, 3, 101, 103]


def test_rows_of_a_partition_that_was_detached_stay(kit: Kit) -> None:
    kit.sql(*PARTITIONED)
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("ALTER TABLE t DETACH PARTITION low")
    result = kit.cleanup()
    assert result.deleted == 3
    assert kit.rows("SELECT id FROM low ORDER BY id") == [1, 2, 3]


def test_rows_of_a_partition_that_was_attached_since_stay(kit: Kit) -> None:
    kit.sql(*PARTITIONED)
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("CREATE TABLE higher PARTITION OF t FOR VALUES FROM (200) TO (300)", "INSERT INTO t VALUES (201, 'x')")
    result = kit.cleanup()
    assert (result.deleted, result.late) == (6, 1)
    assert kit.rows() == [201]


def test_a_partition_of_a_foreign_server_makes_rows_unprovable(kit: Kit) -> None:
    kit.sql("CREATE TABLE t (id int, note text) PARTITION BY RANGE (id)", *PARTITIONED[1:], *FOREIGN)
    kit.sql("CREATE FOREIGN TABLE far PARTITION OF t FOR VALUES FROM (200) TO (300) SERVER s OPTIONS (table_name 'x')")
    kit.select, kit.delete = "SELECT id FROM t WHERE id < 100", "DELETE FROM t WHERE id < 100"
    assert "foreign table" in kit.exported().identity.reason
    with pytest.raises(CleanupRefused):
        kit.cleanup()


FOREIGN = (
    "CREATE EXTENSION postgres_fdw",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
)


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_rows_of_a_view_cannot_be_proved(kit: Kit, kind: str) -> None:
    with_rows(kit).sql(f"CREATE {kind} v AS SELECT * FROM t")
    kit.select, kit.delete = "SELECT id FROM v", "DELETE FROM v"
    record = kit.exported()
    assert kind.lower() in record.identity.reason
    with pytest.raises(CleanupRefused, match="cannot be proved"):
        kit.cleanup()
    assert len(kit.rows()) == 5


def test_a_select_from_a_view_does_not_prove_rows_of_its_table(kit: Kit) -> None:
    with_rows(kit).sql("CREATE VIEW v AS SELECT id + 1 AS id, note FROM t WHERE id = 1")
    kit.select, kit.delete = "SELECT id, note FROM v", "DELETE FROM t"
    assert kit.exported().identity.mode == "none"


def test_duplicate_records_of_a_row_are_all_settled_by_its_deletion(kit: Kit) -> None:
    """A row that stands in many records, over many buckets, is deleted once, and all of them are in the receipts."""
    with_rows(kit, 4)
    kit.spec["cleanup"] = {"mode": "after_archive", "batch_rows": 3}
    kit.select, kit.delete = "SELECT id, generate_series(1, 4) AS n FROM t", "DELETE FROM t"
    kit.exported()
    result = kit.cleanup()
    assert result.deleted == 4
    kit.exported()
    assert len(kit.restored()) == 16


@pytest.mark.parametrize("option", ["DELIMITER", "QUOTE"])
@pytest.mark.parametrize("sign", ["(", ")", "0", "7"])
def test_a_sign_that_stands_in_identities_cannot_delimit_or_quote(kit: Kit, option: str, sign: str) -> None:
    with_rows(kit)
    kit.select = f"COPY (SELECT id, note FROM t) TO STDOUT WITH (FORMAT csv, HEADER, {option} '{sign}')"
    kit.delete = "DELETE FROM t"
    with pytest.raises(SpecError, match="cannot be used"):
        kit.export()


@pytest.mark.parametrize(
    "options", ["DELIMITER ';'", "DELIMITER E'\\t'", "QUOTE ''''", "NULL 'note 1'", "DELIMITER '|', QUOTE '#'"]
)
def test_identities_ride_along_in_any_dialect(kit: Kit, options: str) -> None:
    with_rows(kit)
    kit.select = f"COPY (SELECT id, note FROM t) TO STDOUT WITH (FORMAT csv, HEADER, {options})"
    kit.delete = "DELETE FROM t"
    assert kit.exported().identity.mode == "row"
    assert kit.cleanup().deleted == 5
    assert kit.restored() == [(i, f"note {i}") for i in range(1, 6)]


def test_a_table_without_columns_cannot_be_exported(kit: Kit) -> None:
    kit.sql("CREATE TABLE t ()")
    kit.spec["table"] = "t"
    with pytest.raises(SourceError, match="no columns"):
        kit.export()
    assert kit.visible_files() == []


def test_tiny_batches_of_a_wide_flush_are_possible(kit: Kit) -> None:
    kit.sql("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 4000) AS i")
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "batch_rows": 2})
    record = kit.export()
    assert [bucket.rows for bucket in record.identity.buckets] == [2] * 2000


def test_names_may_hold_quotes_spaces_and_dots(kit: Kit) -> None:
    name = '"od d"."ta.b""le õ"'
    kit.sql(
        'CREATE SCHEMA "od d"',
        f'CREATE TABLE {name} ("i d" int PRIMARY KEY, "a""b" text)',
        f"INSERT INTO {name} VALUES (1, 'x')",
    )
    other = replace(kit, spec={"table": name})
    other.exported()
    assert other.cleanup().deleted == 1


def test_a_copy_of_the_database_has_other_identities(kit: Kit) -> None:
    """CREATE DATABASE … TEMPLATE keeps file nodes: only the name tells that it is another place."""
    with_rows(kit).spec["table"] = "t"
    kit.exported()
    server, _, name = kit.database.rpartition("/")
    run_sql(f"{server}/postgres", f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}"')
    kit.database = f"{server}/{name}_copy"
    try:
        assert kit.plan().proof == "content"
        kit.database = f"{server}/{name}"
        assert kit.plan().proof == "row"
    finally:
        run_sql(f"{server}/postgres", f'DROP DATABASE "{name}_copy" WITH (FORCE)')
