"""Pages for people: data sets, requests, login. They call the same functions as the API."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from export_pipelines.api import login
from export_pipelines.api.pages import datasets, overview, requests, tokens, uploads
from export_pipelines.api.pages.logins import Logins
from export_pipelines.api.pages.render import STATIC
from export_pipelines.api.service import Service
from export_pipelines.specs.service import resolve

_COOKIE = "export_pipelines_session"


def install(app: FastAPI, service: Service) -> None:
    """Put the pages before all other routes, and sessions around all."""
    own = [*datasets.ROUTES, *requests.ROUTES, *overview.ROUTES, *tokens.ROUTES, *uploads.ROUTES]
    pages = [*Logins(service).routes(), *own]
    app.router.routes[0:0] = [*pages, Mount("/static", _Static(directory=STATIC), name="static")]
    secure = resolve(service.spec.public_url).startswith("https:")
    app.add_middleware(
        SessionMiddleware,
        secret_key=service.keys.key("cookies").hex(),
        # With this prefix browsers take it over TLS only, and from no other host.
        session_cookie=f"__Host-{_COOKIE}" if secure else _COOKIE,
        max_age=login.SESSION_SECONDS,
        same_site="lax",
        https_only=secure,
    )


class _Static(StaticFiles):
    """Files whose addresses change with their content."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        answer: Response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        answer.headers["cache-control"] = "public, max-age=31536000, immutable"
        return answer

    async def get_response(self, path: str, scope: Scope) -> Response:
        return await super().get_response(path, scope)
