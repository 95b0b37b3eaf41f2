"""Logging in and out."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from export_pipelines.api import login
from export_pipelines.api.pages import frame, render
from export_pipelines.api.pages.frame import PageRoute
from export_pipelines.api.pages.questions import Pairs
from export_pipelines.api.service import Service
from export_pipelines.api.users import Refused
from export_pipelines.specs.service import resolve


class Logins:
    """The pages of /login and /logout."""

    def __init__(self, service: Service) -> None:
        self._service = service
        public = resolve(service.spec.public_url).rstrip("/")
        self._oidc = login.Oidc(service.spec.oidc, f"{public}/login/callback") if service.spec.oidc else None

    def routes(self) -> list[Route]:
        """Their routes."""
        found = [
            PageRoute("/login", self._show, methods=["GET"]),
            PageRoute("/logout", self._leave, methods=["POST"]),
        ]
        if self._oidc is None:
            return [*found, PageRoute("/login", self._by_token, methods=["POST"])]
        return [
            *found,
            PageRoute("/login/oidc", self._to_provider, methods=["GET"]),
            PageRoute("/login/callback", self._from_provider, methods=["GET"]),
        ]

    async def _show(self, request: Request) -> Response:
        following = login.local_path(request.query_params.get("next"))
        if await run_in_threadpool(login.user_of, self._service, request.session) is not None:
            return RedirectResponse(following, 303)
        return self._page(request, following, told="You are logged out." if "out" in request.query_params else "")

    def _page(self, request: Request, following: str, *, status: int = 200, **told: Any) -> Response:
        login.csrf_of(request.session)
        values = {
            "error": "",
            "hint": "",
            "told": "",
            **told,
            "next": following,
            "oidc": f"/login/oidc?next={quote(following, safe='/')}" if self._oidc else "",
            "provider": self._oidc.provider if self._oidc else "",
        }
        return render.html("login.html", {**frame.common(request, self._service, None), **values}, status)

    async def _by_token(self, request: Request) -> Response:
        form = await frame.read_form(request)
        return await run_in_threadpool(self._token_answer, request, dict(form), form)

    def _token_answer(self, request: Request, values: dict[str, str], form: Pairs) -> Response:
        service, address = self._service, request.client.host if request.client else ""
        following = login.local_path(values.get("next"))
        service.limits.look("failed_logins_per_address", address)
        try:
            frame.check_form(request, form)
        except Refused as error:
            return self._page(request, following, status=403, error="Please send it again", hint=error.hint)
        token = service.tokens.verify(values.get("token", "").strip())
        if token is None:
            service.limits.take("failed_logins_per_address", address)
            login.refused(service, address, "token")
            request.state.login_redirect = True  # it is in the audit log already
            hint = "It may have been revoked or have expired, or a part of it is missing."
            return self._page(request, following, status=401, error="This token opens nothing", hint=hint)
        login.begin_by_token(service, request.session, token, address)
        return RedirectResponse(following, 303)

    async def _to_provider(self, request: Request) -> Response:
        assert self._oidc is not None
        following = login.local_path(request.query_params.get("next"))
        request.session["next"] = following
        try:
            return RedirectResponse(await self._oidc.begin(request), 303)
        except login.LoginRefused as error:
            return self._page(request, following, status=502, error=_sentence(error.message), hint=error.hint)

    async def _from_provider(self, request: Request) -> Response:
        assert self._oidc is not None
        following = login.local_path(request.session.get("next"))
        address = request.client.host if request.client else ""
        try:
            await run_in_threadpool(self._service.limits.look, "failed_logins_per_address", address)
            person = await self._oidc.finish(request)
        except login.LoginRefused as error:
            await run_in_threadpool(self._note_refusal, address, error.message)
            request.state.login_redirect = True
            hint = _sentence(error.hint)
            return self._page(request, following, status=403, error=_sentence(error.message), hint=hint)
        await run_in_threadpool(login.begin_by_oidc, self._service, request.session, person, address)
        return RedirectResponse(following, 303)

    def _note_refusal(self, address: str, reason: str) -> None:
        login.refused(self._service, address, reason)
        self._service.limits.take("failed_logins_per_address", address)

    async def _leave(self, request: Request) -> Response:
        form = await frame.read_form(request)
        frame.check_form(request, form)
        address = request.client.host if request.client else ""
        await run_in_threadpool(login.end, self._service, request.session, address)
        return RedirectResponse("/login?out=1", 303)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
