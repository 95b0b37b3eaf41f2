"""The command `api`: the service that people and programs ask for data."""

from __future__ import annotations

import ipaddress
import logging
import os
from typing import TYPE_CHECKING

import click

from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.settings import Settings


@click.command("api")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen at.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port to listen at.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes. Each has rate limits of its own.",
)
@click.option(
    "--local-token/--no-local-token",
    default=None,
    help="Make a token for this machine at each start, print it, and write it into .local/keys/local.token. On by "
    "default at a loopback address.",
)
@click.option("--open", "is_open", is_flag=True, help="Listen at another address although no token exists.")
def api_command(host: str, port: int, workers: int, local_token: bool | None, is_open: bool) -> None:
    """Serve exports on demand by HTTP: the API (its document is at /openapi.json) and the page for people.

    Requests are only recorded here; `export-pipelines worker` does the work. `export-pipelines up` runs both, with all
    else. Settings are in resources/service/defs.yaml; tokens are made by `export-pipelines token create`. At another
    address than this machine's own it wants a token to exist, and TLS in front of it: see docs/how-to/serve-exports.md.
    """
    from export_pipelines.cli.project import quiet
    from export_pipelines.local.project import running
    from export_pipelines.settings import load_settings

    quiet()
    loopback = _is_loopback(host)
    found = load_settings()
    with running(found, migrate_catalog=found.embedded_dagster) as settings:
        if not loopback and not is_open:
            _refuse_without_tokens(settings, host)
        if loopback if local_token is None else local_token:
            click.echo(f"token: {_fresh_token(settings)}")
        _serve(settings, host, port, workers)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse_without_tokens(settings: Settings, host: str) -> None:
    """Raises RequestError: nobody could log in, so that this is likely a mistake."""
    from export_pipelines.catalog.tokens import Tokens
    from export_pipelines.cli.catalog_pool import catalog_pool

    with catalog_pool(settings) as pool:
        if not [each for each in Tokens(pool).all() if each.name != "local"]:
            raise RequestError(
                f"{host} is not an address of this machine alone, and there is no token yet",
                hint="make one: export-pipelines token create NAME; or give --open where OIDC or a network guards it",
            )


def _fresh_token(settings: Settings) -> str:
    from export_pipelines.api.local_token import fresh_local_token
    from export_pipelines.catalog.tokens import Tokens
    from export_pipelines.cli.catalog_pool import catalog_pool

    with catalog_pool(settings) as pool:
        return fresh_local_token(Tokens(pool), settings.state)


def _serve(settings: Settings, host: str, port: int, workers: int) -> None:
    """Serve until a signal comes."""
    import uvicorn

    from export_pipelines.api.server import OPTIONS, Server

    _log()
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if port and _is_loopback(host) and not os.environ.get("PUBLIC_URL"):
        # Links lead here, unless something else is said.
        os.environ["PUBLIC_URL"] = url
    access_log = bool(os.environ.get("EXPORT_PIPELINES_VERBOSE"))
    click.echo(f"the service is at {url} - Ctrl-C stops it")
    if workers > 1:
        options = {**OPTIONS, "host": host, "port": port, "access_log": access_log}
        uvicorn.run("export_pipelines.api.app:from_environment", factory=True, workers=workers, **options)
        return
    from export_pipelines.api.app import create_app, settled

    Server(settled(create_app(settings)), host=host, port=port, access_log=access_log).run()


def _log() -> None:
    """Errors and warnings of the service on stderr, one line each; nobody's values are in them."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logger = logging.getLogger("export_pipelines")
    logger.handlers.clear()
    logger.setLevel(logging.WARNING)
