"""What readers see while tables are loaded, versions behind the view, and migrations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from export_pipelines.errors import TargetError
from export_pipelines.steps.load import diff, rollback, table_versions
from tests.support.loads import LoadKit

TYPED = {"id": {"type": "bigint"}, "name": {"type": "text"}}


@pytest.fixture
def kit(tmp_path: Path, database: str) -> LoadKit:
    return LoadKit(tmp_path, database, {"columns": TYPED, "style": "replace"})


def numbered(rows: int, name: str) -> str:
    return "id,name\n" + "".join(f"{number},{name}\n" for number in range(rows))


@contextmanager
def polling(url: str, query: str, check: Callable[[Any], bool]) -> Iterator[list[Any]]:
    """Ask again and again in two threads; what does not pass the check, and errors, are in the list."""
    wrong: list[Any] = []
    stop, asked = threading.Event(), [0]

    def poll() -> None:
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not stop.is_set():
                try:
                    cursor.execute(query)
                    found = cursor.fetchall()
                    asked[0] += 1
                    if not check(found):
                        wrong.append(found)
                except psycopg2.Error as error:
                    wrong.append(error)

    threads = [threading.Thread(target=poll) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert asked[0] > 5


@pytest.mark.parametrize("style", ["replace", "shadow", "upsert", "snapshot", "partition", "append"])
def test_readers_never_see_a_gap_an_error_or_half_of_a_load(kit: LoadKit, style: str) -> None:
    kit.spec |= {"style": style, "removal": {"share": 1}, "revised": "replace", "drift": "evolve"}
    kit.spec |= {"key": ["id"]} if style in ("upsert", "snapshot", "shadow") else {}
    kit.spec |= {"partition_by": "all"} if style == "partition" else {}
    kit.load(numbered(300, "n0"))
    query = "SELECT count(*), count(DISTINCT name) FROM shop.orders"
    with polling(kit.url, query, lambda found: found == [(300, 1)]) as wrong:
        for number in range(1, 5):
            kit.load(numbered(300, f"n{number}"))
        kit.load("id,name,more\n" + "".join(f"{n},last,{n}\n" for n in range(300)))
    assert wrong == []


def test_a_reader_whose_snapshot_is_older_than_a_swap_sees_the_rows_of_its_time(kit: LoadKit) -> None:
    kit.load(numbered(3, "old"))
    with closing(psycopg2.connect(kit.url)) as connection, connection.cursor() as cursor:
        connection.set_session(isolation_level="REPEATABLE READ")
        cursor.execute("SELECT 1")
        cursor.fetchall()
        kit.load(numbered(3, "new"))
        kit.spec["drift"] = "evolve"
        kit.load("id,name,more\n1,newest,x\n")
        cursor.execute("SELECT count(*), min(name) FROM shop.orders")
        assert cursor.fetchall() == [(3, "old")]
    assert kit.rows("name", "1") == [("newest",)]


def test_pages_by_row_id_through_the_view_use_the_index_of_the_current_version(kit: LoadKit) -> None:
    kit.spec = {**kit.spec, "target": {"table": "shop.orders", "published": True}}
    for number in range(3):
        kit.load(numbered(5000, f"n{number}"))
    plan = kit.sql("EXPLAIN SELECT * FROM shop.orders WHERE row_id > 2500 ORDER BY row_id LIMIT 100")
    assert "Sort" not in str(plan).replace("Sort Key", "")
    assert "Index Scan" in str(plan)


def test_an_open_reader_does_not_stop_a_swap_for_other_readers(kit: LoadKit) -> None:
    """Its lock on the view delays the swap; those that come meanwhile still get in."""
    kit.load(numbered(3, "old"))
    done: list[Any] = []
    with closing(psycopg2.connect(kit.url)) as slow, slow.cursor() as cursor:
        cursor.execute("SELECT * FROM shop.orders")
        loader = threading.Thread(target=lambda: done.append(kit.load(numbered(3, "new"))))
        with polling(kit.url, "SELECT count(*) FROM shop.orders", lambda found: found == [(3,)]) as wrong:
            loader.start()
            loader.join(2)
            assert loader.is_alive()
        slow.rollback()
        loader.join()
    assert wrong == []
    assert done[0].action == "loaded"
    assert kit.rows("DISTINCT name", "1") == [("new",)]


def tables(kit: LoadKit) -> list[str]:
    found = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'orders!_!_v%' ESCAPE '!' ORDER BY 1"
    return [row[0] for row in kit.sql(found)]


def test_so_many_old_versions_are_kept_and_the_others_dropped(kit: LoadKit) -> None:
    kit.spec["target"] = {"table": "shop.orders", "keep_versions": 2}
    for number in range(5):
        kit.load(numbered(2, f"n{number}"))
    assert tables(kit) == ["orders__v3", "orders__v4", "orders__v5"]
    assert [(v.number, v.rows, v.current, v.file_name) for v in table_versions(kit.context)] == [
        (3, 2, False, "orders.csv"), (4, 2, False, "orders.csv"), (5, 2, True, "orders.csv")
    ]  # fmt: skip


def test_an_old_version_that_is_read_stays_until_the_next_load(kit: LoadKit) -> None:
    kit.spec["target"] = {"table": "shop.orders", "keep_versions": 1}
    kit.load(numbered(2, "n1"))
    kit.load(numbered(2, "n2"))
    with closing(psycopg2.connect(kit.url)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT * FROM shop.orders__v1")
        kit.load(numbered(2, "n3"))
        assert tables(kit) == ["orders__v1", "orders__v2", "orders__v3"]
    kit.load(numbered(2, "n4"))
    assert tables(kit) == ["orders__v3", "orders__v4"]


def test_rollback_shows_an_older_version_and_the_next_load_goes_on(kit: LoadKit) -> None:
    for number in (1, 2, 3):
        kit.load(numbered(2, f"n{number}"))
    assert rollback(kit.context, 1).current
    assert kit.rows("DISTINCT name", "1") == [("n1",)]
    with pytest.raises(TargetError, match="no version 9") as raised:
        rollback(kit.context, 9)
    assert "1, 2, 3" in raised.value.hint
    assert kit.load(numbered(2, "n4")).table_version == 4
    assert kit.rows("DISTINCT name", "1") == [("n4",)]


def test_after_a_rollback_a_shadow_is_compared_with_what_is_shown(kit: LoadKit) -> None:
    kit.spec["style"] = "shadow"
    for name in ("a", "b"):
        kit.load(numbered(2, name))
    rollback(kit.context, 1)
    assert kit.load(numbered(2, "b")).action == "loaded"
    assert kit.rows("DISTINCT name", "1") == [("b",)]
    rollback(kit.context, 1)
    assert kit.load(numbered(2, "a")).action == "unchanged"


@pytest.mark.parametrize("key", [["id"], []])
def test_versions_are_compared_row_by_row(kit: LoadKit, key: list[str]) -> None:
    kit.spec["key"] = key
    kit.load("id,name\n1,Ann\n2,Bob\n3,Cid\n")
    kit.load("id,name\n1,Ann\n2,Bobby\n4,Dan\n5,\n")
    found = diff(kit.context, 1, 2)
    if key:
        assert (found.added, found.removed, found.changed) == (2, 1, 1)
        assert found.changed_rows == ((("2", "Bob"), ("2", "Bobby")),)
        assert found.added_rows == (("4", "Dan"), ("5", None))
        assert found.removed_rows == (("3", "Cid"),)
    else:
        assert (found.added, found.removed, found.changed) == (3, 2, 0)
        assert found.added_rows == (("2", "Bobby"), ("4", "Dan"), ("5", None))
    same = diff(kit.context, 1, 1)
    assert (same.added, same.removed, same.changed) == (0, 0, 0)


def test_rights_and_indexes_that_people_made_stay_over_swaps(kit: LoadKit) -> None:
    kit.load(numbered(3, "a"))
    kit.sql("CREATE ROLE load_keeper")
    try:
        kit.sql("GRANT SELECT ON shop.orders TO load_keeper; GRANT SELECT ON shop.orders TO PUBLIC")
        kit.sql("CREATE INDEX ON shop.orders__v1 (lower(name)) WHERE id > 1")
        kit.sql("CREATE INDEX ON shop.orders__v1 (file_id, lower(name))")
        kit.sql("ALTER TABLE shop.orders__v1 ADD CHECK (id < 99)")
        kit.load(numbered(3, "b"))
        kit.version, kit.spec["columns"] = "v2", {"id": {"type": "integer"}, "name": {}}
        kit.load(numbered(3, "c"))
        assert kit.sql(
            "SELECT data_type FROM information_schema.columns WHERE table_name = 'orders' AND column_name = 'id'"
        ) == [("integer",)]
        assert kit.sql("SELECT has_table_privilege('load_keeper', 'shop.orders', 'SELECT')") == [(True,)]
        indexes = str(kit.sql("SELECT indexdef FROM pg_indexes WHERE tablename = 'orders__v3'"))
        assert indexes.count("lower(name)") == 2
        with pytest.raises(Exception, match="check constraint"):
            kit.load("id,name\n100,x\n")
    finally:
        kit.sql("DROP OWNED BY load_keeper; DROP ROLE load_keeper")


def test_a_view_of_others_on_the_table_stays_and_is_named_when_it_is_in_the_way(kit: LoadKit) -> None:
    kit.load(numbered(3, "a"))
    kit.sql("CREATE VIEW shop.report AS SELECT id FROM shop.orders")
    kit.load(numbered(4, "b"))
    assert kit.sql("SELECT count(*) FROM shop.report") == [(4,)]
    kit.version, kit.spec["columns"] = "v2", {"id": {"type": "integer"}, "name": {}}
    with pytest.raises(TargetError, match=r"others depend on the view.*report"):
        kit.load(numbered(5, "c"))
    assert kit.sql("SELECT count(*) FROM shop.report") == [(4,)]


def test_raw_rows_go_with_the_versions_that_they_belong_to(kit: LoadKit) -> None:
    kit.spec |= {"raw": True, "target": {"table": "shop.orders", "keep_versions": 1}}
    for name in ("a", "b", "c"):
        kit.load(numbered(2, name))
    assert kit.sql("SELECT DISTINCT name FROM shop.orders__raw ORDER BY 1") == [("b",), ("c",)]


def test_raw_rows_of_a_shadow_that_was_changed_in_place_stay_with_it(kit: LoadKit) -> None:
    kit.spec |= {"style": "shadow", "key": ["id"], "raw": True, "target": {"table": "shop.orders", "keep_versions": 1}}
    files = [numbered(20, "a"), numbered(20, "b"), numbered(20, "b") + "20,c\n", numbered(20, "d")]
    assert [kit.load(each).action for each in files] == ["loaded", "loaded", "upserted", "loaded"]
    rollback(kit.context, 2)
    assert kit.sql("SELECT count(*) FROM shop.orders t JOIN shop.orders__raw r ON r.row_id = t.raw_id") == [(21,)]


@pytest.mark.parametrize("what", ["TABLE shop.orders AS", "VIEW shop.orders AS"])
def test_what_others_made_under_the_name_stays(kit: LoadKit, what: str) -> None:
    kit.sql(f"CREATE SCHEMA shop; CREATE {what} SELECT 7 AS seven")
    with pytest.raises(TargetError, match=r"shop.orders is there, and shop/orders did not make it"):
        kit.load(numbered(3, "a"))
    assert kit.sql("SELECT * FROM shop.orders") == [(7,)]


# Migrations

ADD = ("001_note.sql", "ALTER TABLE shop.orders ADD COLUMN note text;\nCREATE INDEX orders_note ON shop.orders (note);")
WIDEN = ("002_id.sql", "ALTER TABLE shop.orders ALTER COLUMN id TYPE numeric(12) USING id * 10")


@pytest.mark.parametrize("style", ["append", "replace", "upsert"])
def test_a_table_that_was_dropped_by_hand_is_made_anew_by_force_only(kit: LoadKit, style: str) -> None:
    kit.spec |= {"style": style, "key": ["id"], "columns": {**TYPED, "note": {}}, "drift": "evolve"}
    kit.migrations = (ADD,)
    kit.load(numbered(1, "a"))
    kit.load(numbered(2, "b"))
    shown = next(each.number for each in table_versions(kit.context) if each.current)
    kit.sql(f"DROP VIEW shop.orders; DROP TABLE shop.orders__v{shown}")
    landed = kit.land(numbered(3, "c"))
    for each in (landed, landed.model_copy(update={"table": "shop/purchases"})):
        with pytest.raises(TargetError, match="was dropped by hand") as caught:
            kit.load(each)
        assert "--force" in (caught.value.hint or "")
    assert kit.load(landed, force=True).table_version == shown + 1
    assert kit.rows("id, name, note") == [(0, "c", None), (1, "c", None), (2, "c", None)]
    indexed = kit.sql(f"SELECT indexdef FROM pg_indexes WHERE tablename = 'orders__v{shown + 1}'")
    assert style == "replace" or "(note)" in str(indexed)
    assert [each.number for each in table_versions(kit.context)] == ([1, 3] if style == "replace" else [2])
    assert kit.load(numbered(4, "d")).rows == 4


def test_a_view_that_was_dropped_by_hand_is_there_again_with_the_next_load(kit: LoadKit) -> None:
    kit.spec["style"] = "append"
    kit.load(numbered(1, "a"))
    kit.sql("DROP VIEW shop.orders")
    kit.load(numbered(1, "b"))
    assert kit.rows() == [(0, "a"), (0, "b")]


def test_an_old_version_that_was_dropped_by_hand_is_kept_no_more(kit: LoadKit) -> None:
    for name in ("a", "b", "c"):
        kit.load(numbered(1, name))
    kit.sql("DROP TABLE shop.orders__v1 CASCADE")
    with pytest.raises(TargetError, match="has no version 1") as caught:
        rollback(kit.context, 1)
    assert "2, 3" in (caught.value.hint or "")
    rollback(kit.context, 2)
    assert kit.rows() == [(0, "b")]
    kit.load(numbered(1, "d"))
    assert kit.rows() == [(0, "d")]


@pytest.mark.parametrize("style", ["append", "replace"])
def test_migrations_run_in_order_once_on_the_table_under_its_own_name(kit: LoadKit, style: str) -> None:
    kit.spec["style"] = style
    kit.load(numbered(2, "a"))
    kit.sql("GRANT SELECT ON shop.orders TO PUBLIC")
    kit.version, kit.migrations = "v2", (ADD, WIDEN)
    kit.spec["columns"] = {"id": {"type": "numeric(12)"}, "name": {}, "note": {}}
    with polling(kit.url, "SELECT count(*) > 0 FROM shop.orders", lambda found: found == [(True,)]) as wrong:
        kit.load("id,name,note\n7,b,hello\n")
        kit.load("id,name,note\n8,c,hello\n")
    assert wrong == []
    assert [int(row[0]) for row in kit.rows("id", "1")] == ([0, 7, 8, 10] if style == "append" else [8])
    assert kit.sql("SELECT name FROM operations.table_migration ORDER BY 1") == [("001_note.sql",), ("002_id.sql",)]
    assert "(note)" in str(kit.sql("SELECT indexdef FROM pg_indexes WHERE schemaname = 'shop'"))
    assert kit.sql("SELECT relacl::text LIKE '%=r/%' FROM pg_class WHERE relname = 'orders'") == [(True,)]


def test_on_a_new_table_only_what_the_definition_has_not_done_is_run(kit: LoadKit) -> None:
    kit.migrations, kit.spec["columns"] = (ADD,), {**TYPED, "note": {}}
    kit.load("id,name,note\n1,a,b\n")
    assert kit.sql("SELECT indexname FROM pg_indexes WHERE indexname = 'orders_note'") == [("orders_note",)]
    assert kit.sql("SELECT name FROM operations.table_migration") == [("001_note.sql",)]


@pytest.mark.parametrize(
    ("migration", "message"),
    [
        (("001_note.sql", "ALTER TABLE shop.orders ADD COLUMN other text"), "was changed after it ran"),
        (("000_early.sql", "SELECT 1"), "stands before 001_note.sql"),
        (("003_bad.sql", "ALTER TABLE shop.orders DROP COLUMN nothing"), "003_bad.sql failed.*nothing"),
        (("003_bad.sql", "COMMIT; DROP TABLE shop.orders"), "begins or ends a transaction"),
        (("003_bad.sql", "ALTER TABEL x"), "is not SQL"),
        (("003_bad.sql", "ALTER TABLE shop.orders DROP COLUMN row_id"), "took row_id"),
    ],
)
def test_a_migration_that_cannot_be_changes_nothing(kit: LoadKit, migration: tuple[str, str], message: str) -> None:
    kit.spec = {"columns": {**TYPED, "note": {}}}
    kit.migrations = (ADD,)
    kit.load("id,name,note\n1,a,b\n")
    kit.migrations = tuple(sorted({ADD[0]: ADD[1], migration[0]: migration[1]}.items()))
    with pytest.raises(TargetError, match=message):
        kit.load("id,name,note\n2,a,b\n")
    assert kit.rows() == [(1, "a")]
    kit.migrations = (ADD,)
    kit.load("id,name,note\n3,a,b\n")


def raw_names(kit: LoadKit) -> str:
    return "".join(name for (name,) in kit.sql("SELECT name FROM shop.orders__raw ORDER BY row_id"))


def test_raw_rows_of_whole_files_go_when_no_row_is_left_that_came_from_them(kit: LoadKit) -> None:
    many = numbered(20, "a")
    kit.spec |= {"style": "shadow", "key": ["id"], "raw": True, "target": {"table": "shop.orders", "keep_versions": 1}}
    done = [kit.load(each).action for each in (many, many, many + "20,c\n", many + "20,d\n", many)]
    assert done == ["loaded", "unchanged", "upserted", "upserted", "upserted"]
    # The rows are those of the first file still; the last file is whole.
    assert raw_names(kit) == 40 * "a"
    kit.load(numbered(20, "e"))
    kit.load(numbered(20, "f"))
    assert raw_names(kit) == 20 * "e" + 20 * "f"


def test_raw_rows_of_a_snapshot_go_with_the_rows_but_those_in_quarantine_stay(kit: LoadKit) -> None:
    kit.spec |= {"style": "snapshot", "raw": True, "columns": {"id": {"type": "int"}, "name": {}}}
    kit.spec |= {"quarantine": {"max_rows": 1}, "removal": {"share": 0.9}}
    for ids in ("1 2 3 x", "1 3", "3 4"):
        kit.load("id,name\n" + "".join(f"{each},{each}\n" for each in ids.split()))
    # 3 is of the first file still, and of the last, which is whole.
    assert raw_names(kit) == "3x34"
    assert kit.sql("SELECT count(*) FROM shop.orders t JOIN shop.orders__raw r ON r.row_id = t.raw_id") == [(2,)]


def test_the_raw_row_of_a_repeated_key_stays_with_its_quarantine(kit: LoadKit) -> None:
    kit.spec |= {"style": "replace", "key": ["id"], "raw": True, "quarantine": {"max_rows": 1}}
    kit.spec |= {"target": {"table": "shop.orders", "keep_versions": 1}}
    for rows in ("1,a\n1,b\n", "1,c\n", "1,d\n", "1,e\n"):
        kit.load("id,name\n" + rows)
    assert raw_names(kit) == "ade"


def test_a_file_that_is_added_anew_has_its_raw_rows_once(kit: LoadKit) -> None:
    kit.spec = {"raw": True, "columns": {"id": {"type": "int"}, "name": {}}, "quarantine": {"max_rows": 1}}
    kit.load("id,name\n1,a\n")
    landed = kit.land("id,name\n2,b\nx,c\n")
    for _ in range(3):
        kit.load(landed, force=True)
    assert raw_names(kit) == "abc"
    kit.version = "v2"
    kit.load(landed, force=True)
    # The quarantine of the load by the old definition has its row.
    assert raw_names(kit) == "acbc"
    held = "SELECT count(*) FROM shop.orders__quarantine q JOIN shop.orders__raw r ON r.row_id = q.raw_id"
    assert kit.sql(held) == [(2,)]


@pytest.mark.parametrize("style", ["upsert", "history"])
def test_no_raw_row_goes_where_files_are_parts_of_the_table(kit: LoadKit, style: str) -> None:
    kit.spec |= {"style": style, "key": ["id"], "raw": True}
    kit.load("id,name\n1,a\n")
    landed = kit.land("id,name\n1,a\n2,b\n")
    for _ in range(2):
        kit.load(landed, force=True)
    assert raw_names(kit) == "aabab"
