"""Errors for people: a page that says what was wrong and where to go from here."""

from __future__ import annotations

import time
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from export_pipelines.api.pages import frame, render
from export_pipelines.api.users import User

_TITLES = {
    400: "That could not be understood",
    401: "You are not logged in",
    403: "That is not for you",
    404: "There is nothing here",
    405: "That does not work here",
    410: "The file is gone",
    413: "That is too much at once",
    415: "That could not be understood",
    422: "That cannot be done",
    429: "Too much at once",
    500: "Something went wrong",
    503: "Not now",
}


def html_problem(
    request: Request, *, status: int, title: str, detail: str, hint: str = "", reference: str = ""
) -> Response | None:
    """The page of an error, or the way to the login; None for programs."""
    if not frame.wants_html(request.scope):
        return None
    if status == 401 and request.method == "GET" and "authorization" not in request.headers:
        return frame.to_login(request)
    service = request.app.state.service if "app" in request.scope else None
    user = _user(request)
    values = {
        **frame.common(request, service, user),
        "status": status,
        "title": _TITLES.get(status, title),
        "detail": _sentence(detail[:1_000]),
        "hint": _sentence(hint[:1_000]),
        "retry_after": None,
        "reference": reference,
        "way_out": "/" if user else "/login",
        "way_word": "Data sets" if user else "Log in",
    }
    return render.html("error.html", values, status)


def _user(request: Request) -> User | None:
    """Who is logged in, for the frame alone: the session is not checked, for that may be what fails."""
    session = request.scope.get("session", {})
    if "session" in request.scope and (user := getattr(request.state, "user", None)):
        return cast(User, user)
    if session.get("until", 0) > time.time() and "user" in session:
        return User(session["user"], frozenset())
    return None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""
