"""How a finished file gets its name, and what the errors of a filesystem say."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from export_pipelines.errors import ObjectExists, ObjectMissing, StoreError
from export_pipelines.stores.claim import by_link, by_lock, by_rename, claim
from export_pipelines.stores.file_errors import explain
from export_pipelines.stores.filesystem import FilesystemStore
from export_pipelines.stores.keys import TEMPORARY

WAYS = [claim, by_link, by_lock, *([by_rename] if sys.platform == "linux" else [])]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_claim_a_name_gives_it_once(
    way: Callable[[int, str, str], None], folder: int, tmp_path: Path
) -> None:
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    way(folder, "one", "name é")
    with pytest.raises(FileExistsError):
        way(folder, "two", "name é")
    assert (tmp_path / "name é").read_text() == "one"
    assert (tmp_path / "two").read_text() == "two"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_link_whose_answer_was_lost_is_known_as_our_own(folder: int, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    by_link(folder, "one", "name")
    by_link(folder, "one", "name")
    assert (tmp_path / "name").read_text() == "one"


def test_a_lock_left_by_a_crash_is_a_transient_error_until_it_is_swept(folder: int, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    lock = f"{TEMPORARY}lock-{hashlib.sha256(b'name').hexdigest()[:32]}"
    (tmp_path / lock).touch()
    with pytest.raises(BlockingIOError) as caught:
        by_lock(folder, "one", "name")
    assert explain(caught.value, "write", tmp_path / "name").transient
    assert FilesystemStore(tmp_path).sweep(0) == [lock]
    by_lock(folder, "one", "name")


@pytest.mark.parametrize(
    ("number", "says", "transient"),
    [
        (errno.ENOSPC, "no space left .*MiB free", False),
        (errno.EDQUOT, "quota", False),
        (errno.EACCES, "permission denied", False),
        (errno.EROFS, "read-only", False),
        (errno.EIO, "input/output error", False),
        (errno.EMFILE, "too many open files", True),
        (errno.ESTALE, "network filesystem", True),
        (errno.EBADF, "Bad file descriptor", False),
    ],
)
def test_an_error_of_the_filesystem_names_the_path_and_what_to_do(
    number: int, says: str, transient: bool, tmp_path: Path
) -> None:
    error = explain(OSError(number, os.strerror(number)), "write", tmp_path / "gone" / "file.csv")
    assert error.transient is transient
    assert str(tmp_path / "gone" / "file.csv") in error.message
    assert re.search(says, error.message)


def test_files_and_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    FilesystemStore(tmp_path / "new" / "root").put("a/b.csv", b"x")
    paths = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}


def test_symbolic_links_below_the_root_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "root"
    store = FilesystemStore(root)
    store.put("real", b"x")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for attempt in (
        lambda: store.open("folder/secret"),
        lambda: store.open("file"),
        lambda: store.put("folder/new", b"x"),
        lambda: store.head("folder/secret"),
        lambda: store.delete("folder/secret"),
    ):
        with pytest.raises(StoreError, match="symbolic link"):
            attempt()
    with pytest.raises(ObjectExists):
        store.put("file", b"x")
    assert store.head("file") is None
    assert [info.key for info in store.list()] == ["real"]
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_the_root_itself_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    FilesystemStore(tmp_path / "root").put("a", b"x")
    assert (tmp_path / "disk" / "a").read_bytes() == b"x"


def test_folders_fifos_and_foreign_names_are_no_objects(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "back\\slash").touch()
    (tmp_path / ".tmp-1").touch()
    assert list(store.list()) == []
    for key in ("folder", "fifo"):
        assert store.head(key) is None
        with pytest.raises(ObjectMissing):
            store.open(key)


def test_a_sweep_leaves_a_living_writer_alone(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    with store.writer("a") as writer:
        writer.write(b"x")
        assert store.sweep(0) == []
        writer.publish()
    assert store.get("a") == b"x"


def test_a_sweep_spares_what_is_younger(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    for name, age in (("old", 100), ("young", 10)):
        (tmp_path / f".tmp-{name}").touch()
        then = (tmp_path / f".tmp-{name}").stat().st_mtime - age
        os.utime(tmp_path / f".tmp-{name}", (then, then))
    assert store.sweep(50) == [".tmp-old"]
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-young"]


def test_an_interrupt_after_the_claim_takes_the_name_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FilesystemStore(tmp_path)

    def interrupted(folder: int, temporary: str, name: str) -> None:
        claim(folder, temporary, name)
        raise KeyboardInterrupt

    monkeypatch.setattr("export_pipelines.stores.file_writer.claim", interrupted)
    with pytest.raises(KeyboardInterrupt), store.writer("a") as writer:
        writer.write(b"x")
        writer.publish()
    assert list(tmp_path.iterdir()) == []


def test_a_list_tolerates_files_and_folders_that_vanish(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    for key in ("a/1", "a/2", "b/1", "c"):
        store.put(key, b"x")
    found = store.list()
    assert next(found).key == "a/1"
    (tmp_path / "a" / "2").unlink()
    (tmp_path / "b" / "1").unlink()
    (tmp_path / "b").rmdir()
    assert [info.key for info in found] == ["c"]


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(StoreError, match="not absolute"):
        FilesystemStore(Path("exports"))
