"""`/uploads` for programs: send a file in pieces, see what it holds, load it. They come with a token; the forms of the
page, which come with a cookie, have addresses of their own."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from export_pipelines.api import uploads
from export_pipelines.api.auth import Uploader, User, address_of, service_of
from export_pipelines.api.models import Name
from export_pipelines.api.problems import Problem, responses
from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.uploads import Misplaced, UploadRow
from export_pipelines.errors import RequestError
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.uploads import area_ids, upload_definition, upload_source

router = APIRouter(tags=["uploads"])

UploadId = Annotated[
    str, Path(pattern="^[0-9a-f]{24}$", description="Id of an upload.", examples=["5f2b8e0c9d3a4b617c0e2f41"])
]
_PIECE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"1 to {uploads.CHUNK} bytes.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class UploadIn(BaseModel):
    """A file that is to be sent."""

    model_config = ConfigDict(extra="forbid")

    area: Name = Field(description="Id of the definition that takes it.", examples=["people/inbox"])
    organisation: Name = Field(description="One of those that the definition names.", examples=["health"])
    dataset: Name = Field(description="A data set that is there, or a new name.", examples=["beds"])
    file_name: Name = Field(examples=["beds.csv"])
    size: int = Field(ge=1, le=10**15, description="Bytes of the file.")
    fingerprint: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        description="What tells this content from any other, best its SHA-256: by it an upload that was cut goes on."
    )


class UploadOut(BaseModel):
    """An upload."""

    id: str
    area: str
    organisation: str
    dataset: str
    file_name: str
    size: int
    received: int = Field(description="Bytes that are here: the next piece begins there.")
    state: Literal["receiving", "received", "pending", "processing", "succeeded", "failed", "cancelled", "dropped"] = (
        Field(description="From `pending` on, that of the run that loads it.")
    )
    percent_read: int | None = Field(description="Of the file, by a load that is at work; null before it says so.")
    reason: str = Field(description="Why the load failed.")
    user: str
    created_at: datetime


class AreaOut(BaseModel):
    """A definition that takes uploads."""

    id: str = Field(examples=["people/inbox"])
    description: str
    organisations: list[str]
    max_bytes: int
    datasets: list[str] = Field(
        description="`organisation/data set` of those that there are.", examples=[["health/beds"]]
    )


class UploadsOut(BaseModel):
    """Where the caller may upload to, and their uploads that are not loaded yet, newest first."""

    areas: list[AreaOut]
    waiting: list[UploadOut]


class FileColumnOut(BaseModel):
    """A column of a file, by the records that were looked at."""

    name: str = Field(description="In the table.", examples=["beds"])
    in_file: str = Field(examples=["Beds"])
    type: str = Field(description="What it is loaded as if nothing else is said.", examples=["bigint"])
    now: str | None = Field(description="Type of the column that readers see; null for a new one.")
    example: str
    values: int
    nulls: int


class LookOut(BaseModel):
    """What a file holds beside the version that readers see."""

    version: int = Field(description="Number of that version; 0 before the first load.")
    records: int = Field(description="So many were looked at.")
    whole: bool = Field(description="Whether these are all.")
    delimiter: str = Field(description="What separates its values, if not what the definition says; else empty.")
    columns: list[FileColumnOut]
    missing: list[str] = Field(description="Columns that are there, and would be gone.")


class LoadIn(BaseModel):
    """How to load a file."""

    model_config = ConfigDict(extra="forbid")

    types: dict[Name, Name] = Field(
        default={},
        max_length=1600,
        description="Types of columns, by their name in the table.",
        examples=[{"beds": "text"}],
    )
    version: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None,
        description="The version that it was compared with: 409 if there is a newer one. Null: it was not compared.",
    )


@router.get("/uploads", responses=responses())
def list_uploads(request: Request, user: Uploader) -> UploadsOut:
    """Where one may upload to, and one's own uploads that wait."""
    service = service_of(request)
    areas = [_area(request, each) for each in uploads.areas_of(service, user)]
    return UploadsOut(areas=areas, waiting=[_told(request, each) for each in service.uploads.waiting(user.name)])


@router.post("/uploads", status_code=201, responses=responses())
def begin_upload(request: Request, response: Response, body: UploadIn, user: Uploader) -> UploadOut:
    """Begin to send a file, or go on with the same one: its next piece begins at `received`."""
    service = service_of(request)
    area = uploads.area_of(service, user, body.area)
    row = uploads.begin(
        service, user, area, body.organisation, body.dataset, body.file_name, body.fingerprint, body.size
    )
    response.headers["location"] = f"/uploads/{row.id}"
    return _told(request, row)


@router.get("/uploads/{upload_id}", responses=responses())
def show_upload(request: Request, upload_id: UploadId, user: Uploader) -> UploadOut:
    """How far an upload is."""
    row, area = _own(request, upload_id, user)
    told = _told(request, row)
    if told.state == "succeeded":
        service = service_of(request)
        service.later(lambda: uploads.tidy(service, row, area))
    return told


