"""Requests: the page of one, which follows it to its end, and the history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from starlette.responses import RedirectResponse, Response

from export_pipelines import links
from export_pipelines.api import asking, login, views
from export_pipelines.api.pages import datasets, frame, questions, render
from export_pipelines.api.pages.frame import Page
from export_pipelines.api.users import REQUEST, may_ask
from export_pipelines.catalog.requests import RequestRow
from export_pipelines.specs.dataset import DataSetDefinition, FilterType, Links, Operator
from export_pipelines.specs.query import Filter, Query, describe, filters_of
from export_pipelines.specs.service import resolve

PAGE_ROWS = 50
_STATES = ("pending", "processing", "succeeded", "failed", "cancelled")


def state_of(row: RequestRow) -> str:
    """The state as the page tells it."""
    if row.live and row.cancel_at is not None:
        return "cancelling"
    return "expired" if row.state == "succeeded" and views.expired(row) else row.state


# One


def show(page: Page) -> Response:
    """The page of a request."""
    row = _row(page)
    dataset = page.service.project.datasets.get(row.dataset)
    values = {
        **_panel(page, row),
        **page.told(),
        "title": dataset.title if dataset else row.dataset,
        "conditions": conditions(dataset, row.query),
        "change_address": questions.page_address(row.query),
        "events_address": f"/requests/{row.id}/events",
        "panel_address": f"/requests/{row.id}/panel",
        "lines": datasets.lines(page, dataset, row.query) if dataset else [],
    }
    return page.html("request.html", values, here="requests")


def panel(page: Page) -> Response:
    """Only what changes."""
    row = _row(page)
    return render.html("panel.html", {**frame.common(page.request, page.service, page.user), **_panel(page, row)})


def cancel(page: Page) -> Response:
    """Cancel it, or for an operator everybody's."""
    row = asking.cancel(page.service, page.user, page.address, page.request.path_params["id"])
    if row.live and row.cancel_at is None:
        page.tell("You do not wait for it any more; others do.", "")
    return RedirectResponse(login.local_path(page.posted("next") or f"/requests/{row.id}"), 303)


def again(page: Page) -> Response:
    """Ask the same question again."""
    old = _row(page)
    dataset = asking.asked_dataset(page.service, page.user, old.dataset)
    # What may be asked may have changed since.
    query = asking.question(
        page.service,
        page.user,
        dataset,
        environment=old.environment,
        columns=old.query.columns,
        filters=filters_of(old.query),
        format=old.query.format.value,
        compression=old.query.compression.value,
        limit=old.query.limit,
        neutralise_formulas=old.query.neutralise_formulas,
        delimiter=old.query.delimiter,
        bom=old.query.bom,
    )
    row, made = asking.ask(page.service, page.user, page.address, query, email=_email_of(page, old))
    if not made:
        page.tell("Its answer is still fresh: this is it." if not row.live else "It is under way already.", "")
    return RedirectResponse(f"/requests/{row.id}", 303)


def _email_of(page: Page, row: RequestRow) -> str | None:
    """Where the user wanted to be told the last time."""
    found = (each.email for each in page.service.requests.subscribers(row.id) if each.username == page.user.name)
    return next(found, None)


def _row(page: Page) -> RequestRow:
    return asking.seen_request(page.service, page.user, page.request.path_params["id"])


def _panel(page: Page, row: RequestRow) -> dict[str, Any]:
    place = page.service.requests.place(row) if row.state == "pending" else None
    names = [each.username for each in page.service.requests.subscribers(row.id)] if row.live else []
    mine = page.user.name in names
    dataset = page.service.project.datasets.get(row.dataset)
    return {
        "row": row,
        "state": state_of(row),
        "ahead": place,
        "percent": views.percent(row) if row.state == "processing" else None,
        "eta": views.eta_seconds(page.service, row, place),
        "took": _between(row.started_at, row.finished_at),
        "waited": _between(row.created_at, row.started_at),
        "mine": mine,
        "others": len(names) - 1 if mine else 0,
        "may_cancel": (mine or page.user.operator) and row.cancel_at is None,
        "may_request": page.user.may(REQUEST) and dataset is not None and may_ask(page.user, dataset),
        "run_url": views.run_url(page.service, row.run_id) if row.run_id else "",
        "download_address": f"/requests/{row.id}/download",
        **_link(page, row),
    }


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() if start and end else None


def _link(page: Page, row: RequestRow) -> dict[str, Any]:
    path = views.signed_path(page.service, row)
    if path is None:
        return {"link": "", "link_word": ""}
    dataset = page.service.project.datasets.get(row.dataset)
    if dataset is not None and dataset.spec.links is Links.PUBLIC:
        word = "valid as long as the file is kept"
    else:
        until = datetime.fromtimestamp(links.expiry_of(path), UTC)
        word = f"valid until {until:%Y-%m-%d %H:%M} UTC, without a login"
    return {"link": resolve(page.service.spec.public_url).rstrip("/") + path, "link_word": word}


def conditions(dataset: DataSetDefinition | None, query: Query) -> list[str]:
    """Each filter in words, times in the zone of the data set."""
    found = []
    for each in query.filters:
        shown = _readable(dataset, each) if dataset else each
        text = describe(query.model_copy(update={"filters": (shown,), "columns": (), "limit": None}))
        found.append(text.removeprefix(f"{query.dataset} where "))
    return found


def _readable(dataset: DataSetDefinition, given: Filter) -> Filter:
    spec = dataset.spec.filters.get(given.name)
    if spec is None or spec.type is not FilterType.TIMESTAMP or given.operator is Operator.IS_NULL:
        return given
    values = [questions.readable_time(value, dataset.spec.timezone) for value in given.values]
    return given.model_copy(update={"values": tuple(values)})


# All


def history(page: Page) -> Response:
    """The user's own requests; an operator's choice of everybody's. Pages by the number of the last one shown."""
    given = dict(page.query)
    everybody = page.user.operator and given.get("all") == "1"
    status = given.get("status", "") if given.get("status") in _STATES else ""
    who = given.get("user", "").strip() if everybody else ""
    before = int(given["before"]) if given.get("before", "").isdecimal() and len(given["before"]) < 19 else None
    dataset = given.get("dataset", "")
    rows = page.service.requests.find(
        username=(who or None) if everybody else page.user.name,
        environment=page.user.environment,
        dataset=dataset or None,
        states=(status,) if status else (),
        before=before,
        limit=PAGE_ROWS + 1,
    )
    kept = {"status": status, "dataset": dataset, "user": who, "all": "1" if everybody else ""}
    values = {
        "rows": [_history_row(each) for each in rows[:PAGE_ROWS]],
        "everybody": everybody,
        "filtered": bool(status or dataset or who or everybody),
        "states": _STATES,
        "status": status,
        "datasets": sorted({*page.service.project.datasets, *([dataset] if dataset else [])}),
        "dataset": dataset,
        "who": who,
        "may_request": page.user.may(REQUEST),
        "first": _address(kept) if before is not None else "",
        "next": _address({**kept, "before": str(rows[PAGE_ROWS - 1].number)}) if len(rows) > PAGE_ROWS else "",
    }
    return page.html("requests.html", values, here="requests")


def _address(parameters: dict[str, str]) -> str:
    text = urlencode({key: value for key, value in parameters.items() if value})
    return "/requests" + (f"?{text}" if text else "")


def _history_row(row: RequestRow) -> dict[str, Any]:
    return {
        "row": row,
        "state": state_of(row),
        "kind": row.query.format.value
        + ("" if row.query.compression == "none" else f", {row.query.compression.value}"),
        "size": row.file.proof.raw_size if row.file else None,
        "download": f"/requests/{quote(row.id)}/download",
    }


ROUTES = [
    frame.get("/requests", history, shared=True),
    frame.get("/requests/{id}", show, shared=True),
    frame.get("/requests/{id}/panel", panel),
    frame.post("/requests/{id}/cancel", cancel),
    frame.post("/requests/{id}/again", again),
]
