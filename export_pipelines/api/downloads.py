"""Files of requests: whole or in parts, decrypted on the way, each download noted."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from export_pipelines import links
from export_pipelines.api import asking, views
from export_pipelines.api.auth import Asker, address_of, service_of
from export_pipelines.api.models import FILE_CONTENT, REQUEST_ID
from export_pipelines.api.problems import Problem, responses
from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.requests import RequestFile, RequestRow
from export_pipelines.errors import CatalogError, IntegrityError, ObjectMissing
from export_pipelines.formats.encryption import NO_KEYS
from export_pipelines.specs.dataset import Links
from export_pipelines.steps.reading import open_stored
from export_pipelines.stores.s3 import S3Store

if TYPE_CHECKING:
    from export_pipelines.api.metrics import Metrics
    from export_pipelines.api.service import Service

log = logging.getLogger("export_pipelines.api")

router = APIRouter(tags=["files"])

CHUNK = 256 * 1024
BEAT_SECONDS = 5.0
STALLED_SECONDS = 240.0
"""A client that takes nothing for so long is given up: the file may expire then."""
PRESIGNED_SECONDS = 300

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """Bytes of a file that are sent: from `start`, so many."""

    start: int
    length: int
    partial: bool = False


@dataclass
class Conditions:
    """What a caller has already, and which part they want."""

    range: str | None = None
    if_range: str | None = None
    if_none_match: str | None = None

    @classmethod
    def of(cls, request: Request) -> Conditions:
        """As a request says."""
        return cls(*(request.headers.get(name) for name in ("range", "if-range", "if-none-match")))


def etag_of(file: RequestFile) -> str:
    """Strong: it is the digest of what is downloaded."""
    return f'"{file.proof.raw_sha256}"'


def has_it(conditions: Conditions, etag: str) -> bool:
    """Whether the caller has the file already."""
    given = [each.strip().removeprefix("W/") for each in (conditions.if_none_match or "").split(",")]
    return "*" in given or etag in given


def part_of(conditions: Conditions, size: int, etag: str, modified: datetime) -> Part:
    """The part that is wanted. Several at once are not known here: then all of it (RFC 9110, 14.2).

    Raises:
        Problem: 416, the file has no such part.
    """
    whole = Part(0, size)
    if conditions.range is None or not _still_same(conditions.if_range, etag, modified):
        return whole
    match = _RANGE.fullmatch(conditions.range)
    if match is None or not (match[1] or match[2]):
        return whole
    if match[1]:
        start, last = int(match[1]), int(match[2]) if match[2] else size - 1
        if last < start and match[2]:
            return whole
    else:
        start, last = max(0, size - int(match[2])), size - 1
    last = min(last, size - 1)
    if start > last:
        raise Problem(416, f"the file has {size} bytes", headers={"content-range": f"bytes */{size}"})
    return Part(start, last - start + 1, True)


def _still_same(if_range: str | None, etag: str, modified: datetime) -> bool:
    if if_range is None or if_range.strip() == etag:
        return True
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(if_range) == modified.replace(microsecond=0)
    return False


def headers_of(row: RequestRow) -> dict[str, str]:
    """What is said of a file."""
    assert row.file is not None and row.finished_at is not None
    digest = base64.b64encode(bytes.fromhex(row.file.proof.raw_sha256)).decode()
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", row.file.name)
    return {
        "content-type": row.file.media_type,
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(row.file.name, safe='')}",
        "accept-ranges": "bytes",
        "etag": etag_of(row.file),
        "last-modified": format_datetime(row.finished_at.astimezone(UTC), usegmt=True),
        "repr-digest": f"sha-256=:{digest}:",
        "digest": f"sha-256={digest}",
        "cache-control": "private, no-cache",
    }


async def send_file(
    request: Request, row: RequestRow, who: str, *, headers: dict[str, str] | None = None, whole: bool = False
) -> Response:
    """The answer with a request's file, or the part of it that is wanted.

    Raises:
        Problem: there is no file yet (409), none any more (410), or no such part (416).
    """
    file = file_of(row)
    assert row.finished_at is not None
    own = {**headers_of(row), **(headers or {})}
    conditions = Conditions() if whole else Conditions.of(request)
    if has_it(conditions, etag_of(file)):
        return Response(status_code=304, headers={k: v for k, v in own.items() if k != "content-type"})
    size = file.proof.raw_size
    if request.method == "HEAD":
        return Response(headers={**own, "content-length": str(size)})
    part = part_of(conditions, size, etag_of(file), row.finished_at)
    service, actor = service_of(request), Actor(who, address_of(request))
    download = await run_in_threadpool(_begin, service, row, actor, part)
    if url := await run_in_threadpool(_presigned, service, row):
        await run_in_threadpool(download.finish, complete=True, reason="redirected to the store")
        return RedirectResponse(url, 307, headers={"cache-control": "no-store"})
    first = await run_in_threadpool(download.open)
    return FileResponse(request.app.state.metrics, download, first, own)


def file_of(row: RequestRow) -> RequestFile:
    """The file of a request. Raises Problem: 409 or 410, there is none."""
    own = f"/requests/{row.id}"
    if row.live:
        raise Problem(409, "it is not done yet", hint=f"follow it at {own}", headers={"retry-after": "2"})
    if row.file is None:
        raise Problem(409, f"the request has {row.state}: it has no file", hint="ask again")
    if views.expired(row):
        raise Problem(410, "the file has expired and is deleted", hint="ask again")
    return row.file


def _begin(service: Service, row: RequestRow, actor: Actor, part: Part) -> Download:
    what = f"{part.start}-{part.start + part.length - 1}" if part.partial else "all"
    number = service.downloads.begin(row.id, actor, what=what)
    if number is None:
        raise Problem(410, "the file has expired and is deleted", hint="ask again")
    return Download(service, row, actor, part, number)


def _presigned(service: Service, row: RequestRow) -> str | None:
    """An address at which the store itself hands out the file; None if it cannot, or must not since it is encrypted."""
    assert row.file is not None
    store = service.store_at(row.store_url)
    if row.file.proof.encryption or not isinstance(store, S3Store):
        return None
    return store.presigned(row.file.proof.key, row.file.name, row.file.media_type, PRESIGNED_SECONDS)


@dataclass
class Download:
    """A download under way. Its methods block."""

    service: Service
    row: RequestRow
    actor: Actor
    part: Part
    number: int
    sent: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)
    _stream: Any = None
    _left: int = 0

    def open(self) -> bytes:
        """Open the file and give its first bytes: what is wrong with it becomes known before the answer begins."""
        assert self.row.file is not None
        try:
            store = self.service.store_at(self.row.store_url)
            keyring = self.service.keyring if self.row.file.proof.encryption else NO_KEYS
            self._stream = self._stack.enter_context(open_stored(store, self.row.file.proof, keyring))
            self._skip(self.part.start)
            self._left = self.part.length
            return self.read()
        except BaseException as error:
            self.finish(complete=False, reason=type(error).__name__)
            if isinstance(error, ObjectMissing):
                raise Problem(410, "the file is gone from the store", hint="ask again") from error
            raise

    def _skip(self, size: int) -> None:
        while size:
            piece = self._stream.read(min(size, CHUNK))
            if not piece:
                raise self._short()
            size -= len(piece)

    def read(self) -> bytes:
        """The next bytes; none at the end. Raises IntegrityError: the file is shorter than it was."""
        if not self._left:
            return b""
        piece: bytes = self._stream.read(min(self._left, CHUNK))
        if not piece:
            raise self._short()
        self._left -= len(piece)
        return piece

    def _short(self) -> IntegrityError:
        return IntegrityError(f"the file of request {self.row.id} is shorter than it was written")

    def beat(self) -> None:
        """Note how far it is."""
        self.service.downloads.beat(self.number, self.sent)

    def finish(self, *, complete: bool, reason: str = "") -> None:
        """Close the file, and note the end."""
        with suppress(Exception):
            self._stack.close()
        try:
            self.service.downloads.finish(
                self.number, self.row.id, self.actor, self.sent, complete=complete, reason=reason
            )
        except CatalogError as error:
            log.warning("the end of download %d of %s is not noted: %s", self.number, self.row.id, error.message)


class FileResponse(Response):
    """Sends a download piece by piece; notices a client that goes away, or takes nothing any more."""

    def __init__(self, metrics: Metrics, download: Download, first: bytes, headers: dict[str, str]) -> None:
        part, size = download.part, download.row.file.proof.raw_size if download.row.file else 0
        own = {**headers, "content-length": str(part.length)}
        if part.partial:
            own["content-range"] = f"bytes {part.start}-{part.start + part.length - 1}/{size}"
        super().__init__(status_code=206 if part.partial else 200, headers=own)
        self.headers["content-length"] = str(part.length)
        self._metrics, self._download, self._first = metrics, download, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_gone(receive))
        reason = "broken off"
        try:
            with self._metrics.downloads.track_inprogress():
                reason = await self._send(send, gone)
        except TimeoutError:
            reason = "the client takes nothing any more"
            raise
        except Exception as error:
            reason = type(error).__name__
            raise
        finally:
            gone.cancel()
            complete = self._download.sent == self._download.part.length
            # Noted also when this task is cancelled.
            ending = run_in_threadpool(self._download.finish, complete=complete, reason="" if complete else reason)
            await asyncio.shield(asyncio.ensure_future(ending))

    async def _send(self, send: Send, gone: asyncio.Task[None]) -> str:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        loop = asyncio.get_running_loop()
        piece, beaten = self._first, loop.time()
        while piece:
            async with asyncio.timeout(STALLED_SECONDS):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if gone.done():
                return "the client went away"
            self._download.sent += len(piece)
            self._metrics.sent.inc(len(piece))
            if loop.time() - beaten > BEAT_SECONDS:
                beaten = loop.time()
                self._download.service.later(self._download.beat)
            piece = await run_in_threadpool(self._download.read)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return ""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": FILE_CONTENT,
    },
    206: {"description": "The part that was asked for with Range.", "content": FILE_CONTENT},
    304: {"description": "The caller has it already: If-None-Match."},
    307: {"description": "The store itself hands it out, for some minutes, at Location."},
    **responses(409, 410, 416),
}

Ranged = Annotated[str | None, Header(alias="range", description="`bytes=0-999`: a part.", examples=["bytes=0-999"])]


@router.head("/requests/{request_id}/download", include_in_schema=False)
@router.get("/requests/{request_id}/download", responses=_FILE, response_class=Response)
async def download(
    request: Request,
    request_id: Annotated[str, Path(pattern=REQUEST_ID, description="Id of a request.")],
    user: Asker,
    part: Ranged = None,
) -> Response:
    """The file of a request, for who asked. Broken off, it goes on with `Range` and `If-Range`."""
    row = await run_in_threadpool(asking.seen_request, service_of(request), user, request_id)
    return await send_file(request, row, user.name)


@router.head("/files/{request_id}/{name}", include_in_schema=False)
@router.get("/files/{request_id}/{name}", responses=_FILE, response_class=Response)
async def download_by_link(
    request: Request,
    request_id: Annotated[str, Path(pattern=REQUEST_ID, description="Id of a request.")],
    name: Annotated[str, Path(max_length=300, description="Name of the file.")],
    expires: Annotated[int, Query(ge=0, le=2**40, description="From the link.")],
    signature: Annotated[str, Query(max_length=200, description="From the link.")],
    part: Ranged = None,
) -> Response:
    """The file of a request, for whoever has the signed link."""
    service = service_of(request)
    key = service.keys.key("links")
    if not links.is_valid(key, request_id, expires, signature, now=0):
        raise Problem(403, "the link is not one of ours", hint="take it as it stands in `links.file`")
    row = await run_in_threadpool(service.requests.get, request_id)
    if row is None or (row.file is not None and row.file.name != name):
        raise Problem(404, "there is no such file")
    dataset = service.project.datasets.get(row.dataset)
    withdrawn = expires == links.PUBLIC and (dataset is None or dataset.spec.links is not Links.PUBLIC)
    if withdrawn or not links.is_valid(key, request_id, expires, signature):
        raise Problem(410, "the link has expired", hint="take a new one from the request")
    return await send_file(request, row, "link")
