"""The command `expire`: give up the archived files that retention does not want."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.specs.table import TableDefinition
    from export_pipelines.steps.expire import ExpireResult
    from export_pipelines.steps.retention import Verdict


@click.command("expire")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--dry-run", is_flag=True, help="Only say what would go and what would stay.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can answer.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def expire_command(tables: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> int:
    """Give up the archived files that `retention` in defs.yaml does not want.

    Without a TABLE: all tables that have a retention. The plan is shown first, and nothing goes beyond it. Exit code 1
    when the answer was no, or a file that was to go could not.
    """
    from export_pipelines.cli.project import opened

    with opened() as project:
        found = _with_retention(project.tables(tables), named=bool(tables))
        plans = [_expired(project, table, dry_run=True) for table in found]
        if dry_run:
            _tell(plans, as_json=as_json)
            return 0
        freed = sum(plan.freed.files for plan in plans)
        if freed and not yes:
            _tell(plans, as_json=False, err=as_json)
            _ask(freed, sum(plan.freed.bytes for plan in plans))
        shown = {each.artifact.attempt for plan in plans for each in plan.verdicts if not each.kept}
        results = [_expired(project, table, only=shown) for table in found]
    _tell(results, as_json=as_json)
    return 1 if any(each.errors for each in results) else 0


def _with_retention(tables: Sequence[TableDefinition], *, named: bool) -> list[TableDefinition]:
    """Those that have one. A table without is named in vain only by its name: `expire_table` says so."""
    return list(tables) if named else [table for table in tables if table.spec.retention]


def _expired(
    project: Opened, table: TableDefinition, *, dry_run: bool = False, only: set[str] | None = None
) -> ExpireResult:
    from export_pipelines.steps.expire import expire_table

    return expire_table(project.step(table), dry_run=dry_run, only=only)


def _ask(files: int, size: int) -> None:
    what = output.count(files, "file")
    output.agree(
        f"{what} would be given up for good",
        f"Give up {what} ({output.size(size)}) for good?",
        hint="look at `expire --dry-run`, then run it with --yes",
        declined="nothing was expired",
    )


def _tell(results: Sequence[ExpireResult], *, as_json: bool, err: bool = False) -> None:
    if as_json:
        output.as_json([each.as_dict() for each in results])
        return
    if err:
        for each in results:
            output.note(_summary(each))
        return
    if not results:
        click.echo("no table has a retention, so nothing expires")
        return
    if rows := [_row(each, verdict) for each in results for verdict in each.verdicts]:
        output.table(output.columns("table", "partition", "#generation", "#rows", "#bytes", "fate", "why"), rows)
    for each in results:
        click.echo(_summary(each))
        for place in each.completed:
            click.echo(f"{place}: what an earlier expire left was {'found' if each.dry_run else 'removed'}")
        for error in each.errors:
            click.secho(f"error: {each.table}: {error}", err=True, fg="red")


def _row(result: ExpireResult, verdict: Verdict) -> list[output.Cell]:
    artifact = verdict.artifact
    fate = "stays" if verdict.kept else ("would go" if result.dry_run else "gone")
    return [
        result.table,
        artifact.partition,
        artifact.generation,
        artifact.rows,
        output.size(artifact.bytes),
        fate,
        verdict.reason,
    ]


def _summary(result: ExpireResult) -> str:
    freed, kept = result.freed, result.kept
    goes = "would be given up" if result.dry_run else "given up"
    return (
        f"{result.table}: {output.count(freed.files, 'file')} {goes} ({output.size(freed.bytes)}), "
        f"{output.count(kept.files, 'file')} kept ({output.size(kept.bytes)})"
    )
