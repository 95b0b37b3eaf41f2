"""The commands `pause` and `resume`: what a LoadSensor leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.pausing import Kind
    from export_pipelines.specs.load import LoadDefinition
    from export_pipelines.specs.transform import TransformDefinition

_everything = click.option("--all", "everything", is_flag=True, help="All tables to load.")
_route = click.option("--route", metavar="NAME", help="All tables of that route.")


@click.command("pause")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@_route
@_everything
@click.option("--reason", default="", help="Shown in the list of what is paused.")
def pause_command(tables: tuple[str, ...], route: str | None, everything: bool, reason: str) -> None:
    """Keep tables and transforms from being loaded or run by themselves; without any name, list what is paused.

    Runs that are at work go on, and runs that somebody starts are not held back. What others have made meanwhile waits
    until `resume`.
    """
    from export_pipelines.cli.project import opened

    with opened() as project:
        if not tables and route is None and not everything:
            _list(project)
            return
        _set(project, tables, route, everything, reason)


@click.command("resume")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@_route
@_everything
def resume_command(tables: tuple[str, ...], route: str | None, everything: bool) -> None:
    """End a pause, of what `pause` was given: a table stays paused while its route is, or all are."""
    from export_pipelines.cli.project import opened

    if not tables and route is None and not everything:
        raise click.UsageError("name tables, or give --route or --all")
    with opened() as project:
        _set(project, tables, route, everything, None)
        _list(project)


def _set(project: Opened, tables: tuple[str, ...], route: str | None, everything: bool, reason: str | None) -> None:
    import dagster as dg

    from export_pipelines.components.pausing import set_pause

    scopes = _scopes(project, tables, route, everything)
    with dg.DagsterInstance.get() as instance:
        for kind, name in scopes:
            set_pause(instance, kind, name, reason)
            click.echo(
                f"{' '.join(part for part in (kind, name) if part)}: {'resumed' if reason is None else 'paused'}"
            )


def _scopes(project: Opened, tables: tuple[str, ...], route: str | None, everything: bool) -> list[tuple[Kind, str]]:
    from export_pipelines.cli.load_selection import chosen_any

    found: list[tuple[Kind, str]] = [("all", "")] if everything else []
    if route is not None:
        routes = sorted({each.spec.route or "" for each in _all(project)} - {""})
        if route not in routes:
            raise RequestError(f"no table has the route {route!r}", hint=f"known are {', '.join(routes) or 'none'}")
        found.append(("route", route))
    if tables:
        found += [("table", each.definition.id) for each in chosen_any(project, tables)]
    return found


def _all(project: Opened) -> list[LoadDefinition | TransformDefinition]:
    from export_pipelines.cli.load_selection import chosen_any

    return [each.definition for each in chosen_any(project, ())]


def _list(project: Opened) -> None:
    import dagster as dg

    from export_pipelines.components.pausing import pauses

    with dg.DagsterInstance.get() as instance:
        found = pauses(instance, _all(project))
    if not found:
        output.note("nothing is paused")
        return
    rows = [[kind, name, value["since"], value["reason"]] for (kind, name), value in found.items()]
    output.table(output.columns("what", "name", "since", "reason"), rows)
