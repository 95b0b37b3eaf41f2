"""The command `dump`: any range of tables into files, as runs of their dump jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError
from export_pipelines.specs.documents import suggest

if TYPE_CHECKING:
    from export_pipelines.cli.launch import Event, Launcher
    from export_pipelines.cli.project import Opened
    from export_pipelines.specs.table import TableDefinition
    from export_pipelines.steps.dump_plan import DumpPlan, DumpRequest


@dataclass
class DumpResult:
    """What the run of one table's dump did, from the events that it told of."""

    table: str
    batches: int
    """How many there are to be."""
    done: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    run: str = ""

    def heard(self, event: Event) -> bool:
        """Take in a batch; whether the event was one."""
        data = event.metadata
        if event.kind not in ("materialization", "observation") or "stored_bytes" not in data:
            return False
        place = data.get("path") or data.get("url")
        files = data["files"] if "dump" in data else [{"path": place, "sha256": data.get("sha256")}]
        self.done.append(
            {
                "range": data.get("dump") or event.partition or "snapshot",
                "partition": event.partition if "dump" not in data else None,
                "unchanged": bool(data.get("unchanged")),
                "files": files,
                **{name: data.get(name) for name in ("rows", "raw_bytes", "stored_bytes", "row_digest", "seconds")},
            }
        )
        return True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "table": self.table,
            "batches": self.batches,
            "rows": sum(each["rows"] for each in self.done),
            "stored_bytes": sum(each["stored_bytes"] for each in self.done),
            "done": self.done,
            "run": self.run,
            "errors": self.errors,
        }


@click.command("dump")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--start", metavar="TIME", help="Start of the range: `2024-01-01` (midnight) or `2024-01-01 08:00`.")
@click.option("--end", metavar="TIME", help="End of the range, exclusive; or `now`.")
@click.option("--batch-hours", type=click.IntRange(1), help="Hours of a batch.")
@click.option("--batch-days", type=click.IntRange(1), help="Days of a batch; 7 when nothing says how long it is.")
@click.option("--batch", metavar="LENGTH", help="Length of a batch: `90 minutes`, `2 weeks`, `1 month`.")
@click.option(
    "--batch-rows",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Rows after which progress is told. Rows are streamed, so memory does not depend on it.",
)
@click.option("--page-rows", type=click.IntRange(1), help="Rows of a file, or of an entry of the ZIP, at most.")
@click.option("--container", type=click.Choice(["none", "zip"]), help="`zip`: one ZIP a batch.")
@click.option("--timezone", metavar="ZONE", help="Zone of the times; that of the table's partitions when absent.")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Folder for the files.")
@click.option(
    "--parallel", type=click.IntRange(1), default=2, show_default=True, help="Tables at a time; pools limit them, too."
)
@click.option("--dry-run", is_flag=True, help="Only say which batches there would be.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--import", "imported", type=click.Path(path_type=Path), help="Make tables of an old dumps.yaml.")
@click.option("--import-env", is_flag=True, help="Make tables of variables QUERY_FILE_<NAME>.")
@click.option("--into", type=click.Path(path_type=Path), help="Folder for imported tables.  [default: assets/dumps]")
@click.option("--connection", metavar="NAME", default="source", help="Connection of imported tables.")
def dump_command(
    tables: tuple[str, ...],
    start: str | None,
    end: str | None,
    batch_hours: int | None,
    batch_days: int | None,
    batch: str | None,
    batch_rows: int,
    page_rows: int | None,
    container: str | None,
    timezone: str | None,
    folder: Path | None,
    parallel: int,
    dry_run: bool,
    as_json: bool,
    imported: Path | None,
    import_env: bool,
    into: Path | None,
    connection: str,
) -> int:
    """Dump tables, by id, name or alias, each as a run of its job in Dagster's instance.

    The range is cut into batches, a file each. A batch that is exactly a partition is exported as that partition; the
    files of others lie beside, below dumps/, and are never archived. With --page-rows, --container zip or --to none is
    a partition. Exit code 1 when anything failed.
    """
    if imported or import_env:
        from export_pipelines.cli.dump_import import import_dumps

        return import_dumps(imported, import_env, into, connection, dry_run=dry_run)
    if not tables:
        raise click.UsageError("name tables, or give --import FILE")
    if [batch_hours, batch_days, batch].count(None) < 2:
        raise click.UsageError("give one of --batch-hours, --batch-days, --batch")
    length = batch or (f"{batch_hours} hours" if batch_hours else f"{batch_days} days" if batch_days else None)
    config = {
        "start": start,
        "end": end,
        "batch": length,
        "timezone": timezone,
        "page_rows": page_rows,
        "container": container,
        "folder": str(folder.expanduser().absolute()) if folder else None,
        "batch_rows": batch_rows,
    }
    return _dump(tables, {k: v for k, v in config.items() if v is not None}, parallel, dry_run, as_json)


