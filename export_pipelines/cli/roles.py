"""The command `roles`: SQL of the least-privileged roles for this project, exact and safe to run again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.sql import quote_identifier, quote_literal

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.cli.rights import Relation
    from export_pipelines.sources.postgres import Session
    from export_pipelines.specs.table import TableDefinition


@dataclass(frozen=True)
class Names:
    """How the roles are to be named."""

    reader: str
    deleter: str
    catalog: str
    loader: str
    passwords: bool


@dataclass
class Needs:
    """What the tables of one connection need, by the sorted SQL names of relations and schemas."""

    schemas: set[str] = field(default_factory=set)
    read: dict[str, Relation] = field(default_factory=dict)
    read_to_delete: set[str] = field(default_factory=set)
    delete: set[str] = field(default_factory=set)


@click.command("roles")
@click.option("--reader", default="export_reader", show_default=True, help="Name of the role that exports.")
@click.option("--deleter", default="export_deleter", show_default=True, help="Name of the role that cleans up.")
@click.option("--catalog", default="export_catalog", show_default=True, help="Name of the owner of the catalog.")
@click.option("--loader", default="export_loader", show_default=True, help="Name of the role that restores.")
@click.option("--restore-schema", metavar="NAME", help="Also print a role that may restore into this schema.")
@click.option(
    "--password-placeholders",
    is_flag=True,
    help="Also set passwords, from psql variables: psql -v export_reader_password=… .",
)
def roles_command(
    reader: str, deleter: str, catalog: str, loader: str, restore_schema: str | None, password_placeholders: bool
) -> None:
    """Print the SQL of roles that may do just what this project needs. Changes nothing.

    The databases are asked which schema each name is in. An administrator runs the output with psql, once in each
    database that it names; running it again does no harm, and adds what new tables need.
    """
    from export_pipelines.cli.project import opened

    names = Names(reader, deleter, catalog, loader, password_placeholders)
    with opened() as project:
        for line in statements(project, names, restore_schema):
            click.echo(line)


def statements(project: Opened, names: Names, restore_schema: str | None) -> Iterator[str]:
    """The lines of SQL."""
    from export_pipelines.cli.inspection import sample
    from export_pipelines.cli.inspection_mysql import accounts
    from export_pipelines.sources.postgres import PostgresSource

    yield "-- Roles for export-pipelines. Run with: psql -v ON_ERROR_STOP=1 -f FILE DATABASE"
    for connection, tables in sorted(_by_connection(project).items()):
        source = project.source(connection)
        if not isinstance(source, PostgresSource):
            yield f"\n-- In MySQL or MariaDB, as an administrator: connection {_comment(connection)}"
            windows = {table.id: sample(table) for table in tables}
            yield from accounts(source, tables, windows, (names.reader, names.deleter))
            continue
        with source.session() as session:
            session.begin()
            database = str(session.one("SELECT current_database()::text")[0])
            needs = _needs(session, tables)
        yield f"\n-- In database {_comment(database)}: connection {_comment(connection)}"
        yield from _reader(names, database, needs)
        if needs.delete:
            yield from _deleter(names, database, needs)
        if restore_schema:
            yield from _loader(names, database, restore_schema)
    yield from _catalog(project, names)


def _by_connection(project: Opened) -> dict[str, list[TableDefinition]]:
    found: dict[str, list[TableDefinition]] = {}
    for table in project.tables(()):
        found.setdefault(table.spec.connection, []).append(table)
    return found


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

    from export_pipelines.cli.project import initialized

    resource = initialized("catalog", project.project.resources.get("catalog"))
    database, role = parse_dsn(resource.url).get("dbname", ""), quote_identifier(names.catalog)
    schema = _comment(resource.schema_name)
    yield f"\n-- In database {_comment(database)}: Dagster's storage and the catalog, schema {schema}"
    yield from _role(names, names.catalog)
    yield f"GRANT CONNECT, CREATE ON DATABASE {quote_identifier(database)} TO {role};"
    yield f"GRANT USAGE, CREATE ON SCHEMA public TO {role};"
    yield "-- then, as this role: export-pipelines migrate"


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
