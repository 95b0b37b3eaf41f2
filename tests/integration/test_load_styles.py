"""Styles of loading: what a file does to the rows that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import TargetError
from export_pipelines.targets import versions
from export_pipelines.targets.names import TableNames
from tests.support.loads import LoadKit
from tests.support.servers import TlsPostgres, run_sql
from tests.support.threads import meanwhile, wait_until

TYPED = {"id": {"type": "bigint"}, "name": {"type": "text"}}
FIRST = "id,name\n1,Ann\n2,Bob\n3,Cid\n4,Dan\n"


@pytest.fixture
def kit(tmp_path: Path, database: str) -> LoadKit:
    return LoadKit(tmp_path, database, {"columns": TYPED})


def counts(result: Any) -> tuple[int, int, int]:
    return result.added, result.changed, result.removed


def ids(kit: LoadKit) -> dict[int, int]:
    return dict(kit.sql("SELECT id, row_id FROM shop.orders"))


@pytest.mark.parametrize("raw", [False, True])
def test_upsert_changes_known_keys_and_adds_the_others(kit: LoadKit, raw: bool) -> None:
    kit.spec |= {"style": "upsert", "key": ["id"], "raw": raw}
    kit.load(FIRST)
    before = ids(kit)
    assert counts(kit.load("id,name\n2,Bobby\n3,Cid\n5,Eve\n")) == (1, 1, 0)
    assert kit.rows() == [(1, "Ann"), (2, "Bobby"), (3, "Cid"), (4, "Dan"), (5, "Eve")]
    assert {key: ids(kit)[key] for key in before} == before
    changed = kit.sql("SELECT DISTINCT file_id FROM shop.orders WHERE id IN (2, 5)")
    assert changed == kit.sql("SELECT max(id) FROM operations.datafile_registry")


@pytest.mark.parametrize("style", ["upsert", "snapshot", "shadow", "replace", "history"])
def test_of_a_key_that_comes_twice_the_last_row_counts_and_the_others_go_to_quarantine(
    kit: LoadKit, style: str
) -> None:
    kit.spec |= {"style": style, "key": ["id"], "quarantine": {"max_rows": 1}}
    result = kit.load("id,name\n1,Ann\n2,Bob\n1,Anna\n")
    assert (result.rows, result.quarantined) == (2, 1)
    assert kit.rows() == [(1, "Anna"), (2, "Bob")]
    assert kit.quarantine() == [(2, None, "its key (id) comes again further on")]


def test_a_key_without_a_value_does_not_fit(kit: LoadKit) -> None:
    kit.spec |= {"style": "upsert", "key": ["id"]}
    with pytest.raises(TargetError, match="line 3, column 'id'"):
        kit.load("id,name\n1,Ann\n,Bob\n")


def test_a_snapshot_by_key_removes_what_the_file_lacks(kit: LoadKit) -> None:
    kit.spec |= {"style": "snapshot", "key": ["id"]}
    kit.load(FIRST)
    before = ids(kit)
    assert counts(kit.load("id,name\n1,Ann\n2,Bobby\n3,Cid\n5,Eve\n")) == (1, 1, 1)
    assert kit.rows() == [(1, "Ann"), (2, "Bobby"), (3, "Cid"), (5, "Eve")]
    assert ids(kit)[2] == before[2]


def test_a_snapshot_by_content_counts_equal_rows(kit: LoadKit) -> None:
    kit.spec |= {"style": "snapshot", "removal": {"share": 0.5}}
    kit.load("id,name\n1,A\n1,A\n1,A\n2,\n3,C\n")
    assert counts(kit.load("id,name\n1,A\n2,\n2,\n3,C\n")) == (1, 0, 2)
    assert kit.rows() == [(1, "A"), (2, None), (2, None), (3, "C")]
    assert counts(kit.load('id,name\n1,A\n2,\n2,""\n3,C\n')) in ((0, 0, 0), (1, 0, 1))


@pytest.mark.parametrize("key", [["id"], []])
def test_a_snapshot_that_would_remove_too_much_is_refused(kit: LoadKit, key: list[str]) -> None:
    kit.spec |= {"style": "snapshot", "key": key}
    kit.load(FIRST)
    with pytest.raises(TargetError, match="would remove 2 of 4 rows"):
        kit.load("id,name\n1,Ann\n2,Bob\n")
    with pytest.raises(TargetError, match="would remove 4 of 4 rows"):
        kit.load("id,name\n")
    assert len(kit.rows()) == 4
    kit.spec["removal"] = {"share": 0.5}
    kit.load("id,name\n1,Ann\n2,Bob\n")
    assert len(kit.rows()) == 2


@pytest.mark.parametrize("key", [["id"], []])
def test_a_snapshot_may_mark_instead_of_remove(kit: LoadKit, key: list[str]) -> None:
    kit.spec |= {"style": "snapshot", "key": key, "removal": {"mark": True}}
    kit.load(FIRST)
    assert kit.load("id,name\n1,Ann\n2,Bob\n3,Cid\n").removed == 1
    assert kit.load("id,name\n1,Ann\n2,Bob\n3,Cid\n").removed == 0
    assert kit.sql("SELECT id FROM shop.orders WHERE removed_at IS NOT NULL") == [(4,)]
    kit.load(FIRST)
    assert kit.sql("SELECT count(*) FROM shop.orders WHERE removed_at IS NULL") == [(4,)]
    assert kit.sql("SELECT count(*) FROM shop.orders") == [(4 if key else 5,)]


def test_history_has_each_version_of_a_row_with_its_time(kit: LoadKit) -> None:
    kit.spec |= {"style": "history", "key": ["id"]}
    kit.load("id,name\n1,Ann\n2,Bob\n")
    assert counts(kit.load("id,name\n1,Anna\n3,Cid\n")) == (1, 1, 0)
    assert counts(kit.load("id,name\n1,Anna\n3,Cid\n")) == (0, 0, 0)
    kit.load("id,name\n1,Ann\n")
    times = "id, name, valid_from::date::text, valid_to::date::text"
    assert kit.rows(times, "id, valid_from") == [
        (1, "Ann", "2025-01-02", "2025-01-03"),
        (1, "Anna", "2025-01-03", "2025-01-05"),
        (1, "Ann", "2025-01-05", None),
        (2, "Bob", "2025-01-02", None),
        (3, "Cid", "2025-01-03", None),
    ]


def test_history_may_close_what_a_file_lacks_within_the_guard(kit: LoadKit) -> None:
    kit.spec |= {"style": "history", "key": ["id"], "absent": "close"}
    kit.load(FIRST)
    assert counts(kit.load("id,name\n1,Ann\n2,Bob\n3,Cid\n")) == (0, 0, 1)
    assert kit.sql("SELECT id FROM shop.orders WHERE valid_to IS NOT NULL") == [(4,)]
    with pytest.raises(TargetError, match="would remove 3 of 3"):
        kit.load("id,name\n")


def test_times_of_a_history_never_overlap_when_an_older_file_comes_late(kit: LoadKit) -> None:
    kit.spec |= {"style": "history", "key": ["id"]}
    older, newer = kit.land("id,name\n1,old\n"), kit.land("id,name\n1,new\n")
    kit.load(newer)
    kit.load(older, force=True)
    assert kit.rows("name", "valid_from") == [("new",), ("old",)]
    assert kit.sql("SELECT bool_and(valid_to IS NULL OR valid_from < valid_to) FROM shop.orders") == [(True,)]


@pytest.mark.parametrize("columns", [{}, TYPED], ids=["untyped", "typed"])
def test_times_of_a_history_stay_when_another_style_goes_on_and_are_no_columns_of_its_files(
    kit: LoadKit, columns: dict[str, Any]
) -> None:
    kit.spec = {"style": "history", "key": ["id"], "columns": columns}
    kit.load("id,name\n1,Ann\n")
    kit.load("id,name\n1,Anna\n")
    kit.spec |= {"style": "append", "key": []}
    assert kit.load("id,name\n2,Bob\n").columns[-1][0] == "name"
    times = "id::int, name, valid_from::date::text, valid_to::date::text"
    rows = [(1, "Ann", "2025-01-02", "2025-01-03"), (1, "Anna", "2025-01-03", None), (2, "Bob", None, None)]
    assert kit.rows(times) == rows
    kit.spec |= {"style": "upsert", "key": ["id"]}
    with pytest.raises(TargetError, match="has old versions of rows, of style history, and style upsert would change"):
        kit.load("id,name\n1,Eve\n")
    kit.spec |= {"style": "append", "key": [], "drift": "evolve"}
    with pytest.raises(TargetError, match="column 'valid_to' of the file has the name of one that the table has"):
        kit.load("id,name,valid_to\n3,Cid,never\n")
    assert kit.rows(times) == rows
    kit.spec |= {"style": "replace"}
    kit.load("id,name,valid_to\n3,Cid,never\n")
    assert kit.rows("name, valid_to") == [("Cid", "never")]


def test_a_column_that_a_style_changed_to_lists_does_not_take_over_the_times_of_a_history(kit: LoadKit) -> None:
    kit.spec = {"style": "history", "key": ["id"], "columns": TYPED}
    for name in ("Ann", "Anna"):
        kit.load(f"id,name\n1,{name}\n")
    kit.spec |= {"columns": {**TYPED, "valid_to": {"type": "timestamptz"}}, "drift": "evolve"}
    for style in ({"style": "upsert"}, {"style": "partition", "key": [], "partition_by": "all"}):
        kit.spec |= style
        with pytest.raises(TargetError, match="has old versions of rows"):
            kit.load("id,name,valid_to\n1,Eve,2030-01-01\n")
    kit.spec = {"style": "append", "columns": kit.spec["columns"], "drift": "evolve"}
    with pytest.raises(TargetError, match="column 'valid_to' of the file has the name of one"):
        kit.load("id,name,valid_to\n1,Eve,2030-01-01\n")
    assert kit.rows("name, valid_to::date::text") == [("Ann", "2025-01-03"), ("Anna", None)]


def test_marks_of_a_snapshot_are_not_left_on_rows_that_another_style_brings_again(kit: LoadKit) -> None:
    kit.spec = {"style": "snapshot", "key": ["id"], "removal": {"mark": True, "share": 1}, "columns": TYPED}
    kit.load("id,name\n1,Ann\n2,Bob\n")
    kit.load("id,name\n1,Ann\n")
    kit.spec = {"style": "upsert", "key": ["id"], "columns": TYPED}
    with pytest.raises(TargetError, match="rows marked as removed, of style snapshot"):
        kit.load("id,name\n2,Bob\n")
    kit.migrations = (("001_marks.sql", "DELETE FROM shop.orders WHERE removed_at IS NOT NULL"),)
    kit.load("id,name\n2,Bob\n")
    assert kit.rows("id, name, removed_at") == [(1, "Ann", None), (2, "Bob", None)]


def test_columns_that_a_migration_adds_or_describes_are_data(kit: LoadKit) -> None:
    kit.spec = {"columns": TYPED}
    kit.load("id,name\n1,Ann\n")
    kit.migrations = (
        ("001_times.sql", "ALTER TABLE shop.orders ADD valid_from date, ADD valid_to date"),
        ("002_words.sql", "COMMENT ON COLUMN shop.orders.valid_to IS 'end of the contract'"),
    )
    kit.spec = {"columns": {**TYPED, "valid_from": {"type": "date"}, "valid_to": {"type": "date"}}}
    kit.load("id,name,valid_from,valid_to\n2,Bob,2999-01-01,2999-02-02\n")
    kit.spec = {"style": "history", "key": ["id"], "columns": TYPED, "drift": "evolve"}
    with pytest.raises(TargetError, match="the table has data in column 'valid_"):
        kit.load("id,name\n2,Bobby\n")
    kit.migrations += (("003_names.sql", "ALTER TABLE shop.orders DROP valid_from, DROP valid_to"),)
    kit.load("id,name\n2,Bobby\n")
    assert kit.rows("name, valid_from::date::text", "name") == [("Ann", None), ("Bob", None), ("Bobby", "2025-01-05")]


@pytest.mark.parametrize("columns", [{}, {**TYPED, "valid_from": {"type": "timestamptz"}}], ids=["untyped", "typed"])
def test_data_in_a_column_never_becomes_a_time_of_a_history(kit: LoadKit, columns: dict[str, Any]) -> None:
    kit.spec = {"style": "append", "columns": columns}
    kit.load("id,name,valid_from\n1,Ann,2999-01-01\n")
    history = {"style": "history", "key": ["id"]}
    kit.spec = {**history, "columns": {**TYPED, "since": {"source": "valid_from"}}, "drift": "evolve"}
    if not columns:
        kit.spec["columns"]["id"] = {}
    with pytest.raises(TargetError, match="the table has data in column 'valid_from'"):
        kit.load("id,name,valid_from\n1,Anna,2999-01-01\n")
    kit.migrations = (("001_since.sql", "ALTER TABLE shop.orders RENAME COLUMN valid_from TO since"),)
    kit.spec["columns"]["since"] |= columns.get("valid_from", {})
    kit.load("id,name,valid_from\n1,Anna,2999-01-01\n")
    assert kit.rows("name, left(since::text, 4), valid_from::date::text", "name") == [
        ("Ann", "2999", None),
        ("Anna", "2999", "2025-01-04"),
    ]


@pytest.mark.parametrize("style", ["upsert", "history"])
def test_what_a_newer_file_gave_stays_when_an_older_one_comes_late(kit: LoadKit, style: str) -> None:
    kit.spec |= {"style": style, "key": ["id"]}
    kit.load("id,name\n1,Ann\n2,Bob\n3,Cid\n")
    older = kit.land("id,name\n1,late\n2,late\n3,Cy\n4,Dan\n")
    # Of 2 it says what is there already: that is newer, too.
    assert counts(kit.load("id,name\n1,Anna\n2,Bob\n")) == (0, 1, 0)
    assert counts(kit.load(older)) == (1, 1, 0)
    now = "SELECT id, name FROM shop.orders" + (" WHERE valid_to IS NULL" if style == "history" else "")
    assert kit.sql(f"{now} ORDER BY id") == [(1, "Anna"), (2, "Bob"), (3, "Cy"), (4, "Dan")]
    kit.load(older, force=True)
    assert kit.sql(f"{now} ORDER BY id") == [(1, "late"), (2, "late"), (3, "Cy"), (4, "Dan")]


@pytest.mark.parametrize("style", ["upsert", "history"])
def test_a_row_that_a_newer_file_gave_again_points_to_the_text_of_that_file(kit: LoadKit, style: str) -> None:
    kit.spec |= {"style": style, "key": ["id"], "raw": True}
    kit.load("id,name\n1,Ann\n")
    kit.land("id,name\n1,late\n")
    newer = kit.load("id,name\n01,Ann\n").registry_id
    texts = "SELECT t.file_id, r.file_id, r.id FROM shop.orders t JOIN shop.orders__raw r ON r.row_id = t.raw_id"
    assert kit.sql(texts) == [(newer, newer, "01")]


def test_a_history_that_closes_what_is_absent_takes_no_older_file(kit: LoadKit) -> None:
    kit.spec |= {"style": "history", "key": ["id"], "absent": "close"}
    older = kit.land("id,name\n1,Ann\n")
    kit.load(FIRST)
    assert kit.load(older).action == "superseded"
    assert kit.sql("SELECT count(*) FROM shop.orders WHERE valid_to IS NULL") == [(4,)]


@pytest.mark.parametrize(("by", "left"), [("month(day)", [2, 9, 4]), ("year(day)", [9]), ("day(day)", [1, 2, 9, 4])])
def test_periods_of_a_newer_file_stay_when_an_older_one_comes_late(kit: LoadKit, by: str, left: list[int]) -> None:
    kit.spec = {"style": "partition", "partition_by": by, "columns": {"id": {"type": "int"}, "day": {"type": "date"}}}
    older = kit.land("id,day\n1,2025-01-01\n2,2025-03-01\n3,2025-01-31\n4,2025-02-01\n5,\n")
    kit.load("id,day\n9,2025-01-31\n8,\n")
    result = kit.load(older)
    assert (result.added, result.removed) == (len(left) - 1, 0)
    assert [row[0] for row in kit.rows("id", "1")] == sorted([*left, 8])


@pytest.mark.parametrize("by", ["month(day)", "year(day)", "day(day)", "all"])
def test_partitions_of_the_file_replace_those_that_are_there(kit: LoadKit, by: str) -> None:
    kit.spec = {"style": "partition", "partition_by": by, "columns": {"id": {"type": "int"}, "day": {"type": "date"}}}
    kit.load("id,day\n1,2024-12-31\n2,2025-01-01\n3,2025-01-31\n4,2025-02-01\n5,\n")
    kit.load("id,day\n9,2025-01-31\n")
    kept = {"month(day)": [1, 4, 5], "year(day)": [1, 5], "day(day)": [1, 2, 4, 5], "all": []}[by]
    assert [row[0] for row in kit.rows("id", "1")] == sorted([*kept, 9])
    kit.load("id,day\n7,\n")
    assert (5,) not in kit.rows("id", "1")


def test_replace_is_what_the_file_holds(kit: LoadKit) -> None:
    kit.spec["style"] = "replace"
    kit.load(FIRST)
    result = kit.load("id,name\n7,Zoe\n")
    assert (result.table_version, result.rows) == (2, 1)
    assert kit.rows() == [(7, "Zoe")]
    kit.load("id,name\n")
    assert kit.rows() == []


def test_a_shadow_that_is_equal_is_not_swapped(kit: LoadKit) -> None:
    kit.spec |= {"style": "shadow", "key": ["id"]}
    first = kit.load(FIRST)
    again = kit.load("id,name\n4,Dan\n3,Cid\n2,Bob\n1,Ann\n")
    assert (first.action, again.action, again.table_version) == ("loaded", "unchanged", 1)
    assert again.digest == first.digest != ""
    assert kit.sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'orders!_!_v%' ESCAPE '!' AND relkind = 'r'") == [
        (1,)
    ]


def test_a_shadow_with_few_changes_is_changed_in_place_and_with_many_swapped(kit: LoadKit) -> None:
    kit.spec |= {"style": "shadow", "key": ["id"]}
    names = {n: f"name {n}" for n in range(2000)}

    def load() -> Any:
        return kit.load("id,name\n" + "".join(f"{n},{name}\n" for n, name in names.items()))

    load()
    before = ids(kit)
    names |= {7: "seven", 3000: "new"}
    del names[8]
    few = load()
    assert (few.action, few.table_version, counts(few)) == ("upserted", 1, (1, 1, 1))
    assert dict(kit.rows()) == names
    assert ids(kit)[7] == before[7]
    assert load().action == "unchanged"
    names |= {n: "changed" for n in range(0, 2000, 4) if n != 8}
    many = load()
    assert (many.action, many.table_version) == ("loaded", 2)
    assert dict(kit.rows()) == names
    assert load().action == "unchanged"


def test_a_shadow_without_a_key_is_swapped_when_anything_differs(kit: LoadKit) -> None:
    kit.spec["style"] = "shadow"
    kit.load(FIRST)
    assert kit.load(FIRST).action == "unchanged"
    assert kit.load(FIRST + "4,Dan\n").action == "loaded"
    assert kit.load(FIRST + '5,""\n').action == "loaded"
    assert len(kit.rows()) == 5


def test_a_style_that_changes_goes_on_with_the_table_that_is_there(kit: LoadKit) -> None:
    kit.load(FIRST)
    kit.version, kit.spec["style"] = "v2", "replace"
    kit.load("id,name\n1,Ann\n")
    kit.version, kit.spec["style"] = "v3", "append"
    kit.load("id,name\n2,Bob\n")
    assert kit.rows() == [(1, "Ann"), (2, "Bob")]


@pytest.mark.debian
@pytest.mark.parametrize("style", ["append", "replace", "upsert", "snapshot", "shadow", "history", "partition"])
def test_an_older_server_does_the_same_without_what_newer_ones_have(
    style: str, tmp_path: Path, tls_postgres: TlsPostgres
) -> None:
    """Debian's PostgreSQL cannot test a value without an error, and takes a line of `\\.` for the end of a file."""
    name = f"loads_{style}"
    run_sql(tls_postgres.url(), f"CREATE DATABASE {name}")
    kit = LoadKit(tmp_path, tls_postgres.url(name), {"columns": TYPED, "style": style, "quarantine": {"max_rows": 2}})
    kit.spec |= {"key": ["id"]} if style in ("upsert", "snapshot", "shadow", "history") else {}
    kit.spec |= {"partition_by": "all"} if style == "partition" else {}
    kit.load(FIRST)
    result = kit.load('id,name\n1,Ann\nx,Bob\n3,"\\."\n\\.\n4,Dora\n')
    assert (result.rows, result.quarantined) == (3, 2)
    assert [(line, column) for line, column, _ in kit.quarantine()] == [(3, "id"), (5, None)]
    newest = (4, "Dora")
    assert newest in kit.rows()
    run_sql(tls_postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


def test_windows_by_day_are_replaced_by_the_days_of_their_zone(kit: LoadKit) -> None:
    kit.spec = {
        "source": {"type": "database", "connection": "erp"},
        "partitions": {"every": "day", "start": "2025-01-01", "timezone": "Europe/Tallinn"},
        "style": "partition",
        "partition_by": "day(at)",
        "columns": {"id": {"type": "bigint"}, "at": {"type": "timestamptz"}},
    }
    for again in range(2):
        for day, first in [("2025-01-01", "2024-12-31 22:00Z"), ("2025-01-02", "2025-01-01 22:00Z")]:
            rows = kit.sql(f"SELECT n, timestamptz '{first}' + n * interval '1 hour' FROM generate_series(0, 23) n")
            kit.load("id,at\n" + "".join(f"{again}{n},{at.isoformat()}\n" for n, at in rows), f"{day}/sold.csv")
        assert kit.sql("SELECT count(*), count(DISTINCT at) FROM shop.orders") == [(48, 48)]


def test_a_load_does_not_keep_others_from_the_new_schema(kit: LoadKit) -> None:
    with kit.context.target.session(read_only=False) as session:
        versions.lock(session, TableNames.of(kit.definition.spec.target))
        with meanwhile(lambda: kit.load(FIRST)) as load:
            wait_until(lambda: kit.sql("SELECT to_regnamespace('shop') IS NOT NULL")[0][0])
            session.commit()
            assert load.result().rows == 4
