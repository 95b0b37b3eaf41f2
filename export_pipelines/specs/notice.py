"""How somebody wants to be told of the end of a request, checked when they ask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

from export_pipelines.mail import domain_of, is_address
from export_pipelines.specs.dataset import DataSetDefinition, Mail
from export_pipelines.specs.query import Problem, QueryError
from export_pipelines.specs.service import ServiceSpec

_PORTS = {"http": 80, "https": 443}
_LONGEST = 2_000


def check_notice(
    dataset: DataSetDefinition, service: ServiceSpec, email: str | None, webhook: str | None
) -> tuple[str | None, str | None]:
    """The address and the URL to tell of the end, without what is around them.

    Raises:
        QueryError: the data set wants an address or takes none, it is no address, or its domain or the host of the
            webhook is not allowed.
    """
    email, webhook = (email or "").strip() or None, (webhook or "").strip() or None
    problems = [
        *(_mail_problems(dataset, service, email)),
        *(webhook_problems(service, webhook) if webhook else ()),
    ]
    if problems:
        raise QueryError(problems)
    return email, webhook


def _mail_problems(dataset: DataSetDefinition, service: ServiceSpec, email: str | None) -> Iterator[Problem]:
    if email is None:
        if dataset.spec.mail is Mail.REQUIRED:
            yield Problem(
                "email", f"{dataset.id} needs an e-mail address to tell of the end", "add email=you@example.org"
            )
        return
    if dataset.spec.mail is Mail.OFF:
        yield Problem("email", f"{dataset.id} sends no mail", "leave out the e-mail address")
    elif service.smtp is None:
        yield Problem(
            "email", "this service has no mail server", "leave out the e-mail address, and look at the request"
        )
    elif not is_address(email):
        yield Problem("email", f"{email[:100]!r} is no e-mail address", "write name@example.org")
    elif service.smtp.allowed_domains and domain_of(email) not in {d.lower() for d in service.smtp.allowed_domains}:
        yield Problem(
            "email",
            f"no mail goes to {domain_of(email)}",
            f"allowed domains are {', '.join(service.smtp.allowed_domains)}",
        )


def webhook_problems(service: ServiceSpec, webhook: str) -> Iterator[Problem]:
    """What is wrong with the URL of a webhook. It may be a secret, and is not repeated."""
    target = split_url(webhook)
    if target is None:
        yield Problem("webhook", "the webhook is no URL", "write https://host/path, without user and password")
    elif allowed_by(service, target) is None:
        allowed = ", ".join(service.webhooks.allowed_hosts) or "none"
        yield Problem("webhook", f"host {target.hostname} may not be called", f"allowed hosts are: {allowed}")


def split_url(url: str) -> SplitResult | None:
    """The parts of the URL of a webhook; None if it is unfit."""
    if len(url) > _LONGEST or not re.fullmatch(r"[\x21-\x7e]+", url):
        return None
    try:
        parts = urlsplit(url)
        fit = parts.scheme in _PORTS and parts.hostname and parts.username is None and port_of(parts)
    except ValueError:
        return None
    return parts if fit else None


def port_of(url: SplitResult) -> int:
    """The port of a URL."""
    return url.port or _PORTS[url.scheme]


def allowed_by(service: ServiceSpec, url: SplitResult) -> str | None:
    """The entry of `allowed_hosts` that lets a URL be called: an exact one if there is one."""
    host = (url.hostname or "").rstrip(".").lower()
    exact = {f"{host}:{port_of(url)}"} | ({host} if port_of(url) == _PORTS[url.scheme] else set())
    entries = [each.lower() for each in service.webhooks.allowed_hosts]
    named = next((each for each in entries if each in exact), None)
    if named is not None:
        return named
    wide = (each for each in entries if each.startswith("*."))
    return next((each for each in wide if any(name.endswith(each[1:]) for name in exact)), None)
