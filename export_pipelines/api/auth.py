"""Who calls: by a token in the header Authorization, or by the cookie of a login in the page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, cast

from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from export_pipelines.api.problems import Problem
from export_pipelines.api.service import Service
from export_pipelines.api.users import EXPORTS, OPERATOR, READ, REQUEST, UPLOAD, Refused, User
from export_pipelines.catalog.tokens import Token

__all__ = [
    "Asker", "Operator", "Reader", "Service", "Starter", "Uploader", "User", "address_of", "current_user", "service_of",
]  # fmt: skip

_bearer = HTTPBearer(
    auto_error=False,
    description="A token, `ep_…`. `export-pipelines token create NAME` makes one; a service on your own machine prints "
    "one when it starts.",
)


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return cast(Service, request.app.state.service)


def address_of(request: Request) -> str:
    """The caller's address; what trusted proxies say of it counts."""
    return request.client.host if request.client else ""


async def current_user(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> User:
    """Who calls. Counts the call for their rate limit.

    Raises:
        Problem: 401, it is nobody. Refused: 429, too many calls, or too many wrong tokens from this address.
    """
    user = await found_user(request)
    if user is None:
        raise Problem(401, "nobody is logged in", hint="send the header `Authorization: Bearer ep_…`")
    return user


async def found_user(request: Request, rate: str = "requests_per_user") -> User | None:
    """Who calls, None if they do not say; counted for a rate. Raises as `current_user` does."""
    service = service_of(request)
    user: User | None
    if "authorization" in request.headers:
        user = await _by_token(service, request)
    else:
        user = await _by_session(request)
    if user is not None:
        request.state.user = user
        request.state.left = service.limits.take(rate, user.name)
    return user


async def _by_token(service: Service, request: Request) -> User:
    address = address_of(request)
    service.limits.look("failed_logins_per_address", address)
    scheme, _, text = request.headers["authorization"].partition(" ")
    token = None
    if scheme.lower() == "bearer":
        text = text.strip()
        token = service.token_cache.known(text) or await run_in_threadpool(service.token_cache.verify, text)
    if token is None:
        service.limits.take("failed_logins_per_address", address)
        raise Problem(401, "the token is unknown, revoked or has expired", hint="make one: export-pipelines token")
    if service.token_cache.is_news(token):
        service.later(lambda: service.tokens.used(token.id))
    return user_of(token)


def user_of(token: Token) -> User:
    """The user that a token stands for."""
    return User(token.username, frozenset(token.scopes), frozenset(token.groups), token.environment)


async def _by_session(request: Request) -> User | None:
    if request.method not in ("GET", "HEAD"):
        return None  # a cookie changes nothing here: whatever page sent it
    try:
        from export_pipelines.api.login import session_user
    except ImportError:
        return None
    return cast("User | None", await run_in_threadpool(session_user, request))


def needs(scope: str) -> Callable[..., Awaitable[User]]:
    """A dependency: the user, who has a scope. Raises Refused: 403."""

    async def user_with(user: Annotated[User, Depends(current_user)]) -> User:
        if not user.may(scope):
            raise Refused(f"{user.name} lacks the scope {scope!r}", hint="ask with another token")
        return user

    return user_with


_with_exports = needs(EXPORTS)


async def starter(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> User:
    """The user of the endpoints of tables: with the scope, or anybody where the service is set to that."""
    user = await found_user(request)
    if user is None and service_of(request).spec.open_exports:
        return User("anonymous", frozenset({EXPORTS}), kind="open")
    if user is None:
        raise Problem(401, "nobody is logged in", hint="send the header `Authorization: Bearer ep_…`")
    return await _with_exports(user)


Reader = Annotated[User, Depends(needs(READ))]
"""Who may see data sets."""
Asker = Annotated[User, Depends(needs(REQUEST))]
"""Who may ask."""
Starter = Annotated[User, Depends(starter)]
"""Who may start runs of tables."""
Uploader = Annotated[User, Depends(needs(UPLOAD))]
"""Who may upload, where they are named."""
Operator = Annotated[User, Depends(needs(OPERATOR))]
"""Who may do everything."""
