"""The command `run`: partitions of tables as Dagster runs, with a bar, a table of results, and every failure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.launch import Event, Launcher, RunResult
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.automation import Stage
    from export_pipelines.specs.table import TableDefinition
    from export_pipelines.windows import Window

STAGES = ("export", "archive", "cleanup", "all")


@dataclass
class Work:
    """Partitions of one table that are to be taken through a stage."""

    table: TableDefinition
    stage: Stage
    windows: list[Window]
    skipped: int = 0
    """Partitions that were asked for and are done already."""


@dataclass
class TableResult:
    """What the runs of one table did, from the events that they told of."""

    table: str
    partitions: int = 0
    """How many were to be done."""
    skipped: int = 0
    """How many were asked for and are done already."""
    done: set[str | None] = field(default_factory=set)
    rows: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    """Of the work itself, without Dagster's start-up."""
    export_seconds: float = 0.0
    deleted: int = 0
    late: int = 0
    digests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def heard(self, event: Event) -> None:
        """Take in a materialisation."""
        data = event.metadata
        stage = event.step
        self.seconds += float(data.get("seconds") or 0)
        if stage == "export" or (stage == "archive" and (event.partition, "export") not in self._seen):
            self.rows += int(data.get("rows") or 0)
            self.raw_bytes += int(data.get("raw_bytes") or 0)
            self.stored_bytes += int(data.get("stored_bytes") or 0)
            self.export_seconds += float(data.get("seconds") or 0)
            self.digests.append(str(data.get("row_digest") or "0"))
        if stage == "cleanup":
            self.deleted += int(data.get("deleted") or 0)
            self.late += int(data.get("late") or 0)
        self._seen.add((event.partition, stage))

    _seen: set[tuple[str | None, str]] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        from export_pipelines.cli.selection import digest_sum

        return {
            "table": self.table,
            "partitions": self.partitions,
            "done": len(self.done),
            "done_before": self.skipped,
            "rows": self.rows,
            "raw_bytes": self.raw_bytes,
            "stored_bytes": self.stored_bytes,
            "seconds": round(self.seconds, 3),
            "mb_per_second": round(self.speed, 2),
            "row_digest": digest_sum(self.digests),
            "deleted": self.deleted,
            "late": self.late,
            "runs": self.runs,
            "errors": self.errors,
        }

    @property
    def read(self) -> bool:
        """Whether rows were exported or archived; else their number, bytes and digest have no meaning."""
        return bool(self.digests)

    @property
    def cleaned(self) -> bool:
        """Whether a cleanup, or a comparison, came to its end."""
        return any(stage == "cleanup" for _, stage in self._seen)

    @property
    def speed(self) -> float:
        """Raw megabytes a second of the export."""
        return self.raw_bytes / 1e6 / self.export_seconds if self.export_seconds else 0.0


