"""Adopt: files of an older export service enter the archive as what they are, or not at all."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from export_pipelines.errors import CleanupRefused, IntegrityError, PartitionBusy, RequestError
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.steps import chain
from export_pipelines.steps.adopt import Adopted, adopt_folder
from export_pipelines.steps.verify import verify_table
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table

HEADER = "id,base_id,updated_at,note\n"
SELECT = """COPY (
  SELECT * FROM agency a WHERE updated_at < %(export_boundary)s
    AND EXISTS (SELECT 1 FROM agency b WHERE b.base_id = a.base_id AND b.updated_at > a.updated_at)
) TO STDOUT WITH CSV HEADER"""
DELETE = """DELETE FROM agency a WHERE updated_at < %(export_boundary)s
    AND EXISTS (SELECT 1 FROM agency b WHERE b.base_id = a.base_id AND b.updated_at > a.updated_at)"""
SPEC = {
    "partitions": {"every": "day", "start": "2024-12-25", "timezone": "Europe/Tallinn"},
    "cumulative": True,
    "cleanup": "after_archive",
    "file_name": "{table}-{window_end:%Y_%m_%d-%I_%M_%S_%p}",
}


@pytest.fixture
def agency(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """The task of the older service, its table as it is today, and an empty folder `old`."""
    run_sql(database, "CREATE TABLE agency (id int PRIMARY KEY, base_id int, updated_at timestamptz, note text)")
    (tmp_path / "old").mkdir()
    return new_step_table(tmp_path, database, catalog_url, SPEC, name="agency", select=SELECT, delete=DELETE)


def old_file(table: StepTable, day: str, records: str, *, name: str = "") -> Path:
    """A file that the older service wrote for the boundary at the midnight that begins a day."""
    file = table.folder / "old" / (name or f"agency-{day.replace('-', '_')}-12_00_00_AM.csv.gz")
    file.write_bytes(gzip.compress(records.encode()))
    return file


def adopt(table: StepTable, *, dry_run: bool = False) -> list[Adopted]:
    ctx = table.ctx
    return adopt_folder(ctx.table, table.folder / "old", ctx.archive, ctx.catalog, run_id="adoption", dry_run=dry_run)


def manifests(table: StepTable) -> list[ArtifactManifest]:
    return [e for e in chain.entries(table.ctx.archive, table.id) if isinstance(e, ArtifactManifest)]


def test_a_file_goes_into_the_partition_that_ends_at_its_boundary(agency: StepTable) -> None:
    file = old_file(agency, "2025-01-01", HEADER + '1,7,2024-12-30 10:00:00+02,"a\nb"\n2,7,2024-12-31 10:00:00+02,\n')
    before = file.read_bytes()
    (adopted,) = adopt(agency)
    assert adopted == Adopted(file, "2024-12-31", 2, len(before), new=True)
    assert file.read_bytes() == before
    (manifest,) = manifests(agency)
    assert manifest.adopted
    export = manifest.export
    assert (export.partition, export.rows, export.generation) == ("2024-12-31", 2, 1)
    assert export.window_end is not None and export.window_end.isoformat() == "2025-01-01T00:00:00+02:00"
    assert (export.identity.mode, export.source.system_identifier, export.select_sql) == ("none", "", "")
    assert "nothing is known" in export.identity.reason
    assert [(c.name, c.type) for c in export.columns] == [(n, "text") for n in ("id", "base_id", "updated_at", "note")]
    assert (agency.folder / "archive" / manifest.file.key).read_bytes() == before
    report = verify_table(agency.ctx.archive, agency.id)
    assert report.intact and report.rows == 2 and report.unaccounted == ()
    (row,) = agency.ctx.catalog.exports(agency.id)
    assert (row.state, row.partition, row.sequence) == ("archived", "2024-12-31", 1)


def test_noon_and_midnight_are_told_apart(tmp_path: Path, agency: StepTable) -> None:
    spec = {"partitions": {"every_hours": 12, "start": "2025-01-01"}}
    agency = agency.with_definition(spec=spec)
    for name, partition in (
        ("agency-2025_01_01-12_00_00_PM.csv.gz", "2025-01-01-00:00"),
        ("agency-2025_01_02-12_00_00_AM.csv.gz", "2025-01-01-12:00"),
    ):
        old_file(agency, "", HEADER, name=name)
        assert adopt(agency)[-1].partition == partition


def test_adopting_again_changes_nothing(agency: StepTable) -> None:
    old_file(agency, "2025-01-01", HEADER + "1,7,2024-12-30 10:00:00+02,x\n")
    old_file(agency, "2025-01-02", HEADER)
    assert [found.new for found in adopt(agency)] == [True, True]
    again = adopt(agency)
    assert [(found.new, found.rows, found.problem) for found in again] == [(False, 1, ""), (False, 0, "")]
    assert len(manifests(agency)) == 2
    old_file(agency, "2025-01-03", HEADER)
    assert [found.new for found in adopt(agency)] == [False, False, True]


def test_a_dry_run_reads_everything_and_writes_nothing(agency: StepTable) -> None:
    old_file(agency, "2025-01-01", HEADER + "1,7,2024-12-30 10:00:00+02,x\n")
    old_file(agency, "2025-01-02", HEADER + "1\n")
    found = adopt(agency, dry_run=True)
    assert [(f.new, bool(f.problem)) for f in found] == [(True, False), (False, True)]
    assert not (agency.folder / "archive").exists()
    assert agency.ctx.catalog.exports(agency.id, published=False) == []


def zipped(data: bytes) -> bytes:
    """Without the time, which would stand in the names of the tests: all workers must know them by the same."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (zipped((HEADER + "1,2,3,4\n").encode())[:-8], "middle of its gzip stream"),
        (zipped((HEADER + "1,2,3,4\n").encode())[:-1], "middle of its gzip stream"),
        (b"no gzip at all", "not intact gzip"),
        (b"", "middle of its gzip stream"),
        (zipped(b""), "no header"),
        (zipped((HEADER + "1,2,3,4\n5,6,7\n").encode()), "record 2 has 3 fields, not 4"),
        (zipped((HEADER + "1,2,3,4,5\n").encode()), "record 1 has 5 fields, not 4"),
        (zipped((HEADER + "1,2,3,4").encode()), "does not end"),
        (zipped((HEADER + '1,2,3,"4\n').encode()), "does not end"),
        (zipped((HEADER + '1,2,3,"4"x\n').encode()), "not CSV"),
        (zipped((HEADER + "1,2,3,").encode() + b"\xff\n"), "not CSV in UTF-8"),
        (zipped(b"id,id\n1,2\n"), "columns of one name"),
    ],
)
def test_nothing_is_taken_of_a_file_that_is_not_whole(agency: StepTable, content: bytes, problem: str) -> None:
    file = old_file(agency, "2025-01-01", "")
    file.write_bytes(content)
    old_file(agency, "2025-01-02", HEADER + "1,2,3,4\n")
    bad, good = adopt(agency)
    assert problem in bad.problem and not bad.new
    assert good.new and not good.problem
    assert [m.export.partition for m in manifests(agency)] == ["2025-01-01"]
    assert verify_table(agency.ctx.archive, agency.id).unaccounted == ()
    assert file.read_bytes() == content


