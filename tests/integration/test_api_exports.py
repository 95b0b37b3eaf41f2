"""`/exports`: the endpoints of the export service that was before, in its shapes, and what there is more."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from export_pipelines.local.postgres import Address
from tests.support.api import caller, problem
from tests.support.pages import Served, served
from tests.support.servers import new_database

SELECT = "COPY (SELECT * FROM agency WHERE updated_at < %(export_boundary)s) TO STDOUT WITH CSV HEADER\n"
DELETE = "DELETE FROM agency WHERE updated_at < %(export_boundary)s\n"
WORKSPACE = """
load_from:
  - python_module: {module_name: export_pipelines.definitions, working_directory: ., location_name: here}
"""
EVENTS = """
type: export_pipelines.ExportTable
attributes: {table: public.events, time_column: at, partitions: {every: day, start: 2025-01-01}}
"""
FILES = {
    "workspace.yaml": WORKSPACE,
    "assets/kb/agency/select.sql": SELECT,
    "assets/kb/agency/delete.sql": DELETE,
    "assets/a/twice/defs.yaml": "type: export_pipelines.ExportTable\nattributes: {table: public.flights}\n",
    "assets/b/twice/defs.yaml": "type: export_pipelines.ExportTable\nattributes: {table: public.flights}\n",
    "assets/a/events/defs.yaml": EVENTS,
    # Words of addresses.
    "assets/a/runs/defs.yaml": "type: export_pipelines.ExportTable\nattributes: {table: public.flights}\n",
    "assets/a/export/defs.yaml": "type: export_pipelines.DataSet\nattributes: {table: public.flights}\n",
}


@pytest.fixture(scope="module")
def tables(postgres: Address, migrated_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that some tables are exported by; Dagster's storage is real, its daemon is not there."""
    root: Path = tmp_path_factory.mktemp("project")
    from export_pipelines.local.project import write_dagster_yaml

    with (
        new_database(postgres) as source,
        new_database(postgres, migrated_database) as catalog,
        served(root, source, catalog, lambda port: "    open_exports: true\n", FILES) as up,
    ):
        write_dagster_yaml(up.service.settings)
        yield up


def call(up: Served, method: str, path: str) -> httpx.Response:
    """A call without a token."""
    return httpx.request(method, up.url + path, trust_env=False, timeout=60)


def test_tables_are_listed_with_their_statements(tables: Served) -> None:
    listed = call(tables, "GET", "/exports").json()
    assert isinstance(listed, list)
    agency = next(each for each in listed if each["name"] == "agency")
    assert agency["select_query"].strip() == SELECT.strip() and agency["delete_query"].strip() == DELETE.strip()
    assert {each["name"] for each in listed} == {"agency", "events", "a/twice", "b/twice", "runs"}


def test_one_table_by_its_name_or_its_id(tables: Served) -> None:
    one = call(tables, "GET", "/exports/agency").json()
    assert one["name"] == "agency" and one == call(tables, "GET", "/exports/kb/agency").json()
    assert one["select_query"].strip() == SELECT.strip()
    assert "a/twice" in problem(call(tables, "GET", "/exports/twice"), 404)["hint"]
    assert "did you mean 'agency'" in problem(call(tables, "GET", "/exports/agenci"), 404)["hint"]
    problem(call(tables, "POST", "/exports/nothing"), 404)
    problem(call(tables, "DELETE", "/exports/agency"), 405)


def test_an_id_that_ends_in_a_word_of_the_addresses_is_still_an_id(tables: Served) -> None:
    for path in ("/exports/a/runs", "/exports/runs"):
        assert call(tables, "GET", path).json()["id"] == "a/runs"
        assert call(tables, "GET", f"{path}/runs").json()["name"] == "runs"
    with caller(tables) as ann:
        for path in ("/datasets/a/export", "/datasets/export"):
            assert ann.get(path).json()["id"] == "a/export"
            assert len(ann.get(f"{path}/preview").json()["rows"]) == 20
            assert ann.get(f"{path}/export?limit=1").status_code == 202


def test_an_export_is_ok_and_puts_the_newest_closed_partition_into_dagsters_queue(tables: Served) -> None:
    answer = call(tables, "POST", "/exports/events")
    assert answer.status_code == 200 and answer.json()["status"] == "Ok"
    (started,) = answer.json()["runs"]
    assert started["partition"] == f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    run = tables.service.versions.instance().get_run_by_id(started["run_id"])
    assert run is not None and run.status.value == "QUEUED" and run.job_name == "a__events_chain"
    assert run.tags["export_pipelines/table"] == "a/events" and run.tags["export_pipelines/user"] == "anonymous"
    assert run.remote_job_origin.location_name == "here" and run.job_code_origin is not None
    assert started["url"].endswith(f"/runs/{run.run_id}")
    assert tables.audit("export.started")[-1]["subject"] == "a/events"


def test_an_export_that_is_under_way_is_not_started_twice(tables: Served) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: call(tables, "POST", "/exports/agency").json(), range(6)))
    assert len({each["runs"][0]["run_id"] for each in answers}) == 1


def test_all_tables_are_exported_at_once(tables: Served) -> None:
    found = call(tables, "POST", "/exports").json()
    assert found["status"] == "Ok" and {each["name"] for each in found["runs"]} == {
        "agency", "events", "a/twice", "b/twice", "runs",
    }  # fmt: skip
    assert all(each["run_id"] for each in found["runs"])


def test_runs_are_listed_with_status_and_history(tables: Served) -> None:
    run_id = call(tables, "POST", "/exports/agency").json()["runs"][0]["run_id"]
    found = call(tables, "GET", "/exports/agency/runs").json()
    assert found["name"] == "agency" and found["status"] == "Pending" and found["files"] == []
    assert [(each["id"], each["status"], each["stage"]) for each in found["runs"]] == [(run_id, "Pending", "chain")]
    assert found["next"] is None
    instance = tables.service.versions.instance()
    instance.report_run_canceled(instance.get_run_by_id(run_id))
    second = call(tables, "POST", "/exports/agency").json()["runs"][0]["run_id"]
    assert second != run_id
    page = call(tables, "GET", "/exports/agency/runs?limit=1").json()
    assert [each["id"] for each in page["runs"]] == [second]
    rest = call(tables, "GET", page["next"]).json()
    assert [(each["id"], each["status"]) for each in rest["runs"]] == [(run_id, "Cancelled")]
    problem(call(tables, "GET", "/exports/agency/runs?cursor=x"), 422)


def test_only_these_endpoints_answer_without_a_token(tables: Served) -> None:
    problem(call(tables, "GET", "/datasets"), 401)
    answer = httpx.get(f"{tables.url}/exports", headers={"Authorization": "Bearer ep_wrong"}, trust_env=False)
    problem(answer, 401)  # a wrong token is no token
    with caller(tables, "rob", "read") as reader:
        problem(reader.get("/exports"), 403)
