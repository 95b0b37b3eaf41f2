"""What a cleanup leaves, refuses and reports."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.errors import CleanupRefused, IntegrityError, RequestError, SourceError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.sql import RelationName
from export_pipelines.steps.postgres.proof import place_now
from export_pipelines.windows import Window
from tests.support.tables import DAY, NEXT_DAY, Kit, run_each

TABLE = "CREATE TABLE t (id int PRIMARY KEY, note text, at timestamptz)"
ROWS = "INSERT INTO t SELECT i, 'note ' || i, '2025-01-01 12:00Z' FROM generate_series(1, 5) AS i"


@pytest.fixture
def daily(kit: Kit) -> Kit:
    """Rows 1 to 5 of a day, in a table whose statements are derived."""
    kit.sql(TABLE, ROWS)
    kit.spec.update(table="t", time_column="at")
    kit.window = DAY
    return kit


# The three losses of S1


def test_a_second_run_on_the_same_day_adds_a_file_and_destroys_none(daily: Kit) -> None:
    daily.exported()
    assert daily.cleanup().deleted == 5
    second = daily.exported()
    assert (second.rows, second.generation, second.unchanged) == (0, 2, False)
    assert len({entry.file.key for entry in daily.entries() if entry.kind == "artifact"}) == 2
    assert [row[0] for row in daily.restored(DAY.partition)] == [1, 2, 3, 4, 5]


def test_rows_that_come_between_copy_and_delete_stay(daily: Kit) -> None:
    daily.exported()
    daily.sql("INSERT INTO t VALUES (6, 'late', '2025-01-01 13:00Z')")
    result = daily.cleanup()
    assert (result.deleted, result.late, result.not_exported, result.complete) == (5, 1, 0, False)
    assert daily.rows() == [6]
    assert daily.exported().rows == 1
    assert daily.cleanup().complete
    assert [row[0] for row in daily.restored(DAY.partition)] == [1, 2, 3, 4, 5, 6]


def test_nothing_is_deleted_before_the_archive_has_it(daily: Kit) -> None:
    with pytest.raises(CleanupRefused, match="is not archived"):
        daily.cleanup()
    daily.export()
    with pytest.raises(CleanupRefused, match="is not archived"):
        daily.cleanup()
    assert len(daily.rows()) == 5


# What is late, changed, gone, or never exported


def test_a_row_that_was_changed_stays_for_the_next_export(daily: Kit) -> None:
    daily.exported()
    daily.sql("UPDATE t SET note = 'changed' WHERE id = 2")
    result = daily.cleanup()
    assert (result.deleted, result.late) == (4, 1)
    assert daily.rows() == [2]


def test_a_row_that_was_changed_and_changed_back_stays_for_the_next_export(daily: Kit) -> None:
    daily.exported()
    daily.sql("UPDATE t SET note = note WHERE id = 2")
    assert daily.cleanup().late == 1
    assert daily.rows() == [2]


def test_rows_that_others_deleted_are_not_counted(daily: Kit) -> None:
    daily.exported()
    daily.sql("DELETE FROM t WHERE id IN (1, 5)")
    result = daily.cleanup()
    assert (result.deleted, result.late, result.not_exported, result.complete) == (3, 0, 0, True)


def test_another_row_at_the_same_place_stays(daily: Kit) -> None:
    daily.exported()
    daily.sql("DELETE FROM t", "VACUUM t", ROWS)
    assert daily.rows("SELECT ctid::text FROM t WHERE id = 1") == ["(0,1)"]
    result = daily.cleanup()
    assert (result.deleted, result.late) == (0, 5)
    assert len(daily.rows()) == 5


@pytest.mark.parametrize("xmin", ["age 1", "age 0"])
def test_a_row_whose_xmin_could_as_well_be_younger_than_the_export_stays(daily: Kit, xmin: str) -> None:
    """xmin has 32 of the 64 bits of a transaction's id, and a frozen row keeps its own for ever."""
    daily.exported()
    born = int(daily.rows("SELECT min(xmin::text::int) FROM t")[0])
    bound = born if xmin == "age 1" else born + 1
    _rewrite_next_xid(daily, bound)
    result = daily.cleanup()
    assert result.deleted == (0 if xmin == "age 1" else 5)


