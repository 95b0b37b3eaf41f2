"""The command `roles`: SQL of the least-privileged roles for this project, exact and safe to run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.errors import ExportPipelinesError, RequestError
from export_pipelines.specs.documents import suggest
from export_pipelines.sql import quote_identifier, quote_literal

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.cli.rights import Relation
    from export_pipelines.sources.mysql import MysqlSource
    from export_pipelines.sources.postgres import Session
    from export_pipelines.specs.table import TableDefinition

_CATALOG = "catalog"
_BY_READER = (
    "-- enters finished files, too; a `connection` of its own under `dump: {report: …}` would spare it that right"
)
_BY_REPORTER = "-- enters finished files in tables of reports, by the connection that `dump: {report: …}` names"


@dataclass(frozen=True)
class Names:
    """How the roles are to be named."""

    reader: str
    deleter: str
    catalog: str
    loader: str
    reporter: str
    service: str
    passwords: bool


@dataclass
class Needs:
    """What the tables of one connection need, by the sorted SQL names of relations and schemas."""

    schemas: set[str] = field(default_factory=set)
    read: dict[str, Relation] = field(default_factory=dict)
    read_to_delete: set[str] = field(default_factory=set)
    delete: set[str] = field(default_factory=set)


@dataclass
class Uses:
    """What one connection is for."""

    tables: list[TableDefinition] = field(default_factory=list)
    """Exported from it."""
    reports: set[str] = field(default_factory=set)
    """Tables of reports that have it as a connection of their own, as their definitions write them."""
    reader_reports: set[str] = field(default_factory=set)
    """Those that have none, so that whoever reads the tables enters the files, too."""


@click.command("roles")
@click.option("--reader", default="export_reader", show_default=True, help="Name of the role that exports.")
@click.option("--deleter", default="export_deleter", show_default=True, help="Name of the role that cleans up.")
@click.option("--catalog", default="export_catalog", show_default=True, help="Name of the owner of the catalog.")
@click.option("--loader", default="export_loader", show_default=True, help="Name of the role that restores.")
@click.option("--reporter", default="export_reporter", show_default=True, help="Name of the role that enters reports.")
@click.option("--service", default="export_service", show_default=True, help="Name of the role that serves requests.")
@click.option("--connection", "chosen", metavar="NAME", multiple=True, help="Only this connection; may be repeated.")
@click.option(
    "--restore-schema", metavar="NAME", help="Also print a role that may restore into this schema (MySQL: database)."
)
@click.option(
    "--password-placeholders",
    is_flag=True,
    help="Also set passwords, from psql variables: psql -v export_reader_password=… .",
)
def roles_command(
    reader: str,
    deleter: str,
    catalog: str,
    loader: str,
    reporter: str,
    service: str,
    chosen: tuple[str, ...],
    restore_schema: str | None,
    password_placeholders: bool,
) -> None:
    """Print the SQL of roles that may do just what this project needs. Changes nothing.

    The databases are asked which schema each name is in. An administrator runs the output with psql (that of MySQL or
    MariaDB with its own client), once in each database that it names; running it again does no harm, and adds what new
    tables need. `--connection NAME` prints the part of one connection alone, `--connection catalog` that of the
    catalog. When a database does not answer, nothing is printed.
    """
    from export_pipelines.cli.project import opened

    names = Names(reader, deleter, catalog, loader, reporter, service, password_placeholders)
    with opened() as project:
        lines = list(statements(project, names, restore_schema, chosen))
    for line in lines:
        click.echo(line)


def statements(project: Opened, names: Names, restore_schema: str | None, chosen: Sequence[str] = ()) -> Iterator[str]:
    """The lines of SQL, of the chosen connections or of all.

    Raises:
        RequestError: there is no such connection, or its variable is not set.
        SourceError: a database does not answer.
    """
    yield "-- Roles for export-pipelines. Run the parts of PostgreSQL with: psql -v ON_ERROR_STOP=1 -f FILE DATABASE"
    uses = _uses(project, bool(chosen))
    if restore_schema:
        # What is restored may go to a database that nothing is exported from.
        uses = {**{name: Uses() for name in chosen if name in _connections(project)}, **uses}
    for unknown in (name for name in chosen if name not in uses and name != _CATALOG):
        known = [*uses, _CATALOG]
        hint = suggest(unknown, known) or f"known are {', '.join(sorted(known))}"
        raise RequestError(f"no table uses a connection {unknown!r}", hint=hint)
    for connection, use in sorted(uses.items()):
        if not chosen or connection in chosen:
            yield from _of_connection(project, connection, use, names, restore_schema)
    if not chosen or _CATALOG in chosen:
        yield from _catalog(project, names)


def _of_connection(
    project: Opened, connection: str, use: Uses, names: Names, restore_schema: str | None
) -> Iterator[str]:
    from export_pipelines.sources.postgres import PostgresSource

    source = project.source(connection)
    if not isinstance(source, PostgresSource):
        yield f"\n-- In MySQL or MariaDB, as an administrator: connection {_comment(connection)}"
        yield from mysql_accounts(source, use, names, restore_schema)
        return
    with source.session() as session:
        session.begin()
        database = str(session.one("SELECT current_database()::text")[0])
        needs = _needs(session, use.tables)
        reports, by_reader = (_reports(session, each) for each in (use.reports, use.reader_reports))
    yield f"\n-- In database {_comment(database)}: connection {_comment(connection)}"
    if use.tables:
        yield from _reader(names, database, needs)
    if by_reader:
        yield _BY_READER
        yield from _entering(names.reader, database, by_reader)
    if needs.delete:
        yield from _deleter(names, database, needs)
    if reports:
        yield _BY_REPORTER
        yield from _role(names, names.reporter)
        yield from _entering(names.reporter, database, reports)
    if restore_schema:
        yield from _loader(names, database, restore_schema)


def mysql_accounts(source: MysqlSource, use: Uses, names: Names, restore_schema: str | None) -> Iterator[str]:
    """The accounts of a connection to MySQL or MariaDB."""
    from export_pipelines.cli.inspection import sample
    from export_pipelines.cli.inspection_mysql import accounts, loader, reporter

    if use.tables:
        windows = {table.id: sample(table) for table in use.tables}
        yield from accounts(source, use.tables, windows, (names.reader, names.deleter))
    if use.reader_reports:
        yield _BY_READER
        yield from reporter(source, use.reader_reports, names.reader)
    if use.reports:
        yield _BY_REPORTER
        yield from reporter(source, use.reports, names.reporter)
    if restore_schema:
        yield from loader(restore_schema, names.loader)
    yield "-- then: ALTER USER … IDENTIFIED BY '…' ACCOUNT UNLOCK;"


def _uses(project: Opened, everything: bool) -> dict[str, Uses]:
    """By the names of connections; without `everything` those that are optional and not set up here are left out."""
    found: dict[str, Uses] = {}
    tables = project.tables(())
    for table in tables if everything else project.set_up(tables, named=False):
        spec, report = table.spec, table.spec.dump.report
        found.setdefault(spec.connection, Uses()).tables.append(table)
        if report is not None:
            use = found.setdefault(report.connection or spec.connection, Uses())
            (use.reports if report.connection else use.reader_reports).add(report.table)
    return found


def _connections(project: Opened) -> set[str]:
    kinds = ("PostgresConnectionResource", "MysqlConnectionResource")
    return {key for key, resource in project.project.resources.items() if type(resource).__name__ in kinds}


def _reports(session: Session, names: set[str]) -> list[Relation]:
    """The tables of reports that are there."""
    from export_pipelines.cli.rights import relation_of

    found = {name: relation_of(session, name) for name in sorted(names)}
    for name in (name for name, relation in found.items() if relation is None):
        output.warn(f"there is no table of reports {name}; it is left out")
    return [relation for relation in found.values() if relation is not None]


def _needs(session: Session, tables: list[TableDefinition]) -> Needs:
    from export_pipelines.cli.inspection import rendered
    from export_pipelines.cli.rights import deletes, relation_of, used_by

    needs = Needs()
    for table in tables:
        try:
            select, delete = rendered(table, session)
            deleting = delete if deletes(table) else None
            used = used_by(select, *([delete.selection("1")] if delete else []))
        except ExportPipelinesError as error:
            output.warn(f"{table.id} is left out: {error.message}")
            continue
        for name in sorted(used.relations):
            relation = relation_of(session, name)
            if relation is None:
                output.warn(f"{table.id}: there is no {name} for the role that asked; check its search_path")
                continue
            needs.schemas |= {relation.schema, *used.schemas}
            needs.read[relation.sql] = relation
            if deleting is not None:
                needs.read_to_delete.add(relation.sql)
        target = relation_of(session, deleting.relation.sql) if deleting is not None else None
        if target is not None:
            needs.delete.add(target.sql)
    return needs


def _reader(names: Names, database: str, needs: Needs) -> Iterator[str]:
    role = quote_identifier(names.reader)
    yield "-- exports: reads, and has no right to write anything"
    yield from _role(names, names.reader)
    yield f"ALTER ROLE {role} SET default_transaction_read_only = on;"
    yield from _access(role, database, needs.schemas)
    yield from (f"GRANT SELECT ON TABLE {relation} TO {role};" for relation in sorted(needs.read))


def _deleter(names: Names, database: str, needs: Needs) -> Iterator[str]:
    role = quote_identifier(names.deleter)
    yield "-- cleans up: `cleanup: {connection: …}` of the tables names the connection with this role"
    yield from _role(names, names.deleter)
    yield from _access(role, database, needs.schemas)
    yield from (f"GRANT SELECT ON TABLE {relation} TO {role};" for relation in sorted(needs.read_to_delete))
    yield from (f"GRANT DELETE ON TABLE {relation} TO {role};" for relation in sorted(needs.delete))


def _entering(name: str, database: str, reports: list[Relation]) -> Iterator[str]:
    role = quote_identifier(name)
    yield from _access(role, database, {each.schema for each in reports})
    yield from (f"GRANT SELECT, INSERT ON TABLE {each.sql} TO {role};" for each in reports)


def _loader(names: Names, database: str, schema: str) -> Iterator[str]:
    role, where = quote_identifier(names.loader), quote_identifier(schema)
    yield "-- restores into a schema of its own, and sees nothing else"
    yield from _role(names, names.loader)
    yield f"CREATE SCHEMA IF NOT EXISTS {where};"
    yield from _access(role, database, {schema})
    yield f"GRANT CREATE ON SCHEMA {where} TO {role};"


def _catalog(project: Opened, names: Names) -> Iterator[str]:
    """Dagster's own tables lie in `public`, ours in a schema that `migrate` makes."""
    from psycopg2.extensions import parse_dsn

    from export_pipelines.components.opening import initialized

    resource = initialized("catalog", project.project.resources.get("catalog"))
    database, role = parse_dsn(resource.url).get("dbname", ""), quote_identifier(names.catalog)
    schema = _comment(resource.schema_name)
    yield f"\n-- In database {_comment(database)}: Dagster's storage and the catalog, schema {schema}"
    yield from _role(names, names.catalog)
    yield f"GRANT CONNECT, CREATE ON DATABASE {quote_identifier(database)} TO {role};"
    yield f"GRANT USAGE, CREATE ON SCHEMA public TO {role};"
    yield "-- then, as this role: export-pipelines migrate"
    if project.project.datasets:
        yield from _service(names, resource.url, database, resource.schema_name)


