"""What resources/service/defs.yaml may say: how exports on demand are served, queued, kept, told of and guarded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal, overload

from pydantic import BaseModel, Field, field_validator, model_validator

from export_pipelines.errors import RequestError
from export_pipelines.specs.encryption import EncryptionSpec
from export_pipelines.specs.model import SpecModel


class FromVariable(SpecModel):
    """A value that is in an environment variable (or in `.env`), read when it is used."""

    env: str = Field(pattern=r"^\w+$")
    """Name of the variable."""
    default: str | None = None
    """Value when the variable is not set."""


Text = str | FromVariable


@overload
def resolve(value: Text) -> str: ...
@overload
def resolve(value: Text | None) -> str | None: ...
def resolve(value: Text | None) -> str | None:
    """The text, or what its variable holds now.

    Raises:
        RequestError: the variable is not set.
    """
    if value is None or isinstance(value, str):
        return value
    found = os.environ.get(value.env, value.default)
    if found is None:
        raise RequestError(f"the variable {value.env} is not set", hint="set it in the environment or in .env")
    return found


def variables(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FromVariable]]:
    """The variables that a definition names, with the path to each."""
    if isinstance(value, FromVariable):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from variables(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from variables(each, (*path, str(key)))


class RateSpec(SpecModel):
    """How much one may ask, as `number/period`: `60/minute`, `5/second`, `1000/hour`."""

    requests_per_user: str = "600/minute"
    """All calls of one user."""
    requests_per_address: str = "1200/minute"
    """All calls from one address."""
    pages_per_user: str = "6000/minute"
    """Pages of tables (`/api/v1/`) of one client or user."""
    pages_per_address: str = "12000/minute"
    """The same from one address."""
    exports_per_user: str = "120/minute"
    """Requests for exports (POST) of one user."""
    failed_logins_per_address: str = "10/minute"
    """Wrong tokens and failed logins from one address; then even right ones wait."""


class OidcSpec(SpecModel):
    """Login of people by OpenID Connect."""

    issuer: Text
    """URL of the provider, below which `/.well-known/openid-configuration` is."""
    client_id: Text
    """This service's id at the provider."""
    client_secret: FromVariable
    """Its secret."""
    scope: str = "openid email profile"
    """What the provider is asked for; some want `groups` named as well."""
    user_claim: str = "email"
    """Claim that is the user's name here; `email` counts only if the provider says that it is verified."""
    groups_claim: str = "groups"
    """Claim with the names of groups."""
    operators: tuple[str, ...] = ()
    """Users, or `group:name`, who see and cancel everybody's requests."""
    require_verified_email: bool = True
    """Whether `email_verified` must be true where the user's name is the e-mail address."""


class SmtpSpec(SpecModel):
    """The mail server for notices."""

    host: Text = "127.0.0.1"
    port: int = Field(default=25, ge=1, le=65_535)
    security: Literal["none", "starttls", "tls"] = "none"
    """How the connection is secured."""
    user: Text | None = None
    password: FromVariable | None = None
    sender: Text = "export-pipelines@localhost"
    """Address that mails come from."""
    allowed_domains: tuple[str, ...] = ()
    """Domains that mails may go to; any when empty."""


class WebhookSpec(SpecModel):
    """Calls of other services when a request ends. Each is signed with HMAC-SHA256 over time and body."""

    secret: FromVariable | None = None
    """Key of the signatures; the service's own when absent."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that may be called: `hooks.example.org`, another port than the usual one as `hooks.example.org:8443`, and
    `*.example.org` for all below a domain (private addresses only by an exact name). Empty: none, so that nobody
    reaches inner addresses through this service."""


class ServiceSpec(SpecModel):
    """Exports on demand by HTTP. All has a default: a project without this document is served, too."""

    resource_key: Literal["service"] = "service"
    """Always `service`."""
    store: str = "exports"
    """Name of the store in resources/ which files of requests go to, below `requests/`."""
    public_url: Text = FromVariable(env="PUBLIC_URL", default="http://127.0.0.1:8080")
    """Address under which people reach it: links in mails begin with it. `up` sets the variable to where it serves."""
    dagster_url: Text = FromVariable(env="DAGSTER_URL", default="http://127.0.0.1:3000")
    """Address of Dagster's UI: links to runs begin with it. `up` sets the variable to where it serves."""
    encryption: Literal["service", "off"] = "service"
    """`service`: files are encrypted before they are stored, to the service's own key (made at its first start) and to
    `recipients`; downloads decrypt. `off`: as they are; then S3 hands them out itself, by presigned links."""
    recipients: EncryptionSpec | None = None
    """To whom files are encrypted, too."""
    concurrency: int = Field(default=3, ge=1, le=100)
    """Requests at work at the same time."""
    per_user: int | None = Field(default=None, ge=1)
    """Of these, one user's at most; no limit when absent."""
    fairness: Literal["fifo", "round_robin"] = "fifo"
    """`fifo`: first in, first out. `round_robin`: users take turns, each one's own in their order."""
    retries: int = Field(default=3, ge=0, le=20)
    """How often a request that failed is tried again."""
    retry_on: Literal["transient", "all"] = "transient"
    """Which errors are tried again."""
    retry_delay_seconds: float = Field(default=2, ge=0)
    """Wait before the first; it doubles each time."""
    max_runtime_minutes: float = Field(default=120, gt=0)
    """A request at work for longer is ended as stuck."""
    small_rows: int = Field(default=10_000, ge=0)
    """A request for fewer rows may come straight back (`Prefer: wait`)."""
    wait_seconds: float = Field(default=30, ge=1, le=300)
    """How long a call with `Prefer: wait` waits at most."""
    link_minutes: float = Field(default=60 * 24, gt=0)
    """How long a signed link is valid."""
    max_pending_per_user: int = Field(default=1_000, ge=1)
    """A user's requests that wait or are at work."""
    page_rows: int = Field(default=1_000, ge=1, le=10_000)
    """Rows of a page of a table."""
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    """Body of a call."""
    rates: RateSpec = RateSpec()
    """Rate limits."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose `X-Forwarded-For`, `-Proto` and `-Host` are believed."""
    open_exports: bool = False
    """Compatibility: `/exports` and what is below it answer without a token. For trusted networks only."""
    oidc: OidcSpec | None = None
    """Login of people; without it the page takes a token."""
    smtp: SmtpSpec | None = None
    """Mail server; without it nothing is mailed."""
    webhooks: WebhookSpec = WebhookSpec()
    """Calls of other services."""
    environments: tuple[str, ...] = ("default",)
    """Names of environments or applications; each has ids of its own. The first is the default."""
    audit_keep_days: int = Field(default=400, ge=1)
    """Entries of the audit log that are younger cannot be deleted by anybody."""
    history_keep_days: int = Field(default=90, ge=1)
    """Ended requests that are older are forgotten once their file is gone."""

    @field_validator("environments")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name at least one environment, and each once")
        return value

    @field_validator("rates")
    @classmethod
    def _readable(cls, value: RateSpec) -> RateSpec:
        from limits import parse_many

        for name in RateSpec.model_fields:
            try:
                parse_many(getattr(value, name))
            except ValueError:
                raise ValueError(f"{name}: {getattr(value, name)!r} is no rate; write 60/minute") from None
        return value

    @model_validator(mode="after")
    def _per_user_fits(self) -> ServiceSpec:
        if self.per_user is not None and self.per_user > self.concurrency:
            raise ValueError("per_user is more than concurrency")
        return self