def _rewrite_next_xid(kit: Kit, value: int) -> None:
    """As if the export had been made when the next transaction was `value`."""
    path = next(kit.folder.glob("archive/g/*/manifests/00000001.json"))
    entry = json.loads(path.read_text())
    entry["export"]["source"]["next_xid"] = value
    path.chmod(0o600)
    path.write_text(json.dumps(entry))
    changed = f"jsonb_set(record, '{{source,next_xid}}', '{value}')"
    kit.catalog_sql(f"UPDATE export SET record = {changed} WHERE table_id = '{kit.table.id}'")
    kit.catalog_sql(f"DELETE FROM chain_head WHERE table_id = '{kit.table.id}'")


@pytest.mark.parametrize(
    ("select", "delete", "deleted", "late", "not_exported"),
    [
        ("{0} AND id <> 2", "{0}", 4, 0, 1),
        ("{0}", "{0} AND id <> 2", 4, 0, 0),
        ("{0} AND id > 2", "{0} AND id < 4", 1, 0, 2),
        ("{0}", "DELETE FROM t WHERE at < %(window_end)s + interval '1 day'", 5, 0, 1),
        ("{0} LIMIT 2", "{0}", 2, 2, 1),
        ("{0}", "DELETE FROM t USING o WHERE o.id = t.id AND at < %(window_end)s", 2, 0, 0),
    ],
)
def test_where_the_statements_disagree_only_archived_rows_are_deleted(
    kit: Kit, select: str, delete: str, deleted: int, late: int, not_exported: int
) -> None:
    kit.sql(TABLE, ROWS, "INSERT INTO t VALUES (6, 'next day', '2025-01-02 12:00Z')")
    kit.sql("CREATE TABLE o AS SELECT * FROM (VALUES (1), (1), (3)) AS o (id)")
    where = " WHERE at >= %(window_start)s AND at < %(window_end)s"
    kit.window = DAY
    kit.select = select.format("SELECT * FROM t" + where)
    kit.delete = delete.format("DELETE FROM t" + where)
    record = kit.exported()
    in_file = {int(row[0]) for row in kit.archived_records()}
    before = set(kit.rows())
    plan = kit.plan()
    result = kit.cleanup()
    gone = before - set(kit.rows())
    assert gone <= in_file
    assert (result.deleted, len(gone)) == (deleted, deleted)
    # What LIMIT left out would be in the next export.
    assert (result.late, result.not_exported) in [(late, not_exported), (late + not_exported, 0)]
    assert plan.would_delete == result.deleted
    assert plan.late + plan.not_exported == result.late + result.not_exported
    if "LIMIT" not in select:
        assert plan.late == result.late
    assert record.rows == len(in_file)


def test_a_where_with_or_does_not_reach_past_the_proof(kit: Kit) -> None:
    kit.sql(TABLE, ROWS)
    kit.select = "SELECT * FROM t WHERE id = 1"
    kit.delete = "DELETE FROM t WHERE id = 2 OR id = 3 -- OR"
    kit.exported()
    assert kit.cleanup().deleted == 0
    kit.delete = "DELETE FROM t WHERE false OR true"
    assert kit.cleanup().deleted == 1
    assert kit.rows() == [2, 3, 4, 5]


# Rewrites between export and cleanup

