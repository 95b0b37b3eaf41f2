"""Who is logged in in the page: a session in a signed cookie, begun by OpenID Connect or by a token.

A session ends by itself after some hours, with the token that it was begun by, and by logging out: the cookie alone
opens nothing any more then. It changes nothing through the API, and each form of the page carries a secret of it.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from starlette.requests import Request

from export_pipelines.api.users import OPERATOR, READ, REQUEST, UPLOAD, User
from export_pipelines.catalog.audit import Actor, AuditEntry
from export_pipelines.catalog.tokens import Token
from export_pipelines.errors import RequestError
from export_pipelines.specs.service import OidcSpec, resolve

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

log = logging.getLogger("export_pipelines.api")

SESSION_SECONDS = 12 * 3600
"""How long a login lasts."""

Session = dict[str, Any]


class LoginRefused(RequestError):
    """Somebody could not be logged in."""


@dataclass(frozen=True)
class Person:
    """Whom an OpenID provider vouches for."""

    name: str
    groups: tuple[str, ...]


# Sessions


def session_user(request: Request) -> User | None:
    """Who is logged in, for the API: only where nothing changes, and not for pages of other sites."""
    if request.method not in ("GET", "HEAD"):
        return None
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return None
    return user_of(request.app.state.service, cast(Session, request.scope.get("session", {})))


def user_of(service: Service, session: Session) -> User | None:
    """The user of a session; None if it is over, or its token is."""
    if session.get("until", 0) <= time.time() or "id" not in session or _is_ended(service, session["id"]):
        return None
    if "token" in session:
        token = service.tokens.get(session["token"])
        return _token_user(token) if token and token.valid_at(datetime.now(UTC)) else None
    if service.spec.oidc is None:
        return None
    return _oidc_user(service.spec.oidc, Person(session["user"], tuple(session["groups"])))


def _token_user(token: Token) -> User:
    return User(token.username, frozenset(token.scopes), frozenset(token.groups), token.environment, "session")


def _oidc_user(spec: OidcSpec, person: Person) -> User:
    """What is configured counts now, not what was when they logged in."""
    names = {person.name, *(f"group:{each}" for each in person.groups)}
    scopes = {READ, REQUEST, UPLOAD} | ({OPERATOR} if names & set(spec.operators) else set())
    return User(person.name, frozenset(scopes), frozenset(person.groups), None, "session")


def begin_by_token(service: Service, session: Session, token: Token, address: str) -> None:
    """Log in by a token. The session is a new one, whatever the browser had."""
    _begin(session, token.username, token=token.id)
    service.audit(Actor(token.username, address), _entry(session, "token"))


def begin_by_oidc(service: Service, session: Session, person: Person, address: str) -> None:
    """Log in somebody whom the provider vouches for. The session is a new one."""
    # They go into the cookie, which browsers do not take when it is long: those that count for nothing stay out.
    _begin(session, person.name, groups=sorted(set(person.groups) & _groups_that_count(service)))
    service.audit(Actor(person.name, address), _entry(session, "oidc"))


def _groups_that_count(service: Service) -> set[str]:
    named = list(service.spec.oidc.operators) if service.spec.oidc else []
    named += [name for each in service.project.datasets.values() for name in each.spec.who]
    return {name.removeprefix("group:") for name in named if name.startswith("group:")}


def _begin(session: Session, name: str, **values: object) -> None:
    session.clear()
    session.update(
        id=secrets.token_hex(16),
        csrf=secrets.token_urlsafe(24),
        user=name,
        until=int(time.time()) + SESSION_SECONDS,
        **values,
    )


def _entry(session: Session, how: str) -> AuditEntry:
    return AuditEntry("login", session["id"], detail={"by": how})


def end(service: Service, session: Session, address: str) -> None:
    """Log out: a copy of the cookie opens nothing any more."""
    if "id" in session:
        service.audit(Actor(session.get("user", ""), address), AuditEntry("logout", session["id"]))
    session.clear()


def _is_ended(service: Service, session: str) -> bool:
    # The audit log knows already, for longer than any session lasts, in all processes.
    found = service.pool.rows(
        "SELECT EXISTS (SELECT FROM audit WHERE subject = %(id)s AND action = 'logout') AS ended", {"id": session}
    )
    return bool(found[0]["ended"])


def refused(service: Service, address: str, reason: str, who: str = "unknown") -> None:
    """Note a login that failed; of a flood from one address only the first."""
    if service.limits.to_be_audited(address):
        service.audit(Actor(who, address), AuditEntry("login", who, "refused", {"reason": reason[:300]}))


def csrf_of(session: Session) -> str:
    """The secret that the forms of a session carry; made when there is none."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe(24)
    return str(session["csrf"])


