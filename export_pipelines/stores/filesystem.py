"""Objects as files under one folder."""

from __future__ import annotations

import builtins
import io
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from export_pipelines.errors import ObjectExists, ObjectMissing, StoreError
from export_pipelines.stores.base import ObjectInfo
from export_pipelines.stores.file_errors import explain
from export_pipelines.stores.file_writer import FileWriter, sync_folder, try_lock
from export_pipelines.stores.keys import TEMPORARY, check_key, check_prefix, is_key

_BUFFER = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that somebody put there must not wait for its other end.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FilesystemStore:
    """Objects as files under `root` (absolute; made, with mode 0700, when something is first written).

    Every folder is opened relative to the one above and symbolic links below the root are never followed, so that no
    key leads out of it, whatever somebody does to the folders meanwhile. Files have mode 0600.

    Crash: an object is there whole, or not at all; what is left is a `.tmp-…` file, which `sweep` removes.
    """

    reads_at_once = 1

    def __init__(self, root: Path) -> None:
        if not root.is_absolute():
            raise StoreError(
                f"the folder '{root}' of a store is not absolute",
                hint="give the whole path: the command line and Dagster's processes run in different folders",
            )
        self.root = root
        self.url = root.as_uri()
        self._durable: set[tuple[str, ...]] = set()

    def __repr__(self) -> str:
        return f"FilesystemStore({self.url!r})"

    def locate(self, key: str) -> str:
        """The path of an object."""
        return str(self.root.joinpath(*check_key(key)))

    def writer(self, key: str) -> FileWriter:
        """Begin to write an object, streaming, through a buffer of 1 MiB."""
        return FileWriter(self, check_key(key))

    def put(self, key: str, data: bytes) -> None:
        """Write a small object at once, if absent. Raises ObjectExists."""
        self._put(check_key(key), data)

    def open(self, key: str) -> BinaryIO:
        """Read an object as a stream. Raises ObjectMissing."""
        parts = check_key(key)
        with self.explained("read", key):
            try:
                with self.folder(parts[:-1]) as folder:
                    descriptor = os.open(parts[-1], _READ, dir_fd=folder)
            except FileNotFoundError:
                raise _missing(self, key) from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _missing(self, key)
        return io.BufferedReader(_FileBody(self, key, descriptor), _BUFFER)

    def get(self, key: str) -> bytes:
        """Read a small object whole. Raises ObjectMissing."""
        with self.open(key) as body:
            return body.read()

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, None if there is none."""
        parts = check_key(key)
        with self.explained("look at", key):
            try:
                with self.folder(parts[:-1]) as folder:
                    status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return _info(key, status) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix` and comes after `after`, in the order of their keys.

        One folder's names are in memory at a time. What vanishes meanwhile is left out.
        """
        for key, status in self._walk(check_prefix(prefix), prefix, after):
            if is_key(key):
                yield _info(key, status)

    def delete(self, key: str) -> None:
        """Remove an object, durably; no error if there is none. Its folder stays: another writer may be in it."""
        self._delete(check_key(key))

    def sweep(self, older_than_seconds: float, *, dry_run: bool = False) -> builtins.list[str]:
        """Remove temporaries last written to so long ago, but none that a living writer on this machine holds."""
        oldest = time.time() - older_than_seconds
        stale = [
            key
            for key, status in self._walk((), "")
            if key.rpartition("/")[2].startswith(TEMPORARY) and status.st_mtime <= oldest
        ]
        return [key for key in stale if self._remove_stale(tuple(key.split("/")), dry_run)]

    def probe(self) -> None:
        """Check that it can be written, read, deleted, and that a taken name is refused. Raises StoreError."""
        name, data = (f"{TEMPORARY}probe-{secrets.token_hex(8)}",), secrets.token_bytes(64)
        self._put(name, data)
        try:
            with self.explained("read", name[0]), self.folder(()) as folder:
                descriptor = os.open(name[0], _READ, dir_fd=folder)
                with os.fdopen(descriptor, "rb") as body:
                    read = body.read()
            if read != data:
                raise StoreError(f"{self.root} gave back other bytes than were written", hint="check the disk")
            with suppress(ObjectExists):
                self._put(name, data)
                raise StoreError(f"{self.root} let a taken name be overwritten", hint="use another filesystem")
        finally:
            self._delete(name)

    @contextmanager
    def folder(self, parts: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
        """Descriptor of a folder below the root. With `create`, it is made, and durable up to the root's parents.

        Raises:
            FileNotFoundError: it is not there (without `create`).
            OSError: something on the way is no folder.
        """
        descriptor = self._open_root(create)
        try:
            for depth, part in enumerate(parts, 1):
                child, made = _enter(descriptor, part, create)
                try:
                    # A folder that another process has just made need not be on the disk yet: the first to use it
                    # makes sure. Later uses by this store save the fsync.
                    if create and (made or parts[:depth] not in self._durable):
                        sync_folder(descriptor)
                        self._durable.add(parts[:depth])
                finally:
                    os.close(descriptor)
                    descriptor = child
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def explained(self, action: str, key: str) -> Iterator[None]:
        """Turn an OSError into a StoreError that says what was done to which path, and what to do."""
        try:
            yield
        except OSError as error:
            raise explain(error, action, self.root / key) from error

    def _open_root(self, create: bool) -> int:
        # The root itself may be a symbolic link: whoever set up the store chose it.
        flags = _FOLDER & ~os.O_NOFOLLOW
        try:
            return os.open(self.root, flags)
        except FileNotFoundError:
            if not create:
                raise
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            parent = os.open(path.parent, flags)
            try:
                sync_folder(parent)
            finally:
                os.close(parent)
        return os.open(self.root, flags)

    def _put(self, parts: tuple[str, ...], data: bytes) -> None:
        with FileWriter(self, parts) as writer:
            writer.write(data)
            writer.publish()

    def _delete(self, parts: tuple[str, ...]) -> None:
        with self.explained("delete", "/".join(parts)), suppress(FileNotFoundError), self.folder(parts[:-1]) as folder:
            if stat.S_ISDIR(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                return
            os.unlink(parts[-1], dir_fd=folder)
            sync_folder(folder)

    def _walk(self, parts: tuple[str, ...], prefix: str, after: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Files below a folder whose path may start with `prefix`, in the order of their keys, behind `after`."""
        start = "".join(f"{part}/" for part in parts)
        with ExitStack() as opened, self.explained("list", start):
            try:
                folder = opened.enter_context(self.folder(parts))
            except FileNotFoundError:
                return
            for name in _names(folder):
                key = start + name
                if name.endswith("/"):
                    if key.startswith(prefix) or prefix.startswith(key):
                        yield from self._walk((*parts, name[:-1]), prefix, after)
                elif key > after and key.startswith(prefix) and (status := _status(folder, name)):
                    yield key, status

    def _remove_stale(self, parts: tuple[str, ...], dry_run: bool) -> bool:
        with self.explained("remove", "/".join(parts)), suppress(FileNotFoundError), self.folder(parts[:-1]) as folder:
            descriptor = os.open(parts[-1], _READ, dir_fd=folder)
            try:
                if not try_lock(descriptor):
                    return False
                if not dry_run:
                    os.unlink(parts[-1], dir_fd=folder)
                return True
            finally:
                os.close(descriptor)
        return False


class _FileBody(io.FileIO):
    """Reads a file; an error of the disk in the middle is a StoreError."""

    def __init__(self, store: FilesystemStore, key: str, descriptor: int) -> None:
        super().__init__(descriptor, "rb")
        self._store, self._key = store, key

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        with self._store.explained("read", self._key):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with self._store.explained("read", self._key):
            return super().readall() or b""


def _enter(folder: int, part: str, create: bool) -> tuple[int, bool]:
    """Open a folder in a folder. The second says whether it was made."""
    try:
        return os.open(part, _FOLDER, dir_fd=folder), False
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):
        os.mkdir(part, 0o700, dir_fd=folder)
    return os.open(part, _FOLDER, dir_fd=folder), True


def _names(folder: int) -> list[str]:
    """Names in a folder, folders with a slash, so that they sort as keys do: `a-b` before `a/b`, but after `a`."""
    with os.scandir(folder) as entries:
        return sorted(f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries)


def _status(folder: int, name: str) -> os.stat_result | None:
    """Of a regular file; None for anything else, and for what has vanished."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _missing(store: FilesystemStore, key: str) -> ObjectMissing:
    return ObjectMissing(f"there is no '{key}' in {store.root}", hint="check the key, and that the disk is mounted")