REWRITES = {
    "VACUUM FULL": ["VACUUM FULL t"],
    "CLUSTER": ["CREATE INDEX by_note ON t (note DESC)", "CLUSTER t USING by_note"],
    "ALTER TYPE": ["ALTER TABLE t ALTER id TYPE bigint"],
    "TRUNCATE and reload": ["CREATE TABLE copy AS TABLE t", "TRUNCATE t", "INSERT INTO t SELECT * FROM copy"],
    "SET TABLESPACE of a column": ["ALTER TABLE t ALTER note SET STORAGE EXTERNAL", "VACUUM FULL t"],
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_after_a_rewrite_rows_are_known_by_their_content(daily: Kit, rewrite: str) -> None:
    daily.exported()
    daily.sql("UPDATE t SET note = 'changed' WHERE id = 2", "DELETE FROM t WHERE id = 3")
    daily.sql("INSERT INTO t VALUES (6, 'late', '2025-01-01 13:00Z')", *REWRITES[rewrite])
    plan = daily.plan()
    result = daily.cleanup()
    assert result.proof == "content"
    assert (result.deleted, result.late, result.not_exported) == (3, 2, 0)
    assert (plan.would_delete, plan.late, plan.not_exported, plan.proof) == (3, 2, 0, "content")
    assert daily.rows() == [2, 6]


@pytest.mark.parametrize("rewritten_before", [True, False])
def test_an_equal_row_that_came_late_is_not_proved_by_an_earlier_generation(kit: Kit, rewritten_before: bool) -> None:
    """The records of both generations are of the same rows: together they must not prove one row more."""
    kit.spec["table"] = "t"
    kit.sql("CREATE TABLE t (id int)", "INSERT INTO t VALUES (1), (1)")
    kit.exported()
    kit.sql("INSERT INTO t VALUES (2)", *(["VACUUM FULL t"] if rewritten_before else []))
    kit.exported()
    kit.sql("INSERT INTO t VALUES (1)", *([] if rewritten_before else ["VACUUM FULL t"]))
    assert kit.plan().would_delete == 3
    result = kit.cleanup()
    assert (result.deleted, result.late) == (3, 1)
    assert kit.rows() == [1]
    assert kit.restored() == [(1,), (1,), (2,)]
    assert kit.exported().rows == 1
    assert kit.cleanup().complete
    assert kit.restored() == [(1,), (1,), (1,), (2,)]


def test_after_a_rewrite_equal_rows_are_deleted_as_often_as_they_are_archived(kit: Kit) -> None:
    kit.sql("CREATE TABLE t (note text)", "INSERT INTO t VALUES ('a'), ('a'), ('b')")
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("INSERT INTO t VALUES ('a'), ('a'), ('b')", "VACUUM FULL t")
    assert kit.cleanup().deleted == 3
    assert kit.rows("SELECT note FROM t ORDER BY note") == ["a", "a", "b"]


def test_after_a_rewrite_records_of_deleted_rows_are_not_used_again(kit: Kit) -> None:
    kit.sql("CREATE TABLE t (note text)", "INSERT INTO t VALUES ('a'), ('a'), ('b'), ('b')")
    kit.spec["table"] = "t"
    kit.spec["cleanup"] = {"mode": "after_archive", "batch_rows": 1}
    kit.exported()
    kit.delete = "DELETE FROM t WHERE ctid IN ('(0,1)', '(0,3)')"
    assert kit.cleanup().deleted == 2
    kit.delete = None
    kit.sql("VACUUM FULL t")
    result = kit.cleanup()
    assert (result.deleted, result.proof) == (2, "content")
    assert kit.cleanup().deleted == 0
    kit.sql("INSERT INTO t VALUES ('a')", "VACUUM FULL t")
    assert kit.cleanup().deleted == 0
    assert kit.rows("SELECT note FROM t") == ["a"]


def test_after_a_rewrite_a_file_without_key_or_all_columns_proves_nothing(kit: Kit) -> None:
    kit.sql("CREATE TABLE t (id int, note text)", "INSERT INTO t VALUES (1, 'x'), (2, 'x')")
    kit.select, kit.delete = "SELECT note FROM t WHERE id = 1", "DELETE FROM t"
    kit.exported()
    kit.sql("VACUUM FULL t")
    with pytest.raises(CleanupRefused, match="neither a key"):
        kit.cleanup()
    assert kit.rows() == [1, 2]
    kit.exported()
    assert kit.cleanup().deleted == 1
    assert kit.rows() == [2]


def test_after_a_rewrite_a_file_of_a_join_proves_nothing_until_it_is_exported_again(kit: Kit) -> None:
    kit.sql(TABLE, ROWS, "CREATE TABLE o AS SELECT 1 AS n")
    kit.select, kit.delete = "SELECT t.*, n FROM t, o", "DELETE FROM t"
    kit.exported()
    kit.sql("VACUUM FULL t")
    with pytest.raises(CleanupRefused, match="several records of one row"):
        kit.cleanup()
    kit.exported()
    assert kit.cleanup().deleted == 5


def test_after_a_rewrite_keys_and_content_prove_rows_of_an_opaque_query(kit: Kit) -> None:
    kit.sql(TABLE, ROWS)
    kit.select, kit.delete = "SELECT DISTINCT id FROM t WHERE id < 5", "DELETE FROM t"
    assert kit.exported().identity.mode == "key"
    kit.sql("UPDATE t SET note = 'changed' WHERE id = 2", "VACUUM FULL t")
    result = kit.cleanup()
    assert (result.deleted, result.proof) == (3, "content")
    assert kit.rows() == [2, 5]


def test_the_label_of_an_enum_that_was_renamed_is_a_change_of_the_row(kit: Kit) -> None:
    kit.sql("CREATE TYPE mood AS ENUM ('sad', 'glad')", "CREATE TABLE t (id int, m mood)")
    kit.sql("INSERT INTO t VALUES (1, 'sad'), (2, 'glad')")
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
    result = kit.cleanup()
    assert (result.deleted, result.late) == (1, 1)
    assert kit.rows() == [1]
    kit.exported()
    assert kit.cleanup().deleted == 1
    assert sorted(row[1] for row in kit.archived_records()) == ["blue", "glad", "sad"]


@pytest.mark.parametrize(
    ("change", "deleted"),
    [
        ("ALTER TABLE t ADD COLUMN extra int", 0),
        ("ALTER TABLE t ADD COLUMN extra int DEFAULT 7", 0),
        ("ALTER TABLE t DROP COLUMN note", 0),
        ("ALTER TABLE t RENAME COLUMN note TO remark", 5),
        ("ALTER TABLE t ALTER id TYPE text", 5),
        ("ALTER TABLE t ALTER note TYPE text USING upper(note)", 0),
    ],
)
def test_columns_that_changed_leave_only_rows_that_the_file_holds_as_they_are(
    kit: Kit, change: str, deleted: int
) -> None:
    kit.sql(TABLE, ROWS)
    kit.spec["table"] = "t"
    kit.exported()
    kit.sql(change)
    result = kit.cleanup()
    assert (result.deleted, result.late, result.proof) == (deleted, 5 - deleted, "content")
    kit.exported()
    assert kit.cleanup().complete
    assert kit.rows() == []


# Another server, another time


@pytest.mark.parametrize("what", ["system_identifier", "timeline", "next_xid far", "next_xid ahead", "relations"])
def test_identities_hold_only_in_their_place(kit: Kit, what: str) -> None:
    kit.sql(TABLE)
    with PostgresSource(kit.database).session() as session:
        session.begin()
        place = place_now(session, RelationName(None, "t", '"t"', only=False))
    assert place.holds(place)
    assert place.holds(replace(place, next_xid=place.next_xid + 2_000_000_000))
    other = {
        "system_identifier": replace(place, system_identifier="7"),
        "timeline": replace(place, timeline=place.timeline + 1),
        "next_xid far": replace(place, next_xid=place.next_xid + 2**31),
        "next_xid ahead": replace(place, next_xid=place.next_xid - 1),
        "relations": replace(place, relations=((1, 2),)),
    }[what]
    assert not place.holds(other)


# Side effects

EFFECTS = {
    "trigger": (
        [
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
            "CREATE TRIGGER audit BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION f()",
        ],
        5,
    ),
    "statement trigger": (
        [
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER audit AFTER DELETE ON t EXECUTE FUNCTION f()",
        ],
        5,
    ),
    "trigger that keeps the row": (
        [
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN IF OLD.id = 2 THEN RETURN NULL; END IF; RETURN OLD; END'",
            "CREATE TRIGGER audit BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION f()",
        ],
        4,
    ),
    "cascade": (
        ["CREATE TABLE o (t int CONSTRAINT audit REFERENCES t ON DELETE CASCADE)", "INSERT INTO o VALUES (1)"],
        5,
    ),
    "set null": (["CREATE TABLE o (t int CONSTRAINT audit REFERENCES t ON DELETE SET NULL)"], 5),
    "set default": (["CREATE TABLE o (t int CONSTRAINT audit REFERENCES t ON DELETE SET DEFAULT)"], 5),
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_what_a_delete_sets_off_is_refused_unless_it_is_named(kit: Kit, effect: str) -> None:
    statements, deleted = EFFECTS[effect]
    kit.sql(TABLE, ROWS, *statements)
    kit.spec["table"] = "t"
    kit.exported()
    assert any("'audit'" in refusal for refusal in kit.plan().refusals)
    with pytest.raises(CleanupRefused, match="'audit'"):
        kit.cleanup()
    assert len(kit.rows()) == 5
    kit.spec["cleanup"] = {"mode": "after_archive", "acknowledge": ["another"]}
    with pytest.raises(CleanupRefused, match="'audit'"):
        kit.cleanup()
    kit.spec["cleanup"] = {"mode": "after_archive", "acknowledge": ["audit"]}
    assert kit.plan().refusals == ()
    assert kit.cleanup().deleted == deleted == 5 - len(kit.rows())


@pytest.mark.parametrize(
    "rule",
    [
        "INSTEAD NOTHING",
        "ALSO DELETE FROM other",
        "INSTEAD UPDATE t SET note = 'gone' WHERE id = OLD.id RETURNING t.*",
        "INSTEAD DELETE FROM other WHERE id = OLD.id RETURNING other.*",
    ],
)
def test_a_rule_is_refused_and_cannot_trick_the_proof_even_when_it_is_named(kit: Kit, rule: str) -> None:
    kit.sql(TABLE, ROWS, "CREATE TABLE other AS TABLE t", f"CREATE RULE audit AS ON DELETE TO t DO {rule}")
    kit.spec["table"] = "t"
    kit.exported()
    with pytest.raises(CleanupRefused, match="rule 'audit'"):
        kit.cleanup()
    kit.spec["cleanup"] = {"mode": "after_archive", "acknowledge": ["audit"]}
    with pytest.raises((CleanupRefused, SourceError)):
        kit.cleanup()
    assert len(kit.rows("SELECT id FROM t WHERE note LIKE 'note%'")) == 5
    assert len(kit.rows("SELECT id FROM other")) == 5
    assert kit.catalog_sql(
        "SELECT count(*) FROM cleanup_batch b JOIN export e ON e.id = b.export_id "
        f"WHERE table_id = '{kit.table.id}' AND b.state = 'committed'"
    ) == [(0,)]


def test_a_trigger_that_puts_the_row_back_leaves_a_late_row(kit: Kit) -> None:
    kit.sql(
        TABLE,
        ROWS,
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO t SELECT OLD.*; RETURN NULL; END'",
        "CREATE TRIGGER back AFTER DELETE ON t FOR EACH ROW EXECUTE FUNCTION f()",
    )
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "acknowledge": ["back"]})
    kit.exported()
    result = kit.cleanup()
    assert (result.deleted, result.late) == (5, 5)
    assert len(kit.rows()) == 5


