"""The command `grants`: who may read loaded tables, as their definitions say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from export_pipelines.cli import output

if TYPE_CHECKING:
    from export_pipelines.cli.project import Opened
    from export_pipelines.components.load_assets import LoadAssets
    from export_pipelines.components.transforms import TransformAssets
    from export_pipelines.sources.postgres import Session
    from export_pipelines.specs.load import TargetSpec

_READERS = """
SELECT CASE a.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(a.grantee)::text END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
WHERE n.nspname = %s AND c.relname = %s AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
"""
_THERE = """
SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'v') = 1
"""


@click.command("grants")
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option("--apply", "apply_it", is_flag=True, help="Run the statements; without, they are printed.")
def grants_command(tables: tuple[str, ...], apply_it: bool) -> int:
    """Compare the read rights on loaded tables with `target: {grants: […]}`, and print the SQL of what differs. Tables
    and views that transforms make are among them.

    Declared roles get SELECT on the table and USAGE of its schema; SELECT is taken from all others that have it by a
    grant of their own, PUBLIC included. With --apply this is done, in one transaction a table. Tables that were never
    loaded are passed over: the first load grants. Exit code 1 when something differs and was not applied.
    """
    from export_pipelines.cli.load_selection import chosen_any
    from export_pipelines.cli.project import opened

    number = 0
    with opened() as project:
        for each in chosen_any(project, tables):
            number += _table(project, each, apply_it=apply_it)
    if not number:
        output.note("all rights are as declared")
    return 1 if number and not apply_it else 0


def _table(project: Opened, assets: LoadAssets | TransformAssets, *, apply_it: bool) -> int:
    """How many statements differ."""
    target = assets.definition.spec.target
    with project.resource(target.connection).session(read_only=False) as session:
        session.begin()
        if not session.one(_THERE, (target.schema_name, target.name))[0]:
            return 0
        found = list(_statements(session, target))
        for statement in found:
            click.echo(f"{statement};")
            if apply_it:
                session.execute(statement)
        if apply_it:
            session.commit()
    return len(found)


def _statements(session: Session, target: TargetSpec) -> Iterator[str]:
    from export_pipelines.sql import quote_identifier
    from export_pipelines.targets.names import TableNames

    view, schema = TableNames.of(target).view, quote_identifier(target.schema_name)
    have = {role for (role,) in session.execute(_READERS, (target.schema_name, target.name))}
    for role in target.grants:
        if not session.one("SELECT has_schema_privilege(%s, %s, 'USAGE')", (role, target.schema_name))[0]:
            yield f"GRANT USAGE ON SCHEMA {schema} TO {quote_identifier(role)}"
        if role not in have:
            yield f"GRANT SELECT ON {view} TO {quote_identifier(role)}"
    for role in sorted(have - set(target.grants), key=str):
        yield f"REVOKE SELECT ON {view} FROM {'PUBLIC' if role is None else quote_identifier(role)}"
