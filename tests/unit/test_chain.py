"""The chain of manifests: one sequence, each entry bound to the one before, whoever writes and whatever is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest

from export_pipelines.errors import ExportPipelinesError, IntegrityError, ObjectExists, StoreError
from export_pipelines.manifest import CleanupReceipt, digest, from_bytes, to_bytes
from export_pipelines.steps import chain
from export_pipelines.steps.chain_check import check_chain
from export_pipelines.steps.receipts import RecordSet, merge, to_ranges
from export_pipelines.stores import open_store
from export_pipelines.stores.base import Store
from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.threads import wait_until

TABLE = "group/table"


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    return open_store(tmp_path.as_uri())


def receipt(sequence: int, previous: str, written: datetime, name: str = "r") -> CleanupReceipt:
    return CleanupReceipt(
        sequence=sequence,
        previous_sha256=previous,
        table=TABLE,
        written=written,
        run_id=name,
        partition="p",
        artifact_sequence=1,
        deleted_rows=0,
        deleted=(),
        proof="row",
    )


def append(archive: Store, known: tuple[int, str] | None = None) -> tuple[CleanupReceipt, str]:
    return chain.append(archive, TABLE, known, receipt)


def path_of(archive: Store, sequence: int) -> Path:
    return Path(archive.locate(chain.manifest_key(TABLE, sequence)))


def test_entries_are_numbered_and_bound_to_the_one_before(archive: Store) -> None:
    for _ in range(3):
        append(archive)
    found = list(chain.entries(archive, TABLE))
    assert [entry.sequence for entry in found] == [1, 2, 3]
    assert found[0].previous_sha256 == ""
    assert found[1].previous_sha256 == digest(to_bytes(found[0]))


def test_an_entry_is_the_same_after_a_round_trip() -> None:
    entry = receipt(1, "", datetime.now(UTC))
    assert from_bytes(to_bytes(entry)) == entry


def test_the_true_end_is_found_from_what_the_catalog_knows(archive: Store) -> None:
    first, sha256 = append(archive)
    append(archive)
    last, _ = append(archive)
    entry, _ = append(archive, (first.sequence, sha256))
    assert entry.sequence == last.sequence + 1


def test_a_chain_goes_on_when_the_catalog_was_lost(archive: Store) -> None:
    append(archive)
    assert append(archive, None)[0].sequence == 2


def test_a_tail_that_was_cut_off_is_noticed(archive: Store) -> None:
    append(archive)
    last, sha256 = append(archive)
    path_of(archive, 2).unlink()
    with pytest.raises(IntegrityError, match=r"manifest 2 .* is missing"):
        append(archive, (last.sequence, sha256))


def test_an_entry_that_was_altered_is_noticed(archive: Store) -> None:
    append(archive)
    last, sha256 = append(archive)
    append(archive)
    path = path_of(archive, 2)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"r"', b'"s"'))
    with pytest.raises(IntegrityError, match="is altered"):
        append(archive, (last.sequence, sha256))
    with pytest.raises(IntegrityError, match="does not follow"):
        list(chain.entries(archive, TABLE))


def test_an_entry_that_is_missing_in_the_middle_is_noticed(archive: Store) -> None:
    for _ in range(3):
        append(archive)
    path_of(archive, 2).unlink()
    with pytest.raises(IntegrityError, match="number 2 is expected"):
        list(chain.entries(archive, TABLE))


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"kind": "artifact"}'])
def test_what_is_no_manifest_is_said_to_be_none(archive: Store, content: bytes) -> None:
    archive.put(chain.manifest_key(TABLE, 1), content)
    with pytest.raises(IntegrityError, match="is no manifest"):
        chain.read_entry(archive, TABLE, 1)


def test_a_manifest_of_another_table_or_number_is_refused(archive: Store) -> None:
    entry, _ = append(archive)
    archive.put(chain.manifest_key(TABLE, 5), to_bytes(entry))
    archive.put(chain.manifest_key("group/other", 1), to_bytes(entry))
    with pytest.raises(IntegrityError, match="says that it is manifest 1"):
        chain.read_entry(archive, TABLE, 5)
    with pytest.raises(IntegrityError, match="says that it is manifest 1 of 'group/table'"):
        chain.read_entry(archive, "group/other", 1)


def test_a_receipt_is_no_artifact(archive: Store) -> None:
    append(archive)
    with pytest.raises(IntegrityError, match="not of an artifact"):
        chain.artifact_at(archive, TABLE, 1)


def test_writers_at_the_same_time_take_one_number_each(archive: Store) -> None:
    def write() -> None:
        for _ in range(5):
            append(archive)

    threads = [Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.sequence for entry in chain.entries(archive, TABLE)] == list(range(1, 41))


class Forgetful(FilesystemStore):
    """Writes what it is given once, then says that the name was taken: as after an answer that was lost."""

    lost = False

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        if not self.lost:
            self.lost = True
            raise ObjectExists("taken")


def test_an_entry_whose_answer_was_lost_is_not_written_twice(tmp_path: Path) -> None:
    archive = Forgetful(tmp_path)
    assert append(archive)[0].sequence == 1
    assert len(list(chain.entries(archive, TABLE))) == 1


class Far(FilesystemStore):
    """A folder that is read as a store far away is. `before` is called before each object is read."""

    reads_at_once = 8

    def __init__(self, root: Path, before: Callable[[str], object] = lambda key: None) -> None:
        super().__init__(root)
        self.before = before

    def get(self, key: str) -> bytes:
        self.before(key)
        return super().get(key)


def write(archive: Store, count: int) -> None:
    last: tuple[int, str] | None = None
    for _ in range(count):
        entry, sha256 = append(archive, last)
        last = entry.sequence, sha256


def test_entries_come_in_order_whichever_is_read_first(tmp_path: Path) -> None:
    later = threading.Event()

    def out_of_order(key: str) -> None:
        if key == chain.manifest_key(TABLE, 2):
            assert later.wait(60)
        elif key == chain.manifest_key(TABLE, 60):
            later.set()

    archive = Far(tmp_path)
    write(archive, 80)
    archive.before = out_of_order
    assert [entry.sequence for entry in chain.entries(archive, TABLE)] == list(range(1, 81))


def cut_out(archive: Store) -> None:
    path_of(archive, 5).unlink()


def other_bytes(archive: Store) -> None:
    path = path_of(archive, 4)
    path.write_bytes(path.read_bytes().replace(b'"r"', b'"s"'))


def no_manifest(archive: Store) -> None:
    path_of(archive, 5).write_bytes(b"{}")


def leaves_after_the_list(archive: Store) -> None:
    assert isinstance(archive, Far)
    path = path_of(archive, 5)
    archive.before = lambda key: path.unlink() if archive.locate(key) == str(path) else None


def cannot_be_read(archive: Store) -> None:
    assert isinstance(archive, Far)

    def refuse(key: str) -> None:
        if key == chain.manifest_key(TABLE, 5):
            raise StoreError("refused")

    archive.before = refuse


@pytest.mark.parametrize("reads_at_once", [1, 8])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut_out, "number 5 is expected"),
        (other_bytes, "manifest 5 .* does not follow"),
        (no_manifest, "is no manifest"),
        (leaves_after_the_list, "00000005.json is missing"),
        (cannot_be_read, "refused"),
    ],
)
def test_an_error_comes_at_its_turn_and_leaves_no_threads(
    tmp_path: Path, harm: Callable[[Store], None], message: str, reads_at_once: int
) -> None:
    archive = Far(tmp_path)
    archive.reads_at_once = reads_at_once
    write(archive, 9)
    harm(archive)
    found, before = [], set(threading.enumerate())
    with pytest.raises(ExportPipelinesError, match=message):
        found.extend(entry.sequence for entry in chain.entries(archive, TABLE))
    assert found == [1, 2, 3, 4]
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("reads_at_once", [1, 8])
def test_a_check_of_a_chain_goes_on_behind_each_problem(tmp_path: Path, reads_at_once: int) -> None:
    archive = Far(tmp_path)
    archive.reads_at_once = reads_at_once
    write(archive, 90)
    path_of(archive, 3).unlink()
    other_bytes(archive)
    cannot_be_read(archive)
    path_of(archive, 80).write_bytes(b"{}")
    # No entry here has an artifact, which is a problem of each that can be read.
    problems = check_chain(archive, TABLE).problems
    assert [each for each in problems if not each.startswith("receipt")] == [
        "manifest group/table/manifests/00000003.json is missing",
        "refused",
        "group/table/manifests/00000080.json is no manifest: Unable to extract tag using discriminator 'kind'",
        "manifest 81 does not follow the one before: a SHA-256 differs",
    ]
    assert [int(each.split()[1]) for each in problems if each.startswith("receipt")] == [
        number for number in range(1, 91) if number not in (3, 5, 80)
    ]


def test_few_entries_are_read_ahead_and_whoever_stops_early_leaves_no_threads(tmp_path: Path) -> None:
    asked: list[str] = []
    archive = Far(tmp_path)
    write(archive, 80)
    archive.before = asked.append
    before = set(threading.enumerate())
    with closing(chain.entries(archive, TABLE)) as found:
        assert [entry.sequence for entry in islice(found, 3)] == [1, 2, 3]
        wait_until(lambda: len(asked) >= 66)
    assert set(threading.enumerate()) <= before
    assert len(asked) == 66


def test_a_chain_of_one_entry_is_read_without_threads(tmp_path: Path) -> None:
    threads: list[Thread] = []
    archive = Far(tmp_path)
    write(archive, 1)
    archive.before = lambda key: threads.append(threading.current_thread())
    assert len(list(chain.entries(archive, TABLE))) == 1
    assert threads == [threading.current_thread()]


def test_ranges_are_sorted_and_joined() -> None:
    assert merge([(5, 6), (0, 2), (3, 3), (6, 9), (12, 12)]) == [(0, 3), (5, 9), (12, 12)]
    assert to_ranges([1, 2, 3, 7]) == [(1, 3), (7, 7)]
    numbers = RecordSet([(5, 9), (0, 3)])
    assert len(numbers) == 9
    assert [n for n in range(-1, 12) if n in numbers] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert numbers.covers(5, 9)
    assert not numbers.covers(3, 5)
    assert numbers.touches(4, 5)
    assert not numbers.touches(4, 4)
    assert not numbers.touches(10, 20)
