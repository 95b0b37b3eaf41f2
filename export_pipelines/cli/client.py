"""The command `client`: programs that read loaded tables, and sign their calls (HAWK)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.cli.token import check_name, person

if TYPE_CHECKING:
    from export_pipelines.catalog.hawk import HawkClient, HawkClients

_PATTERN = re.compile(r"[a-z0-9_*?\[\]]+\.[a-z0-9_*?\[\]]+|\*")


@click.group("client")
def client_command() -> None:
    """Make, list, rotate and revoke clients: programs that read published tables by signed calls (HAWK).

    A client has an id and a key. The key is shown once; the catalog keeps it sealed by the service's secret.
    """


@client_command.command("create")
@click.argument("name")
@click.option(
    "--table",
    "tables",
    multiple=True,
    required=True,
    metavar="PATTERN",
    help="`schema.table`; `*` and `?` as in a shell: `shop.*`, or `*` for all. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def create_command(name: str, tables: tuple[str, ...], as_json: bool) -> None:
    """Make a client, and print its id and key: the key cannot be shown again.

    \b
      export-pipelines client create warehouse-copy --table 'shop.*'
    """
    from export_pipelines.catalog.audit import Actor

    check_name(name)
    for each in tables:
        if not _PATTERN.fullmatch(each):
            raise click.UsageError(f"{each!r} is no pattern of `schema.table`")
    with _clients() as clients:
        client, key = clients.create(name, sorted(set(tables)), Actor(f"cli:{person()}"))
    _told(client, key, as_json)


@client_command.command("list")
@click.option("--all", "everything", is_flag=True, help="Revoked ones, too.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_command(everything: bool, as_json: bool) -> None:
    """List clients; their keys are not shown."""
    with _clients() as clients:
        found = clients.all(revoked=everything)
    if as_json:
        output.as_json([_as_dict(each) for each in found])
        return
    output.table(
        output.columns("id", "name", "tables", "created", "rotated", "old key until", "last used", "state"),
        [
            [
                each.id, each.name, ", ".join(each.tables), each.created_at, each.rotated_at, each.previous_until,
                each.used_at, "revoked" if each.revoked_at else "valid",
            ]
            for each in found
        ],
    )  # fmt: skip


@client_command.command("rotate")
@click.argument("client")
@click.option("--keep", metavar="TIME", default="30d", show_default=True, help="How long the key of now still opens.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def rotate_command(client: str, keep: str, as_json: bool) -> None:
    """Make a new key for a client, by its id, and print it. Both keys open for a while."""
    from export_pipelines.catalog.audit import Actor

    match = re.fullmatch(r"(\d{1,4})([dh])", keep)
    if not match:
        raise click.BadParameter(f"{keep!r} is no time: write 30d, 12h or 0d")
    time = timedelta(days=int(match[1])) if match[2] == "d" else timedelta(hours=int(match[1]))
    with _clients() as clients:
        found, key = clients.rotate(client, Actor(f"cli:{person()}"), time)
    _told(found, key, as_json)


@client_command.command("revoke")
@click.argument("client")
def revoke_command(client: str) -> None:
    """Revoke a client by its id: its keys open nothing from now on."""
    from export_pipelines.catalog.audit import Actor

    with _clients() as clients:
        found = clients.revoke(client, Actor(f"cli:{person()}"))
    click.echo(f"client {found.id} ({found.name}) is revoked")


@contextmanager
def _clients() -> Iterator[HawkClients]:
    from export_pipelines.catalog.hawk import HawkClients
    from export_pipelines.cli.catalog_pool import running_catalog
    from export_pipelines.service_keys import load_service_keys

    with running_catalog() as (pool, settings):
        yield HawkClients(pool, load_service_keys(settings.state).key("hawk"))


def _told(client: HawkClient, key: str, as_json: bool) -> None:
    if as_json:
        output.as_json({**_as_dict(client), "key": key, "algorithm": "sha256"})
        return
    click.echo(f"id: {client.id}\nkey: {key}\nalgorithm: sha256")
    click.echo(f"client {client.id} ({client.name}) may read {', '.join(client.tables)}", err=True)
    if client.previous_until:
        click.echo(f"the key before opens until {client.previous_until:%Y-%m-%d %H:%M} UTC", err=True)


def _as_dict(client: HawkClient) -> dict[str, object]:
    return {
        "id": client.id,
        "name": client.name,
        "tables": list(client.tables),
        "created_at": client.created_at,
        "rotated_at": client.rotated_at,
        "previous_until": client.previous_until,
        "used_at": client.used_at,
        "state": "revoked" if client.revoked_at else "valid",
    }
