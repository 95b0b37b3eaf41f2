"""Restore: partitions come back from the archive, each row once, or nothing does."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from threading import Thread

import pytest

from export_pipelines.errors import IntegrityError, RequestError, TargetError
from export_pipelines.steps.restore import RestoreResult
from export_pipelines.steps.sweep import sweep
from export_pipelines.steps.target import target_name
from export_pipelines.steps.verify import verify_table
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table

DAY = "2025-01-01"
NEXT = "2025-01-02"
SPEC = {
    "table": "events",
    "time_column": "at",
    "partitions": {"every": "day", "start": "2025-01-01", "end": "2025-02-01"},
    "cleanup": {"mode": "after_archive", "batch_rows": 4},
}
BY_KEY = (
    "SELECT DISTINCT * FROM events WHERE at >= %(window_start)s AND at < %(window_end)s",
    "DELETE FROM events WHERE at >= %(window_start)s AND at < %(window_end)s",
)


def make_events(url: str) -> None:
    """Ten rows on each of two days."""
    run_sql(url, "CREATE TABLE events (id int PRIMARY KEY, at timestamptz NOT NULL, note text)")
    run_sql(
        url,
        "INSERT INTO events SELECT d * 100 + n, timestamptz '2025-01-01 00:00Z' + d * interval '1 day' + n * "
        "interval '1 minute', nullif(repeat('x', n % 3), 'x') FROM generate_series(0, 1) d, generate_series(1, 10) n",
    )


@pytest.fixture(params=["row", "key"])
def events(request: pytest.FixtureRequest, tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """The table, its rows proved by identity or by key."""
    make_events(database)
    if request.param == "row":
        return new_step_table(tmp_path, database, catalog_url, SPEC)
    spec = {name: value for name, value in SPEC.items() if name not in ("table", "time_column")}
    return new_step_table(tmp_path, database, catalog_url, spec, select=BY_KEY[0], delete=BY_KEY[1])


@pytest.fixture
def derived(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """The table, its rows proved by identity."""
    make_events(database)
    return new_step_table(tmp_path, database, catalog_url, SPEC)


def late(table: StepTable, number: int) -> None:
    """A row of the first day that arrives now."""
    table.sql(f"INSERT INTO events VALUES ({number}, '2025-01-01 12:00Z', 'late')")


def ids(table: StepTable, name: str) -> list[int]:
    return [row[0] for row in table.sql(f"SELECT id FROM {name} ORDER BY id")]


def difference(table: StepTable, one: str, other: str) -> list[tuple[object, ...]]:
    """Rows that are in one query but not in the other, duplicates counted."""
    return table.sql(
        f"(SELECT * FROM ({one}) a EXCEPT ALL SELECT * FROM ({other}) b) UNION ALL "
        f"(SELECT * FROM ({other}) b EXCEPT ALL SELECT * FROM ({one}) a)"
    )


def test_restored_rows_equal_those_of_the_source(events: StepTable) -> None:
    events.into_archive(DAY)
    events.into_archive(NEXT)
    assert events.restore("back", DAY) == RestoreResult(10, True, (DAY,), 1, 10)
    assert difference(events, "SELECT * FROM back", "SELECT * FROM events WHERE id < 100") == []
    assert events.restore("everything", None).partitions == (DAY, NEXT)
    assert difference(events, "TABLE everything", "TABLE events") == []


def test_a_later_generation_supersedes_an_earlier_one(events: StepTable) -> None:
    events.into_archive(DAY)
    late(events, 50)
    events.sql("UPDATE events SET note = 'changed' WHERE id = 3")
    events.into_archive(DAY)
    assert events.restore("back", DAY).artifacts == 1
    assert difference(events, "TABLE back", "SELECT * FROM events WHERE id < 100") == []


def test_rows_that_a_cleanup_deleted_are_restored_with_those_of_later_generations(events: StepTable) -> None:
    events.sql("CREATE TABLE before AS SELECT * FROM events WHERE id < 100")
    for number in (50, 51, 52):
        events.into_archive(DAY)
        assert events.cleanup(DAY).complete
        late(events, number)
    events.into_archive(DAY)
    result = events.restore("back", DAY)
    assert (result.rows, result.artifacts) == (13, 4)
    assert ids(events, "back") == [*range(1, 11), 50, 51, 52]
    assert difference(events, "SELECT * FROM back WHERE id < 50", "TABLE before") == []


def test_changed_rows_are_restored_as_they_were_last_exported(events: StepTable) -> None:
    events.into_archive(DAY)
    events.sql("UPDATE events SET note = 'changed' WHERE id = 3")
    assert not events.cleanup(DAY).complete
    events.into_archive(DAY)
    events.cleanup(DAY)
    events.restore("back", DAY)
    assert ids(events, "back") == list(range(1, 11))
    assert events.sql("SELECT note FROM back WHERE id = 3") == [("changed",)]


def test_rows_deleted_after_the_snapshot_of_a_later_generation_are_restored_once(events: StepTable) -> None:
    events.into_archive(DAY)
    late(events, 50)
    events.export(DAY)
    # The second export waits for its archive while the first is cleaned up.
    assert events.cleanup(DAY).deleted == 10
    events.archive(DAY)
    assert events.restore("back", DAY).rows == 11
    assert ids(events, "back") == [*range(1, 11), 50]


@pytest.mark.parametrize("moved_first", [True, False])
def test_rows_are_restored_once_also_when_the_table_was_rewritten(events: StepTable, moved_first: bool) -> None:
    events.into_archive(DAY)
    if moved_first:
        events.sql("VACUUM FULL events")
    late(events, 50)
    events.export(DAY)
    if not moved_first:
        events.sql("VACUUM FULL events")
    assert events.cleanup(DAY).deleted == 10
    events.archive(DAY)
    late(events, 51)
    events.into_archive(DAY)
    assert events.restore("back", DAY).rows == 12
    assert ids(events, "back") == [*range(1, 11), 50, 51]


def test_rows_of_equal_content_are_restored_as_often_as_they_were_there(
    tmp_path: Path, database: str, catalog_url: str
) -> None:
    run_sql(database, "CREATE TABLE log (note text)")
    run_sql(database, "INSERT INTO log SELECT 'same' FROM generate_series(1, 5)")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "log", "cleanup": "after_archive"})
    table.into_archive()
    assert table.cleanup().deleted == 5
    table.sql("INSERT INTO log VALUES ('same'), ('same')")
    table.into_archive()
    assert table.restore("back").rows == 7


def test_rows_with_several_records_are_restored_by_the_latest_file_alone(
    tmp_path: Path, database: str, catalog_url: str
) -> None:
    make_events(database)
    run_sql(database, "CREATE TABLE detail AS SELECT id, n FROM events, generate_series(1, 2) n")
    spec = {name: value for name, value in SPEC.items() if name not in ("table", "time_column")}
    where = "at >= %(window_start)s AND at < %(window_end)s"
    select = f"SELECT e.id, d.n FROM events e JOIN detail d ON d.id = e.id WHERE {where}"
    table = new_step_table(
        tmp_path, database, catalog_url, spec, select=select, delete=f"DELETE FROM events WHERE {where}"
    )
    assert table.into_archive(DAY).rows == 20
    table.sql("DELETE FROM detail WHERE n = 2")
    assert table.export(DAY).rows == 10
    assert table.cleanup(DAY).deleted == 10
    table.archive(DAY)
    assert table.restore("back", DAY).rows == 10
    assert table.sql("SELECT id, n FROM back ORDER BY id") == [(n, 1) for n in range(1, 11)]


def test_a_killed_cleanup_leaves_no_row_out_of_the_restore(events: StepTable, monkeypatch: pytest.MonkeyPatch) -> None:
    events.into_archive(DAY)

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    # The source has committed, and our note of it is never made.
    monkeypatch.setattr(type(events.ctx.catalog), "settle_batch", killed)
    with pytest.raises(Killed):
        events.cleanup(DAY)
    monkeypatch.undo()
    assert len(ids(events, "events")) == 16
    late(events, 50)
    events.into_archive(DAY)
    assert events.restore("back", DAY).rows == 11
    assert ids(events, "back") == [*range(1, 11), 50]


def test_two_manifests_for_one_export_are_restored_once(derived: StepTable) -> None:
    derived.export(DAY)
    rows = run_sql(derived.ctx.catalog._source.url, "SELECT id FROM export_pipelines.export")
    derived.archive(DAY)
    again = "UPDATE export_pipelines.export SET state = 'exported' WHERE id = %s"
    run_sql(derived.ctx.catalog._source.url, again, rows[0])
    run_sql(derived.ctx.catalog._source.url, "UPDATE export_pipelines.chain_head SET sequence = sequence")
    derived.archive(DAY)
    assert derived.manifest(2).exists()
    derived.archived_file(1).unlink()
    assert derived.restore("back", DAY).rows == 10
    derived.cleanup(DAY)
    late(derived, 50)
    derived.into_archive(DAY)
    assert derived.restore("again", DAY).rows == 11


def test_existing_table_is_filled_by_the_names_of_its_columns(derived: StepTable) -> None:
    derived.into_archive(DAY)
    derived.sql("CREATE TABLE back (note varchar, extra int DEFAULT 7, at timestamp, id bigint PRIMARY KEY)")
    assert derived.restore("back", DAY) == RestoreResult(10, False, (DAY,), 1, 10)
    assert (
        difference(derived, "SELECT id, note FROM back WHERE extra = 7", "SELECT id, note FROM events WHERE id < 100")
        == []
    )


def test_restore_again_is_refused_and_leaves_the_table_as_it_is(derived: StepTable) -> None:
    derived.into_archive(DAY)
    derived.restore("back", DAY)
    with pytest.raises(TargetError, match="has rows already"):
        derived.restore("back", DAY)
    assert len(ids(derived, "back")) == 10


def test_unfit_targets_are_refused(derived: StepTable) -> None:
    derived.into_archive(DAY)
    derived.sql("CREATE TABLE narrow (id int)")
    derived.sql("CREATE VIEW seen AS SELECT 1 AS id WHERE false")
    derived.sql("CREATE TABLE made (id int, at timestamptz, note text GENERATED ALWAYS AS ('x') STORED)")
    derived.sql("CREATE TABLE strict (id int CHECK (id < 5), at timestamptz, note text)")
    for into, message in (
        ("narrow", r"no columns \['at', 'note'\]"),
        ("seen", "is not a table"),
        ("made", "stores 10 rows with other values than they have in the archive"),
        ("strict", "violates check constraint"),
        ("missing.t", "schema of .* does not exist"),
    ):
        with pytest.raises(TargetError, match=message) as caught:
            derived.restore(into, DAY)
        assert caught.value.hint
    assert ids(derived, "strict") == []


@pytest.mark.parametrize(
    "into", ["", "a.b.c", "two words", 'half"', "a;b", '"a"b', "1st", "a. b", 'x"); DROP TABLE t; --']
)
def test_what_is_no_name_of_a_table_is_refused(into: str) -> None:
    with pytest.raises(RequestError, match="not the name of a table"):
        target_name(into)


def test_names_of_targets_are_read_as_sql_reads_them() -> None:
    assert target_name("Some.Table_1") == '"some"."table_1"'
    assert target_name('"Some"."a "" b.c"') == '"Some"."a "" b.c"'


def test_unknown_tables_and_partitions_are_refused(derived: StepTable) -> None:
    with pytest.raises(RequestError, match="nothing of 'shop/events' is archived"):
        derived.restore("back", DAY)
    derived.into_archive(DAY)
    with pytest.raises(RequestError, match="2025-01-09") as caught:
        derived.restore("back", "2025-01-09")
    assert DAY in caught.value.hint


def test_types_that_the_target_lacks_are_named(
    tmp_path: Path, database: str, second_database: str, catalog_url: str
) -> None:
    run_sql(database, "CREATE TYPE mood AS ENUM ('glad')")
    run_sql(database, "CREATE TABLE moods (id int, m mood)")
    run_sql(database, "INSERT INTO moods VALUES (1, 'glad')")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "moods"})
    table.into_archive()
    with pytest.raises(TargetError, match="types that do not exist in the target database: mood"):
        table.restore("back", url=second_database)
    run_sql(second_database, "CREATE TABLE back (id int, m text)")
    assert table.restore("back", url=second_database).rows == 1


def test_columns_that_changed_between_files_need_a_table_that_has_them_all(derived: StepTable) -> None:
    derived.into_archive(DAY)
    derived.cleanup(DAY)
    derived.sql("ALTER TABLE events ADD extra int")
    derived.into_archive(NEXT)
    with pytest.raises(TargetError, match=r"columns \['extra'\] are not the same") as caught:
        derived.restore("back", None)
    assert "empty table that has all" in caught.value.hint
    derived.sql("CREATE TABLE back (LIKE events)")
    assert derived.restore("back", None).rows == 20


def damaged(file: Path, how: str) -> None:
    """Damage a file: in the middle, at its end, or by other content that unpacks well."""
    data = file.read_bytes()
    changed = {
        "flipped": data[:60] + bytes([data[60] ^ 1]) + data[61:],
        "cut off": data[:-5],
        "other rows": gzip.compress(gzip.decompress(data).replace(b"xx", b"yy")),
        "more bytes": data + gzip.compress(b"11,2025-01-01 00:00:00+00,\n"),
    }
    file.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["flipped", "cut off", "other rows", "more bytes", "missing"])
def test_nothing_is_restored_from_a_damaged_file(derived: StepTable, how: str) -> None:
    derived.into_archive(DAY)
    file = derived.archived_file()
    if how == "missing":
        file.unlink()
    else:
        damaged(file, how)
    with pytest.raises(IntegrityError, match=file.name):
        derived.restore("back", DAY)
    assert derived.sql("SELECT to_regclass('back')") == [(None,)]


def test_nothing_is_restored_by_a_broken_chain(derived: StepTable) -> None:
    derived.into_archive(DAY)
    derived.into_archive(NEXT)
    manifest = json.loads(derived.manifest(1).read_text())
    derived.manifest(1).write_text(json.dumps(manifest | {"run_id": "forged"}))
    with pytest.raises(IntegrityError, match="does not follow"):
        derived.restore("back", NEXT)


def test_a_forged_type_in_a_manifest_runs_no_sql(derived: StepTable) -> None:
    derived.into_archive(DAY)
    manifest = json.loads(derived.manifest(1).read_text())
    manifest["export"]["columns"][0]["type"] = "int); DROP TABLE events; --"
    derived.manifest(1).write_text(json.dumps(manifest))
    with pytest.raises(TargetError):
        derived.restore("back", DAY)
    assert len(ids(derived, "events")) == 20


def test_values_are_read_by_the_settings_that_they_were_written_with(derived: StepTable) -> None:
    derived = derived.with_definition(spec={"session_timezone": "America/New_York"})
    derived.into_archive(DAY)
    name = derived.sql("SELECT current_database()")[0][0]
    derived.sql(f"ALTER DATABASE \"{name}\" SET TimeZone = 'Asia/Tokyo'")
    derived.sql("CREATE TABLE back (id int, at timestamp, note text)")
    derived.restore("back", DAY)
    assert derived.sql("SELECT min(at)::text FROM back") == [("2024-12-31 19:01:00",)]


def test_a_second_restore_waits_and_is_refused(derived: StepTable) -> None:
    derived.into_archive(DAY)
    derived.sql("CREATE TABLE back (LIKE events)")
    errors: list[BaseException] = []

    def other() -> None:
        try:
            derived.restore("back", DAY)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=other) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [TargetError, TargetError]
    assert len(ids(derived, "back")) == 10


def test_an_archive_in_s3_is_verified_swept_and_restored(
    tmp_path: Path, database: str, catalog_url: str, bucket_url: str
) -> None:
    make_events(database)
    table = new_step_table(tmp_path, database, catalog_url, SPEC, archive_url=f"{bucket_url}/some/prefix")
    table.into_archive(DAY)
    assert table.cleanup(DAY).deleted == 10
    late(table, 50)
    table.into_archive(DAY)
    table.ctx.archive.put("shop/events/2025-01-01/g9-00000000-0000/left.csv.gz", b"by a crash")
    assert len(verify_table(table.ctx.archive, table.id).unaccounted) == 1
    assert len(sweep([table.ctx], grace_seconds=0)) == 1
    report = verify_table(table.ctx.archive, table.id)
    assert (report.problems, report.unaccounted, report.rows) == ((), (), 11)
    assert table.restore("back", DAY).rows == 11
    assert ids(table, "back") == [*range(1, 11), 50]
