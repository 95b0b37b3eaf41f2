"""The job `restore` and the check `restore_drill`, run through Dagster's own instance."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from psycopg2.extensions import make_dsn

from tests.support.dagster_project import EVENTS, Folder, make_events, new_project, query

pytestmark = pytest.mark.slow

DRILLS = """
type: export_pipelines.DrillSchedule
attributes: {name: drills, cron: 0 4 * * 0}
"""


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with the table `demo/events` of ten days, and the schedule `drills`."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DAGSTER_PG_URL", catalog_url)
    monkeypatch.setenv("EXPORT_PATH", str(tmp_path / "exports"))
    monkeypatch.setenv("ARCHIVE_URL", (tmp_path / "archive").as_uri())
    root = tmp_path / "project"
    root.mkdir()
    made = new_project(root)
    made.write("assets/demo/events/defs.yaml", EVENTS)
    made.write("schedules/drills/defs.yaml", DRILLS)
    make_events(database)
    return made


@pytest.fixture
def archived(folder: Folder, instance: dg.DagsterInstance) -> Folder:
    """The same, of which three days are archived and cleaned up."""
    job = folder.load().definitions().resolve_job_def("demo__events_chain")
    tags = {"dagster/asset_partition_range_start": "2025-01-01", "dagster/asset_partition_range_end": "2025-01-03"}
    assert job.execute_in_process(instance=instance, tags=tags).success
    return folder


def restore(folder: Folder, instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    job = folder.load().definitions().resolve_job_def("restore")
    run_config = {"ops": {"restore_table": {"config": config}}}
    return job.execute_in_process(instance=instance, run_config=run_config, raise_on_error=False)


def told(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Metadata of the observation that a restore ends with."""
    observed = [event for event in result.all_events if event.is_asset_observation]
    found = observed[-1].asset_observation_data.asset_observation
    assert found.asset_key == dg.AssetKey(["demo", "events_archive"])
    return {name: value.value for name, value in found.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the one failed step says, with its hint."""
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    data = event.step_failure_data.user_failure_data
    assert data is not None
    return f"{data.description} hint: {data.metadata['hint'].value}"


def test_job_restores_a_range_and_tells_the_counts(
    archived: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    result = restore(archived, instance, table="demo/events", into="back", **{"from": "2025-01-02"})
    assert result.success
    values = told(result)
    expected = {"rows": 40, "inserted": 40, "skipped": 0, "replaced": 0, "made": True, "partitions": 2}
    assert values.items() >= {**expected, "into": "back", "connection": "source"}.items()
    assert (values["first_partition"], values["last_partition"]) == ("2025-01-02", "2025-01-03")
    assert query(database, "SELECT count(*), min(id), max(id) FROM back") == [(40, 1001, 2020)]


def test_job_restores_into_the_table_that_the_rows_came_from(
    archived: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    query(database, "INSERT INTO events VALUES (5, '2025-01-01', 'other')")
    config = {"table": "demo/events", "into": "public.events", "all": True}
    assert "1 of 20 rows of partition 2025-01-01" in failure(restore(archived, instance, **config))
    assert query(database, "SELECT count(*) FROM events") == [(141,)]
    values = told(restore(archived, instance, **config, on_conflict="replace"))
    assert (values["inserted"], values["replaced"], values["key"]) == (59, 1, "id")
    assert query(database, "SELECT count(*), count(DISTINCT id) FROM events") == [(200, 200)]
    again = told(restore(archived, instance, **config, on_conflict="skip"))
    assert (again["inserted"], again["skipped"], again["differing"]) == (0, 60, 0)


def test_job_restores_a_table_that_is_defined_no_more(
    archived: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    (archived.root / "assets/demo/events/defs.yaml").unlink()
    result = restore(archived, instance, table="demo/events", into="back", partition="2025-01-01")
    assert result.success
    assert query(database, "SELECT count(*) FROM back") == [(20,)]


WRONG = [
    ({"table": "demo/events", "into": "back"}, "names no partition"),
    ({"table": "demo/events", "into": "back", "all": True, "partition": "2025-01-01"}, "more than one way"),
    ({"table": "demo/events", "into": "back", "from": "2025-01-01", "partition": "2025-01-01"}, "more than one way"),
    ({"table": "demo/events", "into": "back", "from": "2025-01-03", "to": "2025-01-01"}, "is later than"),
    ({"table": "demo/events", "into": "back", "partition": "2025-01-09"}, "is not archived in"),
    ({"table": "demo/none", "into": "back", "all": True}, "nothing of 'demo/none' is archived"),
    ({"table": "demo/events", "into": "a b", "all": True}, "not the name of a table"),
    ({"table": "demo/events", "into": "no.where", "all": True}, 'schema of "no"."where" does not exist'),
    ({"table": "demo/events", "into": "back", "all": True, "connection": "lost"}, "no 'lost' in resources/"),
    ({"table": "demo/events", "into": "back", "all": True, "connection": "archive"}, "is no connection"),
]


@pytest.mark.parametrize(("config", "message"), WRONG, ids=[message for _, message in WRONG])
def test_job_refuses_wrong_config_with_one_error(
    archived: Folder, instance: dg.DagsterInstance, database: str, config: dict[str, Any], message: str
) -> None:
    result = restore(archived, instance, **config)
    assert not result.success
    assert message in failure(result)
    assert query(database, "SELECT to_regclass('back')") == [(None,)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"table": "demo/events"}, "into"),
        ({"table": "demo/events", "into": "back", "polisy": "skip"}, "polisy"),
        ({"table": "demo/events", "into": "back", "on_conflict": "merge"}, "on_conflict"),
    ],
)
def test_launchpad_refuses_config_of_the_wrong_shape(folder: Folder, config: dict[str, Any], message: str) -> None:
    job = folder.load().definitions().resolve_job_def("restore")
    with pytest.raises(dg.DagsterInvalidConfigError, match=message):
        job.execute_in_process(run_config={"ops": {"restore_table": {"config": config}}})


def test_each_field_of_the_launchpad_says_what_it_is(folder: Folder) -> None:
    job = folder.load().definitions().resolve_job_def("restore")
    fields = job.get_node_named("restore_table").definition.config_field.config_type.fields  # type: ignore[union-attr]
    assert set(fields) == {"table", "into", "partition", "from", "to", "all", "on_conflict", "connection"}
    assert all(field.description for field in fields.values())
    defaults = {name: field.default_value for name, field in fields.items() if field.default_provided}
    assert defaults == {"all": False, "on_conflict": "fail"}


def test_job_needs_no_variable_of_other_connections(
    archived: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    archived.write(
        "resources/other/defs.yaml",
        "type: export_pipelines.PostgresConnection\nattributes: {resource_key: other, url: {env: OTHER_URL}}\n",
    )
    config = {"table": "demo/events", "into": "back", "all": True}
    assert "OTHER_URL" in failure(restore(archived, instance, **config, connection="other"))
    assert restore(archived, instance, **config).success


def test_no_password_is_told(
    archived: Folder, instance: dg.DagsterInstance, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", make_dsn(database, password="planted-password"))
    result = restore(archived, instance, table="demo/events", into="back", all=True)
    assert not result.success
    logs = instance.all_logs(result.run_id)
    assert "cannot connect" in str(logs)
    assert "planted-password" not in str(logs)
    assert "planted-password" not in str(instance.get_run_by_id(result.run_id))


# The drill


def drilled(folder: Folder, instance: dg.DagsterInstance, *, success: bool = True) -> dg.AssetCheckEvaluation:
    job = folder.load().definitions().resolve_job_def("drills_job")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert result.success is success
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.asset_key.path[-1]) == ("restore_drill", "events_archive")
    return evaluation


def test_drill_restores_a_partition_and_leaves_nothing_behind(
    archived: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    things = "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text !~ '^(pg_catalog|pg_toast|inform)'"
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'"
    before = (query(database, things), query(database, schemas))
    evaluation = drilled(archived, instance)
    assert evaluation.passed, evaluation.description
    values = {name: value.value for name, value in evaluation.metadata.items()}
    assert values["partition"] in ("2025-01-01", "2025-01-02", "2025-01-03")
    assert (values["rows"], values["files"], values["same_bytes"]) == (20, 1, True)
    assert values["raw_bytes"] > 0 and values["seconds"] > 0
    assert (query(database, things), query(database, schemas)) == before


def test_drill_finds_a_damaged_file(archived: Folder, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for file in (tmp_path / "archive").rglob("*.csv.gz"):
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b"row 1,", b"row 2,") + b""))
        file.write_bytes(file.read_bytes()[:-2])
    evaluation = drilled(archived, instance)
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.ERROR
    assert evaluation.metadata["error"].value == "IntegrityError"


def test_drill_of_nothing_passes_and_says_so(folder: Folder, instance: dg.DagsterInstance) -> None:
    evaluation = drilled(folder, instance)
    assert (evaluation.passed, evaluation.description) == (True, "nothing is archived yet")


def test_drill_says_that_its_role_lacks_the_right(
    archived: Folder, instance: dg.DagsterInstance, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(query(database, "SELECT current_database()")[0][0])
    query(database, "CREATE ROLE drill_reader LOGIN PASSWORD 'x'")
    query(database, f'REVOKE TEMPORARY ON DATABASE "{name}" FROM public')
    try:
        monkeypatch.setenv("DATABASE_URL", make_dsn(database, user="drill_reader", password="x"))
        evaluation = drilled(archived, instance)
        assert not evaluation.passed
        assert "permission denied" in str(evaluation.description) and "TEMPORARY" in str(evaluation.description)
        query(database, f'GRANT TEMPORARY ON DATABASE "{name}" TO drill_reader')
        assert drilled(archived, instance).passed
    finally:
        query(database, "DROP OWNED BY drill_reader; DROP ROLE drill_reader")


def test_drill_takes_no_more_than_its_budget(archived: Folder, instance: dg.DagsterInstance, database: str) -> None:
    wide = "SELECT 900000 + n, timestamptz '2025-01-05', repeat(md5(n::text), 200) FROM generate_series(1, 400) n"
    query(database, f"INSERT INTO events {wide}")
    job = archived.load().definitions().resolve_job_def("demo__events_archive")
    export = archived.load().definitions().resolve_job_def("demo__events_export")
    for each in (export, job):
        assert each.execute_in_process(instance=instance, partition_key="2025-01-05").success
    archived.write("schedules/drills/defs.yaml", DRILLS.replace("0 4 * * 0", "0 4 * * 0, max_megabytes: 1"))
    for _ in range(6):
        assert drilled(archived, instance).metadata["partition"].value != "2025-01-05"


def test_drill_uses_the_connection_of_its_schedule(
    archived: Folder, instance: dg.DagsterInstance, second_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived.write("schedules/drills/defs.yaml", DRILLS.replace("0 4 * * 0", "0 4 * * 0, connection: scratch"))
    assert "there is no connection 'scratch'" in str(archived.load().broken[0].errors[0])
    archived.write(
        "resources/scratch/defs.yaml",
        "type: export_pipelines.PostgresConnection\nattributes: {resource_key: scratch, url: {env: SCRATCH_URL}}\n",
    )
    monkeypatch.setenv("SCRATCH_URL", second_database)
    # The table's own database is of no use to the drill, so it may as well be away.
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert drilled(archived, instance).passed


def test_a_run_that_makes_the_archive_is_no_drill(folder: Folder, instance: dg.DagsterInstance) -> None:
    definitions = folder.load().definitions()
    keys = [dg.AssetKey(["demo", f"events_{stage}"]) for stage in ("export", "archive")]
    for name in ("demo__events_chain", "demo__events_archive", "demo__events_export"):
        assert "demo__events___restore_drill" not in {node.name for node in definitions.resolve_job_def(name).nodes}
    job = definitions.resolve_job_def("demo__events_chain")
    assert {each.check_name for each in job.execute_in_process(instance=instance, partition_key="2025-01-02")
            .get_asset_check_evaluations()} >= {"digests_agree", "no_late_rows"}  # fmt: skip
    # The UI's "Materialize" takes all checks of the assets along.
    whole = definitions.resolve_implicit_global_asset_job_def()
    result = whole.execute_in_process(
        instance=instance, asset_selection=keys, partition_key="2025-01-01", raise_on_error=False
    )
    assert result.success
    assert "restore_drill" not in {each.check_name for each in result.get_asset_check_evaluations()}


def test_schedule_draws_tables_and_runs_their_checks(archived: Folder, instance: dg.DagsterInstance) -> None:
    archived.write("assets/demo/more/defs.yaml", EVENTS)
    archived.write("schedules/drills/defs.yaml", DRILLS.replace("0 4 * * 0", "0 4 * * 0, tables_at_once: 1"))
    definitions = archived.load().definitions()
    schedule = definitions.resolve_schedule_def("drills")
    chosen = set()
    for day in range(1, 20):
        with dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=datetime(2025, 3, day, tzinfo=UTC),
            repository_def=definitions.get_repository_def(),
        ) as context:
            (request,) = schedule.evaluate_tick(context).run_requests or ()
        assert request.asset_check_keys is not None and len(request.asset_check_keys) == 1
        chosen.add(request.asset_check_keys[0].asset_key.path[1].removesuffix("_archive"))
    assert chosen == {"events", "more"}


def test_a_table_is_in_one_drill_schedule(folder: Folder) -> None:
    folder.write("schedules/other/defs.yaml", DRILLS.replace("name: drills", "name: others"))
    broken = folder.load().broken
    assert "demo/events is in another DrillSchedule already" in str(broken[0].errors[0])
    assert len(broken) == 1
