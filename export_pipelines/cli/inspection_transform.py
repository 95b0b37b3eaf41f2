"""What `check` and `plan` say of transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import ExportPipelinesError, SpecError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.transforms import TransformAssets
    from export_pipelines.steps.transform import TransformPlan


_ABSENT = ("42P01", "3F000")
"""No such table, no such schema."""


def unknown_warnings(assets: TransformAssets) -> list[SpecError]:
    """A warning for each table that it reads and that no folder of the project makes."""
    transform = assets.transform
    return [
        SpecError(
            f"reads {table}, which no folder of the project makes",
            file=transform.file,
            line=_line(transform.sql, table),
            hint="nothing here starts it when that table changes",
        )
        for table in assets.unknown
    ]


def _line(text: str, table: str) -> int:
    at = text.find(table.rpartition(".")[2])
    return text.count("\n", 0, max(at, 0)) + 1


def check_live(project: Opened, assets: TransformAssets) -> tuple[list[SpecError], list[SpecError]]:
    """What its database says against it: errors, and warnings where a table that comes before may not be there yet."""
    try:
        _plan(project, assets)
    except ExportPipelinesError as error:
        found = [SpecError(error.message, file=assets.transform.file, hint=error.hint)]
        absent = getattr(error.__cause__, "code", "") in _ABSENT and assets.upstream
        return ([], found) if absent else (found, [])
    return [], []


def _plan(project: Opened, assets: TransformAssets) -> TransformPlan:
    from export_pipelines.steps.transform import TransformContext, plan_transform

    transform = assets.transform
    return plan_transform(TransformContext(transform, project.resource(transform.spec.target.connection)))


def plan(project: Opened, assets: TransformAssets, *, as_json: bool) -> None:
    """Print what it would do: what comes before, what it makes, and the database's plan of the query."""
    transform, spec, found = assets.transform, assets.transform.spec, _plan(project, assets)
    told: dict[str, Any] = {
        "transform": transform.id,
        "materialize": spec.materialize,
        "target": spec.target.table or None,
        "connection": spec.target.connection,
        "after": [*assets.upstream],
        "reads": [*assets.sql.reads],
        "writes": [*assets.sql.writes],
        "unknown": [*assets.unknown],
        "version": found.table_version,
        "rows": found.rows,
        "columns": [{"name": name, "type": kind} for name, kind in found.columns],
        "statements": [{"line": each.line, "kind": each.kind, "sql": each.text} for each in assets.sql.statements],
        "plan": [*found.plan],
    }
    if as_json:
        output.as_json(told)
        return
    _tell(told)


def _tell(told: dict[str, Any]) -> None:
    made = f"{told['materialize']} {told['target']}" if told["target"] else "statements"
    click.echo(f"{told['transform']} makes: {made} of {told['connection']}")
    if told["version"] is not None:
        click.echo(f"as version {told['version']}, with about {output.count(told['rows'], 'row')}")
    for name in ("after", "reads", "writes", "unknown"):
        if told[name]:
            click.echo(f"{name}: {', '.join(told[name])}")
    if told["columns"]:
        output.table(output.columns("column", "type"), [[each["name"], each["type"]] for each in told["columns"]])
    for each in told["statements"]:
        click.echo(f"\ntransform.sql:{each['line']}: {each['kind']}\n{each['sql'].strip()}")
    if told["plan"]:
        click.echo("\n" + "\n".join(told["plan"]))