def _dump(names: Sequence[str], config: dict[str, Any], parallel: int, dry_run: bool, as_json: bool) -> int:
    from export_pipelines.cli.project import opened
    from export_pipelines.steps.dump_plan import plan_dump

    request = _request(config)
    now = datetime.now(UTC)
    with opened() as project:
        found = list({table.id: table for name in names for table in tables_named(project, name)}.values())
        project.set_up(found, named=True)
        plans = [plan_dump(table, request, now) for table in found]
        if request.end is not None and request.end.strip().lower() == "now":
            # The same moment for all of them, and for the run.
            config = {**config, "end": now.replace(microsecond=0).isoformat()}
        if dry_run:
            _tell_plan(found, plans, as_json)
            return 0
        for table, plan in zip(found, plans, strict=True):
            if plan.shorter is not None:
                output.note(f"note: the last batch of {table.id} is shorter than the others: {plan.shorter.partition}")
        if len(found) > 1:
            from export_pipelines.cli.dump_parallel import dump_all

            results = dump_all(found, config, parallel)
        else:
            results = [_run(project, found[0], plans[0], config).as_dict()]
    _tell(results, as_json)
    return 1 if any(each["errors"] for each in results) else 0


def _request(config: dict[str, Any]) -> DumpRequest:
    from export_pipelines.components.dump_job import request_of

    try:
        return request_of(config)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def tables_named(project: Opened, name: str) -> list[TableDefinition]:
    """The tables of an id, a name, a pattern, or an alias that a table's `dump` gives.

    Raises:
        RequestError: there is none, or several have the alias.
    """
    every = [each.table for each in project.project.tables.values()]
    aliased = [table for table in every if name in table.spec.dump.aliases]
    if not aliased:
        try:
            return project.tables([name])
        except RequestError as error:
            known = [each for table in every for each in (table.id, table.name, *table.spec.dump.aliases)]
            raise RequestError(error.message, hint=suggest(name, known) or error.hint) from None
    if len(aliased) > 1:
        raise RequestError(
            f"{len(aliased)} tables have the alias {name!r}",
            hint=f"say which: {', '.join(each.id for each in aliased)}",
        )
    return aliased


def _run(project: Opened, table: TableDefinition, plan: DumpPlan, config: dict[str, Any]) -> DumpResult:
    import dagster as dg

    from export_pipelines.cli.launch import Launcher, terminal

    with dg.DagsterInstance.get() as instance, terminal() as stream:
        launcher = Launcher(instance, project.project.definitions(), project.settings.root)
        launcher.end_orphans()
        bar = output.bar(stream)
        try:
            result = _launch(launcher, table, plan, config, bar)
        except BaseException:
            bar.fail()
            raise
        bar.close()
    return result


def _launch(
    launcher: Launcher, table: TableDefinition, plan: DumpPlan, config: dict[str, Any], bar: output.Bar
) -> DumpResult:
    import dagster as dg

    from export_pipelines.components.dump_job import DUMP, op_name
    from export_pipelines.components.tables import job_name

    result = DumpResult(table.id, len(plan.batches))
    begun = time.monotonic()
    bar.start(f"dump {table.id}", len(plan.batches))

    def listen(event: Event) -> None:
        going = 0 if result.heard(event) or event.kind != "observation" else int(event.metadata.get("rows") or 0)
        rows = sum(each["rows"] for each in result.done) + going
        speed = rows / max(time.monotonic() - begun, 0.001)
        batches = f"{len(result.done)} of {output.count(len(plan.batches), 'batch', 'batches')}"
        bar.update(len(result.done), f"{batches}, {output.count(rows, 'row')}, {speed:,.0f} rows/s")

    run = launcher.run(
        dg.RunRequest(job_name=job_name(table, DUMP), run_config={"ops": {op_name(table): {"config": config}}}), listen
    )
    result.run = run.run_id
    if not run.succeeded:
        result.errors += [run.failure or "; ".join(run.errors) or f"run {run.run_id} ended as {run.status}"]
        if run.status == "CANCELED":
            raise click.Abort
    return result


def _tell(results: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        output.as_json(results)
    else:
        output.table(
            output.columns("table", "range", "as", "#rows", "#bytes", "files"),
            [
                [
                    each["table"],
                    done["range"],
                    _kind(done),
                    done["rows"],
                    output.size(done["stored_bytes"]),
                    ", ".join(file["path"] for file in done["files"][:3]) + (" …" if len(done["files"]) > 3 else ""),
                ]
                for each in results
                for done in each["done"]
            ],
        )
    for each in results:
        for error in each["errors"]:
            click.secho(f"error: {error}", err=True, fg="red")


def _kind(done: dict[str, Any]) -> str:
    kind = "partition" if done["partition"] else "snapshot" if done["range"] == "snapshot" else "dump"
    return kind + (", unchanged" if done["unchanged"] else "")


def _tell_plan(tables: Sequence[TableDefinition], plans: Sequence[DumpPlan], as_json: bool) -> None:
    found = [
        {
            "table": table.id,
            "range": batch.window.partition,
            "start": batch.window.start,
            "end": batch.window.end,
            "partition": batch.whole,
            "shorter": batch.window == plan.shorter,
        }
        for table, plan in zip(tables, plans, strict=True)
        for batch in plan.batches
    ]
    if as_json:
        output.as_json(found)
        return
    heads = output.columns("table", "range", "start", "end", "partition", "shorter")
    output.table(heads, [[each[head.name] for head in heads] for each in found])
