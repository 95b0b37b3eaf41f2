"""Restore into a file: the rows as they were archived, the header once, nothing overwritten."""

from __future__ import annotations

import csv
import gzip
import hashlib
import resource
import stat
import subprocess
from pathlib import Path

import pytest
import zstandard

from export_pipelines.errors import IntegrityError, RequestError, StoreError, TargetError
from export_pipelines.local import binaries
from export_pipelines.steps.pieces import Choice
from export_pipelines.steps.restore_file import FileResult, restore_to_file
from tests.integration.test_restore import DAY, NEXT, SPEC, late, make_events
from tests.integration.test_types import assert_same, make_types
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table


@pytest.fixture
def events(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """Ten rows on each of two days, archived."""
    make_events(database)
    table = new_step_table(tmp_path, database, catalog_url, SPEC)
    table.into_archive(DAY)
    table.into_archive(NEXT)
    return table


def write(table: StepTable, name: str, choice: Choice | None = None) -> FileResult:
    return restore_to_file(table.archived(), choice or Choice(), table.folder / name)


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if path.suffix == ".zst" else data


@pytest.mark.parametrize("name", ["one.csv", "one.csv.gz", "one.csv.zst"])
def test_one_partition_is_the_same_bytes_as_archived(events: StepTable, name: str) -> None:
    result = write(events, name, Choice(DAY))
    file = events.folder / name
    raw = unpacked(file)
    assert raw == gzip.decompress(events.archived_file(1).read_bytes())
    assert result == FileResult(str(file), 10, file.stat().st_size, (DAY,), 1)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_partitions_are_joined_in_the_order_of_their_windows_with_one_header(events: StepTable) -> None:
    events.sql("INSERT INTO events SELECT id + 200, at + interval '2 days', note FROM events")
    for day in ("2025-01-04", "2025-01-03"):
        events.into_archive(day)
    result = write(events, "some.csv", Choice(None, NEXT, "2025-01-04"))
    lines = list(csv.reader((events.folder / "some.csv").read_text().splitlines()))
    assert lines[0] == ["id", "at", "note"]
    assert [int(line[0]) for line in lines[1:]] == [*range(101, 111), *range(201, 211), *range(301, 311)]
    assert (result.rows, result.partitions, result.artifacts) == (30, (NEXT, "2025-01-03", "2025-01-04"), 3)


def test_each_row_of_several_generations_is_written_once(events: StepTable) -> None:
    for number in (50, 51):
        assert events.cleanup(DAY).complete
        late(events, number)
        events.into_archive(DAY)
    result = write(events, "all.csv.gz")
    lines = list(csv.reader(unpacked(events.folder / "all.csv.gz").decode().splitlines()))
    assert lines[0] == ["id", "at", "note"]
    assert sorted(int(line[0]) for line in lines[1:]) == [*range(1, 11), 50, 51, *range(101, 111)]
    assert (result.rows, result.artifacts) == (22, 4)


@pytest.mark.parametrize("header", [True, False])
def test_headers_with_awkward_names_come_once(tmp_path: Path, database: str, catalog_url: str, header: bool) -> None:
    run_sql(database, """CREATE TABLE t (at timestamptz, "new\nline" text, "a ""b"", c" text)""")
    days = "generate_series(timestamptz '2025-01-01 05:00Z', '2025-01-03 05:00Z', interval '1 day') d"
    run_sql(database, f"""INSERT INTO t SELECT d, E'x\\ny', '"' FROM {days}""")
    spec = {**SPEC, "table": "t", "format": {"csv": {"header": header}}, "compression": "none"}
    table = new_step_table(tmp_path, database, catalog_url, spec)
    for day in (DAY, NEXT, "2025-01-03"):
        table.into_archive(day)
    assert write(table, "all.csv").rows == 3
    with (tmp_path / "all.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[:header] == [["at", "new\nline", 'a "b", c']][:header]
    assert [line[1:] for line in lines[header:]] == [["x\ny", '"']] * 3


def test_empty_partitions_have_a_header_and_no_rows(events: StepTable) -> None:
    events.into_archive("2025-01-03")
    assert write(events, "none.csv", Choice("2025-01-03")).rows == 0
    assert (events.folder / "none.csv").read_text() == "id,at,note\n"


def test_every_type_is_loaded_from_the_file_by_psql(tmp_path: Path, database: str, catalog_url: str) -> None:
    make_types(database)
    table = new_step_table(tmp_path, database, catalog_url, {"table": "types"})
    record = table.into_archive()
    assert write(table, "types.csv").rows == record.rows
    file = tmp_path / "types.csv"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == record.file.raw_sha256
    run_sql(database, "CREATE TABLE back (LIKE types)")
    psql = binaries.installation(tmp_path).bin / "psql"
    # Not from STDIN: there psql takes a line of `\\.`, also within quotes, for the end.
    copy = f"\\copy back FROM '{file}' WITH (FORMAT csv, HEADER)"
    done = subprocess.run([psql, "-Xq", database, "-c", copy], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(database, "types", "back")


def test_a_file_that_exists_is_not_overwritten(events: StepTable) -> None:
    (events.folder / "there.csv").write_text("mine")
    (events.folder / "link.csv").symlink_to(events.folder / "nowhere")
    for name in ("there.csv", "link.csv"):
        with pytest.raises(TargetError, match=f"{name} exists already"):
            write(events, name)
    assert (events.folder / "there.csv").read_text() == "mine"
    assert not (events.folder / "nowhere").exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(events: StepTable) -> None:
    file = events.folder / "race.csv"
    seen: list[int] = []

    def appear(progress: object) -> None:
        seen.append(1)
        file.write_text("theirs")

    with pytest.raises(StoreError, match=r"race\.csv"):
        restore_to_file(events.archived(), Choice(), file, progress=appear)
    assert seen
    assert file.read_text() == "theirs"
    assert leftovers(events) == []


def leftovers(table: StepTable) -> list[str]:
    return [path.name for path in table.folder.iterdir() if path.name.startswith(".tmp-")]


def test_nothing_is_written_from_a_damaged_file(events: StepTable) -> None:
    file = events.archived_file(2)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(IntegrityError, match=file.name):
        write(events, "all.csv")
    assert not (events.folder / "all.csv").exists()
    assert leftovers(events) == []


def test_a_full_disk_leaves_nothing_behind(events: StepTable) -> None:
    events.sql("INSERT INTO events SELECT n, '2025-01-05', md5(n::text) FROM generate_series(1000, 60000) n")
    events.into_archive("2025-01-05")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StoreError, match=r"all\.csv"):
            write(events, "all.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (events.folder / "all.csv").exists()
    assert leftovers(events) == []
    assert write(events, "all.csv").rows == 20 + 59001


def test_files_that_cannot_be_made_are_refused(events: StepTable) -> None:
    with pytest.raises(RequestError, match="there is no folder"):
        write(events, "missing/all.csv")
    with pytest.raises(RequestError, match="would not be encrypted"):
        write(events, "all.csv.age")
    with pytest.raises(RequestError, match="is not archived"):
        write(events, "all.csv", Choice("2025-01-09"))


def test_files_that_differ_are_not_joined(events: StepTable) -> None:
    changed = events.with_definition(spec={"format": {"csv": {"delimiter": ";"}}})
    changed.sql("INSERT INTO events VALUES (900, '2025-01-03', 'x')")
    changed.into_archive("2025-01-03")
    with pytest.raises(TargetError, match=r"2025-01-01 and 2025-01-03 of 'shop/events' differ"):
        write(events, "all.csv")
    assert write(events, "two.csv", Choice(None, DAY, NEXT)).rows == 20


def test_names_are_taken_as_they_are(events: StepTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(events.folder)
    result = restore_to_file(events.archived(), Choice(DAY), Path("ä b.csv"))
    assert result.path == "ä b.csv"
    assert (events.folder / "ä b.csv").is_file()