def test_names_that_fit_no_partition_are_told_of(agency: StepTable) -> None:
    old_file(agency, "2025-01-01", HEADER, name="agency-2025_01_01-12_30_00_AM.csv.gz")
    old_file(agency, "2024-12-01", HEADER)
    old_file(agency, "", HEADER, name="agency-2025_13_01-12_00_00_AM.csv.gz")
    old_file(agency, "", HEADER, name="agency-backup.csv.gz")
    old_file(agency, "2999-01-01", HEADER)
    found = {adopted.file.name: adopted.problem for adopted in adopt(agency)}
    assert len(found) == 5
    assert (
        "no closed partition of 'shop/agency' ends at 2025-01-01 00:30" in found["agency-2025_01_01-12_30_00_AM.csv.gz"]
    )
    assert "its name is not agency-YYYY" in found["agency-backup.csv.gz"]
    assert all(found.values()) and manifests(agency) == []


def test_files_of_other_tasks_are_left_alone(agency: StepTable) -> None:
    old_file(agency, "", HEADER, name="agency-report-2025_01_01-12_00_00_AM.csv.gz")
    old_file(agency, "", HEADER, name="source-2025_01_01-12_00_00_AM.csv.gz")
    (agency.folder / "old" / "agency-2025_01_01-12_00_00_AM.csv.gz").mkdir()
    assert adopt(agency) == []


