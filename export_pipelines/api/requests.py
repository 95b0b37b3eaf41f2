"""`/requests`: ask, follow, cancel, list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from export_pipelines.api import asking, views
from export_pipelines.api.auth import Asker, Service, User, address_of, service_of
from export_pipelines.api.downloads import send_file
from export_pipelines.api.events import events, wait_for_end
from export_pipelines.api.models import FILE_CONTENT, REQUEST_ID, Ask, Name, RequestList, RequestOut, Status
from export_pipelines.api.problems import Problem, responses
from export_pipelines.api.users import Refused
from export_pipelines.catalog.requests import Fault, RequestRow
from export_pipelines.errors import RequestError
from export_pipelines.specs.query import RawFilter, filters_from_parameters

router = APIRouter(tags=["requests"])

MAX_LISTENERS = 500
"""Streams of events at the same time, a process."""

RequestId = Annotated[
    str, Path(pattern=REQUEST_ID, description="Id of a request.", examples=["mfrggzdfmztwq2lknnwg23tpoa"])
]
Prefer = Annotated[
    str | None,
    Header(
        description="`wait` or `wait=10`: the answer waits so many seconds for the end, and is the file itself if it "
        "is small. `respond-async` is what happens anyway.",
        examples=["wait=10"],
    ),
]

KICK_OFF: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file itself, where `Prefer: wait` was sent and it is small.", "content": FILE_CONTENT},
    202: {"model": RequestOut, "description": "Recorded: follow it at Location."},
    **responses(409, 410, 502),
}
"""What a call that asks for data may answer. One that waits for an export which fails is told why: 422 where another
question would be answered, 503 where it may be later, 502 where the operator has to do something."""


@router.post("/requests", status_code=202, responses=KICK_OFF, response_model=None)
async def ask_for_data(request: Request, body: Ask, user: Asker, prefer: Prefer = None) -> Response:
    """Ask for data. The same question to the same version of the data, asked again, is the same request."""
    service = service_of(request)

    def record() -> RequestRow:
        dataset = asking.asked_dataset(service, user, body.dataset)
        checked = asking.question(
            service, user, dataset, filters=_filters(body),
            **body.model_dump(exclude={"dataset", "filters", "email", "webhook"}),
        )  # fmt: skip
        row, _ = asking.ask(
            service, user, address_of(request), checked, origin="api", email=body.email, webhook=body.webhook
        )
        return row

    return await kick_off(request, user, await run_in_threadpool(record), prefer)


async def kick_off(request: Request, user: User, row: RequestRow, prefer: str | None) -> Response:
    """The answer to who asked: 202 with where to look, or the file itself if that was preferred and can be."""
    service = service_of(request)
    seconds = wait_preferred(prefer, service.spec.wait_seconds)
    if seconds is None or not _is_small(service, row):
        return await run_in_threadpool(status_answer, request, row, 202)
    row = await wait_for_end(service, row, seconds)
    if row.state == "failed":
        raise _failed(row)
    if row.state != "succeeded" or row.rows > service.spec.small_rows:
        return await run_in_threadpool(status_answer, request, row, 202)
    headers = {"preference-applied": "wait", "location": _own(row)}
    return await send_file(request, row, user.name, headers=headers, whole=True)


_STATUSES = {Fault.QUESTION: 422, Fault.AWAY: 503, Fault.INSIDE: 502}
_AWAY_SECONDS = 30


def _failed(row: RequestRow) -> Problem:
    """The answer to who waited for an export that failed: it says who can do something about it."""
    fault = Fault(row.fault or Fault.INSIDE)
    headers = {"location": _own(row)} | ({"retry-after": str(_AWAY_SECONDS)} if fault is Fault.AWAY else {})
    return Problem(_STATUSES[fault], f"the export failed: {row.error}", hint=row.hint or "", headers=headers)


def wait_preferred(prefer: str | None, most: float) -> float | None:
    """Seconds that a caller would wait (RFC 7240), None for not at all."""
    for each in (prefer or "").split(","):
        match = re.fullmatch(r"\s*wait\s*(?:=\s*\"?(\d{1,9})\"?\s*)?(?:;.*)?", each, re.IGNORECASE)
        if match:
            return min(most, float(match[1])) if match[1] else most
    return None


def _is_small(service: Service, row: RequestRow) -> bool:
    most = min(row.estimate or 0, row.query.limit or row.estimate or 0)
    return most <= service.spec.small_rows


def _own(row: RequestRow) -> str:
    return f"/requests/{row.id}"


def status_answer(request: Request, row: RequestRow, status: int) -> Response:
    """A request as JSON, with the headers of the asynchronous pattern."""
    found = views.status_of(service_of(request), row)
    headers = {}
    if status == 202:
        headers["location"] = _own(row)
        headers["content-location"] = str(request.base_url).rstrip("/") + _own(row)
    if row.live:
        headers["retry-after"] = str(views.retry_after(row, found["place"], found["eta_seconds"]))
        headers["x-progress"] = views.progress_text(found)
    content = RequestOut.model_validate(found).model_dump(mode="json")
    return JSONResponse(content, status, headers=headers)


def _filters(body: Ask) -> Iterable[RawFilter]:
    if isinstance(body.filters, dict):
        return [
            RawFilter(each.name, each.operator, body.filters[name])
            for name in body.filters
            for each in filters_from_parameters([(name, "")])
        ]
    return [RawFilter(each.name, each.operator, each.value) for each in body.filters]


@router.get("/requests", responses=responses())
def list_requests(
    request: Request,
    user: Asker,
    status: Annotated[list[Status] | None, Query(description="Only those in one of these states.")] = None,
    dataset: Annotated[Name | None, Query(description="Only those of a data set.")] = None,
    environment: Annotated[Name | None, Query(description="Only those of an environment.")] = None,
    of_user: Annotated[Name | None, Query(alias="user", description="Operators: only those of a user.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Requests on a page.")] = 50,
    cursor: Annotated[
        int | None, Query(ge=1, le=2**62, description="From `next` of the page before.", examples=[4711])
    ] = None,
) -> RequestList:
    """One's own requests, newest first; an operator's list has everybody's."""
    service = service_of(request)
    if of_user not in (None, user.name) and not user.operator:
        raise Refused("only operators see the requests of others", hint="leave out `user`")
    if user.environment is not None and environment not in (None, user.environment):
        raise Refused(f"{user.name} may see environment {user.environment!r} only")
    rows = service.requests.find(
        username=of_user if user.operator else user.name,
        environment=user.environment or environment,
        dataset=_dataset_id(service, dataset),
        states=tuple(each.lower() for each in status or ()),
        before=cursor,
        limit=limit + 1,
    )
    page = rows[:limit]
    places = service.requests.places() if any(row.state == "pending" for row in page) else {}
    more = request.url.include_query_params(cursor=page[-1].number) if len(rows) > limit else None
    return RequestList(
        requests=[RequestOut.model_validate(views.status_of(service, row, places)) for row in page],
        next=f"{more.path}?{more.query}" if more else None,
    )


