"""Verify: every damage of an archive is found, without a database, and nothing else is reported."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export_pipelines.errors import RequestError
from export_pipelines.steps.context import Progress
from export_pipelines.steps.verify import VerifyReport, tables_in, verify_table
from export_pipelines.stores import open_store
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table

DAYS = ("2025-01-01", "2025-01-02")
SPEC = {
    "table": "events",
    "time_column": "at",
    "partitions": {"every": "day", "start": "2025-01-01"},
    "cleanup": "after_archive",
}


@pytest.fixture
def events(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """Two archived days: manifest 1 is of the first, 2 of the second, 3 is the receipt of the first one's cleanup."""
    run_sql(database, "CREATE TABLE events (id int PRIMARY KEY, at timestamptz, note text)")
    run_sql(
        database,
        "INSERT INTO events SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '1 hour', E'a \"b\"\\nc' "
        "FROM generate_series(0, 47) n",
    )
    table = new_step_table(tmp_path, database, catalog_url, SPEC)
    for day in DAYS:
        table.into_archive(day)
    table.cleanup(DAYS[0])
    return table


def verify(table: StepTable, partition: str | None = None) -> VerifyReport:
    head = table.ctx.catalog.head(table.id, table.ctx.archive.url)
    return verify_table(table.ctx.archive, table.id, partition=partition, head=head)


def edit(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change a manifest's JSON."""
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_intact_archive_has_no_problems(events: StepTable) -> None:
    report = verify(events)
    assert report.intact and report.unaccounted == ()
    assert (report.artifacts, report.receipts, report.rows) == (2, 1, 48)
    assert report.bytes == sum(events.archived_file(n).stat().st_size for n in (1, 2))
    assert verify(events, DAYS[1]).rows == 24


def test_archive_is_verified_without_any_database_and_wherever_it_was_moved(events: StepTable, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "archive", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "archive")
    moved = open_store(str(tmp_path / "elsewhere"))
    seen: list[Progress] = []
    assert verify_table(moved, "shop/events", progress=seen.append).intact
    assert {(p.stage, p.partition) for p in seen} == {("verify", day) for day in DAYS}
    assert tables_in(moved) == ["shop/events"]


@pytest.mark.parametrize("sidecar", [False, True])
@pytest.mark.parametrize("where", [0, 10, -1])
def test_any_changed_byte_is_found(events: StepTable, sidecar: bool, where: int) -> None:
    file = events.archived_file(2, ".identities.zst" if sidecar else "")
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(data)
    (problem,) = verify(events).problems
    assert file.name in problem
    assert verify(events, DAYS[0]).intact
    assert not verify(events, DAYS[1]).intact


@pytest.mark.parametrize("sidecar", [False, True])
@pytest.mark.parametrize("change", ["cut off", "longer", "missing"])
def test_cut_off_longer_and_missing_files_are_found(events: StepTable, sidecar: bool, change: str) -> None:
    file = events.archived_file(1, ".identities.zst" if sidecar else "")
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] if change == "cut off" else file.read_bytes() + b"\0")
    (problem,) = verify(events).problems
    assert file.name in problem


def test_other_rows_in_an_intact_file_are_found(events: StepTable) -> None:
    file = events.archived_file(1)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b"c", b"d")))
    (problem,) = verify(events).problems
    assert "SHA-256" in problem


def test_a_manifest_that_was_forged_for_other_rows_is_found(events: StepTable) -> None:
    edit(events.manifest(3), lambda m: m.update(deleted_rows=25, deleted=[[0, 24]]))
    edit(events.manifest(2), lambda m: m["export"].update(rows=25))  # type: ignore[attr-defined]
    edit(events.manifest(1), lambda m: m["export"].update(row_digest="0" * 16))  # type: ignore[attr-defined]
    problems = "\n".join(verify(events).problems)
    for expected in ("rows is 24, not 25", "row digest", "names records", "manifest 2 does not follow", "manifest 3 "):
        assert expected in problems


def test_all_problems_are_reported_past_the_first(events: StepTable) -> None:
    events.archived_file(1).unlink()
    events.archived_file(2).unlink()
    events.manifest(3).write_text("{}")
    problems = verify(events).problems
    assert len(problems) == 4
    assert "manifest 3 is not the one that the catalog knows" in problems[1]


def test_a_cut_off_tail_shows_by_the_catalogs_head(events: StepTable) -> None:
    events.manifest(3).unlink()
    assert verify_table(events.ctx.archive, events.id).intact
    (problem,) = verify(events).problems
    assert "tail is cut off" in problem


def test_a_missing_manifest_in_the_middle_is_found(events: StepTable) -> None:
    events.manifest(2).unlink()
    report = verify(events)
    assert any("00000002.json is missing" in problem for problem in report.problems)
    assert len(report.unaccounted) == 4


def test_a_manifest_of_another_table_is_found(events: StepTable) -> None:
    edit(events.manifest(3), lambda m: m.update(table="shop/other"))
    assert any("says that it is manifest 3 of 'shop/other'" in problem for problem in verify(events).problems)


def test_objects_without_a_manifest_are_listed_but_are_no_damage(events: StepTable) -> None:
    folder = events.archived_file(1).parent
    (folder.parent / "g9-00000000-0000").mkdir()
    stray = folder.parent / "g9-00000000-0000" / "events.csv.gz"
    stray.write_bytes(b"left by a crash")
    report = verify(events)
    assert report.intact
    assert report.unaccounted == (str(stray.relative_to(events.folder / "archive")),)


def test_two_manifests_for_one_export_count_once(events: StepTable) -> None:
    catalog = events.ctx.catalog._source.url
    run_sql(catalog, "UPDATE export_pipelines.export SET state = 'exported' WHERE partition = '2025-01-02'")
    events.archive(DAYS[1])
    report = verify(events)
    assert report.intact
    assert (report.artifacts, report.rows) == (2, 48)
    events.archived_file(4).unlink()
    assert not verify(events).intact


def test_a_table_within_the_folder_of_another_is_not_taken_for_leftovers(
    events: StepTable, tmp_path: Path, database: str, catalog_url: str
) -> None:
    run_sql(database, "CREATE TABLE inner_one AS SELECT 1 AS a")
    inner = new_step_table(tmp_path, database, catalog_url, {"table": "inner_one"}, group="shop/events", name="in")
    inner.into_archive()
    assert verify(events).unaccounted == ()
    assert verify(inner).rows == 1
    assert tables_in(events.ctx.archive) == ["shop/events", "shop/events/in"]


def test_verifying_nothing_is_an_error(events: StepTable) -> None:
    with pytest.raises(RequestError, match="nothing of 'shop/none'"):
        verify_table(events.ctx.archive, "shop/none")
    with pytest.raises(RequestError, match="2025-01-09") as caught:
        verify(events, "2025-01-09")
    assert "2025-01-01 to 2025-01-02" in caught.value.hint


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_every_compression_is_verified(tmp_path: Path, database: str, catalog_url: str, compression: str) -> None:
    run_sql(database, "CREATE TABLE t AS SELECT n, repeat(E'\"\\n', n) AS x FROM generate_series(1, 3000) n")
    table = new_step_table(tmp_path, database, catalog_url, {"table": "t", "compression": compression})
    table.into_archive()
    assert (verify(table).rows, verify(table).problems) == (3000, ())
    file = table.archived_file()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert len(verify(table).problems) == 1