def test_side_effects_on_a_partition_are_refused(kit: Kit) -> None:
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100)",
        "INSERT INTO t VALUES (1)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
        "CREATE TRIGGER leaf BEFORE DELETE ON low FOR EACH ROW EXECUTE FUNCTION f()",
    )
    kit.spec["table"] = "t"
    kit.exported()
    with pytest.raises(CleanupRefused, match="'leaf'"):
        kit.cleanup()
    assert kit.rows() == [1]


def test_a_foreign_key_to_a_partitioned_table_is_named_once(kit: Kit) -> None:
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE o (t int CONSTRAINT gone REFERENCES t ON DELETE CASCADE)",
        "INSERT INTO t VALUES (1)",
    )
    kit.spec.update(table="t", cleanup={"mode": "after_archive", "acknowledge": ["gone"]})
    kit.exported()
    assert kit.cleanup().deleted == 1


def test_a_foreign_key_of_a_partition_that_is_cleaned_up_by_itself_is_refused(kit: Kit) -> None:
    kit.sql(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE o (t int CONSTRAINT gone REFERENCES t ON DELETE CASCADE)",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO o VALUES (1)",
    )
    kit.spec["table"] = "low"
    kit.exported()
    with pytest.raises(CleanupRefused, match="ON DELETE CASCADE"):
        kit.cleanup()
    assert kit.rows() == [1]