def _service(names: Names, url: str, database: str, schema: str) -> Iterator[str]:
    """The role of `api` and `worker`, as DAGSTER_PG_URL there, once the tables are made that it may use."""
    from export_pipelines.cli.roles_service import catalog_grants, storage_grants, tables_are_there

    role = quote_identifier(names.service)
    yield "-- exports on demand: `api` and `worker` record and answer requests, and add to the audit log, no more"
    yield from _role(names, names.service)
    yield f"GRANT CONNECT ON DATABASE {quote_identifier(database)} TO {role};"
    if not tables_are_there(url, schema):
        yield "-- its rights: run `export-pipelines roles` again after `migrate` and the first start of Dagster"
        return
    # Of all tables, and then not of some: nobody sees what is between.
    yield "BEGIN;"
    yield from storage_grants(role)
    yield from catalog_grants(role, schema)
    yield "COMMIT;"


def _role(names: Names, role: str) -> Iterator[str]:
    yield (
        f"SELECT {quote_literal(f'CREATE ROLE {quote_identifier(role)} LOGIN')} "
        f"WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {quote_literal(role)}) \\gexec"
    )
    if names.passwords:
        variable = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in role)
        yield f"ALTER ROLE {quote_identifier(role)} PASSWORD :'{variable}_password';"


def _access(role: str, database: str, schemas: set[str]) -> Iterator[str]:
    yield f"GRANT CONNECT ON DATABASE {quote_identifier(database)} TO {role};"
    yield from (f"GRANT USAGE ON SCHEMA {quote_identifier(schema)} TO {role};" for schema in sorted(schemas))


def _comment(text: str) -> str:
    """Text that does not end a comment."""
    return " ".join(text.split())
