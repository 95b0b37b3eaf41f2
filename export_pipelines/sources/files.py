"""Sources of files: what they list, and how one of their files is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from export_pipelines.errors import RequestError, SourceError

_NAME_BYTES = 900


class Gone(SourceError):
    """There is nothing by a name, or at a URL (any more)."""


@dataclass(frozen=True)
class Found:
    """A file (a page, the rows of a table) that a source has."""

    name: str
    """As the source calls it; may have slashes. Never a path of ours."""
    url: str
    """Where it is, without secrets."""
    version: str = ""
    """What changes when the file does, as far as the listing tells; empty if it does not."""


@dataclass
class Download:
    """A file that is being read."""

    pieces: Iterator[bytes]
    version: str
    """What the source said of the very bytes that are read."""


class FileSource(Protocol):
    """What lists files and opens them."""

    def list(self) -> Iterator[Found]:
        """All files that there are. Raises SourceError, StoreError."""

    def open(self, found: Found, known: str) -> AbstractContextManager[Download | None]:
        """Read a file. `known` is the version that landed last; None if the source says that it is still that one.

        Raises:
            SourceError: it is gone, was changed while it was read, or is not what it should be.
        """


def matches(name: str, pattern: str) -> bool:
    """Whether a name is one of a pattern, as in a shell; `**/` is any folders, `*` has no slash."""
    if pattern.startswith("**/"):
        parts = name.split("/")
        return any(matches("/".join(parts[start:]), pattern[3:]) for start in range(len(parts)))
    wanted, parts = pattern.split("/"), name.split("/")
    if len(wanted) != len(parts):
        return False
    return all(fnmatchcase(part, each) for part, each in zip(parts, wanted, strict=True))


def checked_name(name: str, where: str) -> str:
    """A name as a source gives it. It is a label and no path, but it must be one that people and tables can show.

    Raises:
        SourceError: it is empty, too long, no valid Unicode, or has control characters.
    """
    fit = name and len(name.encode("utf-8", "surrogatepass")) <= _NAME_BYTES and name.isprintable()
    if not fit:
        raise SourceError(f"{where} lists a file named {name[:80]!r}, which is no name", hint="look at the listing")
    return name


def need(value: str | None, what: str) -> str:
    """Raises RequestError if a setting is empty."""
    if not value:
        raise RequestError(f"{what} is empty", hint="set it in the definition")
    return value
