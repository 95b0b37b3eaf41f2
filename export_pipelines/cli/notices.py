"""The command `notices`: which notices of ended requests wait or were given up, and a new attempt for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.catalog.deliveries import Delivery
    from export_pipelines.cli.project import Opened


@click.command("notices")
@click.option("--all", "everything", is_flag=True, help="Delivered ones, too.")
@click.option("--request", metavar="ID", help="Only those of a request.")
@click.option("--again", metavar="NUMBER", type=int, multiple=True, help="Try one anew that was given up.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The last so many of them.")
@click.option("--webhook-secret", is_flag=True, help="Print the secret by which receivers verify webhooks, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def notices_command(
    everything: bool, request: str | None, again: tuple[int, ...], limit: int, webhook_secret: bool, as_json: bool
) -> None:
    """List the mails and webhooks about ended requests that wait, or were given up.

    The worker sends them, each up to six times within three hours. What was given up since a mail server was away
    for longer is sent with --again.
    """
    from export_pipelines.catalog.deliveries import Deliveries
    from export_pipelines.catalog.pool import CatalogPool
    from export_pipelines.cli.project import opened
    from export_pipelines.components.opening import initialized

    with opened() as project:
        if webhook_secret:
            click.echo(_secret(project))
            return
        catalog = initialized("catalog", project.project.resources.get("catalog"))
        with CatalogPool(catalog.url, catalog.schema_name, size=1) as pool:
            outbox = Deliveries(pool)
            for number in again:
                if not outbox.again(number):
                    raise RequestError(f"no notice {number} was given up", hint="see `export-pipelines notices`")
            states = () if everything else ("waiting", "given up")
            found = outbox.find(states=states, request=request, limit=limit)
    if as_json:
        # The URL of a webhook may be a secret.
        output.as_json([vars(replace(each, target=each.place)) for each in found])
    elif found:
        heads = output.columns("#number", "request", "user", "to", "event", "state", "#attempts", "next (UTC)", "error")
        output.table(heads, [_cells(each) for each in found])
    else:
        output.note("no notice" if everything else "no notice waits or was given up")


def _cells(each: Delivery) -> list[output.Cell]:
    following = each.next_at if each.state == "waiting" else None
    error = (each.error or "")[:100]
    return [
        each.id,
        each.request_id,
        each.username,
        each.place,
        each.event,
        each.state,
        each.attempts,
        following,
        error,
    ]


def _secret(project: Opened) -> str:
    from export_pipelines.service_keys import load_service_keys
    from export_pipelines.specs.service import resolve
    from export_pipelines.worker.webhook import secret_text, signing_key

    own = load_service_keys(project.settings.state).key("webhooks")
    return secret_text(signing_key(resolve(project.project.service.webhooks.secret), own))