def test_a_foreign_key_that_forbids_the_delete_stops_it_whole(kit: Kit) -> None:
    kit.sql(TABLE, ROWS, "CREATE TABLE o (t int REFERENCES t)", "INSERT INTO o VALUES (3)")
    kit.spec["table"] = "t"
    kit.exported()
    with pytest.raises(SourceError, match="foreign key") as error:
        kit.cleanup()
    assert not error.value.transient
    assert len(kit.rows()) == 5


def test_a_deferred_constraint_that_fails_at_commit_leaves_no_receipt(kit: Kit) -> None:
    kit.sql(
        TABLE, ROWS, "CREATE TABLE o (t int REFERENCES t DEFERRABLE INITIALLY DEFERRED)", "INSERT INTO o VALUES (3)"
    )
    kit.spec["table"] = "t"
    kit.exported()
    with pytest.raises(SourceError, match="foreign key"):
        kit.cleanup()
    assert len(kit.rows()) == 5
    kit.sql("DROP TABLE o")
    assert kit.cleanup().deleted == 5
    assert sum(entry.deleted_rows for entry in kit.entries() if entry.kind == "cleanup") == 5


# The archive is not what it was


def _damage(path: Path, how: str) -> None:
    path.chmod(0o600)
    data = path.read_bytes()
    if how == "altered":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif how == "truncated":
        path.write_bytes(data[:-10])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["altered", "truncated", "removed"])
