"""Definitions of tables to load that would lose rows, or that say two things at once, are refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from export_pipelines.specs.load import LoadSpec
from export_pipelines.specs.loader import load_tables

PULL = {"type": "database", "connection": "erp", "table": "orders"}
NEW = {**PULL, "mode": "changes"}
DAYS = {"every": "day", "start": "2025-01-01"}
KEY = {"key": ["id"]}


def spec(source: dict[str, Any], style: str, **more: Any) -> LoadSpec:
    return LoadSpec.model_validate({"source": source, "target": {"table": "shop.orders"}, "style": style, **more})


@pytest.mark.parametrize("source", [NEW, {**PULL, "mode": "incremental", "column": "id"}])
@pytest.mark.parametrize(
    ("style", "more"),
    [
        ("replace", {}),
        ("shadow", KEY),
        ("snapshot", KEY),
        ("history", {**KEY, "absent": "close"}),
        ("partition", {"partition_by": "month(at)"}),
    ],
)
def test_new_rows_alone_cannot_take_the_place_of_all(source: dict[str, Any], style: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="would take the place of those that are there"):
        spec(source, style, **more)
    assert spec(PULL, style, **more)


@pytest.mark.parametrize(("style", "more"), [("append", {}), ("upsert", KEY), ("history", KEY)])
def test_new_rows_alone_may_be_added(style: str, more: dict[str, Any]) -> None:
    assert spec(NEW, style, **more) and spec(PULL, style, **more, partitions=DAYS)


@pytest.mark.parametrize("name", ["valid_to", "removed_at", "row_id"])
def test_a_column_cannot_have_the_name_of_one_that_its_style_adds(name: str) -> None:
    columns = {"id": {}, name: {}}
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "append": ("append", {}),
        "snapshot": ("snapshot", KEY),
        "marks": ("snapshot", {**KEY, "removal": {"mark": True}}),
        "history": ("history", KEY),
    }
    refused = {"valid_to": {"history"}, "removed_at": {"marks"}, "row_id": {*styles}}[name]
    for case, (style, more) in styles.items():
        with pytest.raises(ValidationError, match="cannot be named") if case in refused else nullcontext():
            assert spec(PULL, style, columns=columns, **more)


@pytest.mark.parametrize(
    ("style", "more"), [("replace", {}), ("snapshot", KEY), ("partition", {"partition_by": "all"})]
)
def test_a_window_cannot_take_the_place_of_the_table(style: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="each window would take the place of the others"):
        spec(PULL, style, **more, partitions=DAYS)


@pytest.mark.parametrize("mode", [{"mode": "changes"}, {"mode": "incremental", "column": "id"}])
def test_a_pull_of_new_rows_cannot_take_the_place_of_the_pull_before(mode: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="with `revised: replace` would take the place"):
        spec({**PULL, **mode}, "append", revised="replace")
    assert spec(PULL, "append", revised="replace") and spec({**PULL, **mode}, "upsert", **KEY, revised="replace")


def told(root: Path, source: str, windows: str, period: str, select: str | None = None) -> list[tuple[str, str]]:
    """Field and text of each error of a definition in a folder."""
    folder = root / "assets/shop/orders"
    folder.mkdir(parents=True)
    (folder / "defs.yaml").write_text(
        f"type: export_pipelines.LoadTable\nattributes:\n  source: {source}\n  partitions: {{{windows}}}\n"
        f"  target: {{table: shop.orders}}\n  style: partition\n  partition_by: {period}(at)\n"
    )
    if select is not None:
        (folder / "select.sql").write_text(select)
    return [(error.field, error.message) for error in load_tables(root, None).errors]


SELECT = "SELECT * FROM orders WHERE at >= %(window_start)s AND at < %(window_end)s"
DATABASE = "{type: database, connection: erp}"


@pytest.mark.parametrize(
    ("windows", "period", "cut"),
    [
        ("every: day, start: 2025-01-01", "day", ""),
        ("every: day, start: 2025-01-01", "month", "2025-01-02"),
        ("every: hour, start: 2025-01-01", "day", "2025-01-01-01:00"),
        ("every: month, start: 2025-01-01", "month", ""),
        ("every: month, start: 2025-01-01", "year", "2025-02-01"),
        ("every_hours: 24, start: 2025-01-01", "day", ""),
        ("every_hours: 6, start: 2025-01-01", "day", "2025-01-01-06:00"),
        ("every_days: 7, start: 2025-01-01", "month", "2025-01-08"),
        ("cron: 0 0 1 * *, start: 2025-01-01", "month", ""),
        ("every: month, start: 2025-01-15", "month", "2025-01-15"),
        ("every_days: 40, start: 2025-01-01", "month", "2025-02-10"),
        ("every_days: 366, start: 2024-01-01", "year", "2026-01-02"),
        ("every: day, start: '2025-01-01T06:00'", "day", "2025-01-01"),
        ("cron: 0 6 * * *, start: 2025-01-01", "day", "2025-01-01-06:00"),
        ("every: month, start: 2025-01-01, timezone: Europe/Tallinn", "month", ""),
        ("every: week, start: 2025-01-01", "day", ""),
        # Clocks go on at midnight there: the day begins at one.
        ("every: day, start: 2024-04-25, timezone: Africa/Cairo", "day", ""),
    ],
)
def test_windows_cut_no_period_that_each_of_them_replaces(tmp_path: Path, windows: str, period: str, cut: str) -> None:
    message = f"window {cut} begins within a {period}, whose rows it would take the place of"
    assert told(tmp_path, DATABASE, windows, period, SELECT) == ([("partition_by", message)] if cut else [])


@pytest.mark.parametrize(
    ("source", "select", "fit"),
    [
        ("{type: database, connection: erp, table: orders}", None, False),
        (DATABASE, "SELECT * FROM orders", False),
        (DATABASE, SELECT, True),
        ("{type: rest, url: 'https://api.example.org/orders'}", None, False),
        ("{type: rest, url: 'https://api.example.org/orders?from={window_start}'}", None, True),
        ("{type: rest, url: 'https://api.example.org', params: {to: '{window_end}'}}", None, True),
        ("{type: rest, url: {env: ORDERS_URL}}", None, True),
    ],
)
def test_windows_of_a_source_that_does_not_use_them_are_refused(
    tmp_path: Path, source: str, select: str | None, fit: bool
) -> None:
    message = "each window would give the same rows, since nothing says which"
    assert told(tmp_path, source, "every: day, start: 2025-01-01", "day", select) == (
        [] if fit else [("partitions", message)]
    )
