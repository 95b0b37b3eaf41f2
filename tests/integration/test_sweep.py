"""Sweep: what crashed runs left goes after the grace period; nothing else ever does."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipelines.errors import IntegrityError
from export_pipelines.steps import chain
from export_pipelines.steps.adopt import adopt_folder
from export_pipelines.steps.postgres.transactions import lock, table_session
from export_pipelines.steps.sweep import sweep
from export_pipelines.steps.verify import verify_table
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table

DAY = "2025-01-01"
SPEC = {
    "table": "events",
    "time_column": "at",
    "partitions": {"every": "day", "start": "2025-01-01"},
    "cleanup": "after_archive",
}


class Killed(BaseException):
    """Ends a step where a SIGKILL would: what follows in it is not run."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def events(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    run_sql(database, "CREATE TABLE events (id int PRIMARY KEY, at timestamptz, note text)")
    run_sql(database, "INSERT INTO events SELECT n, '2025-01-01 12:00Z' FROM generate_series(1, 10) n")
    return new_step_table(tmp_path, database, catalog_url, SPEC)


def files(table: StepTable, store: str) -> list[str]:
    """Everything in the folder of a store, temporaries too."""
    root = table.folder / store
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def age(table: StepTable, days: float = 2) -> None:
    """Make all files older."""
    then = time.time() - days * 86400
    for path in table.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def swept(*tables: StepTable) -> list[str]:
    """Sweep, and check that a dry run before it says the same and does nothing."""
    before = [files(table, store) for table in tables for store in ("exports", "archive")]
    planned = sweep([table.ctx for table in tables], dry_run=True)
    assert [files(table, store) for table in tables for store in ("exports", "archive")] == before
    done = sweep([table.ctx for table in tables])
    assert done == planned
    return done


@pytest.fixture
def crashed_export(events: StepTable, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepTable]:
    """The file and its sidecar were published, and the catalog was not told."""
    with monkeypatch.context() as patch:
        patch.setattr(type(events.ctx.catalog), "finish_export", killed)
        patch.setattr(type(events.ctx.catalog), "fail_export", lambda *_: None)
        with pytest.raises(Killed):
            events.export(DAY)
    yield events


@pytest.fixture
def crashed_archive(events: StepTable, monkeypatch: pytest.MonkeyPatch) -> Iterator[StepTable]:
    """The copies are in the archive, and the manifest was not written."""
    events.export(DAY)
    with monkeypatch.context() as patch:
        patch.setattr(chain, "append", killed)
        with pytest.raises(Killed):
            events.archive(DAY)
    yield events


def test_files_of_a_crashed_export_go_after_the_grace_period(crashed_export: StepTable) -> None:
    events = crashed_export
    left = files(events, "exports")
    assert len(left) == 2
    assert swept(events) == []
    age(events)
    assert swept(events) == [str(events.folder / "exports" / name) for name in left]
    assert files(events, "exports") == []
    assert swept(events) == []


def test_files_that_the_catalog_or_a_manifest_names_stay(crashed_export: StepTable) -> None:
    events = crashed_export
    record = events.into_archive(DAY)
    assert record.file.key.endswith("-g2.csv.gz")
    archived = files(events, "archive")
    age(events)
    assert len(swept(events)) == 2
    assert files(events, "exports") == sorted([record.file.key, f"{record.file.key}.identities.zst"])
    assert files(events, "archive") == archived
    assert verify_table(events.ctx.archive, events.id).intact
    assert events.cleanup(DAY).deleted == 10


def test_copies_without_a_manifest_go_after_the_grace_period(crashed_archive: StepTable) -> None:
    events = crashed_archive
    left = files(events, "archive")
    assert len(left) == 4
    assert swept(events) == []
    events.archive(DAY)
    age(events)
    assert sorted(swept(events)) == [str(events.folder / "archive" / name) for name in left]
    assert verify_table(events.ctx.archive, events.id).unaccounted == ()
    assert len(files(events, "exports")) == 2


def test_a_copy_that_is_still_being_written_keeps_its_whole_folder(crashed_archive: StepTable) -> None:
    events = crashed_archive
    age(events)
    newest = events.folder / "archive" / files(events, "archive")[0]
    os.utime(newest)
    assert swept(events) == []


def test_copies_of_an_archive_at_work_are_left_alone(crashed_archive: StepTable) -> None:
    events = crashed_archive
    age(events)
    with events.ctx.catalog.lock(f"archive {events.id} {DAY}", "archiving it"):
        assert sweep([events.ctx]) == []
    assert len(sweep([events.ctx])) == 4


