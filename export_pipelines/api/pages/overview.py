"""For operators: what is under way, plots of the last weeks, what could not be delivered, the end of the audit log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date

from starlette.responses import Response

from export_pipelines.api.pages import charts, frame, texts
from export_pipelines.api.pages.charts import Plot, Series
from export_pipelines.api.pages.frame import Page
from export_pipelines.api.pages.requests import state_of
from export_pipelines.api.users import Refused
from export_pipelines.catalog.audit import AuditLog
from export_pipelines.catalog.deliveries import Deliveries, Delivery
from export_pipelines.catalog.requests import LIVE
from export_pipelines.catalog.statistics import Day, Statistics

WEEKS = 4
_MOST = 200
_AUDIT = 50
_DELIVERIES = 20


def show(page: Page) -> Response:
    """The page."""
    if not page.user.operator:
        raise Refused(f"{page.user.name} is no operator", hint="Your own requests are under Requests")
    found = Statistics(page.service.pool)
    days = found.days(WEEKS * 7)
    live = page.service.requests.find(states=LIVE, limit=_MOST)
    values = {
        "weeks": WEEKS,
        "live": [{"row": each, "state": state_of(each)} for each in sorted(live, key=lambda row: row.number)],
        "users": ", ".join(f"{name} {n}" for name, n in Counter(each.created_by for each in live).most_common(8)),
        "totals": _totals(days),
        "plots": _plots(days),
        "tops": [("Data sets", found.top("dataset", WEEKS * 7)), ("Users", found.top("created_by", WEEKS * 7))],
        "deliveries": _undelivered(page),
        "audit": AuditLog(page.service.pool).newest(_AUDIT),
    }
    return page.html("operator.html", values, here="operator")


def _undelivered(page: Page) -> list[Delivery]:
    """Notices that were given up, and those that failed and are tried again."""
    found = Deliveries(page.service.pool).find(states=("waiting", "given up"), limit=_MOST)
    return [each for each in found if each.error][:_DELIVERIES]


def _totals(days: Sequence[Day]) -> list[tuple[str, str]]:
    made = sum(each.succeeded for each in days)
    ended = made + sum(each.failed for each in days)
    return [
        ("Requests", texts.number(sum(each.requests for each in days))),
        ("Succeeded", f"{100 * made / ended:.1f} %" if ended else "–"),
        ("Rows", texts.number(sum(each.rows for each in days))),
        ("Written", texts.size(sum(each.bytes for each in days))),
        ("Downloaded", texts.size(sum(each.downloaded for each in days))),
    ]


def _plots(days: Sequence[Day]) -> list[Plot]:
    dates: list[date] = [each.day for each in days]

    def series(label: str, css: str, name: str, dashed: bool = False) -> Series:
        return Series(label, css, [getattr(each, name) for each in days], dashed)

    outcomes = [
        series("succeeded", "s-good", "succeeded"),
        series("failed", "s-bad", "failed"),
        series("cancelled", "s-off", "cancelled"),
        series("under way", "s-work", "live"),
    ]
    waits = [series("median", "s-work", "wait_median"), series("95 %", "s-wait", "wait_most", dashed=True)]
    runs = [series("median", "s-work", "run_median"), series("95 %", "s-wait", "run_most", dashed=True)]
    volume = [series("written", "s-accent", "bytes"), series("downloaded", "s-work", "downloaded", dashed=True)]
    return [
        charts.bars("Requests", dates, outcomes),
        charts.bars("Rows", dates, [series("rows", "s-accent", "rows")], texts.short),
        charts.bars("Users", dates, [series("users", "s-work", "users")]),
        charts.lines("Bytes", dates, volume, lambda value: texts.size(round(value or 0))),
        charts.lines("Wait in the queue", dates, waits, texts.seconds),
        charts.lines("At work", dates, runs, texts.seconds),
    ]


ROUTES = [frame.get("/operator", show)]
