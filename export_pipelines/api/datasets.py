"""`/datasets`: what may be asked for, what it would give, and asking by an address alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from export_pipelines.api import asking
from export_pipelines.api.auth import Asker, Reader, User, address_of, service_of
from export_pipelines.api.models import ColumnOut, DataSetDetails, DataSetList, DataSetOut, FilterOut, PreviewOut
from export_pipelines.api.problems import responses
from export_pipelines.api.requests import KICK_OFF, Prefer, kick_off
from export_pipelines.api.routing import id_first
from export_pipelines.api.users import may_ask
from export_pipelines.catalog.requests import RequestRow
from export_pipelines.errors import SourceError
from export_pipelines.manifest import Column
from export_pipelines.specs import query
from export_pipelines.specs.dataset import DataSetDefinition, FilterType, Operator
from export_pipelines.specs.query import Problem, QueryError, describe, filters_from_parameters

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

router = APIRouter(tags=["data sets"], route_class=id_first(lambda service: service.project.datasets))

PREVIEW_ROWS = 20

DataSetId = Annotated[
    str,
    Path(
        max_length=400,
        description="Id of a data set, or the last part of it where only one has that.",
        examples=["nycflights13/flights"],
    ),
]
_OPTIONS = {"fileType", "format", "compression", "columns", "limit", "environment", "email", "webhook", "delimiter"}
_FLAGS = {"neutralise_formulas", "bom"}


@router.get("/datasets", responses=responses())
def list_datasets(request: Request, user: Reader) -> DataSetList:
    """The data sets that one may ask of."""
    known = service_of(request).project.datasets.values()
    return DataSetList(datasets=[DataSetOut(**_described(each)) for each in known if may_ask(user, each)])


# The paths with something behind the id come first: an id has slashes in it. Where it ends in that word itself, they
# are passed over.


@router.get("/datasets/{dataset:path}/preview", responses=responses())
def preview_dataset(
    request: Request,
    dataset: DataSetId,
    user: Reader,
    columns: Annotated[str | None, Query(max_length=4000, description="Names, parted by commas.")] = None,
    limit: Annotated[int | None, Query(ge=1, description="As a request would have it.")] = None,
) -> PreviewOut:
    """The first rows of an answer, and how many there would be. Every other parameter is a filter, as for an
    export."""
    from export_pipelines.steps.request import count, preview

    service = service_of(request)
    found = asking.asked_dataset(service, user, dataset)
    asked = _question(service, user, found, request)
    source, most = service.source(found), found.spec.row_limit
    rows = preview(found, source, asked, PREVIEW_ROWS)
    estimate = service.estimates.soon(found, asked, 2)
    try:
        counted = count(found, source, asked, most)
    except SourceError:
        counted = None  # it takes too long: the estimate has to do
    over = counted is not None and counted > most
    return PreviewOut(
        columns=[_column(each, found) for each in rows.columns],
        rows=rows.rows,
        estimated_rows=estimate,
        counted_rows=min(counted, most) if counted is not None else None,
        more_than_counted=over,
        row_limit=most,
        too_many=over and asked.limit is None,
        summary=describe(asked),
    )


@router.get(
    "/datasets/{dataset:path}/export",
    status_code=202,
    responses=KICK_OFF,
    response_model=None,
)
async def export_dataset(
    request: Request,
    dataset: DataSetId,
    user: Asker,
    file_type: Annotated[
        str | None, Query(alias="fileType", max_length=20, description="csv, json, jsonl, parquet or excel.")
    ] = None,
    compression: Annotated[str | None, Query(max_length=20, description="none, gzip or zstd.")] = None,
    columns: Annotated[str | None, Query(max_length=4000, description="Names, parted by commas.")] = None,
    limit: Annotated[int | None, Query(ge=1, description="Not more rows than this.")] = None,
    environment: Annotated[str | None, Query(max_length=200, description="Environment that asks.")] = None,
    email: Annotated[str | None, Query(max_length=320, description="Told when it has ended.")] = None,
    webhook: Annotated[str | None, Query(max_length=1000, description="Called when it has ended.")] = None,
    prefer: Prefer = None,
) -> Response:
    """Ask for data by an address alone. `delimiter`, `bom` and `neutralise_formulas` are those of POST /requests. Every
    other parameter is a filter: `carrier=UA`, `dep_delay__ge=60`, `dest__in=LAX,SFO`."""
    service = service_of(request)

    def record() -> RequestRow:
        found = asking.asked_dataset(service, user, dataset)
        asked = _question(service, user, found, request)
        row, _ = asking.ask(service, user, address_of(request), asked, origin="api", email=email, webhook=webhook)
        return row

    return await kick_off(request, user, await run_in_threadpool(record), prefer)


@router.get("/datasets/{dataset:path}", responses=responses())
def show_dataset(request: Request, dataset: DataSetId, user: Reader) -> DataSetDetails:
    """What may be asked of a data set: columns with their types, filters with their operators, formats, limits."""
    service = service_of(request)
    found = asking.asked_dataset(service, user, dataset)
    columns = [_column(each, found) for each in service.columns.of(found)]
    return DataSetDetails(**_described(found), described_columns=columns, examples=_examples(found))


def _question(service: Service, user: User, dataset: DataSetDefinition, request: Request) -> query.Query:
    """The question of an address."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    doubled = {name for name in names if names.count(name) > 1}
    problems = [Problem(name[:100], f"{name[:100]!r} stands there twice") for name in sorted(doubled)]
    options = {name: value for name, value in given if name in _OPTIONS | _FLAGS}
    flags: dict[str, bool | None] = {}
    for name in _FLAGS & options.keys():
        try:
            flags[name] = query.canonical(FilterType.BOOLEAN, options[name], "UTC") == "true"
        except ValueError as error:
            problems.append(Problem(name, str(error)))
    limit = options.get("limit")
    if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) < 19):
        problems.append(Problem("limit", f"{limit[:50]!r} is no number of rows"))
    columns = tuple(each.strip() for each in options.get("columns", "").split(",") if each.strip())
    if any(not each.isprintable() or len(each) > 200 for each in columns):
        problems.append(Problem("columns", "that is not a list of names"))
    if problems:
        raise QueryError(problems)
    return asking.question(
        service,
        user,
        dataset,
        environment=options.get("environment"),
        columns=columns,
        filters=filters_from_parameters((name, value) for name, value in given if name not in _OPTIONS | _FLAGS),
        format=options.get("fileType", options.get("format")),
        compression=options.get("compression"),
        limit=int(limit) if limit is not None else None,
        neutralise_formulas=flags.get("neutralise_formulas"),
        delimiter=options.get("delimiter", ","),
        bom=bool(flags.get("bom")),
    )


