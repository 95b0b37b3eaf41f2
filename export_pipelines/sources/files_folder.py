"""Files of a folder of this machine."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from export_pipelines.errors import SourceError
from export_pipelines.sources.files import Download, Found, Gone, matches

_CHUNK = 1 << 20


@dataclass
class FolderFiles:
    """Regular files below a folder whose names match. Symbolic links are not followed: they may lead anywhere."""

    path: str
    pattern: str
    settle_seconds: float
    waiting: list[str] = field(default_factory=list)
    """Names of files that were changed too recently."""

    def list(self) -> Iterator[Found]:
        """Files by name. What is still being written is in `waiting` instead."""
        root = Path(self.path)
        if not root.is_absolute() or not root.is_dir():
            raise SourceError(f"there is no folder {self.path!r}", hint="give an absolute path that can be read")
        deep = "/" in self.pattern
        for path in sorted(_walk(root, deep)):
            name = path.relative_to(root).as_posix()
            if not matches(name, self.pattern):
                continue
            if not name.isprintable():
                raise SourceError(f"the name {name!r} in {self.path} has signs that cannot be shown", hint="rename it")
            status = _status(path)
            if status is None:
                continue
            if time.time() - status.st_mtime < self.settle_seconds:
                self.waiting.append(name)
                continue
            yield Found(name, path.as_uri(), _version(status))

    @contextmanager
    def open(self, found: Found, known: str) -> Iterator[Download | None]:
        """Read a file. One that changes meanwhile is an error: it was not finished."""
        if known and found.version == known:
            yield None
            return
        path = Path(self.path) / found.name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise Gone(f"{path} is not there any more") from error
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}", transient=True) from error
        with os.fdopen(descriptor, "rb") as file:
            yield Download(_pieces(file.fileno(), path, found), found.version)


def _pieces(descriptor: int, path: Path, found: Found) -> Iterator[bytes]:
    while data := os.read(descriptor, _CHUNK):
        yield data
    if _version(os.fstat(descriptor)) != found.version:
        raise SourceError(f"{path} was changed while it was read", hint="it lands the next time", transient=True)


def _walk(root: Path, deep: bool) -> Iterator[Path]:
    try:
        entries = list(os.scandir(root))
    except OSError as error:
        raise SourceError(f"{root} cannot be listed: {error.strerror}", hint="check its rights") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if deep:
                yield from _walk(Path(entry.path), deep)
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _status(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"
