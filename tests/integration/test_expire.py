"""Expire: what retention does not want goes, in the right order, and no only copy of a row without words."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.errors import CleanupRefused, IntegrityError, PartitionBusy, RequestError, SourceError
from export_pipelines.steps.archive import archive_partition
from export_pipelines.steps.expire import expire_table
from export_pipelines.steps.export import export_partition
from export_pipelines.steps.sweep import sweep
from export_pipelines.steps.verify import verify_table
from export_pipelines.stores import open_store
from export_pipelines.windows import Window
from tests.support.proxy import database_proxy
from tests.support.tables import DAY, NEXT_DAY, Kit
from tests.support.threads import meanwhile, transaction, wait_until, waiting

TABLE = "CREATE TABLE t (id int PRIMARY KEY, note text, at timestamptz)"
ROWS = "INSERT INTO t SELECT i, 'note ' || i, '2025-01-01 12:00Z' FROM generate_series(1, 5) AS i"
LATE = "INSERT INTO t VALUES (6, 'late', '2025-01-01 13:00Z')"
WORDS = {"keep": "30 days", "only_copies": "give_up_for_good"}


@pytest.fixture
def daily(kit: Kit) -> Kit:
    """Rows 1 to 5 of one day, whose files are kept for a day unless they have the only copy of rows."""
    kit.sql(TABLE, ROWS)
    kit.spec.update(table="t", time_column="at", retention={"keep": "30 days"})
    kit.window = DAY
    return kit


@pytest.fixture
def whole(kit: Kit) -> Kit:
    """Rows 1 to 5 of a table without partitions, that is not cleaned up."""
    kit.sql(TABLE, ROWS)
    kit.spec.update(table="t", cleanup="off", retention={"newest": 2})
    return kit


@pytest.fixture
def catalog(kit: Kit) -> Iterator[Catalog]:
    found = Catalog(kit.catalog_url)
    yield found
    found.close()


def again(kit: Kit, number: int) -> None:
    """One more generation: a row that was not there."""
    kit.sql(f"INSERT INTO t VALUES ({number}, 'more', '2025-01-01 14:00Z')")
    kit.exported()


def states(kit: Kit) -> list[str]:
    """Of each generation that was ever published."""
    query = (
        f"SELECT state FROM export WHERE table_id = '{kit.table.id}' AND generation > 0 ORDER BY partition, generation"
    )
    return [state for (state,) in kit.catalog_sql(query)]


def tombstones(kit: Kit) -> list[int]:
    """Numbers of the manifests that were given up."""
    return [entry.artifact_sequence for entry in kit.entries() if entry.kind == "expire"]


def intact(kit: Kit) -> bool:
    archive = open_store((kit.folder / "archive").as_uri())
    report = verify_table(archive, kit.table.id)
    assert not report.problems
    assert not report.unaccounted
    return True


def copies(kit: Kit) -> list[str]:
    """All objects of the archive but the manifests."""
    return [key for key in kit.visible_files("archive") if "/manifests/" not in key]


# What goes, and what stays


def test_nothing_expires_without_a_setting(daily: Kit) -> None:
    del daily.spec["retention"]
    daily.exported()
    with pytest.raises(RequestError, match="has no retention") as error:
        daily.expire()
    assert "defs.yaml" in error.value.hint
    assert states(daily) == ["archived"]


def test_the_newest_file_of_a_partition_stays_without_words(daily: Kit) -> None:
    daily.exported()
    result = daily.expire()
    assert (result.kept.files, result.freed.files) == (1, 0)
    assert "the only copy: it is the newest of its partition" in result.verdicts[0].reason
    assert states(daily) == ["archived"]


def test_a_superseded_file_goes_when_it_is_old(daily: Kit) -> None:
    daily.exported()
    daily.sql(LATE)
    daily.exported()
    before = daily.restored(DAY.partition)
    assert daily.expire(now=datetime(2025, 1, 20, tzinfo=UTC)).freed.files == 0
    result = daily.expire()
    assert (result.freed.files, result.freed.rows, result.kept.rows) == (1, 5, 6)
    assert states(daily) == ["expired", "archived"]
    assert tombstones(daily) == [1]
    assert daily.restored(DAY.partition) == before
    assert intact(daily)


def test_a_superseded_file_whose_rows_were_deleted_stays_without_words(daily: Kit) -> None:
    daily.exported()
    daily.cleanup()
    daily.sql(LATE)
    daily.exported()
    result = daily.expire()
    assert result.freed.files == 0
    assert "cleanups deleted 5 of its rows from the source" in result.verdicts[0].reason
    assert len(daily.restored()) == 6


def test_a_file_that_only_proved_what_a_later_one_holds_goes(daily: Kit) -> None:
    daily.exported()
    daily.sql(LATE)
    daily.exported()
    assert daily.cleanup().deleted == 6
    assert daily.expire().freed.files == 1
    assert [row[0] for row in daily.restored()] == [1, 2, 3, 4, 5, 6]
    assert intact(daily)


def test_with_words_a_file_goes_with_its_local_copy_and_all_that_lies_beside(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    record = daily.exported()
    daily.cleanup()
    size = sum(path.stat().st_size for path in (daily.folder / "archive").rglob("g1-*/*"))
    result = daily.expire()
    assert (result.freed.files, result.freed.bytes, result.errors) == (1, size, ())
    assert copies(daily) == []
    assert daily.visible_files() == []
    (entry,) = [entry for entry in daily.entries() if entry.kind == "expire"]
    assert (entry.rows, entry.bytes, entry.only_copy) == (record.rows, size, True)
    assert entry.reason == "wanted by none of keep 30 days"
    assert intact(daily)
    with pytest.raises(RequestError, match=r"2025-01-01.* was expired on .*wanted by none of keep 30 days"):
        daily.restored(DAY.partition)


def test_an_expire_again_finds_nothing_to_do(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    daily.expire()
    entries = len(daily.entries())
    result = daily.expire()
    assert (result.verdicts, result.completed) == ((), ())
    assert len(daily.entries()) == entries


def test_of_snapshots_the_newest_stay_and_the_others_go(whole: Kit) -> None:
    whole.exported()
    for number in (6, 7, 8):
        again(whole, number)
    result = whole.expire()
    assert [each.artifact.generation for each in result.verdicts if not each.kept] == [1, 2]
    assert states(whole) == ["expired", "expired", "archived", "archived"]
    assert [row[0] for row in whole.restored()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert intact(whole)


def test_of_the_snapshots_of_a_day_the_last_stays(whole: Kit) -> None:
    whole.spec["retention"] = {"daily": 1, "monthly": 12, "only_copies": "give_up_for_good"}
    whole.exported()
    again(whole, 6)
    result = whole.expire()
    assert states(whole) == ["expired", "archived"]
    assert result.verdicts[1].classes == ("daily", "monthly")
    assert {rule: amount.files for rule, amount in result.by_rule.items()} == {"daily": 1, "monthly": 1}


def test_a_snapshot_whose_rows_were_deleted_stays_without_words(whole: Kit) -> None:
    whole.spec.update(cleanup="after_archive", retention={"newest": 1})
    whole.exported()
    whole.cleanup()
    for number in (6, 7):
        again(whole, number)
    result = whole.expire()
    assert [each.kept for each in result.verdicts] == [True, False, True]
    assert [row[0] for row in whole.restored()] == [1, 2, 3, 4, 5, 6, 7]


def test_a_dry_run_deletes_nothing_and_says_what_the_run_does(daily: Kit) -> None:
    daily.spec["retention"] = {**WORDS, "newest": 1}
    daily.exported()
    daily.sql(LATE, "INSERT INTO t VALUES (7, 'x', '2025-01-02 13:00Z')")
    daily.exported()
    daily.exported(NEXT_DAY)
    files, entries = daily.all_files(), len(daily.entries())
    now = datetime.now(UTC)
    plan = daily.expire(dry_run=True, now=now)
    assert (daily.all_files(), len(daily.entries()), states(daily)) == (files, entries, ["archived"] * 3)
    result = daily.expire(now=now)
    assert plan.verdicts == result.verdicts
    assert (plan.freed, plan.kept) == (result.freed, result.kept)
    assert result.freed.files == 2


def test_only_what_was_shown_goes(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    shown = {each.artifact.attempt for each in daily.expire(dry_run=True).verdicts}
    daily.sql(LATE)
    daily.exported()
    result = daily.expire(only=shown)
    assert [each.kept for each in result.verdicts] == [False, True]
    assert "after the plan was confirmed" in result.verdicts[1].reason


def test_nothing_goes_while_the_newest_file_is_missing_or_damaged(daily: Kit) -> None:
    daily.exported()
    daily.sql(LATE)
    daily.exported()
    sequence = daily.entries()[-1].sequence
    url = open_store((daily.folder / "archive").as_uri()).url
    daily.catalog_sql(
        "INSERT INTO verification (table_id, archive_url, sequence, verified_at, intact, problem, run_id) "
        f"VALUES ('{daily.table.id}', '{url}', {sequence}, now(), false, 'altered', 'r')"
    )
    assert "missing or damaged" in daily.expire().verdicts[0].reason
    daily.catalog_sql(f"DELETE FROM verification WHERE table_id = '{daily.table.id}'")
    newest = next(daily.folder.glob("archive/g/*/2025-01-01/g2-*/*.csv.gz"))
    newest.rename(newest.with_suffix(".away"))
    assert daily.expire().freed.files == 0
    newest.with_suffix(".away").rename(newest)
    assert daily.expire().freed.files == 1


def test_a_broken_chain_stops_everything(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    daily.exported(NEXT_DAY)
    manifest = next(daily.folder.glob("archive/g/*/manifests/00000001.json"))
    manifest.chmod(0o600)
    manifest.write_text(manifest.read_text().replace('"rows": 5', '"rows": 4'))
    with pytest.raises(IntegrityError, match=r"does not follow|altered"):
        daily.expire()
    assert states(daily) == ["archived", "archived"]


def test_both_copies_of_one_export_expire_together(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    daily.catalog_sql(f"UPDATE export SET state = 'exported', sequence = NULL WHERE table_id = '{daily.table.id}'")
    daily.archive()
    assert [entry.kind for entry in daily.entries()] == ["artifact", "artifact"]
    assert daily.expire().freed.files == 1
    assert tombstones(daily) == [1, 2]
    assert copies(daily) == []
    assert intact(daily)


def test_a_file_of_another_origin_at_the_place_of_the_local_copy_stays(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    record = daily.exported()
    local = daily.folder / "exports" / record.file.key
    local.chmod(0o600)
    local.write_bytes(b"somebody else's, and of another size")
    daily.expire()
    assert local.exists()


# After an expire


def test_a_cleanup_of_what_expired_refuses_and_says_when_and_why(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    daily.expire()
    with pytest.raises(CleanupRefused, match=r"was expired on .* \(wanted by none of keep 30 days\)"):
        daily.cleanup()
    with pytest.raises(RequestError, match="was expired on"):
        daily.archive()
    assert len(daily.rows()) == 5


def test_what_expired_and_is_still_in_the_source_can_be_exported_again(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    daily.expire()
    record = daily.exported()
    assert (record.generation, record.unchanged) == (2, False)
    assert daily.cleanup().deleted == 5
    assert len(daily.restored()) == 5
    assert intact(daily)


def test_rows_that_expired_are_written_again_only_while_the_source_has_them(kit: Kit) -> None:
    kit.sql(TABLE, ROWS)
    kit.spec.update(cumulative=True, retention={**WORDS, "keep": "30 days"})
    kit.select = "SELECT id, note, at FROM t WHERE at < %(export_boundary)s"
    kit.delete = "DELETE FROM t WHERE at < %(export_boundary)s"
    kit.window = DAY
    kit.exported()
    kit.sql("UPDATE t SET note = 'x' WHERE id = 1")
    assert kit.cleanup().deleted == 4
    assert kit.expire().freed.files == 1
    record = kit.exported(NEXT_DAY)
    assert record.rows == 1
    assert [row[0] for row in kit.restored()] == [1]
    assert kit.cleanup(NEXT_DAY).deleted == 1


def test_a_later_partition_of_a_cumulative_table_is_cleaned_up_after_an_earlier_one_expired(kit: Kit) -> None:
    kit.sql(TABLE, ROWS)
    kit.spec.update(cumulative=True, retention=WORDS)
    kit.select = "SELECT id, note, at FROM t WHERE at < %(export_boundary)s"
    kit.delete = "DELETE FROM t WHERE at < %(export_boundary)s"
    kit.window = DAY
    kit.exported()
    kit.sql("INSERT INTO t VALUES (6, 'next', '2025-01-02 12:00Z')")
    kit.exported(NEXT_DAY)
    kit.expire(now=NEXT_DAY.end + timedelta(days=29, hours=1) if NEXT_DAY.end else None)
    assert states(kit) == ["expired", "archived"]
    result = kit.cleanup(NEXT_DAY)
    assert (result.deleted, result.complete) == (1, False)
    assert kit.rows() == [1, 2, 3, 4, 5]


# Holds


@pytest.mark.parametrize(
    ("partition", "start", "end", "held"),
    [
        (None, None, None, True),
        (DAY.partition, None, None, True),
        (NEXT_DAY.partition, None, None, False),
        (None, "2025-01-01", "2025-01-02", True),
        (None, "2024-06-01", "2025-01-01", False),
        (None, "2025-01-02", "2025-02-01", False),
        (None, "2024-06-01", "2025-01-01T00:00:01", True),
        (None, "2025-01-01T23:59:59", None, True),
        (None, None, "2025-01-01", False),
        (None, None, "2025-01-01T00:01", True),
    ],
)
def test_a_hold_keeps_what_it_is_about_from_cleanup_and_expire(
    daily: Kit, catalog: Catalog, partition: str | None, start: str | None, end: str | None, held: bool
) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    bounds = [datetime.fromisoformat(each).replace(tzinfo=UTC) if each else None for each in (start, end)]
    hold = catalog.place_hold(
        daily.table.id, partition, "court case 7", "ann", window_start=bounds[0], window_end=bounds[1]
    )
    if held:
        with pytest.raises(CleanupRefused, match=r"ann.*court case 7"):
            daily.cleanup()
        assert "held by ann" in daily.expire().verdicts[0].reason
        assert len(daily.rows()) == 5
        assert states(daily) == ["archived"]
        assert catalog.release_hold(hold, "bob")
        assert [each.released_by for each in catalog.holds(daily.table.id, released=True)] == ["bob"]
    assert daily.cleanup().deleted == 5
    assert daily.expire().freed.files == 1


def test_a_range_holds_every_snapshot_of_its_table(whole: Kit, catalog: Catalog) -> None:
    whole.spec["cleanup"] = "after_archive"
    whole.exported()
    start = datetime(1999, 1, 1, tzinfo=UTC)
    catalog.place_hold(
        whole.table.id, None, "court case 7", "ann", window_start=start, window_end=start + timedelta(days=1)
    )
    with pytest.raises(CleanupRefused, match="court case 7"):
        whole.cleanup()


def test_a_range_holds_every_partition_of_a_cumulative_table_that_may_have_its_rows(kit: Kit, catalog: Catalog) -> None:
    """A partition of a cumulative table may have rows of any time before its end."""
    kit.sql(TABLE, ROWS)
    kit.spec["cumulative"] = True
    kit.select = "SELECT id, note, at FROM t WHERE at < %(export_boundary)s"
    kit.delete = "DELETE FROM t WHERE at < %(export_boundary)s"
    kit.window = DAY
    kit.exported()
    old = datetime(2024, 1, 1, tzinfo=UTC)
    catalog.place_hold(kit.table.id, None, "court case 7", "ann", window_start=old, window_end=old + timedelta(days=9))
    with pytest.raises(CleanupRefused, match="court case 7"):
        kit.cleanup()
    assert len(kit.rows()) == 5


def test_a_hold_on_an_earlier_partition_matters_only_while_it_has_rows_to_delete(kit: Kit, catalog: Catalog) -> None:
    kit.sql(TABLE, ROWS)
    kit.spec["cumulative"] = True
    kit.select = "SELECT id, note, at FROM t WHERE at < %(export_boundary)s"
    kit.delete = "DELETE FROM t WHERE at < %(export_boundary)s"
    kit.window = DAY
    kit.exported()
    assert kit.cleanup().deleted == 5
    catalog.place_hold(kit.table.id, DAY.partition, "court case 7", "ann")
    kit.sql("INSERT INTO t VALUES (6, 'next', '2025-01-02 12:00Z')")
    kit.exported(NEXT_DAY)
    assert kit.cleanup(NEXT_DAY).deleted == 1


def test_a_hold_that_is_placed_between_plan_and_fence_wins(daily: Kit, catalog: Catalog) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    daily.exported(NEXT_DAY)
    with daily.opened() as context:
        # Told after the first partition is given up.
        def hold(progress: object) -> None:
            catalog.place_hold(daily.table.id, None, "stop", "ann")

        result = expire_table(replace(context, progress=hold))
    assert [each.kept for each in result.verdicts] == [False, True]
    assert "held by ann" in result.errors[0]
    assert states(daily) == ["expired", "archived"]


# The fence between cleanup and expire


def test_a_cleanup_whose_file_expires_meanwhile_deletes_nothing(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    with transaction(daily) as other, meanwhile(daily.cleanup) as cleanup:
        other.execute("SELECT 1 FROM t WHERE id = 3 FOR UPDATE")
        wait_until(lambda: waiting(daily) or cleanup.done())
        assert not cleanup.done()
        assert daily.expire().freed.files == 1
        other.execute("COMMIT")
        with pytest.raises(CleanupRefused, match="proves nothing any more"):
            cleanup.result()
    assert len(daily.rows()) == 5
    assert copies(daily) == []


def test_a_file_whose_batch_is_under_way_does_not_expire(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    with ThreadPoolExecutor(1) as pool:
        with database_proxy(daily.database) as proxy:
            proxy.fault = "stall"
            cleanup = pool.submit(replace(daily, database=proxy.url).cleanup)
            wait_until(proxy.hit.is_set)
            result = daily.expire()
            assert result.freed.files == 0
            assert "not settled" in result.verdicts[0].reason
        # The connection is cut now, so that its transaction ends.
        with pytest.raises(SourceError):
            cleanup.result()
    assert len(daily.rows()) == 5
    wait_until(lambda: daily.expire().freed.files == 1)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_batch_whose_outcome_nobody_heard_of_is_settled_first(daily: Kit, fault: str) -> None:
    """Whether the file has the only copy of rows depends on it."""
    daily.exported()
    with database_proxy(daily.database) as proxy:
        proxy.fault = fault  # type: ignore[assignment]
        with pytest.raises(SourceError):
            replace(daily, database=proxy.url).cleanup()
    committed = fault == "after"
    wait_until(lambda: len(daily.rows()) == (0 if committed else 5))
    daily.sql("INSERT INTO t VALUES (9, 'new', '2025-01-01 15:00Z')")
    wait_until(lambda: "not settled" not in daily.expire(dry_run=True).verdicts[0].reason)
    daily.exported()
    result = daily.expire()
    assert [each.kept for each in result.verdicts] == [committed, True]
    assert len(daily.restored()) == 6


def test_of_two_expires_at_once_one_does_the_work(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.exported()
    name = f"expire {daily.table.id}"
    with daily.opened() as context, context.catalog.lock(name, "expiring"):
        with pytest.raises(PartitionBusy, match="another run is expiring"):
            daily.expire()
        assert sweep([context], grace_seconds=0) == []
    assert daily.expire().freed.files == 1


def test_a_restore_while_files_expire_loads_nothing_or_everything(daily: Kit) -> None:
    daily.spec["retention"] = WORDS
    daily.sql("INSERT INTO t SELECT i, repeat('x', 100), '2025-01-01 12:00Z' FROM generate_series(10, 20000) AS i")
    daily.exported()
    outcomes: list[int | str] = []

    def restore() -> None:
        for _ in range(20):
            try:
                outcomes.append(len(daily.restored(DAY.partition, "id")))
            except Exception as error:
                outcomes.append(type(error).__name__)

    with meanwhile(restore) as restoring:
        wait_until(lambda: bool(outcomes))
        assert daily.expire().freed.files == 1
        restoring.result()
    assert outcomes[0] == 19996
    assert set(outcomes) <= {19996, "IntegrityError", "RequestError"}
    assert outcomes[-1] == "RequestError"
    tables = "SELECT relname FROM pg_class WHERE relname LIKE 'restored_%' AND relkind = 'r'"
    assert len(daily.rows(tables)) == outcomes.count(19996)


# S3


def test_files_in_a_bucket_expire(daily: Kit, bucket_url: str) -> None:
    daily.spec["retention"] = {**WORDS, "newest": 1}
    with daily.opened() as context:
        context = replace(context, archive=open_store(bucket_url))
        for window in (DAY, NEXT_DAY):
            export_partition(context, window)
            archive_partition(context, window)
        before = [info.key for info in context.archive.list()]
        result = expire_table(context)
        gone = set(before) - {info.key for info in context.archive.list()}
        report = verify_table(context.archive, daily.table.id)
    assert (result.freed.files, result.kept.files) == (1, 1)
    assert gone == {key for key in before if f"/{DAY.partition}/" in key}
    assert gone
    assert not report.problems


def test_windows_are_those_of_the_export(daily: Kit) -> None:
    """A definition whose partitions were changed since does not change what a file is of."""
    daily.spec["retention"] = {"keep": "30 days", "only_copies": "give_up_for_good"}
    daily.exported()
    daily.window = Window("2025-06-01", datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC))
    daily.spec["partitions"] = {"every": "month", "start": "2025-06-01"}
    assert daily.expire(now=datetime(2025, 1, 20, tzinfo=UTC)).freed.files == 0
    assert daily.expire(now=datetime(2025, 2, 20, tzinfo=UTC)).freed.files == 1
