"""What the errors of a filesystem mean to its user."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

from export_pipelines.errors import ObjectExists, StoreError

_SENTENCES = {
    errno.ENOSPC: ("no space left", "free some space, or give the store another place; nothing was published"),
    errno.EDQUOT: ("the disk quota is used up", "raise the quota, or give the store another place"),
    errno.EFBIG: ("the file would be larger than is allowed", "raise the limit (ulimit -f), or use smaller partitions"),
    errno.EACCES: ("permission denied", "let user {user} read and write in {folder}"),
    errno.EPERM: ("not permitted", "look at the attributes (lsattr) and mount options of {folder}"),
    errno.EROFS: ("the filesystem is mounted read-only", "remount it, or look in the kernel's log for disk errors"),
    errno.EIO: ("the disk reported an input/output error", "look in the kernel's log, and check the disk"),
    errno.ENOTDIR: ("a part of it is a file or a symbolic link", "remove what stands in the way of {folder}"),
    errno.ELOOP: ("it is a symbolic link, and these are not followed", "put the file itself in its place"),
    errno.EISDIR: ("it is a folder", "remove what stands in the way"),
    errno.ENAMETOOLONG: ("its name is too long for this filesystem", "shorten the naming template"),
    errno.ENOENT: ("its folder or temporary file vanished meanwhile", "see what else removes files in {folder}"),
    errno.EMFILE: ("this process has too many open files", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("this machine has too many open files", "raise fs.file-max"),
    errno.ESTALE: ("the network filesystem lost the file", "check the mount, and run it again"),
    errno.ETIMEDOUT: ("the network filesystem does not answer", "check the mount, and run it again"),
    errno.EAGAIN: ("another writer is publishing the same name", "run it again; if it stays so, sweep the store"),
}
_TRANSIENT = {errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR}


def explain(error: OSError, action: str, path: Path) -> StoreError:
    """A sentence of what could not be done to `path`, the space left where that matters, and a hint."""
    number = error.errno or 0
    if number == errno.EEXIST:
        return object_exists(path)
    sentence, hint = _SENTENCES.get(number, (error.strerror or "unknown error", ""))
    if number in (errno.ENOSPC, errno.EDQUOT):
        sentence += _space_left(path)
    return StoreError(
        f"cannot {action} '{path}': {sentence}",
        hint=hint.format(user=_user(), folder=path.parent),
        transient=number in _TRANSIENT,
    )


def object_exists(place: Path | str) -> ObjectExists:
    """The refusal to overwrite, of every store."""
    return ObjectExists(
        f"'{place}' exists already", hint="published objects are never overwritten; write it under another key"
    )


def _user() -> str:
    """Name of the user that this process runs as; in a container it may have but a number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _space_left(path: Path) -> str:
    for folder in path.parents:
        try:
            space = os.statvfs(folder)
        except OSError:
            continue
        return f" ({space.f_bavail * space.f_frsize / 2**20:,.0f} MiB free of {folder}, {space.f_favail:,} inodes)"
    return ""
