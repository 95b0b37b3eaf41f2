"""The commands `list` and `status`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.specs.dataset import DataSetDefinition
    from export_pipelines.specs.loader import BrokenFolder
    from export_pipelines.specs.table import PartitionsSpec, TableDefinition


@click.command("list")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_command(tables: tuple[str, ...], as_json: bool) -> None:
    """List the tables and data sets of the project, and the folders that are broken. Nothing is connected to.

    A TABLE is an id, a name, or a pattern such as `sales/*`; without one, all are listed. Tables to load and transforms
    are listed by `load list`.
    """
    from export_pipelines.cli.inspection_dataset import named_datasets
    from export_pipelines.cli.project import Opened, read_project
    from export_pipelines.settings import load_settings

    settings = load_settings()
    project = Opened(settings, read_project(settings))
    datasets, names = named_datasets(project, tables)
    sound, left_out = project.named(names) if names or not tables else ([], [])
    found = [_described(each) for each in sound]
    asked = [_described_dataset(each) for each in datasets]
    if as_json:
        output.as_json({"tables": found, "datasets": asked, "broken": [_broken(each) for each in left_out]})
        return
    if found or not asked:
        shown = ("table", "partitions", "statements", "cleanup", "connection", "store", "archive")
        output.table(output.columns(*shown), [[each[name] for name in shown] for each in found])
    if asked:
        shown = ("dataset", "origin", "filters", "formats", "row_limit", "who", "connection")
        titles = ("data set", "rows of", "filters", "formats", "#rows at most", "who", "connection")
        output.table(output.columns(*titles), [[_joined(each[name]) for name in shown] for each in asked])
    for broken in left_out:
        output.warn(f"{broken.id} is broken and left out: {broken.errors[0]}")


def _described(table: TableDefinition) -> dict[str, Any]:
    spec = table.spec
    return {
        "table": table.id,
        "partitions": cadence(spec.partitions),
        "timezone": spec.partitions.timezone if spec.partitions else None,
        "statements": f"derived from {spec.table}" if table.select_sql is None else "select.sql",
        "cleanup": spec.cleanup.mode.value + (f" {spec.cleanup.keep_days} days" if spec.cleanup.keep_days else ""),
        "connection": spec.connection,
        "store": spec.store,
        "archive": spec.archive,
        "folder": str(table.folder),
        "version": table.version,
    }


def _described_dataset(dataset: DataSetDefinition) -> dict[str, Any]:
    spec = dataset.spec
    return {
        "dataset": dataset.id,
        "title": dataset.title,
        "origin": spec.table or spec.index or "select.sql",
        "columns": list(spec.columns),
        "filters": list(spec.filters),
        "formats": [each.value for each in spec.formats],
        "row_limit": spec.row_limit,
        "who": list(spec.who),
        "connection": spec.connection,
        "folder": str(dataset.folder),
        "version": dataset.version,
    }


def _joined(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


def cadence(spec: PartitionsSpec | None) -> str:
    """How a table is cut, in a few words."""
    if spec is None:
        return "snapshot"
    if spec.every:
        return f"every {spec.every}"
    if spec.cron:
        return f"cron {spec.cron}"
    return f"every {spec.every_hours} hours" if spec.every_hours else f"every {spec.every_days} days"


def _broken(each: BrokenFolder) -> dict[str, Any]:
    errors = [
        {"file": str(error.file), "line": error.line, "field": error.field, "message": error.message,
         "hint": error.hint}
        for error in each.errors
    ]  # fmt: skip
    return {"table": each.id, "folder": str(each.folder), "errors": errors}


@click.command("status")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status_command(tables: tuple[str, ...], as_json: bool) -> None:
    """Say of each table what is exported, archived and cleaned up, as the catalog knows it."""
    from export_pipelines.cli.project import opened, warn_of_broken

    with opened() as project:
        warn_of_broken(project.project)
        found = [_status(project, table) for table in project.tables(tables)]
    if as_json:
        output.as_json(found)
        return
    output.table(
        output.columns(
            *("table", "#closed", "#exported", "#archived", "#cleaned", "#expired"),
            *("#rows", "#bytes", "#late", "#holds", "last run"),
        ),
        [
            [
                each["table"], each["closed"], each["exported"], each["archived"], each["cleaned"], each["expired"],
                each["rows"],
                output.size(each["stored_bytes"]), each["late_rows"], len(each["holds"]), each["last_run_at"],
            ]
            for each in found
        ],
    )  # fmt: skip
    for each in found:
        for hold in each["holds"]:
            output.note(f"{each['table']} ({hold['what']}) is held by {hold['owner']}: {hold['reason']}")


def _status(project: Opened, table: TableDefinition) -> dict[str, Any]:
    from export_pipelines import windows
    from export_pipelines.cli.selection import known, totals

    have = known(project.catalog, table)
    rows = [row for each in have.exports.values() for row in each]
    last = max(rows, key=lambda row: row.started_at, default=None)
    runs = [(row.started_at, row.run_id) for row in rows] + [(row.at, row.run_id) for row in have.cleanups.values()]
    at, run_id = max(runs, default=(None, ""))
    return {
        "table": table.id,
        "closed": len(windows.closed_windows(table.spec.partitions, datetime.now(UTC))),
        "exported": len(have.exported),
        "archived": len(have.archived),
        "cleaned": len(have.cleaned - have.expired),
        "expired": len(have.expired),
        **totals(rows),
        "late_rows": have.late_rows,
        "last_partition": last.partition if last else None,
        "last_run_at": at,
        "last_run_id": run_id,
        "holds": [
            {
                "id": hold.id,
                "partition": hold.partition,
                "from": hold.window_start,
                "to": hold.window_end,
                "what": hold.scope,
                "reason": hold.reason,
                "owner": hold.owner,
            }
            for hold in project.catalog.holds(table.id)
        ],
    }
