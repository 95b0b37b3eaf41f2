"""What a LoadSensor starts: by the clock, after what comes before, and not what is paused or outside of its hours."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from export_pipelines.components.pausing import set_pause
from export_pipelines.specs.load_times import DaySpec
from tests.support.dagster_project import Folder
from tests.support.load_project import ORDERS, load_folder

SENSOR = """
type: export_pipelines.LoadSensor
attributes: {name: loading}
"""
COPY = """
type: export_pipelines.LoadTable
attributes:
  source: {type: table, table: shop/orders}
  target: {table: shop.copied}
  style: replace
"""


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with `shop/orders`, a table that copies it, and the sensor."""
    folder = load_folder(tmp_path / "project", database, catalog_url, monkeypatch)
    (folder.root / "drops" / "may.csv").write_text("id,name\n1,Ann\n")
    folder.write("schedules/loading/defs.yaml", SENSOR)
    folder.write("assets/shop/copied/defs.yaml", COPY)
    return folder


def tick(folder: Folder, instance: dg.DagsterInstance, cursor: str | None = None) -> tuple[list[str], str]:
    """The jobs that the sensor wants to run, and its cursor."""
    definitions = folder.load().definitions()
    (sensor,) = definitions.sensors or ()
    with dg.build_sensor_context(instance, cursor=cursor, definitions=definitions) as context:
        data = sensor.evaluate_tick(context)  # type: ignore[union-attr]
    return [each.job_name or "" for each in data.run_requests or ()], data.cursor or ""


def run(folder: Folder, instance: dg.DagsterInstance, job: str) -> bool:
    definition = folder.load().definitions().resolve_job_def(job)
    return definition.execute_in_process(instance=instance, raise_on_error=False).success


def test_a_table_runs_at_once_then_after_its_pause_and_starts_what_follows(
    folder: Folder, instance: dg.DagsterInstance
) -> None:
    jobs, cursor = tick(folder, instance)
    assert jobs == ["shop__orders_load"]
    assert run(folder, instance, "shop__orders_load")
    jobs, cursor = tick(folder, instance, cursor)
    assert jobs == ["shop__copied_load"]
    assert tick(folder, instance, cursor)[0] == []
    folder.write("assets/shop/orders/defs.yaml", ORDERS + "  keep_pause: 0 minutes\n")
    assert tick(folder, instance, cursor)[0] == ["shop__orders_load"]


def test_what_is_paused_waits_and_what_others_made_is_not_forgotten(
    folder: Folder, instance: dg.DagsterInstance
) -> None:
    set_pause(instance, "all", "", "moving")
    jobs, cursor = tick(folder, instance)
    assert jobs == []
    assert run(folder, instance, "shop__orders_load")
    jobs, cursor = tick(folder, instance, cursor)
    assert jobs == []
    set_pause(instance, "all", "", None)
    set_pause(instance, "table", "shop/orders", "moving")
    assert tick(folder, instance, cursor)[0] == ["shop__copied_load"]


def test_three_failures_in_a_row_end_the_quick_attempts(folder: Folder, instance: dg.DagsterInstance) -> None:
    folder.write("schedules/loading/defs.yaml", SENSOR.replace("loading}", "loading, failure_pause_minutes: 0}"))
    (folder.root / "drops" / "may.csv").write_text("id,name\nx,Ann\ny,Bob\n")
    started = []
    for _ in range(4):
        jobs, _ = tick(folder, instance)
        started.append(len(jobs))
        run(folder, instance, "shop__orders_load")
    assert started == [1, 1, 1, 0]


def test_windows_of_the_day_go_by_their_zone_and_past_midnight() -> None:
    day = DaySpec(windows=("morning", "23:30-00:30"), timezone="Europe/Tallinn")
    # Tallinn is two hours ahead of UTC in winter.
    found = [day.contains(datetime(2025, 1, 15, hour, tzinfo=UTC)) for hour in (1, 2, 5, 6)]
    assert found == [False, True, True, False]
    assert day.contains(datetime(2025, 1, 15, 22, 15, tzinfo=UTC))
    assert not day.contains(datetime(2025, 1, 15, 22, 45, tzinfo=UTC))
    assert DaySpec().contains(datetime(2025, 1, 15, tzinfo=UTC))
