"""Loading a landed file: once, whole or not at all, what does not fit in quarantine, and files that differ."""

from __future__ import annotations

import gzip
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.errors import IntegrityError, RequestError, TargetError
from export_pipelines.steps.context import Progress
from export_pipelines.steps.load import ignore, landed_files, pending, table_versions, to_force, waiting_by_name
from tests.support.loads import LoadKit

FILE = "id,name\n1,Ann\n2,Bob\n"
TYPED = {"id": {"type": "bigint"}, "name": {"type": "text"}}


@pytest.fixture
def kit(tmp_path: Path, database: str) -> LoadKit:
    return LoadKit(tmp_path, database, {"columns": TYPED})


def test_a_file_is_loaded_with_its_entry_in_the_registry(kit: LoadKit) -> None:
    result = kit.load(FILE)
    assert (result.action, result.rows, result.added, result.table_version) == ("loaded", 2, 2, 1)
    assert result.columns == (("id", "bigint"), ("name", "text"))
    assert kit.rows("row_id, file_id, id, name") == [
        (1, result.registry_id, 1, "Ann"),
        (2, result.registry_id, 2, "Bob"),
    ]
    entry = "file_name, state, rows, quarantined, table_version, attempts, run_id, definition_version, sequence"
    assert kit.sql(f"SELECT {entry} FROM operations.datafile_registry") == [
        ("orders.csv", "processed", 2, 0, 1, 1, "run", "v1", 1)
    ]


def test_without_columns_the_first_file_decides_and_all_is_text(kit: LoadKit) -> None:
    kit.spec = {}
    assert kit.load(FILE).columns == (("id", "text"), ("name", "text"))
    kit.load("id,name\n3,\n")
    assert kit.rows() == [("1", "Ann"), ("2", "Bob"), ("3", None)]


def test_the_same_landed_file_is_loaded_once_and_force_loads_it_anew(kit: LoadKit) -> None:
    landed = kit.land(FILE)
    first = kit.load(landed)
    again = kit.load(landed)
    assert (again.action, again.rows, again.registry_id) == ("already", 2, first.registry_id)
    forced = kit.load(landed, force=True)
    assert (forced.action, forced.added, forced.removed) == ("loaded", 2, 2)
    assert kit.rows() == [(1, "Ann"), (2, "Bob")]


def test_another_version_of_the_definition_loads_a_file_anew_in_place_of_its_rows(kit: LoadKit) -> None:
    landed = kit.land(FILE)
    kit.load(landed)
    kit.version, kit.spec = "v2", {"columns": {**TYPED, "name": {"sql": "upper(name)"}}}
    assert kit.load(landed).action == "loaded"
    assert kit.rows() == [(1, "ANN"), (2, "BOB")]
    assert kit.sql("SELECT count(*) FROM operations.datafile_registry") == [(2,)]


def test_a_to_b_to_a_is_three_versions(kit: LoadKit) -> None:
    kit.spec["style"] = "replace"
    seen = []
    for text in ("1,A\n", "1,B\n", "1,A\n"):
        kit.load("id,name\n" + text)
        seen += kit.rows()
    assert seen == [(1, "A"), (1, "B"), (1, "A")]
    assert [version.number for version in table_versions(kit.context)] == [1, 2, 3]


def test_a_revised_file_adds_its_rows_or_replaces_those_of_its_name(kit: LoadKit) -> None:
    kit.load(FILE, "may.csv")
    kit.load("id,name\n9,Zoe\n", "june.csv")
    kit.load("id,name\n1,Anna\n", "may.csv")
    assert len(kit.rows()) == 4
    kit.spec["revised"] = "replace"
    kit.load("id,name\n2,Bobby\n", "may.csv")
    assert kit.rows() == [(2, "Bobby"), (9, "Zoe")]


def test_a_mended_file_comes_before_the_one_that_failed_which_then_waits_no_more(kit: LoadKit) -> None:
    kit.spec["revised"] = "replace"
    bad, other = kit.land("id,name\n1,Ann\nx,Bob\n", "may.csv"), kit.land("id,name\n9,Zoe\n", "june.csv")
    with pytest.raises(TargetError, match="1 record of may"):
        kit.load(bad)
    mended = kit.land(FILE, "may.csv")
    assert pending(kit.context) == [other, mended, bad]
    assert waiting_by_name(kit.context, "may.csv") == [bad]
    kit.load(mended)
    kit.spec["quarantine"] = {"max_rows": 1}
    assert kit.load(bad).action == "superseded"
    assert kit.rows() == [(1, "Ann"), (2, "Bob")]
    assert pending(kit.context) == [other] == waiting_by_name(kit.context, "june.csv")
    assert to_force(kit.context, landed_files(kit.context)) == [other, mended]


