"""Files of a folder of an SFTP server."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from export_pipelines.errors import SourceError
from export_pipelines.sources.files import Download, Found, Gone, checked_name, matches, need
from export_pipelines.sources.sftp_client import Session
from export_pipelines.specs.load_sources import SftpSource
from export_pipelines.specs.service import resolve


@dataclass
class SftpFiles:
    """Regular files below a folder whose names match. Symbolic links are not followed: they may lead anywhere.

    There is one login while files are listed and read. Each error ends it, and the next call makes another one.
    """

    spec: SftpSource
    waiting: list[str] = field(default_factory=list)
    """Names of files that were changed too recently."""
    _session: Session | None = None

    def list(self) -> Iterator[Found]:
        """Files by name. What is still being written is in `waiting` instead.

        Raises:
            SourceError: the server refuses us, has no such folder, or lists what is no name.
            RequestError: a setting is missing.
        """
        try:
            for name, status in sorted(self._walk("", "/" in self.spec.pattern), key=lambda each: each[0]):
                if not matches(name, self.spec.pattern):
                    continue
                url = self._url(checked_name(name, self._connected().where))
                if time.time() - _known(status, url).st_mtime < self.spec.settle_seconds:
                    self.waiting.append(name)
                    continue
                yield Found(name, url, _version(status))
        finally:
            self.close()

    @contextmanager
    def open(self, found: Found, known: str) -> Iterator[Download | None]:
        """Read a file. One that changes meanwhile is an error: it was not finished."""
        if known and found.version == known:
            yield None
            return
        try:
            status = self._connected().status(self._path(found.name))
            _check(found, self.spec.max_bytes, status)
            yield Download(self._pieces(found, status.st_size), found.version)
        except Gone:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the login, if there is one."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _connected(self) -> Session:
        if self._session is None:
            self._session = Session(self.spec)
        return self._session

    def _pieces(self, found: Found, size: int) -> Iterator[bytes]:
        check = partial(_check, found, self.spec.max_bytes)
        left = size
        for piece in self._connected().read(self._path(found.name), size, check):
            left -= len(piece)
            yield piece
        if left:
            raise SourceError(
                f"{found.url} has {size} bytes, and {size - left} came", hint="is the server well?", transient=True
            )

    def _walk(self, folder: str, deep: bool) -> Iterator[tuple[str, Any]]:
        """Name and attributes of each regular file. The name of a folder in it ends in a slash."""
        for entry in self._entries(folder):
            name = entry.filename
            if "/" in name or name in ("", ".", ".."):
                raise SourceError(f"{self._url(folder)} lists {name!r}, which is no name", hint="look at the server")
            mode = _known(entry, self._url(folder + name)).st_mode
            if stat.S_ISREG(mode):
                yield folder + name, entry
            elif deep and stat.S_ISDIR(mode) and self._is_folder(folder + name):
                yield from self._walk(f"{checked_name(folder + name, self._url(folder))}/", deep)

    def _entries(self, folder: str) -> Iterable[Any]:
        try:
            return self._connected().entries(self._path(folder))
        except Gone:
            if not folder:
                raise
            return []

    def _is_folder(self, name: str) -> bool:
        # Of a link, some servers list what it leads to.
        try:
            return stat.S_ISDIR(self._connected().status(self._path(name)).st_mode or 0)
        except Gone:
            return False

    def _path(self, name: str) -> str:
        root = need(resolve(self.spec.path), "`path`")
        return f"{root.rstrip('/')}/{name}" if name else root

    def _url(self, name: str) -> str:
        path = self._path(name)
        return f"{self._connected().where}{quote(path if path.startswith('/') else f'/~/{path}')}"


def _known(status: Any, url: str) -> Any:
    """Attributes that tell all that is needed."""
    if status.st_mode is None or status.st_size is None or status.st_mtime is None:
        raise SourceError(f"the server does not tell kind, size and time of {url}", hint="it cannot be a source")
    return status


def _check(found: Found, max_bytes: int, status: Any) -> None:
    """Raises if a file is not the one that was listed."""
    if not stat.S_ISREG(_known(status, found.url).st_mode):
        raise SourceError(f"{found.url} is no regular file", hint="symbolic links are not followed")
    if _version(status) != found.version:
        raise SourceError(f"{found.url} was changed while it was read", hint="it lands the next time", transient=True)
    if status.st_size > max_bytes:
        raise SourceError(f"{found.url} is larger than {max_bytes} bytes", hint="set `max_bytes`")


def _version(status: Any) -> str:
    return f"{status.st_mtime}-{status.st_size}"
