"""Pages on which people upload: choose a data set, send a file, compare, load, restore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from export_pipelines.api import uploads
from export_pipelines.api.pages import frame
from export_pipelines.api.pages.frame import Page, PageRoute
from export_pipelines.api.pages.questions import Pairs
from export_pipelines.api.problems import Problem
from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.uploads import Misplaced, UploadRow
from export_pipelines.errors import ExportPipelinesError, RequestError, TargetError
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.uploads import TYPES, area_ids, upload_definition, upload_source

_MOST_FORM = 64
_REFRESH = 3


def show(page: Page) -> Response:
    """Where to upload to, and what waits."""
    found = uploads.areas_of(page.service, page.user)
    areas = [(each, upload_source(each), page.service.uploads.sets(area_ids(each))) for each in found]
    waiting = [each for each in page.service.uploads.waiting(page.user.name) if each.area in {a.id for a in found}]
    values = {"areas": areas, "waiting": waiting, "chunk": uploads.CHUNK, **page.told()}
    return page.html("uploads.html", values, here="uploads")


def begin(page: Page) -> Response:
    """A program of the page begins to send: the upload, and from where to go on."""
    size = page.posted("size")
    if not size.isdecimal() or len(size) > 15:
        raise Problem(422, "`size` is a number of bytes")
    row = _begin(page, page.posted("file_name"), page.posted("fingerprint"), int(size))
    return JSONResponse({"id": row.id, "received": row.received, "url": f"/uploads/{row.id}"})


def send_whole(page: Page) -> Response:
    """A form with a small file, without any program."""
    name, data = page.values["file"]
    row = _begin(page, name, f"form-{len(data)}", len(data))
    if row.received:
        raise Problem(409, "this file is being sent already", hint="go on with it, or drop it")
    _, area = uploads.upload_of(page.service, page.user, row.id)
    uploads.receive(page.service, row, area, 0, data, _actor(page))
    return RedirectResponse(f"/uploads/{row.id}", 303)


def put(page: Page) -> Response:
    """A piece of a file."""
    row, area = _upload(page)
    offset = page.request.query_params.get("offset", "")
    if not offset.isdecimal() or len(offset) > 15:
        raise Problem(422, "`offset` is a number of bytes")
    try:
        row = uploads.receive(page.service, row, area, int(offset), page.values["body"], _actor(page))
    except Misplaced as error:
        return JSONResponse({"received": error.received, "detail": error.message}, 409)
    return JSONResponse({"received": row.received})


def look(page: Page) -> Response:
    """What is to be done with an upload now: send the rest, compare, wait, or see why it failed."""
    row, area = _upload(page)
    return _look(page, row, area)


def load(page: Page) -> Response:
    """Load it with the types that were chosen."""
    row, area = _upload(page)
    types = {int(key[5:]): value for key, value in page.form if key.startswith("type-") and key[5:].isdecimal()}
    base = page.posted("base")
    if not base.isdecimal() or len(base) > 9:
        raise Problem(422, "`base` is the number of a version")
    runs = page.request.app.state.table_runs
    try:
        uploads.load(page.service, runs, row, area, types, int(base), _actor(page))
    except uploads.Changed as error:
        return _look(page, row, area, problem=error, status=409)
    return RedirectResponse(f"/uploads/{row.id}", 303)


def drop(page: Page) -> Response:
    """Give an upload up."""
    row, area = _upload(page)
    uploads.drop(page.service, row, area, _actor(page))
    page.tell(f"{row.file_name} was dropped.")
    return RedirectResponse("/uploads", 303)


def data_set(page: Page) -> Response:
    """The versions of a data set, and its files."""
    area, organisation, dataset = _set(page, dict(page.query))
    found = uploads.versions(page.service, area, organisation, dataset)
    files = page.service.uploads.of(area_ids(area), organisation, dataset)
    older = {each.number: before.number for each, before in pairwise(found)}
    values: dict[str, Any] = {
        "area": area,
        "organisation": organisation,
        "dataset": dataset,
        "table": f"{area.spec.target.table}_{organisation}_{dataset}",
        "published": area.spec.target.published,
        "versions": found,
        "older": older,
        "files": [(each, _state(page, each), page.user.operator or each.username == page.user.name) for each in files],
        "diff": None,
        **page.told(),
    }
    wanted = dict(page.query).get("compare", "")
    if wanted.isdecimal() and len(wanted) < 9 and int(wanted) in older:
        new = int(wanted)
        values["diff"] = (older[new], new, _difference(page, area, organisation, dataset, older[new], new))
    return page.html("upload_set.html", values, here="uploads")


def restore(page: Page) -> Response:
    """Have readers see an older version again."""
    area, organisation, dataset = _set(page, dict(page.form))
    version = page.posted("version")
    if not version.isdecimal() or len(version) > 9:
        raise Problem(422, "`version` is the number of a version")
    try:
        uploads.restore(page.service, area, organisation, dataset, int(version), _actor(page))
    except TargetError as error:
        raise Problem(422, error.message, hint=error.hint) from error
    page.tell(f"Version {version} is what readers see now.")
    return RedirectResponse(set_address(area.id, organisation, dataset), 303)


def set_address(area: str, organisation: str, dataset: str) -> str:
    """Address of a data set's page."""
    return "/uploads/set?" + urlencode({"area": area, "organisation": organisation, "dataset": dataset})


