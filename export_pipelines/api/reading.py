"""`/api/v1/`: loaded tables that are published, page by page or whole."""

from __future__ import annotations

import asyncio
import hmac
import threading
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import xxhash
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse
from starlette.types import Send

from export_pipelines.api.auth import service_of
from export_pipelines.api.hawk import place
from export_pipelines.api.problems import Problem, responses
from export_pipelines.api.service import Service
from export_pipelines.api.signing import Reader, SignedRoute, TableReader
from export_pipelines.api.users import Refused, Unknown
from export_pipelines.specs.load import LoadDefinition, TargetSpec
from export_pipelines.specs.load_sources import UploadSource
from export_pipelines.specs.transform import TransformDefinition
from export_pipelines.specs.uploads import area_ids, upload_definition, upload_source
from export_pipelines.steps import read_table
from export_pipelines.steps.read_table import NotLoaded, Orientation, Page, VersionGone

T = TypeVar("T")
Readable = LoadDefinition | TransformDefinition

router = APIRouter(prefix="/api/v1", tags=["pages"], route_class=SignedRoute)

STREAM_ROWS = 5_000
"""Rows of a piece of a stream."""
MAX_STREAMS = 8
"""Streams at the same time, a process: each holds a connection and a transaction of its database."""
STALLED_SECONDS = 60.0
"""A reader who takes nothing for so long is cut off: the stream holds a transaction open."""

_streams = threading.BoundedSemaphore(MAX_STREAMS)
_GZIP_LEVEL = 1
_SMALL = 1_000
_SYSTEM = ("information_schema", "operations")
_MAX_ID = (1 << 63) - 1

SchemaName = Annotated[str, Path(max_length=63, description="Schema of the table.", examples=["shop"])]
TableName = Annotated[str, Path(max_length=63, description="Name of the table.", examples=["orders"])]


class TableColumnOut(BaseModel):
    """A column of a table."""

    name: str = Field(examples=["departure"])
    type: str = Field(description="As PostgreSQL spells it.", examples=["timestamp with time zone"])
    nullable: bool
    description: str = ""


class StructureOut(BaseModel):
    """What a table is."""

    schema_name: str = Field(alias="schema", examples=["shop"])
    table: str = Field(examples=["orders"])
    description: str = ""
    version: int = Field(description="Number of the version that is read now.")
    rows: int | None = Field(description="Rows of this version, as its last load counted them.")
    columns: list[TableColumnOut]


class TabularPage(BaseModel):
    """Rows as arrays."""

    headers: list[str]
    values: list[list[Any]]
    next: str | None = Field(description="URL of the next page; null at the end.")


class RecordsPage(BaseModel):
    """Rows as objects."""

    results: list[dict[str, Any]]
    next: str | None = Field(description="URL of the next page; null at the end.")


@router.get("/table-structure/{schema}/{table}", responses=responses())
def table_structure(request: Request, schema: SchemaName, table: TableName, reader: Reader) -> StructureOut:
    """Columns of a table, and which version of it is read now."""
    service = service_of(request)
    load = published(service, reader, schema, table)
    target = load.spec.target
    found = told(lambda: read_table.structure(service.resource(target.connection), target))
    columns = [
        TableColumnOut(name=c.name, type=c.type, nullable=c.nullable, description=c.description) for c in found.columns
    ]
    return StructureOut(
        schema=schema, table=table, description=load.spec.description, version=found.version, rows=found.rows,
        columns=columns,
    )  # fmt: skip


_PAGE: dict[int | str, dict[str, Any]] = {
    200: {"model": TabularPage | RecordsPage, "description": "The page."},
    304: {"description": "The caller has it already: If-None-Match."},
    **responses(410),
}