def is_own_form(session: Session, given: str) -> bool:
    """Whether a form that was sent is one of this session's."""
    own = session.get("csrf", "")
    return bool(own) and hmac.compare_digest(str(own).encode(), given.encode("utf-8", "replace"))


def local_path(text: str | None) -> str:
    """A path of this service to go to; `/` for everything that might lead elsewhere."""
    if not text or not text.startswith("/") or text.startswith(("//", "/login", "/logout")) or len(text) > 2_000:
        return "/"
    # Browsers take a backslash for a slash, and leave out tabs and line ends.
    if "\\" in text or any(ord(each) <= 32 or ord(each) == 127 for each in text):
        return "/"
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    return "/" if parts.scheme or parts.netloc else text


# OpenID Connect


class Oidc:
    """The provider: authorization code with PKCE, state and nonce."""

    def __init__(self, spec: OidcSpec, callback: str) -> None:
        self._spec = spec
        self._callback = callback
        self.issuer = resolve(spec.issuer)
        import authlib.deprecate  # sets a filter of its own

        with warnings.catch_warnings():
            # Of its own moving to a successor of httpx.
            warnings.simplefilter("ignore", authlib.deprecate.AuthlibDeprecationWarning)
            from authlib.integrations.starlette_client import OAuth

        self._client = OAuth().register(
            "provider",
            client_id=resolve(spec.client_id),
            client_secret=resolve(spec.client_secret),
            server_metadata_url=f"{self.issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={"scope": spec.scope, "code_challenge_method": "S256", "timeout": 10},
        )

    @property
    def provider(self) -> str:
        """Its name for people."""
        return urlsplit(self.issuer).hostname or self.issuer

    async def begin(self, request: Request) -> str:
        """The address of the provider to send a browser to. Raises LoginRefused: it does not answer."""
        try:
            answer = await self._client.authorize_redirect(request, self._callback)
        except Exception as error:
            raise self._away(error) from error
        return str(answer.headers["location"])

    async def finish(self, request: Request) -> Person:
        """Whom the provider sent back.

        Raises:
            LoginRefused: it refused, the answer is not to a question of this browser, or not fit to be believed.
        """
        if "error" in request.query_params:
            raise LoginRefused("the provider refused the login", hint="you may not use this service, or you cancelled")
        issuers = {self.issuer, self.issuer.rstrip("/"), f"{self.issuer.rstrip('/')}/"}
        if f"_state_provider_{request.query_params.get('state')}" not in request.session:
            raise LoginRefused("this login was not begun in this browser, or too long ago", hint="begin again")
        try:
            token = await self._client.authorize_access_token(
                request, claims_options={"iss": {"essential": True, "values": sorted(issuers)}}
            )
            claims = await self._claims(token)
        except Exception as error:
            raise self._away(error) from error
        return self._person(claims)

    async def _claims(self, token: Mapping[str, Any]) -> dict[str, Any]:
        """The claims of the ID token; what is wanted and not in it, the provider is asked for."""
        claims = dict(token.get("userinfo") or {})
        wanted = {self._spec.user_claim, self._spec.groups_claim}
        metadata = await self._client.load_server_metadata()
        if claims and wanted - claims.keys() and "userinfo_endpoint" in metadata:
            more = dict(await self._client.userinfo(token=token))
            # Of somebody else it says nothing.
            if more.get("sub") == claims.get("sub"):
                claims = {**more, **claims}
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        claim = self._spec.user_claim
        name = claims.get(claim)
        if not isinstance(name, str) or not name.strip() or len(name) > 320:
            raise LoginRefused(f"the provider does not say who you are: no claim {claim!r}", hint="ask its operator")
        if claim == "email" and self._spec.require_verified_email and claims.get("email_verified") is not True:
            raise LoginRefused(f"the provider has not verified the address {name}", hint="verify it there first")
        groups = claims.get(self._spec.groups_claim) or []
        groups = [groups] if isinstance(groups, str) else groups
        return Person(name.strip(), tuple(each for each in groups if isinstance(each, str)))

    def _away(self, error: Exception) -> LoginRefused:
        if isinstance(error, LoginRefused):
            return error
        log.warning("login by %s: %s: %s", self.provider, type(error).__name__, str(error)[:300])
        return LoginRefused(f"the login by {self.provider} failed", hint="try again; the service's log says more")
