"""Retention and holds as Dagster shows them: the asset, its figures, its schedule, the check of a held cleanup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import AssetCheckEvaluation

from export_pipelines.catalog import Catalog
from tests.support.dagster_project import EVENTS, Folder, make_events, new_project, query

RETENTION = "  retention: {newest: 2, only_copies: give_up_for_good}\n"
NAMES = """
type: export_pipelines.ExportTable
attributes:
  table: names
  retention: {daily: 1, monthly: 12}
"""
SCHEDULE = """
type: export_pipelines.ExpireSchedule
attributes: {name: retention, tables: ["TABLES"], cron: 30 4 * * 0, timezone: Europe/Tallinn, default_status: running}
"""


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with ten days of `demo/events` and a small table, in a real database."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DAGSTER_PG_URL", catalog_url)
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    root = tmp_path / "project"
    root.mkdir()
    made = new_project(root)
    made.write("assets/demo/events/defs.yaml", EVENTS + RETENTION)
    made.write("assets/demo/names/defs.yaml", NAMES)
    make_events(database)
    query(database, "CREATE TABLE names (id int PRIMARY KEY)")
    return made


def run(folder: Folder, instance: dg.DagsterInstance, job: str, key: str | None = None) -> dg.ExecuteInProcessResult:
    definition = folder.load().definitions().resolve_job_def(job)
    return definition.execute_in_process(instance=instance, partition_key=key, raise_on_error=False)


def figures(result: dg.ExecuteInProcessResult, table: str) -> dict[str, Any]:
    """The metadata of the materialisation of an expire."""
    (made,) = result.asset_materializations_for_node(f"demo__{table}___expire")
    assert made.asset_key == dg.AssetKey(["demo", f"{table}_expire"])
    return {name: value.value for name, value in made.metadata.items()}


def test_a_table_with_retention_has_an_asset_after_its_archive(folder: Folder) -> None:
    definitions = folder.load().definitions()
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    spec = specs["demo/events_expire"]
    assert [dep.asset_key.to_user_string() for dep in spec.deps] == ["demo/events_archive"]
    assert spec.group_name == "demo"
    assert "`newest 2`" in (spec.description or "")
    assert "nowhere any more" in (spec.description or "")
    assert "the only copy of rows stays" in (specs["demo/names_expire"].description or "")
    folder.write("assets/demo/events/defs.yaml", EVENTS)
    keys = {key.to_user_string() for key in folder.load().definitions().resolve_all_asset_keys()}
    assert "demo/events_expire" not in keys
    assert "demo/names_expire" in keys


def test_an_expire_tells_what_it_kept_and_freed(folder: Folder, instance: dg.DagsterInstance) -> None:
    for day in (1, 2, 3):
        assert run(folder, instance, "demo__events_chain", f"2025-01-0{day}").success
    result = run(folder, instance, "demo__events_expire")
    assert result.success
    values = figures(result, "events")
    assert (values["kept_files"], values["kept_rows"], values["freed_files"], values["freed_rows"]) == (2, 40, 1, 20)
    assert values["freed_bytes"] > 0
    assert values["kept_by_newest_files"] == 2
    assert "| 2025-01-01 | 1 | 20 |" in values["files"]
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True]
    again = figures(run(folder, instance, "demo__events_expire"), "events")
    assert (again["kept_files"], again["freed_files"], again["freed_bytes"]) == (2, 0, 0)


def test_classes_have_figures_of_their_own(folder: Folder, instance: dg.DagsterInstance, database: str) -> None:
    for number in (1, 2):
        query(database, f"INSERT INTO names VALUES ({number})")
        assert run(folder, instance, "demo__names_chain").success
    values = figures(run(folder, instance, "demo__names_expire"), "names")
    assert (values["freed_files"], values["kept_by_daily_files"], values["kept_by_monthly_rows"]) == (1, 1, 2)


def test_a_hold_shows_in_the_expire_and_in_the_check_of_the_cleanup(
    folder: Folder, instance: dg.DagsterInstance, catalog_url: str
) -> None:
    catalog = Catalog(catalog_url)
    assert run(folder, instance, "demo__events_chain", "2025-01-01").success
    hold = catalog.place_hold("demo/events", "2025-01-02", "court case 7", "ann")
    result = run(folder, instance, "demo__events_chain", "2025-01-02")
    assert not result.success
    logs = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    told = [entry.dagster_event.event_specific_data for entry in logs if entry.dagster_event]
    checks = {each.check_name: each for each in told if isinstance(each, AssetCheckEvaluation)}
    assert not checks["not_held"].passed
    assert checks["not_held"].partition == "2025-01-02"
    assert "held by ann" in (checks["not_held"].description or "")
    assert "court case 7" in (checks["not_held"].description or "")
    for day in (3, 4):
        run(folder, instance, "demo__events_chain", f"2025-01-0{day}")
    values = figures(run(folder, instance, "demo__events_expire"), "events")
    assert (values["kept_files"], values["freed_files"]) == (3, 1)
    assert "partition 2025-01-02: held by ann" in values["holds"]
    catalog.release_hold(hold)
    catalog.close()
    freed = run(folder, instance, "demo__events_cleanup", "2025-01-02")
    assert {each.check_name: each.passed for each in freed.get_asset_check_evaluations()}["not_held"]


def test_what_could_not_go_fails_the_check(folder: Folder, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for day in (1, 2, 3):
        assert run(folder, instance, "demo__events_chain", f"2025-01-0{day}").success
    manifest = tmp_path / "archive/demo/events/manifests/00000001.json"
    manifest.unlink()
    result = run(folder, instance, "demo__events_expire")
    assert not result.success
    assert len(list((tmp_path / "archive").rglob("*.csv.gz"))) == 3


def test_a_schedule_runs_the_expire_of_each_table_that_has_a_retention(folder: Folder) -> None:
    folder.write("assets/demo/more/defs.yaml", EVENTS.replace("public.events", "public.more"))
    folder.write("schedules/retention/defs.yaml", SCHEDULE.replace("TABLES", "*"))
    definitions = folder.load().definitions()
    schedules = {each.name: each for each in definitions.schedules or ()}
    assert set(schedules) == {"retention__demo__events", "retention__demo__names"}
    schedule = schedules["retention__demo__events"]
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 4 * * 0", "Europe/Tallinn")
    assert schedule.job_name == "demo__events_expire"
    dg.Definitions.validate_loadable(definitions)


def test_a_schedule_of_a_table_without_retention_is_broken_and_says_so(folder: Folder) -> None:
    folder.write("assets/demo/more/defs.yaml", EVENTS.replace("public.events", "public.more"))
    folder.write("schedules/retention/defs.yaml", SCHEDULE.replace("TABLES", "demo/more"))
    (broken,) = folder.load().broken
    assert "demo/more has no retention" in str(broken.errors[0])
