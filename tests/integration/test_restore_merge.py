"""Restore into tables that have rows: each policy says what it did, and the table is as it says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import psycopg2
import pytest

from export_pipelines.errors import IntegrityError, RequestError, TargetError
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.merge import OnConflict
from export_pipelines.steps.pieces import Choice
from export_pipelines.steps.restore import RestoreResult, restore_table
from export_pipelines.windows import Window
from tests.integration.test_restore import DAY, NEXT, SPEC, make_events
from tests.integration.test_types import VALUES, assert_same, make_types
from tests.support.killed import Edge, run_until
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table
from tests.support.tables import Kit

COUNTS = tuple[int, int, int, int]


@pytest.fixture
def events(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """Ten rows on each of two days, archived. `back` has the same key, and of the first day rows 1 to 4: 1 and 2 as
    they are archived, 3 and 4 with another note. Its row 999 is not in the archive."""
    make_events(database)
    table = new_step_table(tmp_path, database, catalog_url, SPEC)
    for day in (DAY, NEXT):
        table.into_archive(day)
    table.sql("CREATE TABLE back (LIKE events INCLUDING INDEXES)")
    table.sql("INSERT INTO back SELECT id, at, CASE WHEN id > 2 THEN 'other' ELSE note END FROM events WHERE id < 5")
    table.sql("INSERT INTO back VALUES (999, '2024-01-01', 'own')")
    return table


def counts(result: RestoreResult) -> COUNTS:
    return result.inserted, result.skipped, result.replaced, result.differing


def rows(table: StepTable, query: str = "TABLE back") -> list[tuple[object, ...]]:
    return table.sql(f"SELECT * FROM ({query}) AS q ORDER BY 1")


def test_fail_restores_nothing_when_rows_are_there_and_says_how_many(events: StepTable) -> None:
    before = rows(events)
    with pytest.raises(TargetError, match=r'4 of 10 rows of partition 2025-01-01 .*"back" already, 2 of them with'):
        events.merge("back")
    assert rows(events) == before


def test_fail_adds_rows_that_are_not_there(events: StepTable) -> None:
    result = events.merge("back", choice=Choice(NEXT))
    assert (counts(result), result.key, result.created) == ((10, 0, 0, 0), ("id",), False)
    assert len(rows(events)) == 15
    assert rows(events, "SELECT * FROM back WHERE id > 100 AND id < 200") == rows(
        events, "SELECT * FROM events WHERE id > 100"
    )


def test_skip_leaves_the_rows_of_the_table_as_they_are(events: StepTable) -> None:
    before = rows(events)
    assert counts(events.merge("back", "skip")) == (16, 4, 0, 2)
    assert rows(events, "SELECT * FROM back WHERE id < 5 OR id = 999") == before
    assert rows(events, "SELECT * FROM back WHERE id BETWEEN 5 AND 200") == rows(
        events, "SELECT * FROM events WHERE id >= 5"
    )


def test_replace_makes_the_rows_those_of_the_archive(events: StepTable) -> None:
    assert counts(events.merge("back", "replace")) == (16, 2, 2, 2)
    assert rows(events, "SELECT * FROM back WHERE id < 999") == rows(events, "TABLE events")
    assert rows(events, "SELECT id, note FROM back WHERE id = 999") == [(999, "own")]


def test_rows_that_are_equal_keep_their_row_version(events: StepTable) -> None:
    events.merge("back", "replace")
    versions = rows(events, "SELECT id, xmin::text, ctid::text FROM back")
    assert counts(events.merge("back", "replace")) == (0, 20, 0, 0)
    assert rows(events, "SELECT id, xmin::text, ctid::text FROM back") == versions


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_restore_again_comes_to_the_same(events: StepTable, policy: str) -> None:
    events.merge("back", policy)
    first = rows(events)
    result = events.merge("back", policy)
    assert (result.inserted, result.replaced) == (0, 0)
    assert rows(events) == first


def test_a_range_takes_both_ends_in_one_transaction(events: StepTable) -> None:
    events.sql("INSERT INTO events SELECT id + 200, at + interval '2 days', note FROM events")
    for day in ("2025-01-03", "2025-01-04"):
        events.into_archive(day)
    chosen = {
        ("2025-01-02", "2025-01-03"): ("2025-01-02", "2025-01-03"),
        ("2025-01-03", None): ("2025-01-03", "2025-01-04"),
        (None, "2025-01-02"): (DAY, "2025-01-02"),
        # The end of the range is a partition of the table, though not archived.
        ("2025-01-04", "2025-01-20"): ("2025-01-04",),
    }
    for number, ((first, last), partitions) in enumerate(chosen.items()):
        result = events.merge(f"range_{number}", choice=Choice(None, first, last))
        assert (result.partitions, result.rows) == (partitions, 10 * len(partitions))
    assert events.sql("SELECT count(DISTINCT xmin::text) FROM range_0") == [(1,)]


def test_ranges_that_are_none_are_refused(events: StepTable) -> None:
    for choice, message in (
        (Choice(None, NEXT, DAY), "is later than"),
        (Choice(None, "2025-01-30", None), "no partition of 'shop/events' in that range is archived"),
        (Choice(None, "2024-01-30", None), "does not exist"),
        (Choice("2025-01-30"), "is not archived"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            events.merge("new", choice=choice)
        assert caught.value.hint
    with pytest.raises(RequestError, match="a partition and a range"):
        Choice(DAY, first=DAY)
    # Without a definition only the archive can say where a key lies.
    archived = events.archived()
    lost = type(archived)(archived.store, archived.table)
    with pytest.raises(RequestError, match="'2025-01-20' of 'shop/events' is not archived"):
        lost.chosen(Choice(None, DAY, "2025-01-20"))
    assert list(lost.chosen(Choice(None, DAY, NEXT))) == [DAY, NEXT]


def test_a_table_without_partitions_has_no_ranges(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE one AS SELECT 1 AS id")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "one"})
    table.into_archive()
    with pytest.raises(RequestError, match="has no partitions"):
        table.merge("back", choice=Choice(None, "2025-01-01", None))


def test_without_a_key_a_table_with_rows_is_refused_whatever_the_policy(events: StepTable) -> None:
    events.sql("ALTER TABLE back DROP CONSTRAINT back_pkey")
    for policy in OnConflict:
        with pytest.raises(TargetError, match="no unique index"):
            events.merge("back", policy)
    assert len(rows(events)) == 5


def test_a_declared_key_serves_where_there_is_no_index(events: StepTable) -> None:
    events.sql("ALTER TABLE back DROP CONSTRAINT back_pkey")
    result = events.merge("back", "replace", key=("id",))
    assert (counts(result), result.key) == ((16, 2, 2, 2), ("id",))
    assert rows(events, "SELECT * FROM back WHERE id < 999") == rows(events, "TABLE events")
    events.sql("INSERT INTO back TABLE events")
    with pytest.raises(TargetError, match="has several rows of one id"):
        events.merge("back", "replace", key=("id",))


def test_a_unique_index_serves_unless_its_columns_are_empty(events: StepTable) -> None:
    events.sql("ALTER TABLE back DROP CONSTRAINT back_pkey")
    events.sql("CREATE UNIQUE INDEX ON back (note, at)")
    with pytest.raises(TargetError, match="rows of partition 2025-01-02 have no value in note, at"):
        events.merge("back", "skip")
    events.sql("CREATE UNIQUE INDEX ON back (id)")
    result = events.merge("back", "skip")
    assert (counts(result), result.key) == ((16, 4, 0, 2), ("id",))


def test_partial_and_expression_indexes_are_no_keys(events: StepTable) -> None:
    events.sql("ALTER TABLE back DROP CONSTRAINT back_pkey")
    events.sql("CREATE UNIQUE INDEX ON back (id) WHERE id > 0")
    events.sql("CREATE UNIQUE INDEX ON back ((id + 0))")
    with pytest.raises(TargetError, match="no unique index"):
        events.merge("back", "skip")


def test_files_with_several_records_of_a_key_are_refused(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE t AS SELECT n % 2 AS id, n FROM generate_series(1, 4) n")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "t"})
    table.into_archive()
    table.sql("CREATE TABLE back (id int PRIMARY KEY, n bigint)")
    for policy in ("skip", "replace"):
        with pytest.raises(TargetError, match="several rows of partition snapshot have the same values in id"):
            table.merge("back", policy)
    with pytest.raises(TargetError, match="duplicate key"):
        table.merge("back", "fail")
    assert rows(table) == []


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_of_two_archived_versions_of_a_row_the_last_exported_counts(
    tmp_path: Path, database: str, catalog_url: str, policy: str
) -> None:
    make_events(database)
    table = new_step_table(tmp_path, database, catalog_url, SPEC)
    table.into_archive(NEXT)
    table.sql("UPDATE events SET at = '2025-01-01 05:00Z', note = 'moved' WHERE id = 101")
    table.into_archive(DAY)
    table.sql("CREATE TABLE back (LIKE events INCLUDING INDEXES)")
    result = table.merge("back", policy)
    assert result.rows == 21
    assert rows(table) == rows(table, "TABLE events")
    table.sql("CREATE TABLE again (LIKE events INCLUDING ALL)")
    with pytest.raises(TargetError, match="duplicate key") as caught:
        table.merge("again")
    assert "--on-conflict replace" in caught.value.hint


def test_identity_columns_get_the_archived_values(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)")
    run_sql(database, "INSERT INTO t (note) SELECT 'n' || n FROM generate_series(1, 5) n")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "t"})
    table.into_archive()
    table.sql("CREATE TABLE back (LIKE t INCLUDING ALL)")
    table.sql("INSERT INTO back OVERRIDING SYSTEM VALUE VALUES (2, 'other')")
    assert counts(table.merge("back", "replace")) == (4, 0, 1, 1)
    assert rows(table) == rows(table, "TABLE t")
    table.sql("CREATE TABLE beside (note text PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY)")
    table.sql("INSERT INTO beside (note) VALUES ('n3')")
    with pytest.raises(TargetError, match=r"\['id'\] of \"beside\" are GENERATED ALWAYS AS IDENTITY"):
        table.merge("beside", "replace")
    assert counts(table.merge("beside", "skip")) == (4, 1, 0, 1)


@pytest.mark.parametrize("keyed", [True, False])
def test_generated_columns_are_computed_and_must_come_to_the_same(
    tmp_path: Path, database: str, catalog_url: str, keyed: bool
) -> None:
    key = "PRIMARY KEY" if keyed else ""
    run_sql(database, f"CREATE TABLE t (id int {key}, double int GENERATED ALWAYS AS (id * 2) STORED, note text)")
    run_sql(database, "INSERT INTO t (id, note) SELECT n, 'n' || n FROM generate_series(1, 5) n")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "t"})
    table.into_archive()
    table.sql("CREATE TABLE back (LIKE t INCLUDING ALL)")
    assert counts(table.merge("back")) == (5, 0, 0, 0)
    if keyed:
        table.sql("UPDATE back SET note = 'other' WHERE id = 3")
        assert counts(table.merge("back", "replace")) == (0, 4, 1, 1)
    assert rows(table) == rows(table, "TABLE t")
    table.sql(f"CREATE TABLE treble (id int {key}, double int GENERATED ALWAYS AS (id * 3) STORED, note text)")
    with pytest.raises(TargetError, match="stores 5 rows with other values"):
        table.merge("treble")
    assert rows(table, "TABLE treble") == []


@pytest.mark.parametrize("doing", ["RETURN NULL", "NEW.note := 'x'; RETURN NEW"])
def test_a_trigger_that_changes_what_is_restored_is_noticed(events: StepTable, doing: str) -> None:
    events.sql(f"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {doing}; END$$")
    before = rows(events)
    for into in ("back", "fresh"):
        events.sql(f"CREATE TABLE IF NOT EXISTS {into} (LIKE events INCLUDING ALL)")
        events.sql(f"CREATE TRIGGER t BEFORE INSERT ON {into} FOR EACH ROW EXECUTE FUNCTION f()")
        with pytest.raises(TargetError, match=r"stores 10 rows with other values|took 0 rows of"):
            events.merge(into, "skip", Choice(NEXT))
    assert rows(events) == before


def test_a_policy_that_hides_rows_is_refused(events: StepTable) -> None:
    user = make_role(events, "SELECT, INSERT, UPDATE, DELETE ON back")
    events.sql("ALTER TABLE back ENABLE ROW LEVEL SECURITY")
    events.sql("CREATE POLICY p ON back USING (id > 500) WITH CHECK (true)")
    with pytest.raises(TargetError, match="row-level security"):
        restore_table(events.archived(), Choice(DAY), PostgresSource(user), "back", on_conflict=OnConflict.SKIP)
    assert len(rows(events)) == 5


def make_role(table: StepTable, rights: str) -> str:
    """URL of a new role that has just these rights."""
    name = table.sql("SELECT 'r_' || substr(md5(random()::text), 1, 10)")[0][0]
    table.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'secret-of-the-test'")
    table.sql(f"GRANT {rights} TO {name}")
    return psycopg2.extensions.make_dsn(table.url, user=name, password="secret-of-the-test")


def test_permissions_that_are_missing_are_named(events: StepTable) -> None:
    reader = make_role(events, "SELECT ON back")
    events.sql("REVOKE CREATE ON SCHEMA public FROM public")
    for into in ("back", "new"):
        with pytest.raises(TargetError, match="permission denied") as caught:
            restore_table(events.archived(), Choice(NEXT), PostgresSource(reader), into)
        assert "SELECT, INSERT" in caught.value.hint
        assert "secret-of-the-test" not in str(caught.value)
    assert len(rows(events)) == 5


def test_a_loader_needs_no_more_than_the_documented_rights(events: StepTable) -> None:
    loader = PostgresSource(make_role(events, "SELECT, INSERT, UPDATE ON back"))
    result = restore_table(events.archived(), Choice(), loader, "back", on_conflict=OnConflict.REPLACE)
    assert counts(result) == (16, 2, 2, 2)


def test_a_temporary_file_limit_of_the_target_leaves_it_as_it_was(events: StepTable) -> None:
    """The server is out of space for us: what it says is told, and nothing is restored."""
    wide = "SELECT n, timestamptz '2025-01-05', repeat(md5(n::text), 40) FROM generate_series(1000, 6000) n"
    events.sql(f"INSERT INTO events {wide}")
    events.into_archive("2025-01-05")
    before = rows(events)
    limited = PostgresSource(events.url, {"options": "-c temp_file_limit=64 -c work_mem=64"})
    events.sql("ALTER TABLE back DROP CONSTRAINT back_pkey")
    with pytest.raises(TargetError, match="temporary file size exceeds") as caught:
        restore_table(
            events.archived(), Choice("2025-01-05"), limited, "back", on_conflict=OnConflict.SKIP, key=("note", "at")
        )
    assert caught.value.hint
    assert rows(events) == before


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_every_type_goes_through_the_comparison_unchanged(
    tmp_path: Path, database: str, catalog_url: str, policy: str
) -> None:
    make_types(database)
    table = new_step_table(tmp_path, database, catalog_url, {"table": "types"})
    record = table.into_archive()
    table.sql("CREATE TABLE back (LIKE types INCLUDING ALL)")
    assert counts(table.merge("back", policy)) == (record.rows, 0, 0, 0)
    assert_same(database, "types", "back")
    assert counts(table.merge("back", policy)) == (0, record.rows, 0, 0)
    # One row after the other is given the values of the next: all but those with nulls only are different then.
    columns = ", ".join(f"c{n}" for n in range(len(VALUES)))
    table.sql(f"UPDATE back SET ({columns}) = (SELECT {columns} FROM types o WHERE o.id = mod(back.id + 1, 9))")
    result = table.merge("back", policy)
    assert result.differing == (result.replaced if policy == "replace" else result.differing) > 9
    if policy == "replace":
        assert_same(database, "types", "back")


def test_equal_numbers_of_other_looks_differ(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE t (id numeric PRIMARY KEY, f float8, n numeric, j json)")
    run_sql(database, """INSERT INTO t VALUES (1.0, '-0', 1.50, '{"a": 1}'), (2, 0, 1.5, '{"a":1}')""")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "t"})
    table.into_archive()
    table.sql("CREATE TABLE back (LIKE t INCLUDING ALL)")
    table.sql("""INSERT INTO back VALUES (1.00, 0, 1.5, '{"a":1}'), (2, 0, 1.5, '{"a":1}')""")
    assert counts(table.merge("back", "replace")) == (0, 1, 1, 1)
    assert_same(database, "t", "back")


def test_a_partitioned_table_is_merged_into(events: StepTable) -> None:
    events.sql("CREATE TABLE parts (LIKE events INCLUDING DEFAULTS, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)")
    events.sql("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2025-01-01Z') TO ('2025-01-02Z')")
    events.sql("CREATE TABLE parts_2 PARTITION OF parts DEFAULT")
    events.sql("INSERT INTO parts SELECT id, at, 'other' FROM events WHERE id < 4")
    assert counts(events.merge("parts", "replace")) == (17, 0, 3, 3)
    assert rows(events, "TABLE parts") == rows(events, "TABLE events")


def test_missing_columns_get_their_defaults(events: StepTable) -> None:
    events.sql("ALTER TABLE back ADD extra int DEFAULT 7")
    events.sql("UPDATE back SET extra = 8")
    events.merge("back", "replace")
    assert events.sql("SELECT extra, count(*) FROM back GROUP BY 1 ORDER BY 1") == [(7, 16), (8, 5)]


def test_a_restore_waits_for_writers_and_sees_their_rows(events: StepTable) -> None:
    writer = psycopg2.connect(events.url)
    with writer.cursor() as cursor:
        cursor.execute("INSERT INTO back SELECT id, at, 'late' FROM events WHERE id = 10")
    results: list[RestoreResult] = []
    thread = Thread(target=lambda: results.append(events.merge("back", "skip")))
    thread.start()
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'back'::regclass"
    while events.sql(waits) == [(0,)]:
        assert thread.is_alive()
    writer.commit()
    writer.close()
    thread.join()
    assert counts(results[0]) == (15, 5, 0, 3)


def test_a_damaged_file_leaves_the_table_as_it_was(events: StepTable) -> None:
    file = events.archived_file(2)
    file.write_bytes(file.read_bytes()[:-3])
    before = rows(events)
    with pytest.raises(IntegrityError, match=file.name):
        events.merge("back", "replace")
    assert rows(events) == before


DAYS = tuple(
    Window(f"2025-01-0{n}", datetime(2025, 1, n, tzinfo=UTC), datetime(2025, 1, n + 1, tzinfo=UTC)) for n in (1, 2)
)
EDGES = [
    Edge("after", "steps.merge:load"),
    Edge("after", "steps.merge:load", 2),
    Edge("after", "steps.merge:Merger._update"),
    Edge("after", "steps.merge:Merger._insert"),
    Edge("after", "steps.merge:Merger._insert", 2),
    Edge("before", "sources.postgres:Session.commit"),
    Edge("after", "sources.postgres:Session.commit"),
]


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_a_restore_that_was_killed_is_done_again_and_comes_to_the_same(kit: Kit, edge: Edge) -> None:
    make_events(kit.database)
    kit.spec.update(table="events", time_column="at")
    for window in DAYS:
        kit.exported(window)
    kit.sql(
        "CREATE TABLE back (LIKE events INCLUDING ALL)",
        "INSERT INTO back SELECT id, at, 'other' FROM events WHERE id IN (1, 101)",
    )
    before = sorted(kit.rows("TABLE back"))
    assert run_until(edge, kit, ("bring_back",)) == -9
    now = sorted(kit.rows("TABLE back"))
    assert now in (before, sorted(kit.rows("TABLE events")))
    result = kit.bring_back()
    assert sorted(kit.rows("TABLE back")) == sorted(kit.rows("TABLE events"))
    assert (result.inserted, result.replaced) == ((18, 2) if now == before else (0, 0))
