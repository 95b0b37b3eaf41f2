"""Fixtures that every suite may use. A server that does not start fails the test that wants it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from export_pipelines.local import mariadb as local_mariadb
from export_pipelines.local.postgres import Address
from tests.support.mariadb import mariadb_server, new_mysql_database
from tests.support.servers import (
    Seaweed,
    TlsPostgres,
    new_database,
    postgres_server,
    seaweed_server,
    tls_postgres_server,
)

# No test may find the databases and stores of the person who runs it.
for _name in (
    *("DATABASE_URL", "DAGSTER_PG_URL", "EXPORT_PATH", "DSL_PATH", "ARCHIVE_URL", "DAGSTER_HOME"),
    *("AWS_ENDPOINT_URL", "AWS_PROFILE", "EXPORT_PIPELINES_PROJECT", "HEALTH_DATABASE_URL"),
):
    os.environ.pop(_name, None)


# What an example may take is no rule of ours, and machines are busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# Files that take minutes, the longest first. One that is begun last keeps a worker busy when the others are done.
LONG_FILES = (
    *("test_ledger", "test_mysql_ledger", "test_dagster", "test_requests", "test_cli", "test_ui", "test_mysql_kill"),
    *("test_kill", "test_loads", "test_secrets", "test_health_data", "test_worker", "test_up_serving", "test_roles"),
    *("test_cli_mysql", "test_schemathesis", "test_page", "test_up", "test_demo_load", "test_encrypted_project"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the others stay in their order."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Settings are put into the environment; none stays there for the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server for the session; `seaweed.new_bucket()` gives a bucket of one's own."""
    with seaweed_server(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def bucket_url(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://…` of an empty bucket, with the AWS variables of the environment set for it."""
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return seaweed.new_bucket()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Address]:
    """A real PostgreSQL for the session; `postgres.url(database)` gives a URL."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def database(postgres: Address) -> Iterator[str]:
    """URL of an empty database of this test's own."""
    with new_database(postgres) as url:
        yield url


@pytest.fixture
def second_database(postgres: Address) -> Iterator[str]:
    """URL of another empty database, for tests which need a source and a target, or a source and a catalog."""
    with new_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_database(postgres: Address) -> Iterator[str]:
    """Name of a database with our catalog migrated to the newest version; the template of those of the tests."""
    from export_pipelines.catalog.migrate import migrate

    with new_database(postgres) as url:
        migrate(url, "export_pipelines")
        yield url.rpartition("/")[2]


@pytest.fixture
def catalog_url(postgres: Address, migrated_database: str) -> Iterator[str]:
    """URL of a database with our catalog migrated to the newest version."""
    with new_database(postgres, migrated_database) as url:
        yield url


@pytest.fixture(scope="session")
def dagster_database(postgres: Address, migrated_database: str) -> Iterator[str]:
    """Name of a database with our catalog and Dagster's tables: as after a project's first run, which makes them."""
    from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage

    with new_database(postgres, migrated_database) as url:
        for storage in (PostgresRunStorage, PostgresEventLogStorage, PostgresScheduleStorage):
            storage(url).dispose()
        yield url.rpartition("/")[2]


@pytest.fixture
def storage_url(postgres: Address, dagster_database: str) -> Iterator[str]:
    """URL of a database like that after a project's first run, without runs."""
    with new_database(postgres, dagster_database) as url:
        yield url


@pytest.fixture(scope="session")
def tls_postgres() -> Iterator[TlsPostgres]:
    """Debian's PostgreSQL with TLS; tests that want it are marked `debian`."""
    with tls_postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[local_mariadb.Address]:
    """A real MariaDB for the session; tests that want it are marked `debian`."""
    with mariadb_server() as server:
        yield server


@pytest.fixture
def mysql_database(mariadb: local_mariadb.Address) -> Iterator[str]:
    """URL of an empty database of this test's own in MariaDB."""
    with new_mysql_database(mariadb) as url:
        yield url


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how many faults struck, by kind. Of all workers of pytest-xdist, so it is in this file."""
    struck: Counter[str] = Counter()
    reports = [report for some in terminalreporter.stats.values() for report in some]
    for report in reports:
        if getattr(report, "when", "") == "call":
            for value in (value for name, value in report.user_properties if name == "faults"):
                struck.update(json.loads(value))
    if struck:
        terminalreporter.section(f"{struck.total()} faults struck")
        for kind, times in sorted(struck.items()):
            terminalreporter.write_line(f"{times:6d}  {kind}")
