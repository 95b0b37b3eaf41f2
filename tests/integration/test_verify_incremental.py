"""Verify by budgets and in several processes: what is read, in which order, and what is remembered of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.catalog import VerificationRow
from export_pipelines.errors import ExportPipelinesError, RequestError
from export_pipelines.manifest import ArtifactManifest, ExpireTombstone
from export_pipelines.specs.sizes import parse_size
from export_pipelines.steps import chain, verify_workers
from export_pipelines.steps.chain_check import Expected
from export_pipelines.steps.verification import Forgetful, InCatalog, InFile, VerificationState
from export_pipelines.steps.verify import Budget, Target, VerifyReport, strays, verify_tables
from export_pipelines.stores import open_store
from tests.support.servers import run_sql
from tests.support.step_tables import StepTable, new_step_table

DAYS = tuple(f"2025-01-0{number}" for number in range(1, 6))
SPEC = {"table": "events", "time_column": "at", "partitions": {"every": "day", "start": "2025-01-01"}}


@pytest.fixture
def events(tmp_path: Path, database: str, catalog_url: str) -> StepTable:
    """Five archived days, each a little larger than the one before: manifests 1 to 5."""
    run_sql(database, "CREATE TABLE events (id int PRIMARY KEY, at timestamptz, note text)")
    run_sql(
        database,
        "INSERT INTO events SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '1 minute', md5(n::text) "
        "FROM generate_series(0, 5 * 1440 - 1) n WHERE n % 1440 < 200 + 100 * (n / 1440)",
    )
    table = new_step_table(tmp_path, database, catalog_url, SPEC)
    for day in DAYS:
        table.into_archive(day)
    return table


@pytest.fixture(params=["catalog", "file"])
def state(request: pytest.FixtureRequest, events: StepTable, tmp_path: Path) -> Callable[[], VerificationState]:
    """The state as a new process finds it."""
    if request.param == "catalog":
        return lambda: InCatalog(events.ctx.catalog)
    return lambda: InFile(tmp_path / "state.json")


def verify(table: StepTable, **options: Any) -> VerifyReport:
    (report,) = verify_tables([Target(table.ctx.archive, table.id)], **options)
    return report


def sizes(table: StepTable) -> list[int]:
    """Bytes of all objects of each artifact."""
    manifests = [chain.artifact_at(table.ctx.archive, table.id, number) for number in range(1, 6)]
    return [sum(proof.size for proof in manifest.objects) for manifest in manifests]


def verified(table: StepTable, state: VerificationState) -> list[int]:
    """Numbers of what was verified, the oldest first."""
    rows = state.last(table.id, table.ctx.archive.url).values()
    return [row.sequence for row in sorted(rows, key=lambda row: row.verified_at)]


def age(state: VerificationState, table: StepTable, **days: int) -> None:
    """Say that manifests were verified so many days ago: `_3=10`."""
    rows = [VerificationRow(int(k[1:]), datetime.now(UTC) - timedelta(days=v), True) for k, v in days.items()]
    state.note(table.id, table.ctx.archive.url, rows)


def test_files_that_were_never_verified_come_first_then_the_oldest(
    events: StepTable, state: Callable[[], VerificationState]
) -> None:
    with_ages = InFile(events.folder / "ages.json")
    age(with_ages, events, _1=2, _2=30, _4=7)
    for expected in (3, 5, 2, 4, 1):
        report = verify(events, budget=Budget(bytes=max(sizes(events))), state=with_ages)
        assert (report.artifacts, report.left_out, report.problems) == (1, 4, ())
        assert verified(events, with_ages)[-1] == expected


def test_every_file_has_its_turn(events: StepTable, state: Callable[[], VerificationState]) -> None:
    nevers = []
    for _ in DAYS:
        nevers.append(verify(events, budget=Budget(bytes=max(sizes(events))), state=state()).never)
    assert nevers[-1] == 0 and sorted(nevers, reverse=True) == nevers
    assert verified(events, state()) == [1, 2, 3, 4, 5]
    whole = verify(events, state=state())
    assert (whole.artifacts, whole.total, whole.left_out, whole.never) == (5, 5, 0, 0)
    assert whole.oldest is not None and datetime.now(UTC) - whole.oldest < timedelta(minutes=5)


def test_no_more_is_read_than_the_budget_allows(events: StepTable, monkeypatch: pytest.MonkeyPatch) -> None:
    read = [0]
    archive = events.ctx.archive
    open_ = type(archive).open

    def counting(self: Any, key: str) -> Any:
        if "/manifests/" not in key:
            read[0] += (events.folder / "archive" / key).stat().st_size
        return open_(self, key)

    monkeypatch.setattr(type(archive), "open", counting)
    every = sizes(events)
    for budget in (every[0] - 1, every[0], every[0] + every[1], sum(every) - 1, sum(every)):
        read[0] = 0
        report = verify(events, budget=Budget(bytes=budget))
        assert read[0] <= budget
        assert (report.artifacts == 5) == (budget == sum(every))
    # A file that somebody made longer is not read further than it should be long.
    for number in range(1, 6):
        with events.archived_file(number).open("ab") as file:
            file.write(b"\0" * 100_000)
    read[0] = 0
    assert len(verify(events, budget=Budget(bytes=sum(every))).problems) == 5
    assert read[0] <= sum(every)


def test_a_file_larger_than_the_budget_is_named_and_keeps_no_other_waiting(
    events: StepTable, state: Callable[[], VerificationState]
) -> None:
    largest = max(sizes(events))
    number = sizes(events).index(largest)
    for _ in range(2):
        report = verify(events, budget=Budget(bytes=largest - 1), state=state())
        assert len(report.too_large) == 1 and DAYS[number] in report.too_large[0]
        assert report.artifacts >= 1
    assert number + 1 not in verified(events, state())


def test_time_that_is_over_breaks_a_file_off_which_then_stays_unverified(
    events: StepTable, state: Callable[[], VerificationState]
) -> None:
    report = verify(events, budget=Budget(seconds=0), state=state())
    assert (report.artifacts, report.left_out, report.never) == (0, 5, 5)
    slow = time.monotonic() + 0.2

    def progress(at: object) -> None:
        while time.monotonic() < slow:
            time.sleep(0.01)

    report = verify(events, budget=Budget(seconds=0.1), state=state(), progress=progress)
    assert (report.artifacts, report.problems) == (0, ())
    assert len(report.too_large) == 1 and "not read in time" in report.too_large[0]
    assert verified(events, state()) == []


def test_a_problem_is_told_until_the_file_was_found_intact_again(
    events: StepTable, state: Callable[[], VerificationState]
) -> None:
    file = events.archived_file(1)
    before = file.read_bytes()
    file.write_bytes(before[:-1])
    budget = Budget(bytes=max(sizes(events)))
    first = verify(events, budget=budget, state=state())
    second = verify(events, budget=budget, state=state())
    assert not first.intact and not second.intact
    assert second.artifacts == 1 and "not read again this time" in second.problems[0]
    file.write_bytes(before)
    assert verify(events, state=state()).intact
    assert verify(events, budget=budget, state=state()).intact


def test_a_store_that_does_not_answer_says_nothing_of_a_file(
    events: StepTable, state: Callable[[], VerificationState]
) -> None:
    file = events.archived_file(1)
    file.unlink()
    file.parent.chmod(0o000)
    if os.access(file.parent, os.R_OK):  # root may read all: a loop of symbolic links stops it too
        file.parent.chmod(0o700)
        shutil.move(file.parent, events.folder / "elsewhere")
        file.parent.symlink_to(file.parent.name)
    report = verify(events, state=state())
    assert len(report.problems) >= 1
    assert verified(events, state()) == [2, 3, 4, 5]


def test_state_of_one_archive_is_not_that_of_another(events: StepTable, tmp_path: Path) -> None:
    state = InFile(tmp_path / "state.json")
    verify(events, state=state)
    shutil.copytree(tmp_path / "archive", tmp_path / "copy")
    (report,) = verify_tables(
        [Target(open_store(str(tmp_path / "copy")), events.id)], budget=Budget(seconds=0), state=state
    )
    assert report.never == 5


def test_a_file_that_is_no_state_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for text in ("mine", "[]", json.dumps({"version": 99, "archives": {}})):
        file.write_text(text)
        with pytest.raises(RequestError, match="no state of verify"):
            InFile(file)
        assert file.read_text() == text


@pytest.mark.parametrize("jobs", [1, 2])
def test_several_processes_find_what_one_finds(
    events: StepTable, monkeypatch: pytest.MonkeyPatch, jobs: int, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify_workers, "BYTES_A_PROCESS", 1)
    events.archived_file(2).unlink()
    file = events.archived_file(4)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    seen: set[str] = set()
    state = InFile(tmp_path / "state.json")
    report = verify(events, jobs=jobs, state=state, progress=lambda at: seen.add(at.partition))
    assert (report.artifacts, report.rows > 1000, len(report.problems)) == (5, True, 2)
    assert "is missing" in report.problems[0] and "manifest 4" in report.problems[1]
    assert seen and seen <= set(DAYS)
    assert not state.last(events.id, events.ctx.archive.url)[4].intact
    late = verify(events, jobs=jobs, budget=Budget(seconds=0))
    assert late.artifacts == 0


def test_processes_read_from_s3(
    tmp_path: Path, database: str, catalog_url: str, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_workers, "BYTES_A_PROCESS", 1)
    run_sql(database, "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
    tables = [
        new_step_table(tmp_path, database, catalog_url, {"table": "t"}, name=name, archive_url=bucket_url)
        for name in ("one", "two")
    ]
    for table in tables:
        table.into_archive()
    key = chain.artifact_at(tables[1].ctx.archive, tables[1].id, 1).file.key
    reports = verify_tables([Target(table.ctx.archive, table.id) for table in tables], jobs=2)
    assert [(report.rows, report.problems) for report in reports] == [(1000, ()), (1000, ())]
    tables[1].ctx.archive.delete(key)
    intact, damaged = verify_tables([Target(table.ctx.archive, table.id) for table in tables], jobs=2)
    assert intact.intact and "is missing" in damaged.problems[0]


def test_a_process_that_is_killed_fails_its_file_alone(events: StepTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_workers, "BYTES_A_PROCESS", 1)
    killed: list[int] = []
    start = verify_workers._Worker

    def first_is_killed(process: Any, pipe: Any) -> Any:
        if not killed:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return start(process, pipe)

    monkeypatch.setattr(verify_workers, "_Worker", first_is_killed)
    report = verify(events, jobs=2)
    assert report.artifacts == 5
    (problem,) = report.problems
    assert "exit code -9" in problem
    assert verify(events, jobs=2).intact


def test_no_process_outlives_a_verify_that_was_broken_off(events: StepTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_workers, "BYTES_A_PROCESS", 1)
    processes: list[Any] = []
    start = verify_workers._Worker

    def noted(process: Any, pipe: Any) -> Any:
        processes.append(process)
        return start(process, pipe)

    class Enough(Exception):
        pass

    def progress(at: object) -> None:
        raise Enough

    monkeypatch.setattr(verify_workers, "_Worker", noted)
    with pytest.raises(Enough):
        verify(events, jobs=2, progress=progress)
    assert len(processes) == 2
    assert all(each.exitcode is not None for each in processes)


def test_what_a_tombstone_gave_up_may_be_gone_and_what_is_left_of_it_is_unaccounted(events: StepTable) -> None:
    artifact = bury(events, 2)
    there = verify(events)
    assert (there.problems, there.total, there.expired) == ((), 4, 1)
    assert sorted(there.unaccounted) == sorted(proof.key for proof in artifact.objects)
    for proof in artifact.objects:
        events.ctx.archive.delete(proof.key)
    gone = verify(events)
    assert (gone.problems, gone.unaccounted, gone.rows) == ((), (), sum(300 + 100 * n for n in (-1, 1, 2, 3)))
    assert verify(events, partition=DAYS[1]).total == 0
    events.archived_file(3).unlink()
    assert len(verify(events).problems) == 1


def test_a_tombstone_of_no_file_is_a_problem_and_gives_nothing_up(events: StepTable) -> None:
    bury(events, 2, partition=DAYS[3])
    report = verify(events)
    assert "which is no file of it" in report.problems[0]
    assert (report.total, report.expired) == (5, 0)


def bury(table: StepTable, sequence: int, partition: str = "") -> ArtifactManifest:
    """Write a tombstone; the files stay."""
    artifact = chain.artifact_at(table.ctx.archive, table.id, sequence)
    chain.append(
        table.ctx.archive,
        table.id,
        None,
        lambda number, previous, written: ExpireTombstone(
            sequence=number,
            previous_sha256=previous,
            table=table.id,
            written=written,
            run_id="run",
            partition=partition or artifact.export.partition,
            artifact_sequence=sequence,
            rows=artifact.export.rows,
            bytes=artifact.file.size,
            reason="older than 1 day",
            only_copy=False,
        ),
    )
    return artifact


def test_an_expected_head_shows_a_rollback_that_no_signature_can(events: StepTable) -> None:
    head = events.ctx.catalog.heads(events.ctx.archive.url)[events.id]
    target = Target(events.ctx.archive, events.id, (Expected(*head, "--expect"),))
    assert verify_tables([target])[0].intact
    assert verify_tables([target])[0].head == head
    events.manifest(5).unlink()
    assert "--expect knows 5: its tail is cut off" in verify_tables([target])[0].problems[0]
    altered = Target(events.ctx.archive, events.id, (Expected(4, "0" * 64, "--expect"),))
    assert "is not the one that --expect knows" in verify_tables([altered])[0].problems[0]


def test_objects_in_no_tables_folder_are_found(events: StepTable) -> None:
    (events.folder / "archive" / "notes.txt").write_text("mine")
    assert strays(events.ctx.archive, [events.id]) == ["notes.txt"]


def test_forgetting_state_reads_all(events: StepTable) -> None:
    assert verify(events, state=Forgetful()).never == 0


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("10GB", 10**10), ("1.5 MB", 1_500_000), ("2GiB", 2 << 30), ("7k", 7000), ("9B", 9)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "10 XB", "0", "1iB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|room"):
        parse_size(text)


def test_a_table_that_only_the_catalog_knows_is_a_problem_not_an_error(events: StepTable) -> None:
    head = events.ctx.catalog.heads(events.ctx.archive.url)[events.id]
    shutil.rmtree(events.folder / "archive" / "shop")
    (report,) = verify_tables([Target(events.ctx.archive, events.id, (Expected(*head, "the catalog"),))])
    assert "the chain ends at manifest 0, the catalog knows 5" in report.problems[0]
    with pytest.raises(ExportPipelinesError):
        verify(events)
