"""The catalog: migrations, and what it refuses."""

from __future__ import annotations

import psycopg2
import pytest

from export_pipelines.catalog import Catalog
from export_pipelines.catalog.migrate import current_version, migrate, newest_version
from export_pipelines.errors import CatalogError
from tests.support.servers import run_sql


def test_migrate_makes_the_catalog_once(database: str) -> None:
    assert current_version(database) is None
    assert migrate(database) != []
    assert current_version(database) == newest_version()
    assert migrate(database) == []


def test_an_unmigrated_catalog_says_what_to_do(database: str) -> None:
    with pytest.raises(CatalogError, match="export-pipelines migrate"):
        Catalog(database).exports("group/table")


def test_migrate_refuses_a_schema_that_dagster_would_put_its_tables_into(database: str) -> None:
    connection = psycopg2.connect(database)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        role = cursor.fetchone()[0]
    connection.close()
    with pytest.raises(CatalogError, match="search_path"):
        migrate(database, role)


def test_an_unreachable_catalog_is_one_clear_error_without_its_password() -> None:
    with pytest.raises(CatalogError) as caught:
        Catalog("postgresql://user:hunter2@127.0.0.1:1/none").exports("group/table")
    assert "hunter2" not in str(caught.value)
    assert caught.value.transient


def test_a_hold_is_in_force_until_it_is_released(catalog_url: str) -> None:
    catalog = Catalog(catalog_url)
    hold = catalog.place_hold("g/t", "2025-01-01", "audit", "ann")
    assert [h.id for h in catalog.holds("g/t", "2025-01-01")] == [hold]
    assert catalog.holds("g/t", "2025-01-02") == []
    assert catalog.release_hold(hold)
    assert not catalog.release_hold(hold)
    assert catalog.holds("g/t", "2025-01-01") == []
    catalog.close()


def test_what_the_catalog_notes_is_durable_when_it_is_told(catalog_url: str) -> None:
    """A deletion may be durable by then; its note must not be lost by a crash of the catalog's server."""
    name = catalog_url.rpartition("/")[2]
    run_sql(catalog_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    run_sql(
        catalog_url,
        "CREATE TABLE public.seen (value text); CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$; "
        "CREATE TRIGGER look AFTER INSERT ON export_pipelines.chain_head EXECUTE FUNCTION public.f()",
    )
    catalog = Catalog(catalog_url)
    catalog.advance_head("g/t", "file:///archive", 1, "digest")
    catalog.close()
    assert run_sql(catalog_url, "SELECT value FROM public.seen") == [("on",)]
