"""The catalog's own tables are exported by this very program, and any night's state of them can be restored."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from export_pipelines.catalog.audit import Actor, AuditEntry, write_audit
from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.errors import RequestError
from export_pipelines.steps.pieces import Archived, Choice
from export_pipelines.stores import open_store
from tests.support.command_line import CommandLine
from tests.support.dagster_project import new_project, query
from tests.support.requests import desk
from tests.support.servers import run_sql

CHECKOUT = Path(__file__).parents[2]
REQUESTS = "SELECT md5(string_agg(t::text, E'\\n' ORDER BY id)) FROM (SELECT * FROM {}) t"


@pytest.fixture
def cli(tmp_path: Path, storage_url: str, database: str) -> CommandLine:
    root = new_project(tmp_path).root
    shutil.copytree(CHECKOUT / "assets/operations", root / "assets/operations")
    shutil.copytree(CHECKOUT / "resources/operations", root / "resources/operations")
    shutil.copytree(CHECKOUT / "schedules/operations_snapshots", root / "schedules/operations_snapshots")
    variables = {
        "DATABASE_URL": database,
        "DAGSTER_PG_URL": storage_url,
        "EXPORT_PATH": str(tmp_path / "exports"),
        "ARCHIVE_URL": (tmp_path / "archive").as_uri(),
        "DAGSTER_HOME": str(tmp_path / "home"),
    }
    return CommandLine(root, variables)


def test_requests_of_a_point_in_time_come_back_after_they_were_lost(
    cli: CommandLine, storage_url: str, tmp_path: Path
) -> None:
    at = desk(storage_url, tmp_path)
    at.succeed(at.ask("ann", "UA"))
    at.fail(at.ask("bob", "AA"))
    before = query(storage_url, REQUESTS.format("export_pipelines.request"))
    checked = cli("check", "operations/*")
    assert checked.code == 0, checked.err + checked.out
    ran = cli("run", "operations/requests", "operations/subscriptions")
    assert ran.code == 0, ran.err + ran.out
    ((between,),) = query(storage_url, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')")
    at.ask("eve", "DL")
    run_sql(storage_url, "DELETE FROM export_pipelines.request WHERE created_by <> 'eve'")
    assert cli("run", "operations/requests").code == 0
    at.pool.close()
    into = ("--connection", "operations", "--into")
    old = cli("restore", "operations/requests", "--all", "--as-of", str(between), *into, "public.old_requests")
    assert old.code == 0, old.err
    assert query(storage_url, REQUESTS.format("public.old_requests")) == before
    new = cli("restore", "operations/requests", "--all", *into, "public.new_requests")
    assert new.code == 0, new.err
    assert query(storage_url, "SELECT created_by FROM public.new_requests") == [("eve",)]
    archived = Archived(open_store((tmp_path / "archive").as_uri()), "operations/requests")
    with pytest.raises(RequestError, match="nothing of 'operations/requests' is left that was exported by 2020-01-01"):
        archived.chosen(Choice(as_of=datetime(2020, 1, 1, tzinfo=UTC)))


def test_the_audit_log_is_archived_by_day_and_its_chain_can_be_checked_in_the_restored_copy(
    cli: CommandLine, storage_url: str
) -> None:
    pool = CatalogPool(storage_url)
    with pool.transaction() as cursor:
        write_audit(cursor, Actor("ann"), *(AuditEntry("login", "ann", detail={"n": n}) for n in range(3)))
    pool.close()
    # The day is over.
    run_sql(storage_url, "ALTER TABLE export_pipelines.audit DISABLE TRIGGER USER")
    run_sql(storage_url, "UPDATE export_pipelines.audit SET at = at - interval '1 day'")
    run_sql(storage_url, "ALTER TABLE export_pipelines.audit ENABLE TRIGGER USER")
    ((day,),) = query(storage_url, "SELECT to_char(now() AT TIME ZONE 'UTC' - interval '1 day', 'YYYY-MM-DD')")
    ran = cli("run", "operations/audit", "--partition", str(day))
    assert ran.code == 0, ran.err + ran.out
    restored = cli(
        *("restore", "operations/audit", "--partition", str(day)),
        *("--connection", "operations", "--into", "public.old_audit"),
    )
    assert restored.code == 0, restored.err
    differing = "SELECT count(*) FROM export_pipelines.audit a FULL JOIN public.old_audit b ON a::text = b::text "
    assert query(storage_url, differing + "WHERE a.id IS NULL OR b.id IS NULL") == [(0,)]
