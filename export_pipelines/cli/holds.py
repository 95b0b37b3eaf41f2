"""Commands for holds: exemptions of a table or a partition from cleanup."""

from __future__ import annotations

import getpass
import os
from dataclasses import asdict

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for our user id, as in some containers
        return f"user {os.getuid()}"


@click.command("hold")
@click.argument("table")
@click.option("--partition", metavar="KEY", help="One partition; the whole table when absent.")
@click.option("--reason", required=True, help="Why; shown to whoever tries a cleanup.")
@click.option("--owner", default=_owner, help="Who to ask; the user of this session when absent.")
def hold_command(table: str, partition: str | None, reason: str, owner: str) -> None:
    """Exempt TABLE, or one partition of it, from cleanup until `unhold`."""
    from export_pipelines import windows
    from export_pipelines.cli.project import opened

    with opened() as project:
        found = project.table(table)
        if partition is not None:
            windows.window_of(found.spec.partitions, partition)
        number = project.catalog.place_hold(found.id, partition, reason, owner)
    click.echo(f"hold {number}: {found.id} {partition or '(all partitions)'} will not be cleaned up")


@click.command("unhold")
@click.argument("numbers", nargs=-1, required=True, type=int, metavar="ID...")
def unhold_command(numbers: tuple[int, ...]) -> None:
    """End holds, by the numbers that `holds` lists."""
    from export_pipelines.cli.project import opened

    with opened() as project:
        missing = [number for number in numbers if not project.catalog.release_hold(number)]
    if missing:
        raise RequestError(
            f"there is no hold {', '.join(map(str, missing))} in force", hint="`export-pipelines holds` lists them"
        )
    click.echo("released")


@click.command("holds")
@click.argument("table", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def holds_command(table: str | None, as_json: bool) -> None:
    """List the holds in force."""
    from export_pipelines.cli.project import opened

    with opened() as project:
        found = project.catalog.holds(project.table(table).id if table else None)
    if as_json:
        output.as_json([asdict(each) for each in found])
        return
    output.table(
        output.columns("id", "table", "partition", "owner", "since", "reason"),
        [[str(h.id), h.table_id, h.partition or "all", h.owner, h.placed_at, h.reason] for h in found],
    )