@router.head("/table-data/{schema}/{table}", include_in_schema=False)
@router.get("/table-data/{schema}/{table}", responses=_PAGE, response_model=None)
def table_data(
    request: Request,
    schema: SchemaName,
    table: TableName,
    reader: Reader,
    orientation: Annotated[Orientation, Query(description="Rows as arrays, or as objects.")] = "tabular",
    next_id: Annotated[
        int, Query(alias="next-id", ge=0, le=_MAX_ID, description="Where the page begins: take it from `next`.")
    ] = 0,
    version: Annotated[
        str, Query(max_length=80, description="Which version is read: take it from `next`.", pattern="^[ -~]*$")
    ] = "",
) -> Response:
    """A page of a table, from its beginning or where `next` of the page before says.

    All pages are of the version that the first one was of. 410 when it is not kept any more: begin anew."""
    service = service_of(request)
    target = published(service, reader, schema, table).spec.target
    number = version_of(service, target, version) if version else None
    source, rows = service.resource(target.connection), service.spec.page_rows
    found = told(lambda: read_table.page(source, target, orientation, next_id, rows, number), once_more=number is None)
    return _answer(request, _body(request, service, target, orientation, found))


def _body(request: Request, service: Service, target: TargetSpec, orientation: Orientation, page: Page) -> bytes:
    import orjson

    following = orjson.dumps(_next(request, service, target, orientation, page))
    rows = page.rows.encode()
    if orientation == "records":
        return b'{"results":[' + rows + b'],"next":' + following + b"}"
    return b'{"headers":' + orjson.dumps(page.columns) + b',"values":[' + rows + b'],"next":' + following + b"}"


def _next(request: Request, service: Service, target: TargetSpec, orientation: Orientation, page: Page) -> str | None:
    """The address of the next page, as the caller reaches this service."""
    if page.next_id is None:
        return None
    token = version_token(service, target, page.version)
    query = f"orientation={orientation}&next-id={page.next_id}&version={token}"
    path = f"/api/v1/table-data/{quote(target.schema_name)}/{quote(target.name)}"
    try:
        place(request.headers.get("host", ""), request.url.scheme)
    except ValueError:
        return f"{path}?{query}"
    return f"{request.url.scheme}://{request.headers['host']}{path}?{query}"


class Compressed(Response):
    """A body that may be compressed: `plain` is what it was before."""

    plain: bytes


def _answer(request: Request, body: bytes) -> Response:
    """A body with its ETag, compressed if the caller takes that, or 304 if they have it."""
    zipped = len(body) > _SMALL and _takes_gzip(request)
    etag = f'"{xxhash.xxh3_128_hexdigest(body)}{"-gzip" if zipped else ""}"'
    headers = {"etag": etag, "cache-control": "private, no-cache", "vary": "Accept-Encoding, Authorization"}
    if etag in (each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if zipped:
        headers["content-encoding"] = "gzip"
    answer = Compressed(_gzipped(body) if zipped else body, headers=headers, media_type="application/json")
    answer.plain = body
    return answer


def _takes_gzip(request: Request) -> bool:
    """Whether Accept-Encoding names gzip, and not with `q=0`."""
    for each in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = each.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _gzipped(body: bytes) -> bytes:
    from isal import igzip

    return bytes(igzip.compress(body, compresslevel=_GZIP_LEVEL, mtime=0))


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "All rows.",
        "content": {"application/x-ndjson": {}, "application/vnd.apache.arrow.stream": {}},
    },
    **responses(),
}


@router.get("/table-stream/{schema}/{table}", responses=_STREAM, response_class=Response)
async def table_stream(
    request: Request,
    schema: SchemaName,
    table: TableName,
    reader: Reader,
    form: Annotated[
        Literal["jsonl", "arrow"], Query(alias="format", description="Lines of JSON, or Arrow's IPC stream.")
    ] = "jsonl",
) -> Response:
    """A whole table, in one snapshot. What breaks off in the middle ends without the last chunk of HTTP."""
    service = service_of(request)
    target = published(service, reader, schema, table).spec.target
    read = read_table.arrow_stream if form == "arrow" else read_table.json_lines
    source = service.resource(target.connection)

    def begun() -> Iterator[bytes]:
        # The first piece is read before anything is answered: an error still has a status.
        pieces = _counted(read(source, target, STREAM_ROWS))
        return chain((next(pieces),), pieces)

    pieces: Iterator[bytes] = await run_in_threadpool(told, begun, once_more=True)
    headers = {"cache-control": "no-store", "vary": "Accept-Encoding, Authorization"}
    if _takes_gzip(request):
        pieces, headers["content-encoding"] = _gzip_stream(pieces), "gzip"
    kind = "application/vnd.apache.arrow.stream" if form == "arrow" else "application/x-ndjson"
    return _Stream(pieces, headers=headers, media_type=kind)