def _dataset_id(service: Service, name: str | None) -> str | None:
    """The id of a data set, also of one that is not there any more."""
    if name is None:
        return None
    try:
        return service.dataset(name).id
    except RequestError:
        return name


@router.get(
    "/requests/{request_id}",
    responses={
        200: {"model": RequestOut, "description": "It has ended."},
        202: {"model": RequestOut, "description": "It waits or is at work: look again after Retry-After seconds."},
        **responses(),
    },
    response_model=None,
)
def show_request(request: Request, request_id: RequestId, user: Asker) -> Response:
    """How far a request is, and where its file is. 202 as long as it waits or is at work."""
    row = asking.seen_request(service_of(request), user, request_id)
    return status_answer(request, row, 202 if row.live else 200)


@router.delete(
    "/requests/{request_id}",
    status_code=202,
    responses={202: {"model": RequestOut, "description": "Not wanted any more."}, **responses()},
    response_model=None,
)
def cancel_request(request: Request, request_id: RequestId, user: Asker) -> Response:
    """One does not want the answer any more. It is cancelled when nobody wants it: at once if it waits, else within
    two seconds. Cancelling again changes nothing, and so does cancelling what has ended."""
    row = asking.cancel(service_of(request), user, address_of(request), request_id)
    return status_answer(request, row, 202)


@router.get(
    "/requests/{request_id}/events",
    responses={
        200: {
            "description": "`progress` after each change, `end` at the end; the data of each is JSON.",
            "content": {"text/event-stream": {}},
        },
        **responses(),
    },
    response_class=StreamingResponse,
)
async def follow_request(request: Request, request_id: RequestId, user: Asker) -> StreamingResponse:
    """Server-sent events until the end."""
    service, metrics = service_of(request), request.app.state.metrics
    row = await run_in_threadpool(asking.seen_request, service, user, request_id)
    if metrics.open_listeners >= MAX_LISTENERS:
        raise Refused("too many streams of events are open", status=429, retry_after=10)

    async def stream() -> Any:
        with metrics.listening():
            async for each in events(service, row):
                yield each

    return StreamingResponse(
        stream(), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )
