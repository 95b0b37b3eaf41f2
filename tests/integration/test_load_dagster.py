"""Tables to load as Dagster assets, run against a real PostgreSQL: files as partitions, force, failures, copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.support.dagster_project import Folder, query
from tests.support.load_project import ORDERS, load_folder

PULL = "shop__orders_load"


@pytest.fixture
def folder(tmp_path: Path, database: str, catalog_url: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A project with the table `shop/orders`, and two files for it."""
    folder = load_folder(tmp_path / "project", database, catalog_url, monkeypatch)
    drop(folder.root, "may.csv", "id,name\n1,Ann\n2,Bob\n")
    drop(folder.root, "june.csv", "id,name\n3,Cid\n")
    return folder


def drop(root: Path, name: str, text: str) -> None:
    (root / "drops" / name).write_text(text)


def pull(folder: Folder, instance: dg.DagsterInstance, job: str = PULL, **config: Any) -> dg.ExecuteInProcessResult:
    """Run the job that takes all that is new."""
    op = job.removesuffix("_load") + "___load"
    definition = folder.load().definitions().resolve_job_def(job)
    run_config = {"ops": {op: {"config": config}}}
    return definition.execute_in_process(instance=instance, run_config=run_config, raise_on_error=False)


def told(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult, step: str) -> list[dg.AssetMaterialization]:
    logs = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    made = [entry.asset_materialization for entry in logs if entry.asset_materialization]
    return [each for each in made if each.asset_key.path[-1].endswith(f"_{step}")]


def checks(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> dict[tuple[str | None, str], bool]:
    logs = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in logs if entry.dagster_event]
    return {(each.partition, each.check_name): each.passed for each in found}


def orders(database: str) -> list[tuple[object, ...]]:
    return query(database, "SELECT id, name FROM shop.orders ORDER BY 1, 2")


