"""Commands for holds: exemptions of a table, a partition or a range of time from cleanup and expire."""

from __future__ import annotations

import getpass
import os
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click

from export_pipelines.cli import output
from export_pipelines.errors import BadRange, RequestError

if TYPE_CHECKING:
    from export_pipelines.catalog import HoldRow
    from export_pipelines.cli.project import Opened
    from export_pipelines.specs.table import TableDefinition


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for our user id, as in some containers
        return f"user {os.getuid()}"


@click.command("hold")
@click.argument("table")
@click.option("--partition", metavar="KEY", help="One partition; the whole table when absent.")
@click.option("--from", "first", metavar="TIME", help="Partitions with rows from this time on: `2025-01-31[T12:00]`.")
@click.option("--to", "last", metavar="TIME", help="Partitions with rows before this time.")
@click.option("--reason", required=True, help="Why; shown to whoever tries a cleanup or an expire.")
@click.option("--owner", default=_user, help="Who to ask; the user of this session when absent.")
def hold_command(
    table: str, partition: str | None, first: str | None, last: str | None, reason: str, owner: str
) -> None:
    """Exempt TABLE, one partition of it, or a range of time, from cleanup and expire until `unhold`.

    A range concerns each partition whose window overlaps it. Times without an offset are those of the table's
    partitions. A snapshot is concerned by any range; so is each partition of a cumulative table that ends after --from,
    since its rows may be of any time before its end.

    \b
      export-pipelines hold sales/events --partition 2025-01-02 --reason "court case 7"
      export-pipelines hold sales/events --from 2025-01-02 --to 2025-02-01 --reason "court case 7" --owner ann
    """
    if partition is not None and (first or last):
        raise click.UsageError("give --partition, or --from and --to")
    from export_pipelines import windows
    from export_pipelines.cli.project import opened

    with opened() as project:
        found = project.table(table)
        if partition is not None:
            windows.window_of(found.spec.partitions, partition)
        start, end = _time(found, first), _time(found, last)
        if start and end and start >= end:
            raise BadRange(f"--from {first} is not before --to {last}", hint="--to is the end, and not included")
        number = project.catalog.place_hold(found.id, partition, reason, owner, window_start=start, window_end=end)
        (hold,) = [each for each in project.catalog.holds(found.id) if each.id == number]
        too_late = _too_late(project, found, hold)
    click.echo(f"hold {number}: {found.id} ({hold.scope}) will be neither cleaned up nor expired")
    if too_late:
        output.warn(f"too late for {', '.join(too_late)}: what is being expired is fenced off already")


def _time(table: TableDefinition, text: str | None) -> datetime | None:
    """A time of the table's own zone, unless it says another.

    Raises:
        BadRange: it is no time.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRange(f"{text!r} is no time", hint="write `2025-01-31` or `2025-01-31T12:00`") from error
    zone = table.spec.partitions.timezone if table.spec.partitions else "UTC"
    return moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))


def _too_late(project: Opened, table: TableDefinition, hold: HoldRow) -> list[str]:
    """Partitions that the hold is about and of which a file is just being given up."""
    from export_pipelines.steps.holding import reach, window_of_row

    going = [window_of_row(row) for row in project.catalog.exports(table.id) if row.state == "expiring"]
    return sorted({w.partition for w in going if hold.concerns(w.partition, *reach(table, w.start, w.end))})


@click.command("unhold")
@click.argument("numbers", nargs=-1, required=True, type=int, metavar="ID...")
@click.option("--by", default=_user, help="Who releases them; the user of this session when absent.")
def unhold_command(numbers: tuple[int, ...], by: str) -> None:
    """End holds, by the numbers that `holds` lists. Who did it stays on record."""
    from export_pipelines.cli.project import opened

    with opened() as project:
        missing = []
        for number in numbers:
            if project.catalog.release_hold(number, by):
                click.echo(f"hold {number} is released")
            else:
                missing.append(number)
    if missing:
        raise RequestError(
            f"there is no hold {', '.join(map(str, missing))} in force", hint="`export-pipelines holds` lists them"
        )


@click.command("holds")
@click.argument("table", required=False)
@click.option("--all", "everything", is_flag=True, help="Those that were released, too.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def holds_command(table: str | None, everything: bool, as_json: bool) -> None:
    """List the holds in force, and with --all those of the past."""
    from export_pipelines.cli.project import opened

    with opened() as project:
        found = project.catalog.holds(project.table(table).id if table else None, released=everything)
    if as_json:
        output.as_json([asdict(each) for each in found])
        return
    heads = ["id", "table", "what", "owner", "since", "reason", "released", "by"]
    rows: list[list[output.Cell]] = [
        [str(h.id), h.table_id, h.scope, h.owner, h.placed_at, h.reason, h.released_at, h.released_by] for h in found
    ]
    shown = len(heads) if everything else -2
    output.table(output.columns(*heads[:shown]), [row[:shown] for row in rows])