@router.put("/uploads/{upload_id}", responses=responses(409), openapi_extra=_PIECE)
async def send_piece(
    request: Request,
    upload_id: UploadId,
    user: Uploader,
    offset: Annotated[int, Query(ge=0, le=10**15, description="Place of its first byte in the file.")],
) -> UploadOut:
    """Send a piece of a file, its plain bytes, 1 MiB at most. If it does not begin where the last one ended, 409 says
    where to go on."""
    data = await request.body()

    def receive() -> UploadOut:
        row, area = _own(request, upload_id, user)
        try:
            row = uploads.receive(service_of(request), row, area, offset, data, _actor(request, user))
        except Misplaced as error:
            raise Problem(409, error.message, hint=error.hint) from error
        return _told(request, row)

    return await run_in_threadpool(receive)


@router.get("/uploads/{upload_id}/columns", responses=responses(409, 410))
def compare_upload(request: Request, upload_id: UploadId, user: Uploader) -> LookOut:
    """What the file holds, beside the version that readers see. Nothing has changed so far."""
    row, area = _ready(request, upload_id, user)
    found = uploads.look(service_of(request), row, area)
    return LookOut(
        version=_version(request, row, area),
        records=found.records,
        whole=found.whole,
        delimiter=found.delimiter,
        columns=[
            FileColumnOut(
                name=name, in_file=each.name, type=kind, now=found.current_types.get(name), example=each.example,
                values=each.values, nulls=each.nulls,
            )
            for name, each, kind in zip(found.names, found.columns, found.types, strict=True)
        ],
        missing=list(found.missing),
    )  # fmt: skip


@router.post("/uploads/{upload_id}/loads", status_code=202, responses=responses(409, 410))
def load_upload(request: Request, response: Response, upload_id: UploadId, body: LoadIn, user: Uploader) -> UploadOut:
    """Load the file: a run of Dagster begins, and GET /uploads/{upload_id} tells how far it is."""
    row, area = _ready(request, upload_id, user)
    service, runs = service_of(request), request.app.state.table_runs
    types = _numbered(request, row, area, body.types) if body.types else {}
    version = _version(request, row, area) if body.version is None else body.version
    try:
        row = uploads.load(service, runs, row, area, types, version, _actor(request, user))
    except uploads.Changed as error:
        raise Problem(409, error.message, hint=error.hint) from error
    response.headers["location"] = f"/uploads/{row.id}"
    return _told(request, row)


@router.delete("/uploads/{upload_id}", responses=responses(409))
def drop_upload(request: Request, upload_id: UploadId, user: Uploader) -> UploadOut:
    """Give an upload up that was not loaded yet."""
    row, area = _own(request, upload_id, user)
    if row.state not in ("receiving", "received"):
        raise Problem(409, f"there is nothing to give up: it is {_told(request, row).state}")
    uploads.drop(service_of(request), row, area, _actor(request, user))
    return _told(request, _own(request, upload_id, user)[0])


def _own(request: Request, upload: str, user: User) -> tuple[UploadRow, LoadDefinition]:
    return uploads.upload_of(service_of(request), user, upload)


def _ready(request: Request, upload: str, user: User) -> tuple[UploadRow, LoadDefinition]:
    """An upload that can be looked at and loaded. Raises Problem: 409."""
    row, area = _own(request, upload, user)
    state = uploads.stage_of(request.app.state.table_runs, row).state
    if state not in ("received", "failed", "cancelled"):
        hint = f"send the rest, from byte {row.received} on" if state == "receiving" else ""
        raise Problem(409, f"there is nothing to load: the upload is {state}", hint=hint)
    return row, area


def _version(request: Request, row: UploadRow, area: LoadDefinition) -> int:
    return uploads.current_version(service_of(request), upload_definition(area, row.organisation, row.dataset))


def _numbered(request: Request, row: UploadRow, area: LoadDefinition, types: dict[str, str]) -> dict[int, str]:
    """Types by the numbers of the columns."""
    names = uploads.look(service_of(request), row, area).names
    if unknown := sorted(types.keys() - {*names}):
        raise RequestError(f"the file has no column {unknown[0]!r}", hint=f"it has {', '.join(names[:20])}")
    return {names.index(name): kind for name, kind in types.items()}


def _area(request: Request, area: LoadDefinition) -> AreaOut:
    source = upload_source(area)
    sets = service_of(request).uploads.sets(area_ids(area))
    return AreaOut(
        id=area.id,
        description=area.spec.description,
        organisations=list(source.organisations),
        max_bytes=source.max_bytes,
        datasets=[f"{organisation}/{dataset}" for organisation, dataset in sets],
    )


def _told(request: Request, row: UploadRow) -> UploadOut:
    stage = uploads.stage_of(request.app.state.table_runs, row)
    own = {name: getattr(row, name) for name in UploadOut.model_fields if hasattr(row, name)}
    values = {"state": stage.state, "percent_read": stage.percent, "reason": stage.reason, "user": row.username}
    return UploadOut(**{**own, **values})


def _actor(request: Request, user: User) -> Actor:
    return Actor(user.name, address_of(request))