def test_what_is_new_lands_and_is_loaded_a_partition_a_file(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    result = pull(folder, instance)
    assert result.success
    assert orders(database) == [(1, "Ann"), (2, "Bob"), (3, "Cid")]
    assert set(instance.get_dynamic_partitions("shop__orders_files")) == {"may.csv", "june.csv"}
    assert {each.partition for each in told(instance, result, "land")} == {"may.csv", "june.csv"}
    made = next(each for each in told(instance, result, "load") if each.partition == "may.csv")
    values = {name: value.value for name, value in made.metadata.items()}
    assert (values["rows"], values["quarantined"], values["action"], values["table_version"]) == (2, 0, "loaded", 1)
    assert [(c.name, c.type) for c in values["dagster/column_schema"].columns] == [("id", "bigint"), ("name", "text")]
    entry = "SELECT id FROM operations.datafile_registry WHERE file_name = 'may.csv'"
    assert query(database, entry) == [(values["registry_id"],)]
    assert checks(instance, result) == {(name, "quarantine_empty"): True for name in ("may.csv", "june.csv")}


def test_a_second_pull_loads_nothing_twice_and_force_loads_anew(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    pull(folder, instance)
    again = pull(folder, instance)
    assert again.success and not told(instance, again, "land") and not told(instance, again, "load")
    forced = pull(folder, instance, force=True, names=["june.csv"])
    assert [each.partition for each in told(instance, forced, "load")] == ["june.csv"]
    assert orders(database) == [(1, "Ann"), (2, "Bob"), (3, "Cid")]


def test_a_changed_file_is_a_new_landing_of_its_partition(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    pull(folder, instance)
    drop(folder.root, "june.csv", "id,name\n4,Dan\n5,Eve\n")
    result = pull(folder, instance)
    assert [each.partition for each in told(instance, result, "land")] == ["june.csv"]
    assert len(orders(database)) == 5


def test_a_table_that_is_published_later_is_indexed_by_the_next_run_if_there_is_nothing_new(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    indexes = "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE 'CREATE UNIQUE INDEX % (row_id)'"
    pull(folder, instance)
    assert query(database, indexes) == [(0,)]
    folder.write("assets/shop/orders/defs.yaml", ORDERS.replace("shop.orders}", "shop.orders, published: true}"))
    assert pull(folder, instance).success
    assert query(database, indexes) == [(1,)]


def test_partitions_are_run_from_the_ui_with_force(folder: Folder, instance: dg.DagsterInstance, database: str) -> None:
    pull(folder, instance)
    assets = folder.load().definitions()
    job = assets.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey(["shop", "orders_land"]), dg.AssetKey(["shop", "orders_load"])]
    config = {"ops": {"shop__orders": {"config": {"force": True}}}}
    result = job.execute_in_process(
        instance=instance, partition_key="may.csv", asset_selection=keys, run_config=config, raise_on_error=False
    )
    assert result.success
    assert [each.partition for each in told(instance, result, "load")] == ["may.csv"]
    assert orders(database) == [(1, "Ann"), (2, "Bob"), (3, "Cid")]


def test_a_mended_file_is_what_its_partition_tells_of_and_what_force_loads(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    folder.write(
        "assets/shop/orders/defs.yaml", ORDERS.replace("max_rows: 1}", "max_rows: 0}") + "  revised: replace\n"
    )
    drop(folder.root, "may.csv", "id,name\n1,Ann\nx,Bob\n")
    assert not pull(folder, instance).success
    drop(folder.root, "may.csv", "id,name\n1,Ann\n2,Bob\n")
    mended = pull(folder, instance)
    assert mended.success
    assert [each.metadata["action"].value for each in told(instance, mended, "load")] == ["loaded"]
    forced = pull(folder, instance, force=True, names=["may.csv"], land=False)
    assert forced.success
    assert orders(database) == [(1, "Ann"), (2, "Bob"), (3, "Cid")]


def test_a_bad_file_fails_the_run_by_name_and_keeps_no_other_from_the_table(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    drop(folder.root, "bad.csv", "id,name\nx,Eve\ny,Eve\n")
    drop(folder.root, "poor.csv", "id,name\nz,Eve\n7,Gus\n")
    result = pull(folder, instance)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "bad.csv" in str(failure.step_failure_data.user_failure_data.description)
    assert orders(database) == [(1, "Ann"), (2, "Bob"), (3, "Cid"), (7, "Gus")]
    found = checks(instance, result)
    assert found["poor.csv", "quarantine_empty"] is False and found["may.csv", "quarantine_empty"] is True


def test_a_loaded_table_is_copied_on_with_as_many_rows(
    folder: Folder, instance: dg.DagsterInstance, database: str, second_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETS_URL", second_database)
    folder.write(
        "resources/datasets/defs.yaml",
        "type: export_pipelines.PostgresConnection\nattributes: {resource_key: datasets, url: {env: DATASETS_URL}}\n",
    )
    folder.write(
        "assets/datasets/orders/defs.yaml",
        """
        type: export_pipelines.LoadTable
        attributes:
          source: {type: table, table: shop/orders}
          target: {connection: datasets, table: shop.orders}
          style: replace
        """,
    )
    project = folder.load()
    assert not project.broken
    assert project.loads["datasets/orders"].source.deps
    pull(folder, instance)
    result = pull(folder, instance, "datasets__orders_load")
    assert result.success
    assert query(second_database, "SELECT id, name FROM shop.orders ORDER BY 1") == [
        (1, "Ann"),
        (2, "Bob"),
        (3, "Cid"),
    ]
    assert checks(instance, result) == {(None, "quarantine_empty"): True, (None, "rows_match_file"): True}


PULLED = """
type: export_pipelines.LoadTable
attributes:
  source: {type: database, connection: warehouse, table: shop.origin, mode: changes}
  target: {table: shop.pulled}
  columns: {id: {type: bigint}, word: {}}
  quarantine: {max_rows: 1}
"""


def test_a_pull_is_told_as_landed_and_loaded_once_whether_it_was_loaded_meanwhile_or_behind(
    folder: Folder, instance: dg.DagsterInstance, database: str
) -> None:
    folder.write("assets/shop/pulled/defs.yaml", PULLED)
    query(database, "CREATE SCHEMA shop; CREATE TABLE shop.origin (id text, word text); SELECT 1")
    rows = "INSERT INTO shop.origin SELECT n, repeat(md5(n::text), 4) FROM generate_series({}, {}) n RETURNING 1"
    query(database, rows.format(1, 20_000))
    for last, unfit in [(20_000, 0), (40_000, 1), (40_000, 0)]:
        result = pull(folder, instance, "shop__pulled_load")
        assert result.success
        given = 0 if last == 40_000 and not unfit else 20_000 + unfit
        assert [each.metadata["rows"].value for each in told(instance, result, "land")] == [given][: bool(given)]
        made = [each.metadata for each in told(instance, result, "load")]
        loads = [(each["rows"].value, each["quarantined"].value) for each in made]
        assert loads == [(20_000, unfit)][: bool(given)]
        expected = {(None, "quarantine_empty"): not unfit, (None, "rows_match_file"): True}
        assert checks(instance, result) == (expected if given else {})
        assert query(database, "SELECT count(*), count(DISTINCT id) FROM shop.pulled") == [(last, last)]
        if last == 20_000:
            query(database, rows.format(20_001, 40_000))
            query(database, "INSERT INTO shop.origin VALUES ('none', '') RETURNING 1")
    assert query(database, "SELECT file_line, column_name FROM shop.pulled__quarantine") == [(20_002, "id")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("target: {table: shop.orders}", "target: {table: shop.orders, connection: nowhere}"), "'nowhere'"),
        (("quarantine: {max_rows: 1}", "depends: [shop/none]"), "'shop/none'"),
        (("quarantine: {max_rows: 1}", "depends: [shop/orders]"), "wait for each other"),
        (("quarantine: {max_rows: 1}", "moved_from: shop orders"), "moved_from"),
        (("quarantine: {max_rows: 1}", "moved_from: shop/other"), "belongs to 'shop/other'"),
        (("quarantine: {max_rows: 1}", "day: {windows: [noon]}"), "'noon'"),
        (("quarantine: {max_rows: 1}", "partitions: {every: day, start: 2025-01-01}"), "`partitions` are for"),
        (("type: folder", "type: folders"), "folder"),
    ],
)
def test_an_error_of_a_definition_names_its_line_and_breaks_no_other_table(
    folder: Folder, change: tuple[str, str], message: str
) -> None:
    folder.write("assets/shop/other/defs.yaml", ORDERS.replace("shop.orders", "shop.other"))
    folder.write("assets/shop/orders/defs.yaml", ORDERS.replace(*change))
    project = folder.load()
    (broken,) = project.broken
    assert broken.id == "shop/orders" and list(project.loads) == ["shop/other"]
    assert any(message in str(error) and error.line for error in broken.errors), broken.errors
    assert project.definitions()


def test_two_tables_cannot_load_into_one(folder: Folder) -> None:
    folder.write("assets/shop/twin/defs.yaml", ORDERS)
    (broken,) = folder.load().broken
    assert "as 'shop/orders'" in str(broken.errors[0])


def test_migrations_are_numbered_and_part_of_the_version(folder: Folder) -> None:
    before = folder.load().loads["shop/orders"].load
    folder.write("assets/shop/orders/ver/001_note.sql", "ALTER TABLE shop.orders ADD note text")
    after = folder.load().loads["shop/orders"].load
    assert [name for name, _ in after.migrations] == ["001_note.sql"]
    assert before.version != after.version
    folder.write("assets/shop/orders/ver/note.sql", "SELECT 1")
    assert "number of three digits" in str(folder.load().broken[0].errors[0])
