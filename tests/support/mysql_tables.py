"""The kit of `tables.py` on MariaDB: a table in a real database, with stores in a folder, ready for each step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from export_pipelines.catalog.migrate import migrate
from export_pipelines.local.postgres import Address
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.pieces import Archived, Choice
from export_pipelines.steps.restore import restore_table
from export_pipelines.stores import open_store
from tests.support.mariadb import mysql_connection
from tests.support.servers import new_database
from tests.support.tables import Kit


@dataclass
class MysqlKit(Kit):
    """One table of MariaDB."""

    @property
    def table(self) -> TableDefinition:
        return super().table.model_copy(update={"engine": "mysql"})

    @property
    def context(self) -> StepContext:
        return replace(super().context, source=MysqlSource(self.database))

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        with closing(mysql_connection(self.database)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def restored(self, partition: str | None = None, columns: str = "*") -> list[tuple[Any, ...]]:
        into = f"restored_{os.urandom(4).hex()}"
        archived = Archived(open_store((self.folder / "archive").as_uri()), self.table.id, self.keyring)
        restore_table(archived, Choice(partition), MysqlSource(self.database), into)
        return sorted(self.sql(f"SELECT {columns} FROM {into}"))


@pytest.fixture(scope="session")
def one_catalog(postgres: Address) -> Iterator[str]:
    """One migrated catalog for many tests, which differ in the name of their table."""
    with new_database(postgres) as url:
        migrate(url)
        yield url


@pytest.fixture
def kit(mysql_database: str, one_catalog: str, tmp_path: Path) -> MysqlKit:
    """A kit on an empty database, with a table name of its own in the catalog."""
    return MysqlKit(mysql_database, one_catalog, tmp_path, name=f"t_{os.urandom(6).hex()}")