@click.command("run")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--all", "everything", is_flag=True, help="All tables.")
@click.option("--partition", metavar="KEY", help="One partition.")
@click.option("--from", "first", metavar="KEY", help="The first partition.")
@click.option("--to", "last", metavar="KEY", help="The last partition, included.")
@click.option("--stage", type=click.Choice(STAGES), default="all", show_default=True, help="How far to go.")
@click.option("--force", is_flag=True, help="Take partitions that are done, too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run_command(
    tables: tuple[str, ...],
    everything: bool,
    partition: str | None,
    first: str | None,
    last: str | None,
    stage: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Export, archive and clean up partitions of tables, as runs in Dagster's instance.

    Without --partition, --from and --to: each partition that has closed and is not done yet; of a cumulative table
    only the newest, which holds everything before it. Several partitions of a table are one run where its `single_run`
    says so. Exit code 1 when anything failed or was refused.

    \b
      export-pipelines run flights --partition 2013-02-14
      export-pipelines run flights --from 2013-03-01 --to 2013-03-31 --stage export
      export-pipelines run --all --dry-run
    """
    if bool(tables) == everything:
        raise click.UsageError("name tables, or give --all")
    if partition and (first or last):
        raise click.UsageError("give --partition, or --from and --to")
    from export_pipelines.cli.project import opened, warn_of_broken

    with opened() as project:
        if everything:
            warn_of_broken(project.project)
        found = project.set_up(project.tables(tables), named=not everything)
        work = select(project, found, stage, (partition, first, last), force=force)
        if dry_run:
            _tell_plan(work, as_json)
            return 0
        results = execute(project, work)
    tell(results, as_json=as_json)
    broken = everything and bool(project.project.broken)
    return 1 if broken or any(each.errors for each in results) else 0


def select(
    project: Opened,
    tables: Sequence[TableDefinition],
    stage: str,
    bounds: tuple[str | None, str | None, str | None],
    *,
    force: bool = False,
) -> list[Work]:
    """What is to be done. `bounds` are one partition, or the first and the last.

    Raises:
        RequestError: a partition does not exist or is open, or the table has not got the stage.
    """
    from export_pipelines.cli.selection import chosen, known, newest, to_do
    from export_pipelines.components.automation import Stage
    from export_pipelines.components.tables import stages_of

    now = datetime.now(UTC)
    wanted = Stage.CHAIN if stage == "all" else Stage(stage)
    work = []
    for table in tables:
        if wanted is not Stage.CHAIN and wanted not in stages_of(table):
            raise RequestError(f"{table.id} has no {wanted}", hint="there is no statement to delete with")
        found = chosen(table, *bounds, now)
        have = known(project.catalog, table)
        left = found if force else to_do(have, found, wanted, now)
        skipped = len(found) - len(left)
        if table.spec.cumulative and not any(bounds):
            left = found[-1:] if force else newest(have, left, found, now)
        work.append(Work(table, wanted, left, skipped))
    return work


def execute(project: Opened, work: Sequence[Work]) -> list[TableResult]:
    """Run what is to be done, one run after another; a failed one does not keep the others from being tried."""
    if not any(each.windows for each in work):
        return [TableResult(each.table.id, skipped=each.skipped) for each in work]
    import dagster as dg

    from export_pipelines.cli.launch import Launcher, terminal

    results = []
    with dg.DagsterInstance.get() as instance, terminal() as stream:
        launcher = Launcher(instance, project.project.definitions(), project.settings.root)
        launcher.end_orphans()
        bar = output.bar(stream)
        try:
            results = [_execute_table(launcher, each, bar) for each in work]
        except BaseException:
            bar.fail()
            raise
        bar.close()
    return results


def _execute_table(launcher: Launcher, work: Work, bar: output.Bar) -> TableResult:
    from export_pipelines.components.requests import run_requests

    result = TableResult(work.table.id, len(work.windows), work.skipped)
    if not work.windows:
        return result
    last = str(work.stage)
    if last == "chain":
        last = "cleanup" if _cleans(work) else "archive"
    follower = _Follower(result, bar, last)
    bar.start(f"{work.table.id} {work.stage}", len(work.windows))
    for request in run_requests(work.table, work.stage, work.windows, f"cli-{time.time_ns()}"):
        _take(result, launcher.run(request, follower))
    return result


def _cleans(work: Work) -> bool:
    """Whether a chain ends with a cleanup that is due."""
    from export_pipelines.cli.selection import is_due
    from export_pipelines.components.tables import stages_of

    now = datetime.now(UTC)
    return len(stages_of(work.table)) == 3 and is_due(work.table, work.windows[0], now)


class _Follower:
    """Moves the bar as partitions are done and rows go by."""

    def __init__(self, result: TableResult, bar: output.Bar, last_stage: str) -> None:
        self._result = result
        self._bar = bar
        self._last = last_stage
        self._started = time.monotonic()

    def __call__(self, event: Event) -> None:
        rows = self._result.rows
        if event.kind == "materialization":
            self._result.heard(event)
            rows = self._result.rows
            if event.step == self._last:
                self._result.done.add(event.partition)
        elif event.kind == "observation" and event.step == "export":
            rows += int(event.metadata.get("rows") or 0)
        seconds = max(time.monotonic() - self._started, 0.001)
        done, total = len(self._result.done), self._result.partitions
        detail = f"{done} of {output.count(total, 'partition')}"
        if self._last != "cleanup" or rows:
            detail += f", {output.count(rows, 'row')}, {rows / seconds:,.0f} rows/s"
        if self._result.deleted:
            detail += f", {self._result.deleted:,} deleted"
        self._bar.update(done, detail)


def _take(result: TableResult, run: RunResult) -> None:
    """Note how a run ended."""
    result.runs.append(run.run_id)
    if run.succeeded:
        return
    result.errors += run.errors or [run.failure or f"run {run.run_id} ended as {run.status or 'unknown'}"]
    if run.status == "CANCELED":
        raise click.Abort


def tell(results: Sequence[TableResult], *, as_json: bool) -> None:
    """Print the results, and every failure with its hint."""
    from export_pipelines.cli.selection import digest_sum

    if as_json:
        output.as_json([each.as_dict() for each in results])
    else:
        skipped = sum(each.skipped for each in results)
        if any(each.partitions for each in results):
            output.table(
                output.columns("table", "#partitions", "#rows", "#bytes", "#MB/s", "digest", "#deleted"),
                [
                    [
                        each.table,
                        f"{len(each.done)} of {each.partitions}",
                        each.rows if each.read else None,
                        output.size(each.stored_bytes if each.read else None),
                        each.speed if each.read else None,
                        digest_sum(each.digests) if each.read else None,
                        each.deleted if each.cleaned else None,
                    ]
                    for each in results
                    if each.partitions
                ],
            )
        if skipped:
            click.echo(
                f"{output.count(skipped, 'partition is', 'partitions are')} done already (--force takes them again)"
            )
        elif not any(each.partitions for each in results):
            click.echo("nothing is to be done: no partition has closed")
    for each in results:
        if each.late:
            output.warn(f"{each.table}: {output.count(each.late, 'row')} came or changed after export, and stay")
        for error in each.errors:
            click.secho(f"error: {error}", err=True, fg="red")


def _tell_plan(work: Sequence[Work], as_json: bool) -> None:
    rows = [
        {
            "table": each.table.id,
            "stage": str(each.stage),
            "partitions": [window.partition for window in each.windows],
            "done": each.skipped,
        }
        for each in work
    ]
    if as_json:
        output.as_json(rows)
        return
    output.table(
        output.columns("table", "stage", "#partitions", "first", "last", "#done"),
        [
            [
                each.table.id,
                str(each.stage),
                len(each.windows),
                each.windows[0].partition if each.windows else None,
                each.windows[-1].partition if each.windows else None,
                each.skipped,
            ]
            for each in work
        ],
    )
