"""The asset check `verified` of the archives, run by its schedule's job through Dagster's own instance."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.components.automation import FailureNoticeSpec
from export_pipelines.components.notices import Notice, _notices
from export_pipelines.components.project import load_project
from export_pipelines.signing import make_keys
from tests.support.dagster_project import EVENTS, Folder, make_events, new_project, query

VERIFY = """
type: export_pipelines.VerifySchedule
attributes: {name: verify, cron: 30 2 * * *, timezone: Europe/Tallinn, budget: BUDGET, default_status: running}
"""
KEY = dg.AssetKey(["demo", "events_archive"])
CHECK = dg.AssetCheckKey(KEY, "verified")


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with `demo/events`, `demo/names` and a schedule that verifies both."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DAGSTER_PG_URL", catalog_url)
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    root = tmp_path / "project"
    root.mkdir()
    made = new_project(root)
    made.write("assets/demo/events/defs.yaml", EVENTS)
    made.write("assets/demo/names/defs.yaml", "type: export_pipelines.ExportTable\nattributes: {table: names}\n")
    made.write("schedules/verify/defs.yaml", VERIFY.replace("BUDGET", "1GB"))
    make_events(database)
    query(database, "CREATE TABLE names (id int PRIMARY KEY)")
    return made


@pytest.fixture
def archived(folder: Folder, instance: dg.DagsterInstance) -> Folder:
    """The same with four archived days."""
    job = folder.load().definitions().resolve_job_def("demo__events_chain")
    tags = {"dagster/asset_partition_range_start": "2025-01-01", "dagster/asset_partition_range_end": "2025-01-04"}
    assert job.execute_in_process(instance=instance, tags=tags).success
    return folder


def run(folder: Folder, instance: dg.DagsterInstance, **config: Any) -> dict[str, Any]:
    """Evaluations of a run of the job, by table."""
    job = folder.load().definitions().resolve_job_def("verify_job")
    run_config = {"ops": {"verify___verified": {"config": config}}} if config else None
    result = job.execute_in_process(instance=instance, run_config=run_config)
    return {each.asset_key.path[1].removesuffix("_archive"): each for each in result.get_asset_check_evaluations()}


def values(evaluation: Any) -> dict[str, Any]:
    return {name: value.value for name, value in evaluation.metadata.items()}


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "archive").rglob("*.csv.gz"))


def test_every_archive_has_the_check_with_what_it_means(folder: Folder) -> None:
    repository = folder.load().definitions().get_repository_def()
    for table in ("events", "names"):
        key = dg.AssetCheckKey(dg.AssetKey(["demo", f"{table}_archive"]), "verified")
        spec = repository.asset_graph.get_check_spec(key)
        assert "longest ago" in (spec.description or "")
    (schedule,) = [each for each in repository.schedule_defs if each.name == "verify"]
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 2 * * *", "Europe/Tallinn")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_the_schedule_verifies_and_tells_how_far_it_is(archived: Folder, instance: dg.DagsterInstance) -> None:
    evaluations = run(archived, instance)
    events = evaluations["events"]
    told = values(events)
    assert events.passed and events.partition is None
    assert "4 of 4 files read, all intact" in events.description
    assert (told["verified_files"], told["files"], told["unverified_files"], told["verified_rows"]) == (4, 4, 0, 80)
    assert told["verified_bytes"] > 0 and 0 <= told["oldest_verification_days"] < 0.1
    assert evaluations["names"].passed and evaluations["names"].description == "nothing is archived yet"
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([CHECK])
    assert latest[CHECK].status.value == "SUCCEEDED"
    (observed,) = instance.fetch_observations(KEY, limit=1).records
    assert observed.asset_observation is not None
    assert observed.asset_observation.metadata["verified_files"].value == 4


def test_a_budget_is_shared_and_goes_on_where_it_ended(
    archived: Folder, instance: dg.DagsterInstance, tmp_path: Path, catalog_url: str
) -> None:
    total = sum(each.stat().st_size for day in files(tmp_path) for each in day.parent.iterdir())
    nevers = []
    for _ in range(4):
        told = values(run(archived, instance, budget=str(total // 3))["events"])
        assert told["verified_bytes"] <= total // 3
        nevers.append(told["unverified_files"])
    assert nevers[0] > 0 and nevers[-1] == 0 and nevers == sorted(nevers, reverse=True)
    catalog = Catalog(catalog_url)
    rows = catalog.verifications("demo/events", (tmp_path / "archive").as_uri())
    catalog.close()
    assert sorted(rows) == sorted({row.sequence for row in rows.values() if row.intact}) and len(rows) == 4


def notices_of_last_run(folder: Folder, instance: dg.DagsterInstance) -> list[Notice]:
    """What operators would be told of it."""
    (last,) = instance.get_runs(limit=1)
    spec = FailureNoticeSpec(name="notices", email_to=("somebody@localhost",))
    return list(_notices(instance, last, spec, list(folder.load().tables.values()), []))


def test_damage_fails_the_check_until_it_is_mended(
    archived: Folder, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    file = files(tmp_path)[1]
    before = file.read_bytes()
    file.write_bytes(before[:-1])
    for budget in ("1GB", "1"):
        evaluation = run(archived, instance, budget=budget)["events"]
        assert not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR
        assert file.name in evaluation.description
        assert values(evaluation)["problems"] == 1
        (notice,) = notices_of_last_run(archived, instance)
        assert notice.title == "demo/events: check verified failed" and file.name in notice.text
    file.write_bytes(before)
    assert run(archived, instance)["events"].passed


def test_a_cut_off_chain_fails_the_check_though_no_file_is_read(
    archived: Folder, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for manifest in (tmp_path / "archive").rglob("manifests/*.json"):
        manifest.unlink()
    evaluation = run(archived, instance)["events"]
    assert not evaluation.passed and "tail is cut off" in evaluation.description


def test_a_file_larger_than_the_budget_is_a_warning(archived: Folder, instance: dg.DagsterInstance) -> None:
    evaluation = run(archived, instance, budget="1")["events"]
    assert not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.WARN
    assert "larger than the whole budget" in evaluation.description
    assert values(evaluation)["verified_files"] == 0


def test_a_run_that_archives_does_not_verify(folder: Folder, instance: dg.DagsterInstance) -> None:
    definitions = folder.load().definitions()
    whole = definitions.resolve_implicit_global_asset_job_def()
    stages = [dg.AssetKey(["demo", f"events_{stage}"]) for stage in ("export", "archive")]
    done = whole.execute_in_process(instance=instance, asset_selection=stages, partition_key="2025-01-01")
    assert done.success and done.asset_materializations_for_node("demo__events") is not None
    assert "verified" not in {each.check_name for each in done.get_asset_check_evaluations()}
    assert "verify___verified" not in {node.name for node in definitions.resolve_job_def("demo__events_chain").nodes}


def test_the_check_alone_can_be_run_by_hand(archived: Folder, instance: dg.DagsterInstance) -> None:
    whole = archived.load().definitions().resolve_implicit_global_asset_job_def()
    subset = whole.get_subset(asset_selection=set(), asset_check_selection={CHECK})
    (evaluation,) = subset.execute_in_process(instance=instance).get_asset_check_evaluations()
    assert evaluation.asset_check_key == CHECK and evaluation.passed


def test_a_table_is_verified_by_one_schedule_only(folder: Folder) -> None:
    folder.write("schedules/zz/defs.yaml", VERIFY.replace("name: verify", "name: other").replace("BUDGET", "1GB"))
    (broken,) = folder.load().broken
    assert "is in another VerifySchedule already" in str(broken.errors[0])


@pytest.mark.parametrize(("field", "value"), [("budget", "ten"), ("budget", "0"), ("minutes", "0"), ("cron", "x")])
def test_a_schedule_that_cannot_be_is_refused(folder: Folder, field: str, value: str) -> None:
    folder.write(
        "schedules/verify/defs.yaml",
        f"type: export_pipelines.VerifySchedule\nattributes: {{name: verify, {field}: '{value}'}}\n",
    )
    (broken,) = folder.load().broken
    assert field in str(broken.errors[0])


def test_with_a_key_entries_are_signed_and_signatures_are_checked(
    folder: Folder, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    key = tmp_path / "signing.pem"
    make_keys(key)
    folder.write("resources/signing/defs.yaml", f"type: export_pipelines.SigningKey\nattributes: {{file: {key}}}\n")
    job = folder.load().definitions().resolve_job_def("demo__events_chain")
    assert job.execute_in_process(instance=instance, partition_key="2025-01-01").success
    evaluation = run(folder, instance)["events"]
    assert evaluation.passed and values(evaluation)["signed_manifests"] == 2
    (tmp_path / "archive" / "demo" / "events" / "signatures" / "00000001.sig").write_bytes(b"x" * 64)
    assert "manifest 1 is not what was signed" in run(folder, instance)["events"].description


def test_where_the_key_is_broken_nothing_is_archived_unsigned(
    folder: Folder, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    folder.write("resources/signing/defs.yaml", "type: export_pipelines.SigningKey\nattributes: {flie: /x}\n")
    assert not folder.load().tables
    folder.write("resources/signing/defs.yaml", "type: export_pipelines.SigningKey\nattributes: {env: NO_SUCH_KEY}\n")
    job = folder.load().definitions().resolve_job_def("demo__events_chain")
    assert not job.execute_in_process(instance=instance, partition_key="2025-01-01", raise_on_error=False).success
    assert not (tmp_path / "archive").exists()


def test_the_private_key_is_in_no_definition_no_log_and_no_metadata(
    folder: Folder, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    key = tmp_path / "signing.pem"
    make_keys(key)
    secret = key.read_text().splitlines()[1]
    monkeypatch.setenv("SIGNING_KEY", key.read_text())
    folder.write("resources/signing/defs.yaml", "type: export_pipelines.SigningKey\nattributes: {env: SIGNING_KEY}\n")
    definitions = folder.load().definitions()
    done = definitions.resolve_job_def("demo__events_chain").execute_in_process(
        instance=instance, partition_key="2025-01-01"
    )
    assert done.success
    resources = definitions.get_repository_def().get_top_level_resources()
    logs = [str(entry) for entry in instance.all_logs(done.run_id)]
    said = "".join([*logs, repr(resources["signing"]), str(resources["signing"].config_schema.default_value)])
    assert "SIGNING_KEY" in said
    assert secret not in said + "".join(capfd.readouterr())
    assert list((tmp_path / "archive").rglob("*.sig"))


def test_the_repositorys_own_schedule_verifies_all_its_tables(
    tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DAGSTER_PG_URL", catalog_url)
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    query(database, "CREATE SCHEMA nycflights13")
    query(database, "CREATE TABLE nycflights13.planes AS SELECT 'N1' AS tailnum")
    project = load_project(Path(__file__).parents[2])
    assert not project.broken
    definitions = project.definitions()
    chain = definitions.resolve_job_def("nycflights13__planes_chain")
    assert chain.execute_in_process(instance=instance).success
    job = definitions.resolve_job_def("verify_archive_job")
    evaluations = job.execute_in_process(instance=instance).get_asset_check_evaluations()
    assert len(evaluations) == len(project.tables)
    assert all(each.passed for each in evaluations)
    (planes,) = [each for each in evaluations if each.asset_key.path[1] == "planes_archive"]
    assert values(planes)["verified_rows"] == 1


def test_a_tick_of_the_schedule_asks_for_one_run(folder: Folder, instance: dg.DagsterInstance) -> None:
    repository = folder.load().definitions().get_repository_def()
    schedule = repository.get_schedule_def("verify")
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=datetime(2026, 1, 1, tzinfo=UTC), repository_def=repository
    ) as context:
        tick = schedule.evaluate_tick(context)
    assert len(tick.run_requests or ()) == 1