@pytest.mark.parametrize("what", ["file", "sidecar", "manifest"])
def test_nothing_is_deleted_when_the_archive_is_not_what_it_was(daily: Kit, what: str, how: str) -> None:
    daily.exported()
    pattern = {"file": "**/*.csv.gz", "sidecar": "**/*.identities.zst", "manifest": "**/manifests/*.json"}[what]
    _damage(next(daily.folder.glob(f"archive/{pattern}")), how)
    with pytest.raises(IntegrityError):
        daily.cleanup()
    assert len(daily.rows()) == 5


@pytest.mark.parametrize(
    ("name", "value"), [("rows", 4), ("row_digest", "0"), ("partition", "2025-01-02"), ("select_sql", "SELECT 1")]
)
def test_nothing_is_deleted_when_a_manifest_says_something_else(daily: Kit, name: str, value: object) -> None:
    daily.exported()
    path = next(daily.folder.glob("archive/**/manifests/*.json"))
    entry = json.loads(path.read_text())
    entry["export"][name] = value
    path.write_text(json.dumps(entry))
    with pytest.raises(IntegrityError, match="is not the one that was written"):
        daily.cleanup()
    assert len(daily.rows()) == 5


@pytest.mark.parametrize("followed", [False, True])
def test_nothing_is_deleted_by_a_manifest_of_which_any_byte_was_altered(daily: Kit, followed: bool) -> None:
    """Also one that says nothing of the rows, such as the time at which it was written."""
    daily.exported()
    if followed:
        daily.exported(NEXT_DAY)
    path = min(daily.folder.glob("archive/**/manifests/*.json"))
    entry = json.loads(path.read_text())
    path.write_text(path.read_text().replace(entry["written"], "2030-01-01T00:00:00Z"))
    with pytest.raises(IntegrityError, match="is altered"):
        daily.cleanup()
    assert len(daily.rows()) == 5


def test_a_manifest_of_another_archive_proves_nothing(daily: Kit) -> None:
    daily.exported()
    other = replace(daily, folder=daily.folder / "other")
    with pytest.raises(IntegrityError):
        other.cleanup()
    assert len(daily.rows()) == 5


