"""The command `token`: who may use the service from scripts and programs."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.catalog.tokens import Token, Tokens

_SCOPES = ("read", "request", "exports", "tables", "upload", "operator")


@click.group("token")
def token_command() -> None:
    """Make, list and revoke API tokens: `Authorization: Bearer ep_…`.

    A token is shown once, when it is made; the catalog keeps its digest only. Scopes: `read` sees data sets, `request`
    asks for data and downloads one's own, `exports` starts runs of tables, `tables` reads published tables, `upload`
    sends and loads files, `operator` may do all, with everybody's.
    """


@token_command.command("create")
@click.argument("name")
@click.option(
    "--user", metavar="NAME", help="Whose it is: shown with requests, and matched by `who`. NAME when absent."
)
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(_SCOPES), help="May be repeated. Default: read and request."
)
@click.option(
    "--group", "groups", multiple=True, metavar="GROUP", help="A group of the user, for `who`. May be repeated."
)
@click.option("--environment", metavar="NAME", help="The only environment that it may ask in.")
@click.option("--expires", metavar="TIME", default="365d", show_default=True, help="`90d`, `12h`, a date, or `never`.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def create_command(
    name: str,
    user: str | None,
    scopes: tuple[str, ...],
    groups: tuple[str, ...],
    environment: str | None,
    expires: str,
    as_json: bool,
) -> None:
    """Make a token, and print it: it cannot be shown again.

    \b
      export-pipelines token create monthly-beds --user ann --scope upload --expires 90d
    """
    from export_pipelines.catalog.audit import Actor

    until = _until(expires)
    for each in (name, user or name, *groups):
        check_name(each)
    with _tokens() as tokens:
        if environment is not None:
            _check_environment(environment)
        token, text = tokens.create(
            name,
            user or name,
            sorted(set(scopes or ("read", "request"))),
            Actor(f"cli:{person()}"),
            groups=sorted(set(groups)),
            environment=environment,
            expires_at=until,
        )
    if as_json:
        output.as_json({**_as_dict(token), "token": text})
        return
    click.echo(text)
    until_text = f"until {token.expires_at:%Y-%m-%d %H:%M} UTC" if token.expires_at else "for ever"
    click.echo(f"token {token.id} of {token.username} ({', '.join(token.scopes)}), {until_text}", err=True)


@token_command.command("list")
@click.option("--all", "everything", is_flag=True, help="Revoked and expired ones, too.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_command(everything: bool, as_json: bool) -> None:
    """List tokens; their texts are not known."""
    with _tokens() as tokens:
        found = tokens.all(revoked=everything)
    if as_json:
        output.as_json([_as_dict(each) for each in found])
        return
    output.table(
        output.columns("id", "name", "user", "scopes", "groups", "environment", "expires", "last used", "state"),
        [
            [
                each.id, each.name, each.username, ", ".join(each.scopes), ", ".join(each.groups), each.environment,
                each.expires_at, each.used_at, _state(each),
            ]
            for each in found
        ],
    )  # fmt: skip


@token_command.command("revoke")
@click.argument("token")
def revoke_command(token: str) -> None:
    """Revoke a token by its id, or all of a name. Services notice within a second."""
    from export_pipelines.catalog.audit import Actor

    with _tokens() as tokens:
        found = tokens.revoke(token, Actor(f"cli:{person()}"))
    for each in found:
        click.echo(f"token {each.id} ({each.name}) of {each.username} is revoked")


@contextmanager
def _tokens() -> Iterator[Tokens]:
    from export_pipelines.catalog.tokens import Tokens
    from export_pipelines.cli.catalog_pool import running_catalog

    with running_catalog() as (pool, _):
        yield Tokens(pool)


def check_name(name: str) -> None:
    if not name or len(name) > 200 or not name.isprintable():
        raise click.UsageError(f"{name!r} is no name")


def _check_environment(name: str) -> None:
    from export_pipelines.cli.project import read_project
    from export_pipelines.settings import load_settings

    known = read_project(load_settings()).service.environments
    if name not in known:
        raise RequestError(f"there is no environment {name!r}", hint=f"one of {', '.join(known)}")


def _until(text: str) -> datetime | None:
    now = datetime.now(UTC)
    if text == "never":
        return None
    if match := re.fullmatch(r"(\d{1,6})([dh])", text):
        return now + (timedelta(days=int(match[1])) if match[2] == "d" else timedelta(hours=int(match[1])))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time: write 90d, 12h, 2026-01-31 or never") from None
    moment = moment if moment.tzinfo else moment.astimezone()
    if moment <= now:
        raise click.BadParameter(f"{text} is over")
    return moment


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if token.valid_at(datetime.now(UTC)) else "expired"


def _as_dict(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "name": token.name,
        "user": token.username,
        "scopes": list(token.scopes),
        "groups": list(token.groups),
        "environment": token.environment,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "used_at": token.used_at,
        "state": _state(token),
    }


def person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
