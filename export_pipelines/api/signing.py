"""Who reads tables: a client that signs its calls (HAWK), or somebody with a token of the scope `tables`. Answers to
signed calls are signed, refusals included."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from export_pipelines.api import hawk
from export_pipelines.api.auth import address_of, found_user, service_of
from export_pipelines.api.problems import Problem, problem_of, render
from export_pipelines.api.service import Service
from export_pipelines.api.users import TABLES, Refused, User
from export_pipelines.catalog.hawk import HawkClient, HawkKeys
from export_pipelines.errors import ExportPipelinesError

_FAILED = "failed_logins_per_address"
_CHALLENGE = 'Hawk, Bearer realm="export-pipelines"'
_HINT = "see `export-pipelines client`; clock, key, host and path must be right, and each nonce new"

_bearer = HTTPBearer(
    auto_error=False,
    description="A token, `ep_…`, of the scope `tables`. Programs rather sign their calls by HAWK: `Authorization: "
    "Hawk …` with id and key of `export-pipelines client create`, or a `bewit` in the address.",
)


@dataclass(frozen=True)
class TableReader:
    """Who reads tables."""

    name: str
    tables: tuple[str, ...]
    """Patterns of `schema.table`."""

    def check(self, table: str) -> None:
        """Raises Refused: they may not read it, whether it is there or not."""
        if not any(fnmatch.fnmatchcase(table, pattern) for pattern in self.tables):
            raise Refused(f"{self.name} may not read {table[:200]}", hint="ask the operator for it")


async def table_reader(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> TableReader:
    """Who calls.

    Raises:
        Problem: 401, it is nobody, or 400, it is no HAWK. Refused: too many calls, or of the wrong scope.
    """
    scheme = request.headers.get("authorization", "").partition(" ")[0].lower()
    bewit = hawk.split_bewit(_resource(request))
    if scheme == "hawk" or bewit is not None:
        return await _signed(request, bewit)
    user = await found_user(request, "pages_per_user")
    if user is None:
        raise Problem(401, "nobody is logged in", hint=_HINT, headers={"www-authenticate": _CHALLENGE})
    if not user.may(TABLES):
        raise Refused(f"{user.name} lacks the scope {TABLES!r}", hint="ask with another token")
    return TableReader(user.name, ("*",))


async def _signed(request: Request, bewit: tuple[str, str] | None) -> TableReader:
    service, address = service_of(request), address_of(request)
    service.limits.look(_FAILED, address)
    try:
        client = await _check(request, service, bewit)
    except hawk.Malformed as error:
        service.limits.take(_FAILED, address)
        raise Problem(400, str(error), hint="sign with a library for HAWK") from None
    except hawk.NotAuthentic as error:
        service.limits.take(_FAILED, address)
        headers = {"www-authenticate": error.challenge}
        raise Problem(401, "the signature is not accepted", hint=_HINT, headers=headers) from None
    request.state.user = User(client.name, frozenset(), kind="hawk")
    request.state.left = service.limits.take("pages_per_user", f"client {client.id}")
    service.later(lambda: service.hawk.used(client.id))
    return TableReader(client.name, client.tables)


async def _check(request: Request, service: Service, bewit: tuple[str, str] | None) -> HawkClient:
    header = request.headers.get("authorization")
    if header is not None and bewit is not None:
        raise hawk.Malformed("a call is signed by a header or by a bewit, not by both")
    if len(request.headers.getlist("authorization")) > 1:
        raise hawk.Malformed("there are several headers Authorization")
    if bewit is not None:
        artifacts, resource = hawk.parse_bewit(bewit[0]), bewit[1]
    else:
        artifacts, resource = hawk.parse_header(header or ""), _resource(request)
    host, port = hawk.place(request.headers.get("host", ""), request.url.scheme)
    body = await request.body()
    call = hawk.Call(request.method, resource, host, port, request.headers.get("content-type", ""), body)
    return await run_in_threadpool(_prove, request, service, call, artifacts, bewit is not None)


def _prove(request: Request, service: Service, call: hawk.Call, artifacts: hawk.Artifacts, bewit: bool) -> HawkClient:
    clients = service.hawk
    found: HawkKeys | None = clients.find(artifacts.id)
    keys = found.keys if found else ()
    now = int(time.time())
    if bewit:
        hawk.check_bewit(call, artifacts, keys, now)
    else:
        request.state.proof = hawk.check_header(
            call, artifacts, keys, now, lambda ts, nonce: clients.first_time(artifacts.id, ts, nonce)
        )
    assert found is not None
    return found.client


def _resource(request: Request) -> str:
    """Path and query as they were sent."""
    path = (request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


class SignedRoute(APIRoute):
    """A route whose answers to signed calls are signed, those that are errors too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await inner(request)
            except (Problem, ExportPipelinesError, RequestValidationError) as error:
                response = render(request, problem_of(error))
            return sign(request, response)

        return handle


def sign(request: Request, response: Response) -> Response:
    """Put the header Server-Authorization on the answer to a call that was signed by a header. What an answer with a
    Content-Encoding says is signed before that; what is streamed has no hash."""
    proof: hawk.Proof | None = getattr(request.state, "proof", None)
    if proof is not None:
        plain = getattr(response, "plain", getattr(response, "body", None))
        payload = bytes(plain) if plain is not None else None
        if request.method == "HEAD":
            payload = b""
        kind = response.headers.get("content-type", "")
        response.headers["server-authorization"] = proof.server_authorization(payload, kind)
    return response


Reader = Annotated[TableReader, Depends(table_reader)]
"""Who may read tables."""
