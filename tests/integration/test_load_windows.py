"""Windows of time that are pulled one by one: of a database and of an API, as partitions in Dagster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from export_pipelines.stores.filesystem import FilesystemStore
from tests.support.dagster_project import Folder, new_project, query
from tests.support.http_source import Answer, Asked, HttpSourceServer, http_source_server
from tests.support.load_project import RESOURCES, variables

DAYS = "{every: day, start: 2025-01-01, end: 2025-01-04}"
SALES = f"""
type: export_pipelines.LoadTable
attributes:
  source: {{type: database, connection: source}}
  partitions: {DAYS}
  target: {{table: shop.sales}}
  style: partition
  partition_by: day(sold)
  columns: {{id: {{type: bigint}}, sold: {{type: timestamptz}}}}
"""
VISITS = f"""
type: export_pipelines.LoadTable
attributes:
  source:
    type: rest
    url: {{env: VISITS_URL}}
    params: {{from: "{{window_start}}", until: "{{window_end}}"}}
  partitions: {DAYS}
  target: {{table: shop.visits}}
  style: upsert
  key: [day]
  columns: {{day: {{type: text}}, until: {{type: timestamptz}}}}
"""


@pytest.fixture
def server() -> Iterator[HttpSourceServer]:
    with http_source_server() as made:
        yield made


@pytest.fixture
def folder(
    tmp_path: Path, database: str, catalog_url: str, server: HttpSourceServer, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    """A project with two tables that are pulled by day."""
    root = tmp_path / "project"
    root.mkdir()
    values = {**variables(root, database, catalog_url, database), "VISITS_URL": f"{server.url}/visits"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    folder = new_project(root)
    folder.write("resources/loading/defs.yaml", RESOURCES)
    folder.write("assets/shop/sales/defs.yaml", SALES)
    folder.write(
        "assets/shop/sales/select.sql",
        "SELECT id, sold FROM sold WHERE sold >= %(window_start)s AND sold < %(window_end)s",
    )
    folder.write("assets/shop/visits/defs.yaml", VISITS)
    return folder


def run(folder: Folder, instance: dg.DagsterInstance, table: str, day: str) -> bool:
    job = folder.load().definitions().resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey(["shop", f"{table}_{step}"]) for step in ("land", "load")]
    return job.execute_in_process(instance=instance, partition_key=day, asset_selection=keys).success


def test_a_run_over_many_windows_reads_their_manifests_once(
    folder: Folder, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    get = FilesystemStore.get
    monkeypatch.setattr(FilesystemStore, "get", lambda store, key: (read.append(key), get(store, key))[1])
    query(database, "CREATE TABLE sold AS SELECT n AS id, timestamptz '2025-01-01' + n * interval '1 day' AS sold "
          "FROM generate_series(0, 2) n")  # fmt: skip
    job = folder.load().definitions().resolve_job_def("shop__sales_load")
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance).success
        assert query(database, "SELECT count(*) FROM shop.sales") == [(3,)]
        read.clear()
        assert job.execute_in_process(instance=instance).success
    manifests = [key for key in read if "/manifests/" in key]
    assert len(manifests) == len(set(manifests)) == 3


def test_each_window_is_pulled_by_itself_and_again_when_it_has_changed(
    folder: Folder, database: str, server: HttpSourceServer
) -> None:
    query(database, "CREATE TABLE sold (id bigint, sold timestamptz)")
    query(
        database,
        "INSERT INTO sold SELECT n, timestamptz '2025-01-01 00:00+00' + n * interval '12 hours' "
        "FROM generate_series(0, 5) n",
    )
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(folder, instance, "sales", "2025-01-02")
        assert query(database, "SELECT id FROM shop.sales ORDER BY 1") == [(2,), (3,)]
        query(database, "INSERT INTO sold VALUES (9, '2025-01-02 23:59+00')")
        assert run(folder, instance, "sales", "2025-01-01")
        assert run(folder, instance, "sales", "2025-01-02")
        assert query(database, "SELECT id FROM shop.sales ORDER BY 1") == [(0,), (1,), (2,), (3,), (9,)]
        key = dg.AssetKey(["shop", "sales_load"])
        assert instance.get_materialized_partitions(key) == {"2025-01-01", "2025-01-02"}


def test_an_api_is_asked_for_the_window_of_the_partition(
    folder: Folder, database: str, server: HttpSourceServer
) -> None:
    def answer(asked: Asked) -> Answer:
        body = f'[{{"day": "{asked.query["from"][:10]}", "until": "{asked.query["until"]}"}}]'
        return Answer(body.encode(), headers={"Content-Type": "application/json"})

    server.answers["/visits"] = answer
    with dg.DagsterInstance.ephemeral() as instance:
        for day in ("2025-01-01", "2025-01-03"):
            assert run(folder, instance, "visits", day)
    found = query(database, "SELECT day, until = (day || ' 00:00+00')::timestamptz + interval '1 day' FROM shop.visits")
    assert sorted(found) == [("2025-01-01", True), ("2025-01-03", True)]
