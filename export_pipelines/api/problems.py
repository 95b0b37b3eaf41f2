"""Errors as problem details (RFC 9457), every one of them: what was wrong, where, and what to do."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from export_pipelines.api.users import Refused, Unknown
from export_pipelines.errors import (
    CatalogError,
    ExportPipelinesError,
    ObjectMissing,
    RequestError,
    SourceError,
    StoreError,
)
from export_pipelines.specs.query import QueryError

log = logging.getLogger("export_pipelines.api")

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One thing that is wrong with what was sent."""

    field: str = Field(examples=["filters.carrier"])
    message: str = Field(examples=["nycflights13/flights has no filter 'carier'"])
    hint: str = Field(default="", examples=["did you mean 'carrier'?"])


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="`about:blank`: the status says it all.", examples=["about:blank"])
    title: str = Field(description="The status in words.", examples=["Not Found"])
    status: int = Field(description="The status of the answer.", examples=[404])
    detail: str = Field(description="What was wrong this time.", examples=["there is no data set 'fligths'"])
    hint: str = Field(default="", description="What to do.", examples=["did you mean 'flights'?"])
    errors: list[FieldProblem] = Field(default=[], description="Each thing that is wrong with what was sent.")
    reference: str = Field(default="", description="Of an inner error: look for it in the service's log.")


class Problem(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        hint: str = "",
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        reference: str = "",
    ) -> None:
        super().__init__(detail)
        self.details = ProblemDetails(
            type="about:blank",
            title=phrase(status),
            status=status,
            detail=detail,
            hint=hint,
            errors=list(errors),
            reference=reference,
        )
        self.headers = dict(headers or {})
        if status == HTTPStatus.UNAUTHORIZED:
            self.headers.setdefault("www-authenticate", 'Bearer realm="export-pipelines"')


def phrase(status: int) -> str:
    """A status in words."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def render(request: Request, problem: Problem) -> Response:
    """The problem as JSON, or as a page for a browser."""
    details = problem.details
    page = _page(request, details)
    if page is not None:
        for name, value in problem.headers.items():
            page.headers.setdefault(name, value)
        return page
    # What was sent may be repeated here, halves of characters included.
    body = json.dumps(details.model_dump(exclude_defaults=True), ensure_ascii=True, separators=(",", ":"))
    return Response(body, details.status, headers=problem.headers, media_type=MEDIA_TYPE)


def _page(request: Request, details: ProblemDetails) -> Response | None:
    if "text/html" not in request.headers.get("accept", ""):
        return None
    from export_pipelines.api.pages.errors import html_problem

    found: Response | None = html_problem(
        request,
        status=details.status,
        title=details.title,
        detail=details.detail,
        hint=details.hint,
        reference=details.reference,
    )
    return found


def problem_of(error: Exception) -> Problem:
    """The problem that an error of ours is. What is inside stays inside: other errors get a reference for the log."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error.errors())
        case QueryError():
            found = [FieldProblem(field=e.field, message=e.message, hint=e.hint) for e in error.problems]
            return Problem(422, error.message, hint=error.hint, errors=found)
        case Refused():
            headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
            return Problem(error.status, error.message, hint=error.hint, headers=headers)
        case Unknown():
            return Problem(404, error.message, hint=error.hint)
        case ObjectMissing():
            return Problem(410, "the file is gone", hint="ask again")
        case SourceError(code=code) if code.startswith("22"):
            return Problem(422, "the data cannot be compared with a value of a filter", hint=error.hint)
        case CatalogError() | SourceError() | StoreError() if error.transient:
            log.warning("%s", error)
            return Problem(503, _AWAY, hint="try again in a moment", headers={"retry-after": "5"})
        case RequestError():
            return Problem(422, error.message, hint=error.hint)
        case _:
            return _inner(error)


_AWAY = "a database or a store that is needed does not answer now"


def _inner(error: Exception) -> Problem:
    reference = secrets.token_hex(6)
    log.error("inner error %s", reference, exc_info=error)
    return Problem(500, "something went wrong inside", hint="tell the operator the reference", reference=reference)


def install(app: FastAPI, allowed: Callable[[str], set[str]]) -> None:
    """Answer every error of an application with a problem. `allowed` tells the methods that an address knows."""

    async def ours(request: Request, error: Exception) -> Response:
        return render(request, problem_of(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = _TOLD.get(error.status_code) or str(error.detail)
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := allowed(request.url.path)):
            headers["Allow"] = ", ".join(sorted(methods))
        return render(request, Problem(error.status_code, detail, headers=headers))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return render(request, _invalid(error.errors()))

    app.add_exception_handler(Problem, ours)
    app.add_exception_handler(ExportPipelinesError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


_TOLD = {404: "there is nothing at this address", 405: "this address does not know this method"}


def _invalid(errors: Sequence[Any]) -> Problem:
    """400 for what is no JSON, 422 for what is not as it should be."""
    if any(each["type"] == "json_invalid" for each in errors):
        return Problem(400, "the body is no valid JSON", hint="see the examples in /openapi.json")
    found = [
        FieldProblem(field=_place(each["loc"]), message=str(each["msg"]), hint=_EXPECTED.get(each["type"], ""))
        for each in errors
    ]
    first = found[0]
    return Problem(422, f"{first.field}: {first.message}", errors=found[:100])


_EXPECTED = {"extra_forbidden": "leave it out, or see /openapi.json for the names", "missing": "it is required"}


def _place(location: Sequence[Any]) -> str:
    parts = [str(each)[:100] for each in location]
    return ".".join(parts[1:] if len(parts) > 1 and parts[0] in ("body", "query", "path", "header") else parts)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an operation may answer besides, for OpenAPI; every one may be refused by a limit or fail."""
    every = {*statuses, 400, 401, 403, 404, 408, 413, 414, 422, 429, 431, 500, 503}
    return {
        status: {
            "model": ProblemDetails,
            "description": phrase(status),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in sorted(every)
    }