def test_files_of_an_export_at_work_are_left_alone(crashed_export: StepTable) -> None:
    events = crashed_export
    age(events)
    with table_session(events.ctx, read_only=True) as session:
        session.begin()
        lock(session, events.ctx.table, DAY, "exported")
        assert sweep([events.ctx]) == []
    assert len(sweep([events.ctx])) == 2


def test_temporaries_go_after_the_grace_period(events: StepTable) -> None:
    events.into_archive(DAY)
    for store in ("exports", "archive"):
        (events.folder / store / ".tmp-0123456789abcdef").write_bytes(b"half")
    assert swept(events) == []
    age(events)
    assert len(swept(events)) == 2
    assert not [name for store in ("exports", "archive") for name in files(events, store) if ".tmp-" in name]


def test_an_older_services_file_of_the_same_name_stays(crashed_export: StepTable) -> None:
    events = crashed_export
    name = files(events, "exports")[0]
    (events.folder / "exports" / f"{name}.identities.zst").unlink()
    (events.folder / "exports" / name).write_bytes(gzip.compress(b"not ours\n"))
    (events.folder / "exports" / "notes.txt").write_text("of a person")
    (events.folder / "exports" / "shop" / "events" / "events-2025-01-01-g2.csv.gz").write_bytes(b"not ours either")
    age(events)
    assert swept(events) == []


def test_adopted_files_stay_where_they_were(tmp_path: Path, database: str, catalog_url: str) -> None:
    run_sql(database, "CREATE TABLE agency (id int, at timestamptz)")
    spec = {
        "table": "agency",
        "time_column": "at",
        "partitions": {"every": "day", "start": "2025-01-01"},
        "file_name": "{table}-{window_end:%Y_%m_%d-%I_%M_%S_%p}",
        "keep_export": False,
    }
    agency = new_step_table(tmp_path, database, catalog_url, spec, name="agency")
    (tmp_path / "exports").mkdir()
    file = tmp_path / "exports" / "agency-2025_01_02-12_00_00_AM.csv.gz"
    file.write_bytes(gzip.compress(b"id,at\n1,2025-01-01\n"))
    ctx = agency.ctx
    (adopted,) = adopt_folder(ctx.table, tmp_path / "exports", ctx.archive, ctx.catalog)
    assert adopted.new
    age(agency)
    assert swept(agency) == []
    assert file.exists()


def test_local_copies_that_should_be_gone_go_once_the_archive_has_them(
    events: StepTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = events.with_definition(spec={"keep_export": False})
    with monkeypatch.context() as patch:
        patch.setattr("export_pipelines.steps.archive.remove_export", killed)
        events.export(DAY)
        with pytest.raises(Killed):
            events.archive(DAY)
    age(events)
    assert swept(events.with_definition(spec={"keep_export": True})) == []
    archived = events.archived_file(1)
    content = archived.read_bytes()
    archived.write_bytes(content[:-1])
    age(events)
    assert swept(events) == []
    archived.write_bytes(content)
    assert len(swept(events)) == 2
    assert files(events, "exports") == []


def test_nothing_is_swept_from_an_archive_whose_chain_is_broken(crashed_archive: StepTable) -> None:
    events = crashed_archive
    events.archive(DAY)
    age(events)
    events.manifest(1).rename(events.folder / "saved")
    with pytest.raises(IntegrityError, match="manifest 1 of 'shop/events' is missing"):
        sweep([events.ctx])
    assert len(files(events, "archive")) == 8


def test_a_table_whose_file_another_table_could_have_named_keeps_it(
    crashed_export: StepTable, tmp_path: Path, database: str, catalog_url: str
) -> None:
    events = crashed_export
    names = files(events, "exports")
    for name in names:
        (events.folder / "exports" / name).unlink()
    spec = {**SPEC, "file_name": "shop/events/events-{partition}"}
    twin = new_step_table(tmp_path, database, catalog_url, spec, name="twin")
    assert twin.export(DAY).file.key in names
    age(events)
    assert swept(events) == []
    assert swept(events, twin) == []


def test_leftovers_of_partitions_that_the_definition_no_longer_has_stay(crashed_export: StepTable) -> None:
    events = crashed_export.with_definition(spec={"partitions": {"every": "month", "start": "2025-02-01"}})
    age(events)
    assert swept(events) == []