def test_a_damaged_export_is_not_archived_and_the_next_export_makes_another(daily: Kit) -> None:
    daily.export()
    _damage(next(daily.folder.glob("exports/**/*.csv.gz")), "altered")
    with pytest.raises(IntegrityError):
        daily.archive()
    again = daily.export()
    assert (again.unchanged, again.generation) == (False, 2)
    with pytest.raises(CleanupRefused):
        daily.cleanup()
    assert [m.export.generation for m in daily.archive().manifests] == [2]
    assert daily.cleanup().deleted == 5


def test_a_damaged_archive_is_replaced_by_the_next_export(daily: Kit) -> None:
    daily.exported()
    _damage(next(daily.folder.glob("archive/**/*.csv.gz")), "altered")
    assert not daily.exported().unchanged
    result = daily.cleanup()
    assert (result.deleted, result.complete) == (5, True)


def test_the_same_export_again_publishes_nothing(daily: Kit) -> None:
    first = daily.exported()
    before = daily.all_files()
    second = daily.exported()
    assert second.unchanged
    assert second.generation == first.generation
    assert daily.all_files() == before


# Holds, keep, shadow, plan


@pytest.mark.parametrize("partition", [None, DAY.partition])
def test_a_hold_refuses_and_says_why(daily: Kit, partition: str | None) -> None:
    daily.exported()
    catalog = Catalog(daily.catalog_url)
    hold = catalog.place_hold(daily.table.id, partition, "court case 7", "ann")
    assert "court case 7" in daily.plan().refusals[0]
    with pytest.raises(CleanupRefused, match=r"ann.*court case 7"):
        daily.cleanup()
    assert len(daily.rows()) == 5
    catalog.release_hold(hold)
    catalog.close()
    assert daily.cleanup().deleted == 5


def test_a_hold_on_another_partition_does_not_matter(daily: Kit) -> None:
    daily.exported()
    catalog = Catalog(daily.catalog_url)
    catalog.place_hold(daily.table.id, NEXT_DAY.partition, "court case 7", "ann")
    catalog.close()
    assert daily.cleanup().deleted == 5


def test_rows_are_kept_until_they_are_due(daily: Kit) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = Window(f"{today - timedelta(days=1):%Y-%m-%d}", today - timedelta(days=1), today)
    daily.sql(f"UPDATE t SET at = '{yesterday.start}'")
    daily.window = yesterday
    daily.spec["cleanup"] = {"mode": "keep", "keep_days": 2}
    daily.exported()
    assert "kept in the source until" in daily.plan().refusals[0]
    with pytest.raises(CleanupRefused, match="kept in the source until"):
        daily.cleanup()
    assert len(daily.rows()) == 5
    daily.window = DAY
    daily.sql("UPDATE t SET at = '2025-01-01 12:00Z'")
    daily.exported()
    assert daily.cleanup().deleted == 5


def test_rows_of_a_snapshot_are_kept_from_its_export_on(kit: Kit) -> None:
    kit.sql(TABLE, ROWS)
    kit.spec.update(table="t", cleanup={"mode": "keep", "keep_days": 2})
    kit.exported()
    with pytest.raises(CleanupRefused, match="kept in the source until"):
        kit.cleanup()
    assert len(kit.rows()) == 5


def test_shadow_mode_deletes_nothing_and_reports_what_the_plan_does(daily: Kit) -> None:
    daily.exported()
    daily.sql("INSERT INTO t VALUES (6, 'late', '2025-01-01 13:00Z')", "UPDATE t SET note = 'x' WHERE id = 1")
    plan = daily.plan()
    daily.spec["cleanup"] = "off"
    result = daily.cleanup()
    assert result.shadow
    assert not result.complete
    assert (result.deleted, result.would_delete, result.late, result.not_exported) == (0, 4, 2, 0)
    assert (plan.would_delete, plan.late, plan.not_exported) == (4, 2, 0)
    assert result.matched == len(daily.rows()) == 6
    daily.spec["cleanup"] = "after_archive"
    assert daily.cleanup().deleted == plan.would_delete


