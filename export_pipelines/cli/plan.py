"""The command `plan`: what a cleanup would delete, or what a transform would make."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import CleanupRefused, RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.specs.table import TableDefinition
    from export_pipelines.windows import Window


@click.command("plan")
@click.argument("table")
@click.option("--partition", metavar="KEY", help="One partition; those archived and not cleaned up when absent.")
@click.option("--from", "first", metavar="KEY", help="The first partition.")
@click.option("--to", "last", metavar="KEY", help="The last partition, included.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plan_command(table: str, partition: str | None, first: str | None, last: str | None, as_json: bool) -> int:
    """Show what a cleanup would delete: rows, bytes, SQL; of a transform, what it would make. Changes nothing.

    The same proof is made as for the deletion itself. Exit code 1 when a cleanup would be refused.
    """
    if partition and (first or last):
        raise click.UsageError("give --partition, or --from and --to")
    from export_pipelines.cli.project import opened

    with opened() as project:
        if transform := project.project.transforms.get(table.strip("/")):
            from export_pipelines.cli.inspection_transform import plan

            plan(project, transform, as_json=as_json)
            return 0
        found = project.table(table)
        _refuse_without_delete(found)
        plans = [_plan(project, found, window) for window in _windows(project, found, partition, first, last)]
    if as_json:
        output.as_json(plans)
    else:
        _tell(found.id, plans)
    return 1 if any(each["refusals"] for each in plans) else 0


def _refuse_without_delete(table: TableDefinition) -> None:
    """Raises RequestError: nothing of the table is ever deleted."""
    from export_pipelines.components.automation import Stage
    from export_pipelines.components.tables import stages_of

    if Stage.CLEANUP not in stages_of(table):
        raise RequestError(
            f"{table.id} has no statement to delete with, so nothing of it is ever cleaned up",
            hint=f"that is as it should be for a table that only grows; else write {table.folder / 'delete.sql'}",
        )


def _windows(
    project: Opened, table: TableDefinition, partition: str | None, first: str | None, last: str | None
) -> list[Window]:
    from export_pipelines.cli.selection import chosen, known

    found = chosen(table, partition, first, last, datetime.now(UTC))
    if partition or first or last:
        return found
    have = known(project.catalog, table)
    return [window for window in found if window.partition in have.archived - have.cleaned]


def _plan(project: Opened, table: TableDefinition, window: Window) -> dict[str, Any]:
    from export_pipelines.steps.cleanup import plan_cleanup

    try:
        plan = asdict(plan_cleanup(project.step(table), window))
    except CleanupRefused as error:
        plan = {"would_delete": 0, "refusals": [str(error)]}
    return {"table": table.id, "partition": window.partition, **plan}


_IDENTITY = "<identity of an archived row>"
_KEY = "<key of an archived row>"
"""What stands for the rows in the statements of PostgreSQL and of MySQL."""


def own_statement(sql: str) -> str:
    """The DELETE of the table's definition, out of the one of a plan: without what a cleanup adds to it."""
    from export_pipelines.sql import parse_delete

    if _KEY in sql:
        return _own_of_mysql(sql)
    own, added, _ = sql.strip().rpartition(f" AND {_IDENTITY}")
    if not added:
        return sql.strip().partition(f" WHERE {_IDENTITY}")[0]
    where = parse_delete(own, Path("delete.sql")).where
    return f"{own.removesuffix(where).removesuffix(' WHERE ')}\nWHERE {where[1:-1].strip()}"


def _own_of_mysql(sql: str) -> str:
    """The same of MySQL, where rows are read under a lock, and then deleted by their keys."""
    read = sql.partition(_KEY)[0].partition(" FROM ")[2]
    target, _, where = read.partition(" WHERE ")
    condition = where.strip().removesuffix("AND").strip()
    return f"DELETE FROM {target}" + (f"\nWHERE {condition[1:-1].strip()}" if condition else "")


def _tell(table: str, plans: list[dict[str, Any]]) -> None:
    if not plans:
        click.echo(f"nothing of {table} is archived and not cleaned up")
        return
    output.table(
        output.columns("partition", "#archived", "#would delete", "#bytes", "#late", "#not exported", "proof"),
        [
            [
                each["partition"],
                each.get("archived"),
                each["would_delete"],
                output.size(each.get("bytes")),
                each.get("late"),
                each.get("not_exported"),
                each.get("proof"),
            ]
            for each in plans
        ],
    )
    if sql := next((each["sql"] for each in plans if each.get("sql")), ""):
        rows = "keys of archived rows whose content is still the same" if _KEY in sql else "identities of archived rows"
        click.echo(f"\nThe statement:\n{own_statement(sql)}\nlimited to the {rows}")
    for each in plans:
        for refusal in each["refusals"]:
            click.secho(f"refused: {each['partition']}: {refusal}", err=True, fg="red")
