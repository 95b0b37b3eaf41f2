"""Commands that concern the installation: up, migrate, version."""

from __future__ import annotations

import sys
import threading
import webbrowser

import click

from export_pipelines import __version__
from export_pipelines.cli import output


@click.command("up")
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535), help="Port of the web UI.")
@click.option(
    "--api-port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="Port of exports on demand."
)
@click.option("--api/--no-api", default=True, help="Whether to serve exports on demand by HTTP.")
@click.option("--open/--no-open", "browser", default=True, help="Whether to open the UI in a browser.")
def up_command(port: int, api_port: int, api: bool, browser: bool) -> None:
    """Run everything until Ctrl-C: the database (if it is the embedded one), Dagster's web UI, daemon and code server,
    and exports on demand: the API with its page for people, and the worker.

    It says where they are, and prints a token for the API and the page that is new at each start. When one of the
    parts ends by itself, the others are ended, and the end of its log is shown.
    """
    from export_pipelines.cli.project import quiet
    from export_pipelines.local.up import up
    from export_pipelines.settings import load_settings

    def say(line: str) -> None:
        click.echo(line)
        if browser and f"http://127.0.0.1:{port} " in line and sys.stdout.isatty():
            # Some browsers are found and then do not return before they are closed.
            threading.Thread(target=webbrowser.open, args=(f"http://127.0.0.1:{port}",), daemon=True).start()

    quiet()
    output.note("starting, which takes some 30 seconds")
    up(load_settings(), port=port, api_port=api_port if api else None, echo=say)


@click.command("migrate")
def migrate_command() -> None:
    """Bring the catalog, in the database of DAGSTER_PG_URL, to the newest version.

    `up` and `demo` do it by themselves. Elsewhere run this after each upgrade, before anything else.
    """
    from export_pipelines.catalog.migrate import migrate, newest_version
    from export_pipelines.cli.project import quiet
    from export_pipelines.local.project import running
    from export_pipelines.settings import load_settings

    quiet()
    with running(load_settings(), migrate_catalog=False) as settings:
        applied = migrate(settings.dagster_pg_url or "", settings.catalog_schema)
    for version in applied:
        click.echo(f"applied {version}")
    if not applied:
        click.echo(f"the catalog is of the newest version, {newest_version()}")


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="With the versions of what it stands on.")
def version_command(as_json: bool) -> None:
    """Print the version."""
    if not as_json:
        click.echo(__version__)
        return
    import platform
    from importlib.metadata import version

    names = ("dagster", "dagster-postgres", "psycopg2-binary", "pglast", "isal")
    output.as_json(
        {
            "export_pipelines": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in names},
        }
    )