def test_a_plan_counts_a_row_of_two_generations_once(daily: Kit) -> None:
    daily.exported()
    daily.sql("INSERT INTO t VALUES (6, 'late', '2025-01-01 13:00Z')")
    daily.exported()
    assert daily.plan().would_delete == 6
    assert daily.cleanup().deleted == 6


def test_an_open_partition_is_not_exported(daily: Kit) -> None:
    now = datetime.now(UTC)
    daily.window = Window("now", now - timedelta(hours=1), now + timedelta(hours=1))
    with pytest.raises(RequestError, match="is open until"):
        daily.export()


# Rights


ROLES = (
    "DROP ROLE IF EXISTS {0}",
    "CREATE ROLE {0} LOGIN PASSWORD 'secret-{0}'",
    "GRANT SELECT ON t TO {0}",
)


def _as(kit: Kit, role: str) -> Kit:
    parts = psycopg2.extensions.parse_dsn(kit.database)
    url = f"postgresql://{role}:secret-{role}@{parts['host']}:{parts['port']}/{parts['dbname']}"
    return replace(kit, database=url)


def test_a_role_that_may_only_read_can_export_and_not_clean_up(kit: Kit) -> None:
    role = f"reader_{kit.name}"
    kit.sql(TABLE, ROWS, *(statement.format(role) for statement in ROLES))
    kit.spec["table"] = "t"
    try:
        reader = _as(kit, role)
        assert reader.exported().identity.mode == "row"
        with pytest.raises(SourceError, match="permission denied") as error:
            reader.cleanup()
        assert "DELETE" in error.value.hint
        assert "secret" not in str(error.value)
        kit.sql(f"GRANT DELETE ON t TO {role}")
        assert reader.cleanup().deleted == 5
    finally:
        kit.sql("DROP TABLE t", f"DROP ROLE {role}")


def test_rows_that_a_policy_hides_are_neither_exported_nor_deleted(kit: Kit) -> None:
    role = f"reader_{kit.name}"
    kit.sql(TABLE, ROWS, *(statement.format(role) for statement in ROLES))
    kit.sql(
        f"GRANT DELETE ON t TO {role}",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY low ON t FOR SELECT USING (id < 4)",
        "CREATE POLICY lower ON t FOR DELETE USING (id < 3)",
    )
    kit.spec["table"] = "t"
    try:
        reader = _as(kit, role)
        assert reader.exported().rows == 3
        assert reader.cleanup().deleted == 2
        assert kit.rows() == [3, 4, 5]
    finally:
        kit.sql("DROP TABLE t", f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:hidden@127.0.0.1:1/none",
        "postgresql://someone:hid%ZZden@127.0.0.1:1/none",
        "postgresql://someone:hid@hidden@127.0.0.1:1/none",
        "host=127.0.0.1 port=1 password='hidden away' user=someone",
        "host=127.0.0.1 port=1 password hidden user=someone",
        "postgresql://127.0.0.1:1/none?password=hidden&user=someone",
    ],
)
def test_no_error_tells_a_password(url: str) -> None:
    with pytest.raises(SourceError) as error:
        PostgresSource(url).connect()
    assert "hid" not in str(error.value)
    assert "hid" not in PostgresSource(url).name
    assert "hid" not in repr(PostgresSource(url))


def test_a_commit_is_durable_when_it_is_told(daily: Kit) -> None:
    """A receipt must not outlive a deletion that the server forgot in a crash."""
    name = psycopg2.extensions.parse_dsn(daily.database)["dbname"]
    run_each(daily.database, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    daily.sql(
        "CREATE TABLE seen (value text)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
        "CREATE TRIGGER look AFTER DELETE ON t EXECUTE FUNCTION f()",
    )
    daily.spec["cleanup"] = {"mode": "after_archive", "acknowledge": ["look"]}
    daily.exported()
    assert daily.cleanup().deleted == 5
    assert daily.rows("SELECT value FROM seen") == ["on"]
