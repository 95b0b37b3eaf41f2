"""`/exports`: the tables of the project, and runs of them, in the shapes of the export service that was before."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field

from export_pipelines.api import views
from export_pipelines.api.auth import Starter, address_of, service_of
from export_pipelines.api.launching import Started, TableRuns
from export_pipelines.api.models import Status
from export_pipelines.api.named import named
from export_pipelines.api.problems import responses
from export_pipelines.api.routing import id_first
from export_pipelines.api.users import User
from export_pipelines.catalog.audit import Actor, AuditEntry
from export_pipelines.specs.table import TableDefinition

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

router = APIRouter(tags=["tables"], route_class=id_first(lambda service: service.project.tables))

TableName = Annotated[
    str,
    Path(max_length=400, description="Name of a table, or its id where several have that name.", examples=["agency"]),
]


class TableOut(BaseModel):
    """A table."""

    name: str = Field(examples=["agency"], description="Its folder's name; its id where several have that name.")
    select_query: str = Field(description="The statement that exports, with its parameters.")
    delete_query: str | None = Field(description="The statement that deletes; null where nothing is deleted.")
    id: str = Field(examples=["knowledge_base/agency"])
    description: str
    partitioned: bool


class RunStarted(BaseModel):
    """A run that was started, or was under way already; or why there is none."""

    name: str
    partition: str | None
    run_id: str | None
    url: str | None = Field(description="The run in Dagster's UI.")
    skipped: str = Field(default="", description="Why there is no run.")


class StartedOut(BaseModel):
    """Runs that were started."""

    status: Literal["Ok"] = "Ok"
    runs: list[RunStarted]


class TableRun(BaseModel):
    """A run of a table."""

    id: str
    status: Status
    stage: str = Field(examples=["chain"])
    partition: str | None
    user: str = Field(description="Who started it here; empty for schedules, the UI and the command line.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    url: str = Field(description="The run in Dagster's UI.")


class ExportFileOut(BaseModel):
    """An exported file."""

    partition: str
    generation: int
    state: str = Field(examples=["archived"])
    rows: int | None
    file: str
    run_id: str
    started_at: datetime
    finished_at: datetime | None


class RunsOut(BaseModel):
    """Runs of a table, newest first, and the files that they made."""

    name: str
    status: Status | None = Field(description="Of the newest run; null when there is none.")
    runs: list[TableRun]
    files: list[ExportFileOut] = Field(description="The newest files that the catalog knows, newest first.")
    next: str | None = Field(description="Address of the next page, null on the last one.")


@router.get("/exports", responses=responses())
def list_tables(request: Request, user: Starter) -> list[TableOut]:
    """The tables, with their statements."""
    service = service_of(request)
    return [_described(service, each.table) for each in service.project.tables.values()]


@router.post("/exports", responses=responses())
def export_tables(request: Request, user: Starter) -> StartedOut:
    """Export every table: of each the newest partition that is over, archived and cleaned up as it is defined."""
    return _start(request, user, [each.table for each in service_of(request).project.tables.values()])


@router.get("/exports/{name:path}/runs", responses=responses())
def list_runs(
    request: Request,
    name: TableName,
    user: Starter,
    limit: Annotated[int, Query(ge=1, le=200, description="Runs on a page.")] = 25,
    cursor: Annotated[UUID | None, Query(description="From `next` of the page before.")] = None,
) -> RunsOut:
    """Status and history of a table's runs."""
    service = service_of(request)
    table = table_of(service, name)
    found = runs_of(request).runs(table, limit + 1, str(cursor) if cursor else None)
    page = [TableRun(**each, url=views.run_url(service, each["id"])) for each in found[:limit]]
    more = request.url.include_query_params(cursor=page[-1].id) if len(found) > limit else None
    return RunsOut(
        name=_name(service, table),
        status=page[0].status if page else None,
        runs=page,
        files=[] if cursor else _files(service, table, limit),
        next=f"{more.path}?{more.query}" if more else None,
    )


@router.get("/exports/{name:path}", responses=responses())
def show_table(request: Request, name: TableName, user: Starter) -> TableOut:
    """One table, with its statements."""
    service = service_of(request)
    return _described(service, table_of(service, name))


@router.post("/exports/{name:path}", responses=responses())
def export_table(request: Request, name: TableName, user: Starter) -> StartedOut:
    """Export one table: its newest partition that is over, archived and cleaned up as it is defined."""
    return _start(request, user, [table_of(service_of(request), name)])


def runs_of(request: Request) -> TableRuns:
    """What starts and finds runs."""
    found: TableRuns = request.app.state.table_runs
    return found


def table_of(service: Service, name: str) -> TableDefinition:
    """The table of a name or an id. Raises Unknown."""
    known = {each.table.id: each.table for each in service.project.tables.values()}
    return named("table", known, name, hint="GET /exports lists those there are")


def _start(request: Request, user: User, tables: list[TableDefinition]) -> StartedOut:
    service, runs = service_of(request), runs_of(request)
    started = [runs.start(each, user.name) for each in tables]
    entries = [
        AuditEntry("export.started", each.table.id, detail={"run": each.run_id, "partition": each.partition})
        for each in started
        if each.run_id
    ]
    service.audit(Actor(user.name, address_of(request)), *entries)
    return StartedOut(runs=[_told(service, each) for each in started])


def _told(service: Service, started: Started) -> RunStarted:
    return RunStarted(
        name=_name(service, started.table),
        partition=started.partition,
        run_id=started.run_id,
        url=views.run_url(service, started.run_id) if started.run_id else None,
        skipped=started.why_not,
    )


def _name(service: Service, table: TableDefinition) -> str:
    same = [each for each in service.project.tables.values() if each.table.name == table.name]
    return table.name if len(same) == 1 else table.id


def _described(service: Service, table: TableDefinition) -> TableOut:
    from export_pipelines.components.tables import stages_of
    from export_pipelines.steps.texts import texts

    select, delete = texts(table)
    return TableOut(
        name=_name(service, table),
        select_query=select,
        delete_query=delete if "cleanup" in stages_of(table) else None,
        id=table.id,
        description=table.spec.description,
        partitioned=table.spec.partitions is not None,
    )


def _files(service: Service, table: TableDefinition, most: int) -> list[ExportFileOut]:
    catalog: Any = service.resource("catalog")
    found = sorted(catalog.exports(table.id, expired=True), key=lambda each: each.started_at, reverse=True)
    return [
        ExportFileOut(
            partition=each.partition,
            generation=each.generation,
            state=each.state,
            rows=each.record.rows if each.record else None,
            file=each.file_key,
            run_id=each.run_id,
            started_at=each.started_at,
            finished_at=each.finished_at,
        )
        for each in found[:most]
    ]