def _described(dataset: DataSetDefinition) -> dict[str, Any]:
    spec = dataset.spec
    own = f"/datasets/{dataset.id}"
    return {
        "id": dataset.id,
        "name": dataset.name,
        "title": dataset.title,
        "description": spec.description,
        "columns": list(spec.columns),
        "filters": [
            FilterOut(
                name=name,
                type=each.type.value,
                operators=[operator.value for operator in each.allowed],
                required=each.required,
                values=list(each.values),
                description=each.description,
            )
            for name, each in spec.filters.items()
        ],
        "row_limit": spec.row_limit,
        "formats": [each.value for each in spec.formats],
        "compressions": [each.value for each in spec.compressions],
        "mail": spec.mail.value,
        "freshness_minutes": None if spec.version_of else spec.freshness_minutes,
        "keep_hours": spec.keep_hours,
        "links": {"self": own, "preview": f"{own}/preview", "export": f"{own}/export"},
    }


def _column(column: Column, dataset: DataSetDefinition) -> ColumnOut:
    return ColumnOut(
        name=column.name, type=column.type, description=dataset.spec.column_descriptions.get(column.name, "")
    )


_VALUES = {
    FilterType.TEXT: "text",
    FilterType.INTEGER: "10",
    FilterType.DECIMAL: "1.5",
    FilterType.BOOLEAN: "true",
    FilterType.DATE: "2013-01-31",
    FilterType.TIMESTAMP: "2013-01-31T08:00:00",
    FilterType.UUID: "00000000-0000-0000-0000-000000000000",
}


def _examples(dataset: DataSetDefinition) -> list[str]:
    """Addresses that ask a data set for something, one a filter."""
    own, found = f"/datasets/{dataset.id}/export", []
    for name, each in dataset.spec.filters.items():
        operator = Operator.GE if Operator.GE in each.allowed and not each.values else each.allowed[0]
        suffix = "" if operator is Operator.EQ else f"__{operator.value}"
        value = each.values[0] if each.values else _VALUES[each.type]
        found.append(f"{own}?{name}{suffix}={value}&fileType={dataset.spec.formats[0].value}")
    return found or [f"{own}?fileType={dataset.spec.formats[0].value}"]
