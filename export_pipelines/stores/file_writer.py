"""Writing one file so that it appears whole, durable and once, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from export_pipelines.errors import StoreError
from export_pipelines.stores.claim import claim, same_file
from export_pipelines.stores.file_errors import explain
from export_pipelines.stores.keys import TEMPORARY

if TYPE_CHECKING:
    from export_pipelines.stores.filesystem import FilesystemStore

_BUFFER = 1 << 20
_PIECE = 4 << 20
"""So many bytes after each other are sent on their way to the disk. Else they would gather in memory until the system
writes all at once, and every commit on that disk, of the catalog too, would wait for seconds."""
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FileWriter:
    """Writes one file; see ObjectWriter. Any error, KeyboardInterrupt too, removes the temporary.

    Crash: a temporary stays, nothing is visible; between link and return the whole object may be visible.
    """

    def __init__(self, store: FilesystemStore, parts: tuple[str, ...]) -> None:
        self._store = store
        self._key = "/".join(parts)
        self._name = parts[-1]
        self._temporary = f"{TEMPORARY}{secrets.token_hex(8)}"
        self._done = False
        self._size = self._sent = 0
        with store.explained("write", self._key), store.folder(parts[:-1], create=True) as folder:
            self._folder = os.dup(folder)
            try:
                descriptor = os.open(self._temporary, _NEW_FILE, 0o600, dir_fd=self._folder)
            except BaseException:
                os.close(self._folder)
                raise
        self._file = os.fdopen(descriptor, "wb", buffering=_BUFFER)
        try_lock(descriptor)  # so that a sweep leaves it alone while this process lives, whatever the grace period

    def write(self, data: bytes) -> int:
        """Add to the object. Raises StoreError, after which nothing of it is left."""
        try:
            written = self._file.write(data)
            self._size += written
            if self._size - self._sent >= _PIECE:
                self._send()
            return written
        except OSError as error:
            failure = explain(error, "write", self._store.root / self._key)
            self._abort()
            raise failure from error

    def _send(self) -> None:
        """Let the system begin to write what it has of the file. Nothing is waited for, and nothing is durable yet."""
        # macOS has no such call.
        if hasattr(os, "posix_fadvise"):
            first, self._sent = self._sent, self._size
            os.posix_fadvise(self._file.fileno(), first, self._size - first, os.POSIX_FADV_DONTNEED)

    def publish(self) -> None:
        """Make it durable and visible. Raises ObjectExists if the name is taken, StoreError for anything else."""
        if self._done:
            raise StoreError(f"'{self._key}' is published or aborted already", hint="begin a new writer")
        try:
            with self._store.explained("write", self._key):
                self._file.flush()
                sync_file(self._file.fileno())
                claim(self._folder, self._temporary, self._name)
                # link leaves the temporary name, rename does not
                with suppress(FileNotFoundError):
                    os.unlink(self._temporary, dir_fd=self._folder)
                sync_folder(self._folder)
        except BaseException:
            self._abort()
            raise
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    def _abort(self) -> None:
        """Remove the temporary, and the final name if it is already a name of *this* file.

        What a failing disk does not let go stays for `sweep`: the error that led here is the one to be seen.
        """
        if self._done:
            return
        try:
            with suppress(OSError):
                if same_file(os.fstat(self._file.fileno()), self._folder, self._name):
                    os.unlink(self._name, dir_fd=self._folder)
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
        finally:
            self._close()

    def _close(self) -> None:
        self._done = True
        # What an aborted writer has in its buffer may fail to be written: it is not wanted.
        with suppress(OSError):
            self._file.close()
        os.close(self._folder)


def sync_file(descriptor: int) -> None:
    """Bring a file to the disk. On macOS fsync stops at the drive's cache; F_FULLFSYNC does not."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def sync_folder(descriptor: int) -> None:
    """Bring the names in a folder to the disk. Some network filesystems know no fsync of folders (EINVAL)."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def try_lock(descriptor: int) -> bool:
    """Take an advisory lock that ends with the process. False if another has it; True where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
    return True
