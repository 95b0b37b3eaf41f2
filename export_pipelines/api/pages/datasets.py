"""Data sets, and the page of one: choose, look at the first rows, ask."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response

from export_pipelines.api import asking
from export_pipelines.api.pages import frame, questions, render, texts
from export_pipelines.api.pages.frame import Page
from export_pipelines.api.pages.questions import Condition, Form, Line, Pairs
from export_pipelines.api.users import REQUEST, Refused, may_ask
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.manifest import Column
from export_pipelines.specs.dataset import DataSetDefinition, FilterSpec, FilterType, Mail
from export_pipelines.specs.format import FormatName
from export_pipelines.specs.query import Problem, Query, QueryError
from export_pipelines.specs.service import resolve

log = logging.getLogger("export_pipelines.api")

PREVIEW_ROWS = 20
_PREVIEW_COLUMNS = 200
_PREVIEWS = threading.BoundedSemaphore(4)
"""Previews at the same time: people who type must not keep the source busy."""
_COUNT_SECONDS = 2.0

_DELIMITERS = ((",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "vertical bar"))
_NUMBERS = re.compile(
    r"(small|big|tiny|medium)?(int|serial)|numeric|decimal|real|double|float|long|short", re.IGNORECASE
)
_EXTENSIONS = {"csv": ".csv", "json": ".json", "jsonl": ".jsonl", "parquet": ".parquet", "excel": ".xlsx"}


# All of them


def show_all(page: Page) -> Response:
    """The data sets that the user may ask of."""
    search = next((value for key, value in page.query if key == "q"), "").strip()
    known = sorted(page.service.project.datasets.values(), key=lambda each: (each.title.lower(), each.id))
    own = [each for each in known if may_ask(page.user, each)]
    found = [each for each in map(_card, own) if all(word in each["words"] for word in search.lower().split())]
    values = {"sets": found, "search": search, "total": len(own), "any": bool(known)}
    return page.html("datasets.html", values, here="data")


def _card(dataset: DataSetDefinition) -> dict[str, Any]:
    spec = dataset.spec
    return {
        "id": dataset.id,
        "address": f"/data/{quote(dataset.id)}",
        "title": dataset.title,
        "description": spec.description,
        "columns": len(spec.columns),
        "filters": len(spec.filters),
        "row_limit": spec.row_limit,
        "formats": [each.value for each in spec.formats],
        "words": " ".join([dataset.id, dataset.title, spec.description, *spec.columns]).lower(),
    }


# One of them


@dataclass(frozen=True)
class FilterView:
    """A filter as the form shows it."""

    name: str
    spec: FilterSpec
    chosen: list[str]
    lines: list[Line]
    wrong: list[Problem]

    @property
    def operators(self) -> list[tuple[str, str]]:
        return questions.operators_of(self.spec)

    @property
    def can_add(self) -> bool:
        """Whether another condition can be added: with a list of values there is nothing to add."""
        return not self.spec.values and self.spec.type is not FilterType.BOOLEAN

    @property
    def placeholder(self) -> str:
        return {"integer": "any number", "decimal": "any number", "uuid": "any UUID"}.get(self.spec.type.value, "any")

    @property
    def inputmode(self) -> str:
        return {"integer": "numeric", "decimal": "decimal"}.get(self.spec.type.value, "")

    def input(self, operator: str) -> str:
        """The type of the input that goes with an operator."""
        return (
            "none"
            if operator in (questions.IS_NULL, questions.NOT_NULL)
            else questions.input_type(self.spec.type, operator)
        )


@dataclass
class Asking:
    """The form of one data set, what is wrong with it, and what it gives."""

    page: Page
    dataset: DataSetDefinition
    form: Form
    columns: tuple[Column, ...]
    problems: list[Problem] = field(default_factory=list)
    add: str = ""
    warning: str = ""

    @property
    def known(self) -> tuple[str, ...]:
        """Columns that may be chosen."""
        return tuple(each.name for each in self.columns)

    def query(self, environment: str) -> Query | None:
        """The query; None if something is wrong, which `problems` has then."""
        try:
            return questions.query_of(self.dataset, self.form, self.known, environment)
        except QueryError as error:
            self.problems += error.problems
            return None


def show(page: Page) -> Response:
    """The form, filled in as the address says, with the first rows."""
    asking = _asking(page, page.query)
    # Somebody who has just come is not told what is missing.
    return _form_page(page, asking, _environment(page, page.query), quiet=not page.query or bool(asking.add))


def answer(page: Page) -> Response:
    """Only what changes while somebody fills in the form: the count and the first rows."""
    asking = _asking(page, page.query)
    environment = _environment(page, page.query)
    values = {**frame.common(page.request, page.service, page.user), **_answer(page, asking, environment)}
    return render.html("answer.html", values)


def ask(page: Page) -> Response:
    """Ask for the file: to the page of its request, or back to the form with what is wrong."""
    found = _asking(page, page.form)
    environment = _environment(page, page.form)
    query = found.query(environment)
    if query is None:
        return _form_page(page, found, environment, status=422)
    if not page.posted("anyway") and (warning := _warning(page, found.dataset, query)):
        found.warning = warning
        return _form_page(page, found, environment)
    try:
        row, made = asking.ask(page.service, page.user, page.address, query, email=found.form.email or None)
    except QueryError as error:
        found.problems += error.problems
        return _form_page(page, found, environment, status=422)
    if not made:
        page.tell("The same question was asked before: this is its answer.", "")
    return RedirectResponse(f"/requests/{row.id}", 303)


def _asking(page: Page, pairs: Pairs) -> Asking:
    dataset = asking.asked_dataset(page.service, page.user, page.request.path_params["id"])
    form = questions.read_form(dataset, pairs)
    columns = _columns(page, dataset)
    if not columns:
        form.columns = None
    form.format = form.format or dataset.spec.formats[0].value
    form.compression = form.compression or dataset.spec.compressions[0].value
    return Asking(page, dataset, form, columns, add=dict(pairs).get("add", ""))


def _environment(page: Page, pairs: Pairs) -> str:
    return asking.environment_of(page.service, page.user, dict(pairs).get("environment") or None)


def _columns(page: Page, dataset: DataSetDefinition) -> tuple[Column, ...]:
    """The columns with their types; without types, or none at all, while the source does not answer."""
    try:
        return page.service.columns.of(dataset)
    except ExportPipelinesError as error:
        log.warning("columns of %s: %s", dataset.id, error.message)
        return tuple(Column(name=name, type="") for name in dataset.spec.columns)


def _warning(page: Page, dataset: DataSetDefinition, query: Query) -> str:
    expected = page.service.estimates.soon(dataset, query, 1.0)
    if query.limit is not None or expected is None or expected <= dataset.spec.row_limit:
        return ""
    most = texts.plural(dataset.spec.row_limit, "row")
    return f"This gives {texts.about(expected)} rows, and {most} are allowed."


def _form_page(page: Page, found: Asking, environment: str, *, status: int = 200, quiet: bool = False) -> Response:
    dataset = found.dataset
    gives = _answer(page, found, environment)
    if found.problems and not quiet:
        gives["preview_problem"] = ""  # they stand above the form
    values = {
        **gives,
        "address": f"/data/{quote(dataset.id)}",
        "preview_address": f"/preview/{quote(dataset.id)}",
        "problems": [] if quiet else found.problems,
        "warning": found.warning,
        "form": found.form,
        "filters": list(_filter_views(found, quiet)),
        "columns": _column_views(found),
        "wrong_columns": [] if quiet else _wrong(found, "columns"),
        "wrong_limit": [] if quiet else _wrong(found, "limit"),
        "wrong_email": [] if quiet else _wrong(found, "email"),
        "has_csv": FormatName.CSV in dataset.spec.formats,
        "delimiters": _DELIMITERS,
        "mail": dataset.spec.mail.value if dataset.spec.mail is not Mail.OFF and page.service.spec.smtp else "",
        "environment": environment,
        "may_request": page.user.may(REQUEST),
    }
    return page.html("dataset.html", values, here="data", status=status)


def _wrong(found: Asking, where: str) -> list[Problem]:
    return [each for each in found.problems if each.field == where]


def _filter_views(found: Asking, quiet: bool) -> Iterator[FilterView]:
    zone = found.dataset.spec.timezone
    for name, spec in found.dataset.spec.filters.items():
        conditions: Sequence[Condition] = found.form.conditions.get(name, [])
        more = found.add == name
        lines = questions.lines_of(spec, conditions, zone, more=more)
        if spec.values and not any(each.counts for each in conditions):
            lines = []
        wrong = [] if quiet else _wrong(found, f"filters.{name}")
        yield FilterView(name, spec, found.form.chosen.get(name, []), lines, wrong)


def _column_views(found: Asking) -> list[dict[str, Any]]:
    described = found.dataset.spec.column_descriptions
    return [
        {
            "name": each.name,
            "type": each.type,
            "description": described.get(each.name, ""),
            "checked": found.form.columns is None or each.name in found.form.columns,
            "words": f"{each.name} {described.get(each.name, '')}".lower(),
        }
        for each in found.columns
    ]


# What it gives


def _answer(page: Page, found: Asking, environment: str) -> dict[str, Any]:
    """The values of the count, the first rows and the lines to copy."""
    values: dict[str, Any] = {
        "set": found.dataset,
        "counted": None,
        "asked": "",
        "preview": None,
        "preview_hidden": 0,
        "preview_problem": "",
        "preview_hint": "",
        "preview_kind": "bad",
        "lines": [],
        "lines_open": False,
    }
    query = found.query(environment)
    if query is None:
        values["asked"] = "Something is missing or wrong in the question."
        first = found.problems[0]
        return {**values, "preview_problem": first.message, "preview_hint": first.hint, "preview_kind": "warn"}
    values["lines"] = lines(page, found.dataset, query)
    try:
        return {**values, **_looked_up(page, found, query)}
    except ExportPipelinesError as error:
        log.info("preview of %s: %s", found.dataset.id, error.message)
        hint = error.hint or "You can ask all the same."
        return {
            **values,
            "preview_problem": "The source gave no first rows in time.",
            "preview_hint": hint,
            "preview_kind": "warn",
        }


def _looked_up(page: Page, found: Asking, query: Query) -> dict[str, Any]:
    from export_pipelines.steps.request import preview

    if not _PREVIEWS.acquire(timeout=3):
        raise Refused("too many previews at once", hint="Wait a moment, and press Preview.", status=429)
    try:
        rows = preview(found.dataset, page.service.source(found.dataset), query, PREVIEW_ROWS)
        counted = _counted(page, found.dataset, query, len(rows.rows))
    finally:
        _PREVIEWS.release()
    shown = rows.columns[:_PREVIEW_COLUMNS]
    columns = [{"name": e.name, "type": e.type, "number": bool(_NUMBERS.match(e.type))} for e in shown]
    return {
        "counted": counted,
        "preview": {"columns": columns, "rows": [row[:_PREVIEW_COLUMNS] for row in rows.rows]},
        "preview_hidden": len(rows.columns) - len(shown),
    }


def _counted(page: Page, dataset: DataSetDefinition, query: Query, seen: int) -> dict[str, str]:
    """How many rows there are: exactly, as far as that takes but a moment."""
    from export_pipelines.steps.request import count

    most = dataset.spec.row_limit
    over = f"{texts.plural(most, 'row')} are allowed: add a filter, or set “rows at most”."
    if seen < PREVIEW_ROWS and query.limit is None:
        return {"number": texts.number(seen), "word": "row" if seen == 1 else "rows", "warning": ""}
    try:
        exact = count(dataset, page.service.source(dataset), query, most, seconds=_COUNT_SECONDS)
    except ExportPipelinesError:
        expected = page.service.estimates.soon(dataset, query, 0.5)
        if expected is None:
            return {"number": "Many", "word": "rows; counting them takes too long", "warning": ""}
        warning = over if expected > most and query.limit is None else ""
        return {"number": texts.about(expected).capitalize(), "word": "rows", "warning": warning}
    if exact > most:
        return {"number": f"More than {texts.number(most)}", "word": "rows", "warning": over}
    return {"number": texts.number(exact), "word": "row" if exact == 1 else "rows", "warning": ""}


def lines(page: Page, dataset: DataSetDefinition, query: Query) -> list[tuple[str, str]]:
    """The question in the ways in which programs ask it; only in those that can say all of it."""
    public = resolve(page.service.spec.public_url).rstrip("/")
    more = questions.options_of(dataset, query, page.service.spec.environments[0])
    curl = ("curl", questions.curl_line(query, public, more))
    if not questions.fits_commas(query):
        return [curl]
    extension = _EXTENSIONS[query.format.value] + query.compression.extension
    return [
        ("Command line", questions.command_line(query, public, extension, more)),
        curl,
        ("Address", questions.address_line(query, public, more)),
    ]


ROUTES = [
    frame.get("/", show_all),
    frame.get("/preview/{id:path}", answer),
    frame.get("/data/{id:path}", show),
    frame.post("/data/{id:path}", ask),
]
