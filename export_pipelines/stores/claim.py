"""Giving a finished temporary its final name if, and only if, nobody has that name yet.

`rename` overwrites, so it cannot be used by itself. A hard link fails when the name is taken, also on NFS, and is
atomic; it is the first choice. Filesystems without hard links (FAT, exFAT, some FUSE and SMB mounts) say EPERM or
ENOTSUP: there Linux has renameat2(RENAME_NOREPLACE). Where that is unknown too, a lock file beside the name is taken
with O_EXCL, and a plain rename done under it; reserving the *name itself* with O_EXCL would show an empty object
to readers, and leave it there after a crash.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from contextlib import suppress

from export_pipelines.stores.keys import TEMPORARY

_UNSUPPORTED = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_RENAME_NOREPLACE = 1  # linux/fs.h


def claim(folder: int, temporary: str, name: str) -> None:
    """Make `temporary` known as `name`, both in the folder of that descriptor; the temporary name may stay.

    Crash: the final name is there with the whole content, or not at all.

    Raises:
        FileExistsError: the name is taken; the file that has it is untouched.
        OSError: anything else.
    """
    for way in (by_link, by_rename):
        try:
            return way(folder, temporary, name)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    return by_lock(folder, temporary, name)


def by_link(folder: int, temporary: str, name: str) -> None:
    """link(2). A server of NFS whose answer was lost is asked again, and says EEXIST of our own link: look closer."""
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        if not same_file(os.stat(temporary, dir_fd=folder, follow_symlinks=False), folder, name):
            raise


def by_rename(folder: int, temporary: str, name: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE, which Python does not offer. ENOSYS where the C library has none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    if rename(folder, os.fsencode(temporary), folder, os.fsencode(name), _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def by_lock(folder: int, temporary: str, name: str) -> None:
    """rename(2) under a lock file that only writers of this library know; a sweep removes one left by a crash."""
    lock = f"{TEMPORARY}lock-{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}"
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder))
    except FileExistsError:
        raise BlockingIOError(errno.EAGAIN, "another writer is publishing it", name) from None
    try:
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.unlink(lock, dir_fd=folder)


def same_file(status: os.stat_result, folder: int, name: str) -> bool:
    """Whether `name` in the folder is the file of that status."""
    try:
        return os.path.samestat(status, os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False
