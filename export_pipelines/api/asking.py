"""Asking for data: what the API and the page have in common. Nothing here knows HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from export_pipelines.api.estimates import HOPELESS
from export_pipelines.api.users import REQUEST, Refused, Unknown, User, may_ask
from export_pipelines.catalog.audit import Actor
from export_pipelines.catalog.requests import Asked, RequestRow
from export_pipelines.errors import CatalogError, RequestError
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.notice import check_notice
from export_pipelines.specs.query import Problem, Query, QueryError, RawFilter, parse_query

if TYPE_CHECKING:
    from export_pipelines.api.service import Service


def asked_dataset(service: Service, user: User, name: str) -> DataSetDefinition:
    """A data set that a user may ask of.

    Raises:
        Unknown: there is none. Refused: the user is not among those who may ask.
    """
    dataset = service.dataset(name)
    if not may_ask(user, dataset):
        raise Refused(f"{user.name} may not ask of {dataset.id}", hint="`who` of the data set names those who may")
    return dataset


def environment_of(service: Service, user: User, given: str | None) -> str:
    """The environment that a user asks in.

    Raises:
        QueryError: there is none of that name. Refused: the user's token is of another one.
    """
    known = service.spec.environments
    name = given or user.environment or known[0]
    if name not in known:
        raise QueryError([Problem("environment", f"there is no environment {name!r}", f"one of {', '.join(known)}")])
    if user.environment not in (None, name):
        raise Refused(f"{user.name} may ask in environment {user.environment!r} only")
    return name


def question(
    service: Service,
    user: User,
    dataset: DataSetDefinition,
    *,
    environment: str | None = None,
    columns: Sequence[str] = (),
    filters: Iterable[RawFilter] = (),
    format: str | None = None,
    compression: str | None = None,
    limit: int | None = None,
    neutralise_formulas: bool | None = None,
    delimiter: str = ",",
    bom: bool = False,
) -> Query:
    """What a user asks of a data set, checked.

    Raises:
        QueryError: with all that is wrong. Refused: they may not ask in that environment.
    """
    asked = parse_query(
        dataset,
        environment=environment_of(service, user, environment),
        columns=columns,
        filters=filters,
        format=format,
        compression=compression,
        limit=limit,
        neutralise_formulas=neutralise_formulas,
        delimiter=delimiter,
        bom=bom,
    )
    service.columns.check(dataset, asked.columns)
    return asked


def ask(
    service: Service,
    user: User,
    address: str,
    query: Query,
    *,
    origin: str = "page",
    email: str | None = None,
    webhook: str | None = None,
) -> tuple[RequestRow, bool]:
    """The request that answers a question, recorded, and whether it was made just now. No data is read: the planner's
    estimate is waited for only a moment, and noted later where it takes longer.

    Raises:
        Refused: the user may not ask, or asks too often, or has too many requests under way.
        QueryError: the notice that is wanted cannot be, or far too many rows are asked for.
        CatalogError: it cannot be recorded now.
    """
    if not user.may(REQUEST):
        raise Refused(f"{user.name} lacks the scope {REQUEST!r}", hint="ask with another token")
    dataset = asked_dataset(service, user, query.dataset)
    environment_of(service, user, query.environment)
    service.limits.take("exports_per_user", user.name)
    email, webhook = check_notice(dataset, service.spec, email, webhook)
    future = service.estimates.future(dataset, query)
    estimate = service.estimates.soon(dataset, query)
    refuse_hopeless(dataset, query, estimate)
    version, fresh_since = service.versions.of(dataset)
    try:
        row, made = service.requests.ask(
            query,
            version,
            Asked(Actor(user.name, address), origin, email, webhook),
            secret=service.keys.key("ids"),
            fresh_since=fresh_since,
            estimate=estimate,
            round_robin=service.spec.fairness == "round_robin",
            max_pending=service.spec.max_pending_per_user,
        )
    except CatalogError:
        raise
    except RequestError as error:
        raise Refused(error.message, hint=error.hint, status=429, retry_after=10) from error
    if made and estimate is None and future is not None:
        _note_later(service, row.id, future)
    return row, made


def refuse_hopeless(dataset: DataSetDefinition, query: Query, estimate: int | None) -> None:
    """Raises QueryError: so many rows are expected that the work is not worth beginning."""
    most = dataset.spec.row_limit
    if estimate is not None and query.limit is None and estimate > HOPELESS * most:
        raise QueryError(
            [Problem("filters", f"about {estimate:,} rows, and {most:,} are allowed", "filter more, or give a limit")]
        )


def _note_later(service: Service, request: str, future: Future[int | None]) -> None:
    def note(done: Future[int | None]) -> None:
        if not done.cancelled() and (found := done.result()) is not None:
            service.later(lambda: service.requests.note_estimate(request, found))

    future.add_done_callback(note)


def may_see(service: Service, user: User, row: RequestRow) -> bool:
    """Whether a user may know of a request: their own, those that they joined, and an operator all. Of another
    environment than their token's none."""
    if user.environment not in (None, row.environment):
        return False
    return user.operator or row.created_by == user.name or service.requests.takes_part(row.id, user.name)


def seen_request(service: Service, user: User, request: str) -> RequestRow:
    """A request that a user may know of. Raises Unknown: there is none."""
    row = service.requests.get(request)
    if row is None or not may_see(service, user, row):
        raise Unknown("there is no such request, or it is not yours", hint="GET /requests lists yours")
    return row


def cancel(service: Service, user: User, address: str, request: str) -> RequestRow:
    """A user does not want an answer any more; an operator ends it for all. Again it changes nothing.

    Raises:
        Unknown: there is no such request, or the user has no part in it.
    """
    seen_request(service, user, request)
    row = service.requests.leave(request, Actor(user.name, address), operator=user.operator)
    if row is None:
        raise Unknown("there is no such request, or it is not yours", hint="GET /requests lists yours")
    return row