def test_a_folder_or_partitions_that_are_missing_are_an_error(agency: StepTable) -> None:
    shutil.rmtree(agency.folder / "old")
    with pytest.raises(RequestError, match="there is no folder"):
        adopt(agency)
    (agency.folder / "old").mkdir()
    with pytest.raises(RequestError, match="has no partitions"):
        adopt(agency.with_definition(spec={"partitions": None, "file_name": "{table}"}))


def test_cleanup_refuses_what_was_adopted_and_nothing_else(agency: StepTable) -> None:
    for number, (base, at) in enumerate(((7, "2024-12-30"), (7, "2025-01-01 12:00"), (7, "2025-01-03")), start=1):
        agency.sql(f"INSERT INTO agency VALUES ({number}, {base}, '{at}+02', 'x')")
    old_file(agency, "2025-01-01", HEADER + "1,7,2024-12-30 00:00:00+02,x\n")
    adopt(agency)
    with pytest.raises(CleanupRefused, match="adopted from an older service"):
        agency.cleanup("2024-12-31")
    assert agency.sql("SELECT count(*) FROM agency") == [(3,)]
    agency.into_archive("2025-01-03")
    assert agency.cleanup("2025-01-03").deleted == 2
    assert agency.sql("SELECT id FROM agency") == [(3,)]


def test_adopted_rows_are_restored_whole_beside_later_generations(agency: StepTable) -> None:
    old_file(agency, "2025-01-01", HEADER + '1,7,2024-12-29 10:00:00+02,""\n2,7,2024-12-30 10:00:00+02,\n')
    adopt(agency)
    assert agency.restore("only_old", "2024-12-31").rows == 2
    assert agency.sql("SELECT note IS NULL, pg_typeof(id)::text FROM only_old ORDER BY id") == [
        (False, "text"),
        (True, "text"),
    ]
    agency.sql(
        "INSERT INTO agency VALUES (3, 7, '2024-12-31 01:00+02', 'missed'), (4, 7, '2024-12-31 02:00+02', 'new')"
    )
    agency.into_archive("2024-12-31")
    agency.cleanup("2024-12-31")
    agency.into_archive("2024-12-31")
    assert agency.restore("back", "2024-12-31").rows == 3
    assert agency.sql("SELECT id, pg_typeof(id)::text FROM back ORDER BY id") == [(n, "integer") for n in (1, 2, 3)]


def test_a_crash_before_the_catalog_knows_is_made_good_by_the_next_adoption(
    agency: StepTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_file(agency, "2025-01-01", HEADER + "1,2,3,4\n")

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(type(agency.ctx.catalog), "finish_export", killed)
    with pytest.raises(Killed):
        adopt(agency)
    monkeypatch.undo()
    assert agency.ctx.catalog.exports(agency.id) == []
    (again,) = adopt(agency)
    assert not again.new
    assert len(manifests(agency)) == 1
    assert [row.sequence for row in agency.ctx.catalog.exports(agency.id)] == [1]
    adopt(agency)
    assert len(agency.ctx.catalog.exports(agency.id)) == 1


def test_a_file_that_changes_meanwhile_is_not_adopted(agency: StepTable, monkeypatch: pytest.MonkeyPatch) -> None:
    file = old_file(agency, "2025-01-01", HEADER + "1,2,3,4\n")
    begin = type(agency.ctx.catalog).begin_export

    def change(*args: object, **kwargs: object) -> object:
        file.write_bytes(gzip.compress(HEADER.encode()))
        return begin(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(type(agency.ctx.catalog), "begin_export", change)
    with pytest.raises(IntegrityError, match="changed while it was adopted"):
        adopt(agency)
    assert list(agency.ctx.archive.list()) == []


def test_a_partition_that_is_being_archived_is_not_adopted_into(agency: StepTable) -> None:
    old_file(agency, "2025-01-01", HEADER)
    with agency.ctx.catalog.lock(f"archive {agency.id} 2024-12-31", "archiving it"), pytest.raises(PartitionBusy):
        adopt(agency)


def test_files_are_read_by_the_options_of_the_tasks_own_copy(agency: StepTable) -> None:
    select = SELECT.replace("WITH CSV HEADER", "WITH (FORMAT csv, HEADER, DELIMITER ';', NULL '-')")
    agency = agency.with_definition(select_sql=select)
    old_file(agency, "2025-01-01", "id;note\n1;a,b\n2;-\n")
    assert adopt(agency)[0].rows == 2
    agency.restore("back", "2024-12-31")
    assert agency.sql("SELECT id, note FROM back ORDER BY id") == [("1", "a,b"), ("2", None)]