def _counted(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same, as long as there are not too many streams. Raises Refused, with the first piece."""
    if not _streams.acquire(blocking=False):
        raise Refused(f"{MAX_STREAMS} streams are under way", hint="or read page by page", status=429, retry_after=10)
    try:
        yield from pieces
    finally:
        _streams.release()


def _gzip_stream(pieces: Iterator[bytes]) -> Iterator[bytes]:
    from isal import isal_zlib

    packer = isal_zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


class _Stream(StreamingResponse):
    """Pieces that are read in a thread; ends when its reader takes nothing any more."""

    def __init__(self, pieces: Iterator[bytes], **options: Any) -> None:
        super().__init__((), **options)
        self._pieces: Iterator[bytes] | None = pieces

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            while (piece := await run_in_threadpool(self._next)) is not None:
                if piece:
                    async with asyncio.timeout(STALLED_SECONDS):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._pieces = None  # ends the transaction

    def _next(self) -> bytes | None:
        return next(self._pieces, None) if self._pieces is not None else None


def published(service: Service, reader: TableReader, schema: str, table: str) -> Readable:
    """The definition of a table that is published: one that is loaded, or that a transform makes.

    Raises:
        Refused: the reader may not read it. Unknown: there is none, or it is not published.
    """
    name = f"{schema}.{table}"
    reader.check(name)
    system = schema in _SYSTEM or schema.startswith("pg_")
    for load in () if system else _loads(service):
        if load.spec.target.table == name and load.spec.target.published:
            return load
    raise Unknown(f"there is no published table {name}", hint="its definition must say `published: true`")


def warm(service: Service) -> None:
    """Open what published tables are read from; nothing is connected to. The first page takes a second less."""
    targets = (load.spec.target for load in _loads(service))
    for connection in sorted({target.connection for target in targets if target.published}):
        service.resource(connection)


def _loads(service: Service) -> Iterator[Readable]:
    loads = [each.load for each in service.project.loads.values()]
    areas = [each for each in loads if isinstance(each.spec.source, UploadSource)]
    yield from (each for each in loads if each not in areas)
    yield from (each.transform for each in service.project.transforms.values())
    for area in areas:
        for organisation, dataset in service.uploads.sets(area_ids(area)) if area.spec.target.published else ():
            if organisation in upload_source(area).organisations:
                yield upload_definition(area, organisation, dataset)


def told(read: Callable[[], T], *, once_more: bool = False) -> T:
    """What reading gives. Once more, if a swap took the table away between its name and its rows."""
    try:
        return read()
    except NotLoaded as error:
        raise Unknown(error.message, hint="its first load makes it") from error
    except VersionGone as error:
        if once_more:
            return told(read)
        raise Problem(410, error.message, hint="begin anew, without `next-id` and `version`") from error


def version_token(service: Service, target: TargetSpec, number: int) -> str:
    """A version as it stands in `next`: signed, so that nobody reads versions that were never told to them."""
    text = f"{target.connection} {target.table} {number}"
    return f"{number}-{hmac.digest(service.keys.key('pages'), text.encode(), 'sha256').hex()[:24]}"


def version_of(service: Service, target: TargetSpec, token: str) -> int:
    """The version of a token. Raises Problem: it is none of ours."""
    number = token.partition("-")[0]
    if number.isdecimal() and number.isascii() and len(number) <= 9:
        own = version_token(service, target, int(number))
        if hmac.compare_digest(own.encode(), token.encode()):
            return int(number)
    raise Problem(422, "`version` is none that this service gave", hint="take the address in `next` as it stands")
