"""The command `restore`: archived partitions into a table, or into a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.cli.archive import archived_tables, following
from export_pipelines.cli.times import time_of
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.steps.pieces import Archived
    from export_pipelines.steps.restore import RestoreResult
    from export_pipelines.steps.restore_file import FileResult

POLICIES = ("fail", "skip", "replace")


@click.command("restore")
@click.argument("table")
@click.option("--partition", metavar="KEY", help="One partition.")
@click.option("--from", "first", metavar="KEY", help="The first partition.")
@click.option("--to", "last", metavar="KEY", help="The last partition, included.")
@click.option("--all", "everything", is_flag=True, help="All partitions.")
@click.option("--as-of", metavar="TIME", help="As it was archived at that time: 2025-01-31T08:00 (UTC), or 7d ago.")
@click.option("--into", metavar="NAME", help="Table to restore into: `name` or `schema.name`.")
@click.option("--to-file", "file", type=click.Path(path_type=Path), help="CSV file to write; .gz and .zst compress it.")
@click.option(
    "--on-conflict",
    type=click.Choice(POLICIES),
    default="fail",
    show_default=True,
    help="What becomes of rows that the table has already, by its key.",
)
@click.option("--connection", metavar="NAME", help="Connection in resources/; the table's own when absent.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def restore_command(
    table: str,
    partition: str | None,
    first: str | None,
    last: str | None,
    everything: bool,
    as_of: str | None,
    into: str | None,
    file: Path | None,
    on_conflict: str,
    connection: str | None,
    as_json: bool,
) -> None:
    """Bring archived partitions back into a table, new or existing, or into a file.

    One transaction: after an error the target is as it was. Rows of an existing table are told apart by its primary
    key, another unique index, or `key` in defs.yaml; a table without any must be empty. Of a table without partitions,
    each of whose files is a snapshot of the whole, --as-of takes an earlier one than the newest.

    \b
      export-pipelines restore flights --partition 2013-02-14 --into restored_flights
      export-pipelines restore flights --from 2013-02-01 --to 2013-02-28 --into nycflights13.flights --on-conflict skip
      export-pipelines restore flights --all --to-file flights.csv.gz
    """
    if [partition is not None, (first or last) is not None, everything].count(True) != 1:
        raise click.UsageError("give --partition KEY, --from and --to, or --all")
    time = time_of(as_of)
    if (into is None) == (file is None):
        raise click.UsageError("give --into NAME, or --to-file PATH")
    if file is not None and (connection or on_conflict != "fail"):
        raise click.UsageError("--connection and --on-conflict belong to --into")
    from export_pipelines.cli.project import opened
    from export_pipelines.steps.merge import OnConflict
    from export_pipelines.steps.pieces import Choice
    from export_pipelines.steps.restore import restore_table
    from export_pipelines.steps.restore_file import restore_to_file

    choice = Choice(partition, first, last, time)
    result: RestoreResult | FileResult
    with opened() as project, following(f"restoring {table}") as progress:
        archived = _archived(project, table)
        if file is not None:
            result = written = restore_to_file(archived, choice, file, progress=progress)
            told = f"{file} was written: {_what(written)}, {output.size(written.bytes)}"
        else:
            known = project.project.tables.get(archived.table)
            spec = known.table.spec if known else None
            result = loaded = restore_table(
                archived,
                choice,
                project.source(connection or (spec.connection if spec else "source")),
                into or "",
                on_conflict=OnConflict(on_conflict),
                key=spec.key if spec else (),
                progress=progress,
            )
            made = "made and filled" if loaded.created else "filled"
            told = f"{into} was {made}: {_what(loaded)}{_conflicts(loaded)}"
    if as_json:
        output.as_json({"table": archived.table, **({"into": into} if into else {}), **asdict(result)})
        return
    click.echo(told)


def _archived(project: Opened, name: str) -> Archived:
    """The one table of that name that has an archive."""
    from export_pipelines.steps.pieces import Archived

    found = archived_tables(project, [name])
    if len({table for _, table in found}) > 1:
        raise RequestError(f"{name!r} means {len(found)} tables", hint="one table is restored at a time")
    store, table = found[0]
    known = project.project.tables.get(table)
    return Archived(store, table, project.keyring, known.table.spec.partitions if known else None)


def _what(result: RestoreResult | FileResult) -> str:
    rows, partitions = output.count(result.rows, "row"), output.count(len(result.partitions), "partition")
    return f"{rows} of {partitions} from {output.count(result.artifacts, 'file')}"


def _conflicts(result: RestoreResult) -> str:
    if not result.skipped and not result.replaced:
        return ""
    equal = result.skipped + result.replaced - result.differing
    parts = [f"{result.inserted:,} inserted"]
    parts += [f"{equal:,} already there"] * bool(equal)
    if result.differing:
        fate = "replaced" if result.replaced else "there with other values, and skipped"
        parts.append(f"{result.differing:,} {fate}")
    return f"; {', '.join(parts)}"
