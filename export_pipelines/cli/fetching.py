"""Downloading a file of the service so that it is there whole and checked, or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from export_pipelines.cli.service_client import CannotReach, ServiceClient, refusal
from export_pipelines.errors import IntegrityError, RequestError

_TRIES = 8
"""Attempts in a row that bring nothing."""


@dataclass
class Fetched:
    """What was downloaded."""

    path: Path
    bytes: int
    sha256: str
    resumed: int = 0
    """How often it had to go on where it broke off."""


def fetch(
    client: ServiceClient,
    request: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    force: bool,
    progress: Callable[[int], object],
) -> Fetched:
    """Download the file of a request. `progress` is told how many bytes are there.

    It grows beside the target as `<name>.part`, and gets its name when it is whole and its SHA-256 is right. Broken
    off, it goes on where it was, also in another call of the program.

    Raises:
        RequestError: the file is gone, the target exists, or another process is at it.
        CannotReach: the service is away for longer.
        IntegrityError: what came is not what the service said.
    """
    part = target.with_name(f"{target.name}.part")
    with _held(part) as stream:
        begun = os.fstat(stream.fileno()).st_size
        resumed = _complete(client, request, stream, size, f'"{sha256}"', progress)
        if _digest(stream) != sha256 and begun:
            # What lay there was of something else: from the beginning.
            stream.truncate(0)
            resumed = _complete(client, request, stream, size, f'"{sha256}"', progress)
        if (found := _digest(stream)) != sha256:
            part.unlink()
            raise IntegrityError(
                f"what was downloaded is not what the service has: SHA-256 is {found}, expected {sha256}",
                hint="try again; a proxy may have changed it on the way",
            )
        os.fsync(stream.fileno())
        if force:
            part.replace(target)
        else:
            _named(part, target)
    return Fetched(target, size, sha256, resumed)


def _named(part: Path, target: Path) -> None:
    """Give a file its name, unless that is taken."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise RequestError(f"{target} exists", hint="give another name by -o, or --force to replace it") from None
    except OSError:
        part.rename(target)  # a file system without links
        return
    part.unlink()


@contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    try:
        stream = part.open("a+b")
    except OSError as error:
        raise RequestError(f"{part} cannot be written: {error.strerror}", hint="give another place by -o") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"another process downloads to {part}", hint="wait for it, or give another name"
            ) from None
        yield stream


def _complete(
    client: ServiceClient, request: str, stream: IO[bytes], size: int, etag: str, progress: Callable[[int], object]
) -> int:
    """Fetch what is missing; how often it broke off."""
    import httpx

    broken, failures = 0, 0
    while (there := stream.seek(0, os.SEEK_END)) != size:
        if there > size:
            stream.truncate(0)
            continue
        try:
            _append(client, request, stream, there, etag, progress)
        except (httpx.TransportError, _Busy) as error:
            last: Exception = error
        else:
            last = CannotReach("the connection ended early")
        if (now := stream.seek(0, os.SEEK_END)) == size:
            break
        broken += 1
        failures = failures + 1 if now <= there else 0
        if failures >= _TRIES:
            raise CannotReach(
                f"the download broke off {failures} times with nothing new: {str(last) or type(last).__name__}",
                hint="the same command goes on where it is",
            )
        wait = min(10.0, 0.25 * 2**failures)
        client.tell(f"the download broke off at {now:,} of {size:,} bytes; going on in {wait:.1f} s")
        time.sleep(wait)
    return broken


class _Busy(Exception):
    """The service wants us to try again."""


def _append(
    client: ServiceClient, request: str, stream: IO[bytes], start: int, etag: str, progress: Callable[[int], object]
) -> None:
    with client.part(request, start, etag) as answer:
        if answer.status_code == 416 or (answer.status_code == 206 and not _begins_at(answer, start)):
            stream.truncate(0)
            return
        if answer.status_code >= 500 or answer.status_code == 429:
            raise _Busy(f"the service answers {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise refusal(answer)
        if answer.status_code == 200:
            stream.truncate(0)
            start = 0
        try:
            # As it comes: what was gathered for a greater piece would be lost with the connection.
            for piece in answer.iter_raw():
                stream.write(piece)
                start += len(piece)
                progress(start)
        finally:
            stream.flush()


def _begins_at(answer: Any, start: int) -> bool:
    return str(answer.headers.get("content-range", "")).startswith(f"bytes {start}-")


def _digest(stream: IO[bytes]) -> str:
    stream.flush()
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