def test_two_loaders_at_once_load_a_file_once(kit: LoadKit) -> None:
    landed, results = kit.land(FILE), []
    threads = [threading.Thread(target=lambda: results.append(kit.load(landed).action)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["already", "already", "already", "loaded"]
    assert kit.rows() == [(1, "Ann"), (2, "Bob")]


def test_pending_are_files_that_never_were_loaded_nor_ignored(kit: LoadKit) -> None:
    files = [kit.land(f"id,name\n{number},x\n", f"{number}.csv") for number in range(4)]
    assert pending(kit.context) == files
    kit.load(files[1])
    ignore(kit.context, files[2])
    kit.spec = {"columns": {"other": {}}}
    with pytest.raises(TargetError):
        kit.load(files[3])
    assert pending(kit.context) == [files[0], files[3]]
    assert pending(kit.context, files[1:]) == [files[3]]
    kit.version = "v2"
    assert pending(kit.context) == [files[0], files[3]]


def test_a_table_of_another_definition_is_loaded_by_force_only(kit: LoadKit) -> None:
    kit.spec["style"] = "replace"
    kit.load("id,name\n1,old\n")
    kit.load("id,name\n1,newer\n")
    other = {"table": "shop/purchases"}
    first = kit.land("id,name\n1,other\n").model_copy(update={"sequence": 1, **other})
    with pytest.raises(TargetError, match="was loaded by the definition shop/orders until now") as caught:
        kit.load(first)
    assert "moved_from: shop/orders" in (caught.value.hint or "")
    assert kit.rows() == [(1, "newer")]
    assert kit.load(first, force=True).action == "loaded"
    second = kit.land("id,name\n1,mine\n").model_copy(update={"sequence": 2, **other})
    assert kit.load(second).action == "loaded"
    assert kit.rows() == [(1, "mine")]


def test_a_definition_that_is_refused_a_table_changes_nothing_of_it(kit: LoadKit) -> None:
    kit.load(FILE)
    kit.migrations = (("001_drop.sql", "ALTER TABLE shop.orders DROP COLUMN name"),)
    with pytest.raises(TargetError, match="was loaded by the definition"):
        kit.load(kit.land(FILE).model_copy(update={"sequence": 1, "table": "shop/purchases"}))
    assert kit.rows() == [(1, "Ann"), (2, "Bob")]


def test_of_an_area_for_uploads_that_was_moved_the_hint_names_the_area(kit: LoadKit) -> None:
    kit.spec |= {"source": {"type": "upload", "organisations": ["health"]}, "style": "replace"}
    kit.load(kit.land(FILE).model_copy(update={"table": "people/inbox/orders"}))
    with pytest.raises(TargetError) as caught:
        kit.load(kit.land(FILE).model_copy(update={"sequence": 1, "table": "people/forms/orders"}))
    assert "`moved_from: people/inbox`" in (caught.value.hint or "")


def test_a_definition_that_took_over_revises_what_the_old_one_loaded(kit: LoadKit) -> None:
    kit.spec["revised"] = "replace"
    kit.load(FILE, "may.csv")
    kit.load("id,name\n9,Zoe\n", "june.csv")
    kit.load("id,name\n2,Bob\n", "may.csv")
    moved = kit.land("id,name\n3,Cid\n", "may.csv").model_copy(update={"sequence": 1, "table": "shop/purchases"})
    assert kit.load(moved, force=True).action == "loaded"
    assert kit.rows() == [(3, "Cid"), (9, "Zoe")]


def test_an_older_file_comes_too_late_for_a_table_that_is_what_its_newest_file_holds(kit: LoadKit) -> None:
    kit.spec["style"] = "replace"
    older, newer = kit.land("id,name\n1,old\n"), kit.land("id,name\n1,new\n")
    kit.load(newer)
    assert kit.load(older).action == "superseded"
    assert kit.rows() == [(1, "new")]
    assert pending(kit.context) == []
    assert kit.load(older, force=True).action == "loaded"
    assert kit.rows() == [(1, "old")]


# Records that do not fit

BAD = "id,name,born\n1,Ann,2000-01-31\nx,Bob,2000-02-30\n3,Cid\n4,Dan,2000-01-01\n,Eve,2000-01-01\n"
BORN = {
    "id": {"type": "bigint", "nullable": False},
    "name": {},
    "born": {"sql": "to_date(born, 'YYYY-MM-DD')", "type": "date"},
}


def test_records_that_do_not_fit_go_to_quarantine_with_column_file_and_line(kit: LoadKit) -> None:
    kit.spec = {"columns": BORN, "quarantine": {"max_rows": 3}}
    result = kit.load(BAD)
    assert (result.rows, result.quarantined) == (2, 3)
    assert kit.rows("id, name") == [(1, "Ann"), (4, "Dan")]
    lines = [(line, column) for line, column, _ in kit.quarantine()]
    assert lines == [(3, "id"), (4, None), (6, "id")]
    assert "bigint" in kit.quarantine()[0][2]
    assert kit.sql("SELECT record FROM shop.orders__quarantine WHERE file_line = 3")[0][0].count("Bob") == 1


def test_too_many_that_do_not_fit_fail_the_load_and_leave_the_table(kit: LoadKit) -> None:
    kit.spec = {"columns": BORN}
    kit.load("id,name,born\n7,Old,1999-01-01\n")
    with pytest.raises(TargetError, match=r"line 3, column 'id'.*line 4") as raised:
        kit.load(BAD)
    assert "0 may" in raised.value.message
    assert kit.rows("id, name") == [(7, "Old")]
    states = kit.sql("SELECT state, error_message LIKE '%line 3%' FROM operations.datafile_registry ORDER BY id")
    assert states == [("processed", None), ("failed", True)]
    assert [line for line, _, _ in kit.quarantine()] == [3, 4, 6]


def test_a_share_that_does_not_fit_fails_the_load(kit: LoadKit) -> None:
    kit.spec = {"columns": BORN, "quarantine": {"max_rows": 100, "max_share": 0.5}}
    with pytest.raises(TargetError):
        kit.load(BAD)


def test_a_failed_file_is_tried_again_and_its_quarantine_is_of_the_last_attempt(kit: LoadKit) -> None:
    kit.spec = {"columns": BORN}
    landed = kit.land(BAD)
    with pytest.raises(TargetError):
        kit.load(landed)
    kit.spec = {"columns": BORN, "quarantine": {"max_rows": 9}}
    assert kit.load(landed).quarantined == 3
    assert len(kit.quarantine()) == 3
    assert kit.sql("SELECT attempts, state FROM operations.datafile_registry") == [(2, "processed")]


@pytest.mark.parametrize("style", ["append", "replace", "upsert", "shadow"])
def test_few_bad_rows_among_many_are_found_wherever_they_are(kit: LoadKit, style: str) -> None:
    bad = {1, 777, 1500, 3000}
    body = "".join(f"{n},{'x' if n in bad else n}\n" for n in range(1, 3001))
    kit.spec = {
        "columns": {"id": {"type": "int"}, "n": {"type": "int", "sql": "n::int"}},
        "quarantine": {"max_rows": 4},
    }
    kit.spec |= {"style": style, "key": ["id"]}
    result = kit.load("id,n\n" + body)
    assert (result.rows, result.quarantined) == (2996, 4)
    assert [(line, column) for line, column, _ in kit.quarantine()] == [(n + 1, "n") for n in sorted(bad)]
    assert kit.sql("SELECT count(*), sum(id) FROM shop.orders") == [(2996, 3000 * 3001 // 2 - sum(bad))]


def test_a_value_that_is_too_long_is_refused_and_not_cut(kit: LoadKit) -> None:
    kit.spec = {"columns": {"id": {"type": "int"}, "name": {"type": "varchar(3)"}}, "quarantine": {"max_rows": 1}}
    assert kit.load("id,name\n1,Ann\n2,Anna\n").quarantined == 1
    kit.spec["raw"] = True
    kit.load("id,name\n3,Bob\n4,Bobby\n")
    assert kit.rows() == [(1, "Ann"), (3, "Bob")]


def test_null_words_are_whole_values(kit: LoadKit) -> None:
    kit.spec["file"] = {"null_words": ["NULL", "n/a"]}
    kit.load("id,name\n1,ANNULLED\n2,NULL\nn/a,x\n")
    assert kit.rows() == [(1, "ANNULLED"), (2, None), (None, "x")]


def test_a_line_that_copy_takes_for_the_end_is_a_record(kit: LoadKit) -> None:
    kit.spec = {"columns": {"a": {}, "b": {}}, "quarantine": {"max_rows": 1}}
    result = kit.load('a,b\n1,2\n\\.\n3,"\\."\n')
    assert (result.rows, result.quarantined) == (2, 1)


def test_a_load_tells_how_much_of_the_landed_file_it_has_read_from_0_on_where_it_reads_it_again(kit: LoadKit) -> None:
    told: list[Progress] = []
    kit.options = {"progress": told.append}
    kit.spec = {"columns": {"id": {"type": "int"}, "text": {"type": "text"}}, "quarantine": {"max_rows": 1}}
    lines = [f"{n},{hashlib.sha256(str(n).encode()).hexdigest()}" for n in range(60_000)]
    landed = kit.land(gzip.compress("\n".join(["id,text", *lines, "none,x", ""]).encode()), "orders.csv.gz")
    assert kit.load(landed).quarantined == 1
    assert {each.total for each in told} == {landed.file.size}
    places = [each.bytes for each in told]
    again = [n for n in range(1, len(places)) if places[n] < places[n - 1]]
    assert len(again) == 1 and places[again[0]] < landed.file.size == places[-1]


def test_an_altered_file_is_noticed_and_nothing_is_loaded(kit: LoadKit) -> None:
    landed = kit.land(FILE)
    path = kit.folder / "landing" / landed.file.key
    path.chmod(0o644)
    path.write_text(FILE.replace("Bob", "Rob"))
    with pytest.raises(IntegrityError, match="not what landed"):
        kit.load(landed)
    assert kit.sql("SELECT to_regclass('shop.orders')") == [(None,)]


def test_packed_files_are_loaded(kit: LoadKit) -> None:
    kit.load(gzip.compress(FILE.encode()), "orders.csv.gz")
    assert kit.rows() == [(1, "Ann"), (2, "Bob")]


# Headers and drift


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,name,id", "two columns are named 'id'"),
        ("id,name,row_id", "loading uses itself"),
        ("id,name,Full Name", "cannot be a column"),
        ("id,name," + "x" * 64, "longer than 63 bytes"),
    ],
)
def test_headers_that_cannot_be_are_clear_errors(kit: LoadKit, header: str, message: str) -> None:
    kit.spec = {"drift": "evolve"}
    with pytest.raises((TargetError, RequestError), match=message):
        kit.load(f"{header}\n1,2,3\n")
    assert kit.sql("SELECT to_regclass('shop.orders'), state FROM operations.datafile_registry") == [(None, "failed")]


WIDER = "id,name,note\n3,Cid,hello\n4,Dan,\n"


def drifted(kit: LoadKit, policy: str, text: str = WIDER) -> Any:
    kit.load(FILE)
    kit.spec |= {"drift": policy, "quarantine": {"max_rows": 1}}
    return kit.load(text)


def test_new_columns_fail_the_load_when_frozen(kit: LoadKit) -> None:
    with pytest.raises(TargetError, match="'note'"):
        drifted(kit, "freeze")
    assert len(kit.rows()) == 2


@pytest.mark.parametrize("columns", [TYPED, {}])
def test_new_columns_are_added_as_text_when_it_may_evolve(kit: LoadKit, columns: dict[str, Any]) -> None:
    kit.spec["columns"] = columns
    drifted(kit, "evolve")
    assert [row[0] for row in kit.rows("note", "row_id")] == [None, None, "hello", None]
    kit.load(FILE)
    kit.load(WIDER)
    assert kit.sql("SELECT count(note) FROM shop.orders") == [(2,)]


def test_rows_with_a_value_in_a_new_column_are_discarded_to_quarantine(kit: LoadKit) -> None:
    assert drifted(kit, "discard_row").quarantined == 1
    assert kit.rows() == [(1, "Ann"), (2, "Bob"), (4, "Dan")]
    assert kit.quarantine()[0][:2] == (2, "note")


def test_values_of_new_columns_are_discarded(kit: LoadKit) -> None:
    assert drifted(kit, "discard_value").rows == 2
    assert len(kit.rows()) == 4


def test_columns_that_a_file_lacks_fail_it_when_frozen_and_are_null_otherwise(kit: LoadKit) -> None:
    with pytest.raises(TargetError, match="lacks columns that the definition knows: 'name'"):
        drifted(kit, "freeze", "id\n3\n")
    kit.spec["drift"] = "discard_value"
    kit.load("id\n3\n")
    assert kit.rows()[-1] == (3, None)


def test_a_column_that_the_definition_got_is_added_or_wants_a_migration(kit: LoadKit) -> None:
    kit.load(FILE)
    kit.version, kit.spec["columns"] = "v2", {**TYPED, "note": {"type": "varchar(9)"}}
    with pytest.raises(TargetError, match="the table lacks columns of the definition: 'note'"):
        kit.load(WIDER)
    kit.spec["drift"] = "evolve"
    assert kit.load(WIDER).columns[-1] == ("note", "character varying(9)")
    kit.spec["columns"] = {**TYPED, "note": {"type": "int"}}
    with pytest.raises(TargetError, match="note is character varying"):
        kit.load(WIDER)


# What columns are made of


def test_columns_come_from_other_names_expressions_and_transforms(kit: LoadKit) -> None:
    kit.spec = {
        "columns": {
            "number": {"type": "int", "source": "Order No"},
            "total": {"type": "numeric(8,2)", "sql": "replace(\"Net €\", ',', '.')::numeric * 1.2"},
            "day": {"type": "date", "source": "Day", "transform": "date"},
        }
    }
    kit.load('Order No,Net €,Day\n1,"10,50",45658\n2,"1,00",31.12.2024\n3,"2,00",2024-02-29\n')
    assert [(n, str(t), str(d)) for n, t, d in kit.rows("number, total, day")] == [
        (1, "12.60", "2025-01-01"), (2, "1.20", "2024-12-31"), (3, "2.40", "2024-02-29")
    ]  # fmt: skip


def test_a_hashed_column_never_reaches_the_database_as_it_is(kit: LoadKit) -> None:
    kit.spec = {
        "raw": True,
        "columns": {"id": {"type": "int"}, "name": {"transform": "hash"}},
        "quarantine": {"max_rows": 9},
    }
    kit.secret = b"s" * 32
    kit.load('id,name\n1,Ann\n2,"A ""b"", c"\n3,\nx,Ann\n4,Ann,Ann\n')
    values = [row[0] for row in kit.rows("name", "id")]
    assert values[2] is None
    assert len(values[0]) == len(values[1]) == 64
    assert values[0] != values[1]
    everything = str([kit.sql(f"SELECT * FROM shop.{t}") for t in ("orders", "orders__raw", "orders__quarantine")])
    assert "Ann" not in everything
    assert everything.count(values[0]) == 4  # typed, raw, raw and quarantine of the bad row
    kit.secret = b""
    with pytest.raises(TargetError, match="needs a secret"):
        kit.load(FILE)


def test_typed_rows_point_to_their_raw_row(kit: LoadKit) -> None:
    kit.spec = {
        "raw": True,
        "columns": {"id": {"type": "int"}},
        "drift": "discard_value",
        "quarantine": {"max_rows": 1},
    }
    kit.load("id,extra\n 7 ,seven\nx,eks\n")
    kit.load("id,more\n8,acht\n")
    joined = "FROM shop.orders t JOIN shop.orders__raw r ON r.row_id = t.raw_id ORDER BY 1"
    assert kit.sql(f"SELECT t.id, r.id, r.extra, r.more {joined}") == [
        (7, " 7 ", "seven", None),
        (8, "8", None, "acht"),
    ]
    assert kit.sql("SELECT count(*) FROM shop.orders__raw") == [(3,)]
    quarantined = (
        "SELECT q.file_line, r.id FROM shop.orders__quarantine q JOIN shop.orders__raw r ON r.row_id = q.raw_id"
    )
    assert kit.sql(quarantined) == [(3, "x")]


def test_a_definition_that_changes_during_a_load_gives_it_up(kit: LoadKit) -> None:
    kit.load(FILE)
    kit.options = {"current_version": lambda: "v2"}
    with pytest.raises(TargetError, match="was changed while it was loaded") as raised:
        kit.load("id,name\n3,Cid\n")
    assert raised.value.transient
    assert len(kit.rows()) == 2


def test_descriptions_become_comments_and_roles_may_read(kit: LoadKit) -> None:
    kit.spec = {"description": "All orders", "columns": {"id": {"type": "int", "description": "Its number"}}}
    kit.sql("DO $$ BEGIN CREATE ROLE load_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    kit.spec["target"] = {"table": "shop.orders", "grants": ["load_reader"]}
    kit.load("id\n1\n")
    assert kit.sql("SELECT obj_description('shop.orders'::regclass), col_description('shop.orders'::regclass, 3)") == [
        ("All orders", "Its number")
    ]
    assert kit.sql("SELECT has_table_privilege('load_reader', 'shop.orders', 'SELECT')") == [(True,)]
    kit.sql("DROP OWNED BY load_reader; DROP ROLE load_reader")
