"""A user's own tokens, for scripts. Whoever is logged in by a token makes no other: a stolen one would never end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from starlette.responses import RedirectResponse, Response

from export_pipelines.api.pages import frame
from export_pipelines.api.pages.frame import Page
from export_pipelines.api.users import READ, REQUEST, Refused, Unknown
from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.tokens import Token
from export_pipelines.specs.query import Problem

_SPANS = ((7, "a week"), (30, "30 days"), (90, "90 days"), (365, "a year"))
_MOST = 50


def show(page: Page) -> Response:
    """The list, with a form for a new one."""
    return _page(page)


def make(page: Page) -> Response:
    """Make one, and show it this once."""
    if not _may_make(page):
        raise Refused("a token cannot make tokens", hint="use `export-pipelines token create`")
    name, days = page.posted("name").strip(), page.posted("days")
    if problems := list(_problems(page, name, days)):
        return _page(page, problems=problems, name=name, status=422)
    expires = datetime.now(UTC) + timedelta(days=int(days))
    made, text = page.service.tokens.create(
        name,
        page.user.name,
        # An operator's scripts ask as everybody's do; more is made on the command line.
        (READ, REQUEST),
        Actor(page.user.name, page.address),
        groups=sorted(page.user.groups),
        environment=page.user.environment,
        expires_at=expires,
    )
    return _page(page, made=made, text=text)


def revoke(page: Page) -> Response:
    """Revoke one of the user's own."""
    token = page.service.tokens.get(page.request.path_params["id"])
    if token is None or token.username != page.user.name:
        raise Unknown("there is no such token, or it is not yours")
    if token.revoked_at is None:
        page.service.tokens.revoke(token.id, Actor(page.user.name, page.address))
    return RedirectResponse("/tokens", 303)


def _problems(page: Page, name: str, days: str) -> list[Problem]:
    found = []
    if not 1 <= len(name) <= 60 or not name.isprintable():
        found.append(Problem("name", "a name of 1 to 60 characters is wanted"))
    if days not in [str(value) for value, _ in _SPANS]:
        found.append(Problem("days", "choose how long it is valid"))
    if len(_own(page)) >= _MOST:
        found.append(Problem("name", f"you have {_MOST} tokens", "Revoke some of them"))
    return found


def _own(page: Page) -> list[Token]:
    return [each for each in page.service.tokens.all() if each.username == page.user.name]


def _may_make(page: Page) -> bool:
    return "token" not in page.session and page.user.may(REQUEST)


def _page(
    page: Page,
    *,
    made: Token | None = None,
    text: str = "",
    problems: Sequence[Problem] = (),
    name: str = "",
    status: int = 200,
) -> Response:
    values = {
        "tokens": _own(page),
        "made": made,
        "text": text,
        "problems": problems,
        "name": name,
        "spans": _SPANS,
        "may_make": _may_make(page),
    }
    return page.html("tokens.html", values, here="tokens", status=status)


ROUTES = [
    frame.get("/tokens", show),
    frame.post("/tokens", make),
    frame.post("/tokens/{id}/revoke", revoke),
]