def _difference(page: Page, area: LoadDefinition, organisation: str, dataset: str, old: int, new: int) -> Any:
    try:
        return uploads.difference(page.service, area, organisation, dataset, old, new)
    except ExportPipelinesError:
        return None  # of other columns, or just gone


def _begin(page: Page, name: str, mark: str, size: int) -> UploadRow:
    area = uploads.area_of(page.service, page.user, page.posted("area"))
    organisation, dataset = page.posted("organisation"), page.posted("dataset").strip()
    return uploads.begin(page.service, page.user, area, organisation, dataset, name, mark, size)


def _upload(page: Page) -> tuple[UploadRow, LoadDefinition]:
    return uploads.upload_of(page.service, page.user, page.request.path_params["id"])


def _set(page: Page, given: dict[str, str]) -> tuple[LoadDefinition, str, str]:
    area = uploads.area_of(page.service, page.user, given.get("area", ""))
    return area, given.get("organisation", ""), given.get("dataset", "")


def _state(page: Page, row: UploadRow) -> str:
    return uploads.stage_of(page.request.app.state.table_runs, row).state


def _actor(page: Page) -> Actor:
    return Actor(page.user.name, page.address)


def _look(
    page: Page, row: UploadRow, area: LoadDefinition, *, problem: RequestError | None = None, status: int = 200
) -> Response:
    stage = uploads.stage_of(page.request.app.state.table_runs, row)
    state = stage.state
    if state == "succeeded":
        page.service.later(lambda: uploads.tidy(page.service, row, area))
    values: dict[str, Any] = {
        "row": row,
        "area": area,
        "state": state,
        "reason": stage.reason,
        "percent": stage.percent,
        "problem": problem,
        "unreadable": None,
        "look": None,
        "base": 0,
        "types": TYPES,
        "chunk": uploads.CHUNK,
        "set_url": set_address(row.area, row.organisation, row.dataset),
        **page.told(),
    }
    if state in ("received", "failed", "cancelled"):
        try:
            values["look"] = uploads.look(page.service, row, area)
            made = upload_definition(area, row.organisation, row.dataset)
            values["base"] = uploads.current_version(page.service, made)
        except RequestError as error:
            values["unreadable"] = error
    answer = page.html("upload.html", values, here="uploads", status=status)
    if state in ("pending", "processing"):
        answer.headers["refresh"] = str(_REFRESH)
    return answer


# Calls that are no plain forms


def _special(
    handler: Callable[[Page], Response], read: Callable[[Request], Awaitable[tuple[Pairs, dict[str, Any]]]]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        form, values = await read(request)
        return await run_in_threadpool(frame.answer, handler, request, form, values)

    return endpoint


async def _piece(request: Request) -> tuple[Pairs, dict[str, Any]]:
    return [("csrf", request.headers.get("x-csrf", ""))], {"body": await request.body()}


async def _with_file(request: Request) -> tuple[Pairs, dict[str, Any]]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "a form with a file is wanted here")
    async with request.form(max_fields=_MOST_FORM, max_files=1) as form:
        fields = [(key, value) for key, value in form.multi_items() if isinstance(value, str)]
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(422, "choose a file")
        return fields, {"file": (file.filename or "", await file.read())}


ROUTES = [
    frame.get("/uploads", show, shared=True),
    PageRoute("/uploads/files", _special(send_whole, _with_file), methods=["POST"]),
    frame.post("/uploads/begin", begin),
    frame.get("/uploads/set", data_set),
    frame.post("/uploads/restore", restore),
    frame.get("/uploads/{id}", look, shared=True),
    PageRoute("/uploads/{id}/content", _special(put, _piece), methods=["PUT"]),
    frame.post("/uploads/{id}/load", load),
    frame.post("/uploads/{id}/drop", drop),
]
