"""What all pages have in common: which calls are for them, who is logged in, forms that are one's own, the look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from export_pipelines.api import login
from export_pipelines.api.pages import render
from export_pipelines.api.pages.questions import Pairs
from export_pipelines.api.problems import Problem
from export_pipelines.api.service import Service
from export_pipelines.api.uploads import areas_of
from export_pipelines.api.users import READ, Refused, User
from export_pipelines.specs.service import resolve

_FORM = "application/x-www-form-urlencoded"
_MAX_FIELDS = 20_000

PageHandler = Callable[["Page"], Response]


@dataclass
class Page:
    """A call to a page, by somebody who may."""

    request: Request
    service: Service
    user: User
    form: Pairs = ()
    """What was posted."""
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """From where it comes."""
        return self.request.client.host if self.request.client else ""

    @property
    def session(self) -> login.Session:
        """The session, which may be changed."""
        return self.request.session

    @property
    def query(self) -> Pairs:
        """The parameters of the address."""
        return self.request.query_params.multi_items()

    def posted(self, name: str) -> str:
        """A field that was posted; empty without it."""
        return next((value for key, value in self.form if key == name), "")

    def html(self, template: str, values: dict[str, Any], *, here: str = "", status: int = 200) -> HTMLResponse:
        """A whole page."""
        return render.html(template, {**common(self.request, self.service, self.user, here), **values}, status)

    def tell(self, text: str, kind: str = "good") -> None:
        """Have the next page say something."""
        self.session["told"] = [kind, text]

    def told(self) -> dict[str, str | None]:
        """What the page before wanted to be said, as values for a template."""
        kind, text = self.session.pop("told") if "told" in self.session else ("", None)
        return {"told": text, "told_kind": kind}


def common(request: Request, service: Service | None, user: User | None, here: str = "") -> dict[str, Any]:
    """The values that the frame of each page needs; of an early error there is neither service nor session."""
    session = request.scope.get("session", {})
    return {
        "user": user.name if user else None,
        "operator": bool(user and user.operator),
        "uploads": bool(user and service and areas_of(service, user)),
        "csrf": login.csrf_of(session) if user else session.get("csrf", ""),
        "here": here,
        "dagster_url": resolve(service.spec.dagster_url).rstrip("/") if service and user else "",
        "environments": service.spec.environments if service else (),
    }


class PageRoute(Route):
    """A route of the page. With `shared` its address is one of the API, too, and it takes what browsers send."""

    def __init__(self, path: str, endpoint: Callable[..., Any], *, methods: list[str], shared: bool = False) -> None:
        super().__init__(path, endpoint, methods=methods, include_in_schema=False)
        self._shared = shared

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if self._shared and (match is not Match.FULL or not wants_html(scope)):
            return Match.NONE, {}
        return match, child


def wants_html(scope: Scope) -> bool:
    """Whether a browser shows the answer to somebody."""
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return b"text/html" in accepted


def get(path: str, handler: PageHandler, *, shared: bool = False) -> PageRoute:
    """A page to look at."""
    return PageRoute(path, _endpoint(handler), methods=["GET"], shared=shared)


def post(path: str, handler: PageHandler) -> PageRoute:
    """What a form of a page is sent to."""
    return PageRoute(path, _endpoint(handler), methods=["POST"])


def _endpoint(handler: PageHandler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        form = await read_form(request) if request.method == "POST" else ()
        return await run_in_threadpool(answer, handler, request, form)

    return endpoint


def answer(handler: PageHandler, request: Request, form: Pairs, values: Mapping[str, Any] | None = None) -> Response:
    """What a page says to a user who is logged in. `values` are what came beside the fields of its form.

    Raises:
        Problem: nobody is logged in, or the form is not of this session. Refused: too many calls, or no right to read.
    """
    service: Service = request.app.state.service
    user = login.user_of(service, request.session)
    if user is None:
        if request.method == "GET":
            return to_login(request)
        raise Problem(401, "you are not logged in any more", hint="log in, and send the form again")
    request.state.user = user
    request.state.left = service.limits.take("requests_per_user", user.name)
    if request.method in ("POST", "PUT"):
        check_form(request, form)
    if not user.may(READ):
        raise Refused(f"{user.name} lacks the scope {READ!r}", hint="log in with another token")
    answered = handler(Page(request, service, user, form, dict(values or {})))
    answered.headers["vary"] = "Accept, Cookie"
    return answered


def to_login(request: Request) -> Response:
    """To the login, and back here after it."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    path = login.local_path(here)
    return RedirectResponse("/login" + (f"?next={quote(path, safe='/')}" if path != "/" else ""), 303)


async def read_form(request: Request) -> Pairs:
    """The fields of a form that was posted. Raises Problem: it is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM:
        raise Problem(415, "a form is wanted here", hint="programs use the API, see /docs")
    async with request.form(max_fields=_MAX_FIELDS) as form:
        return [(key, value) for key, value in form.multi_items() if isinstance(value, str)]


def check_form(request: Request, form: Pairs) -> None:
    """Raises Refused: it was not sent by a page of this session."""
    given = next((value for key, value in form if key == "csrf"), "")
    origin = request.headers.get("sec-fetch-site", "same-origin")
    if origin not in ("same-origin", "none") or not login.is_own_form(request.session, given):
        raise Refused("this form is not one of yours, or it is too old", hint="load the page again, then send it")
