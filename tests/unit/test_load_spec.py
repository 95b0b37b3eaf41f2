"""Definitions of tables to load that would lose rows, or that say two things at once, are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from export_pipelines.specs.load import LoadSpec

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


@pytest.mark.parametrize(
    ("style", "more"), [("replace", {}), ("snapshot", KEY), ("partition", {"partition_by": "all"})]
)
def test_a_window_cannot_take_the_place_of_the_table(style: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="each window would take the place of the others"):
        spec(PULL, style, **more, partitions=DAYS)


@pytest.mark.parametrize(
    ("cadence", "period", "fits"),
    [
        ({"every": "day"}, "day", True),
        ({"every": "day"}, "month", False),
        ({"every": "hour"}, "day", False),
        ({"every": "month"}, "month", True),
        ({"every": "month"}, "year", False),
        ({"every_hours": 24}, "day", True),
        ({"every_hours": 6}, "day", False),
        ({"every_days": 7}, "month", False),
        ({"cron": "0 0 1 * *"}, "month", True),
    ],
)
def test_a_window_cannot_take_the_place_of_a_longer_period(cadence: dict[str, Any], period: str, fits: bool) -> None:
    def made() -> LoadSpec:
        windows = {**cadence, "start": "2025-01-01"}
        return spec(PULL, "partition", partition_by=f"{period}(at)", partitions=windows)

    if fits:
        assert made()
    else:
        with pytest.raises(ValidationError, match="is more than a window"):
            made()
