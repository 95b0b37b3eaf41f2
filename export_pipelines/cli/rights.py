"""What rights the statements of a table need, and which ones a role has beyond them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pglast import ast, parse_sql
from pglast.visitors import Visitor

from export_pipelines.cli.places import table_error
from export_pipelines.errors import RequestError, SpecError
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.table import CleanupMode, TableDefinition
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.postgres.statements import Statements

POWERS = ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb", "rolreplication")
"""What a role may be, and none of ours needs to be. BYPASSRLS is wanted where row-level security hides rows."""
_POWER_NAMES = ("SUPERUSER", "BYPASSRLS", "CREATEROLE", "CREATEDB", "REPLICATION")

_GROUPS = (
    "pg_write_all_data",
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_execute_server_program",
    "pg_signal_backend",
)
_WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")

_HINT = "`export-pipelines roles` prints roles that have just what is needed"
_ROLE = f"SELECT {', '.join(POWERS)} FROM pg_roles WHERE rolname = current_user"
_MEMBER = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s) AND pg_has_role(current_user, oid, 'USAGE')"
_RELATION = """
SELECT n.nspname::text, c.relname::text, c.relkind::text, pg_has_role(current_user, c.relowner, 'USAGE'),
       ARRAY(SELECT p FROM unnest(%(rights)s::text[]) WITH ORDINALITY AS r(p, i)
             WHERE has_table_privilege(current_user, c.oid, p) ORDER BY i)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%(name)s)
"""


@dataclass(frozen=True)
class Used:
    """What statements name: relations as SQL, and the schemas of functions and types."""

    relations: set[str] = field(default_factory=set)
    schemas: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Relation:
    """A relation as the server knows it, and what the session's role may do with it."""

    schema: str
    name: str
    kind: str
    owned: bool
    rights: tuple[str, ...]

    @property
    def sql(self) -> str:
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


class _Names(Visitor):
    """Collects relations, functions and types of a parsed statement."""

    def __init__(self) -> None:
        super().__init__()
        self.used = Used()
        self.common: set[str] = set()
        self.plain: set[str] = set()

    def visit_CommonTableExpr(self, ancestors: Any, node: ast.CommonTableExpr) -> None:
        self.common.add(str(node.ctename))

    def visit_RangeVar(self, ancestors: Any, node: ast.RangeVar) -> None:
        name = str(node.relname)
        if node.schemaname:
            self.used.relations.add(f"{quote_identifier(node.schemaname)}.{quote_identifier(name)}")
        else:
            self.plain.add(name)

    def visit_FuncCall(self, ancestors: Any, node: ast.FuncCall) -> None:
        self._schema(node.funcname)

    def visit_TypeName(self, ancestors: Any, node: ast.TypeName) -> None:
        self._schema(node.names or ())

    def _schema(self, parts: Any) -> None:
        if len(parts) == 2 and parts[0].sval != "pg_catalog":
            self.used.schemas.add(parts[0].sval)


def used_by(*texts: str) -> Used:
    """What statements, which must parse, name; a name that a WITH clause gives is none of a relation."""
    names = _Names()
    for text in texts:
        names(parse_sql(text))
    names.used.relations.update(quote_identifier(name) for name in names.plain - names.common)
    return names.used


def relation_of(session: Session, name: str) -> Relation | None:
    """The relation of a quoted name as the session's role sees it; None if there is none."""
    rows = session.execute(_RELATION, {"name": name, "rights": list(_WRITES)})
    if not rows:
        return None
    schema, relation, kind, owned, rights = rows[0]
    return Relation(schema, relation, kind, owned, tuple(rights))


def connections_of(table: TableDefinition) -> set[str]:
    """Names of the connections that a table works with."""
    return {table.spec.connection, table.spec.cleanup.connection or table.spec.connection}


def deletes(table: TableDefinition) -> bool:
    """Whether anything is ever to be deleted."""
    return table.spec.cleanup.mode is not CleanupMode.OFF


def excesses(table: TableDefinition, session: Session, deleting: Session, parts: Statements) -> list[SpecError]:
    """What the roles of a table may do with it beyond what it needs, each as a warning at its definition; nothing of a
    superuser, of whom `powers_of` tells."""
    used = used_by(parts.select.query, *([parts.delete.selection("1")] if parts.delete else []))
    target = parts.delete.relation.sql if parts.delete and deletes(table) else ""
    found = list(_excess(table, session, used, target if session is deleting else "", ("connection",)))
    if session is not deleting:
        found += _excess(table, deleting, used, target, ("cleanup", "connection"))
    return found


def powers_of(session: Session) -> RequestError | None:
    """What the session's role may do beyond any table, to be told as a warning of its connection."""
    role = session.one("SELECT current_user::text")[0]
    powers = [name for name, has in zip(_POWER_NAMES, session.one(_ROLE), strict=True) if has]
    if "SUPERUSER" in powers:
        return RequestError(f"role {role!r} is a superuser, and may do anything", hint=_HINT)
    powers += sorted(row[0] for row in session.execute(_MEMBER, (list(_GROUPS),)))
    if not powers:
        return None
    return RequestError(f"role {role!r} has {', '.join(powers)}, which nothing here needs", hint=_HINT)


def _excess(
    table: TableDefinition, session: Session, used: Used, target: str, path: tuple[str, ...]
) -> Iterator[SpecError]:
    role, hint = session.one("SELECT current_user::text")[0], _HINT
    if session.one(_ROLE)[0]:
        return
    needed = relation_of(session, target) if target else None
    for name in sorted(used.relations):
        relation = relation_of(session, name)
        if relation is None:
            continue
        if relation.owned:
            yield table_error(table, f"role {role!r} owns {relation.sql}, and may change and drop it", path, hint)
            continue
        may_delete = needed is not None and (relation.schema, relation.name) == (needed.schema, needed.name)
        if extra := [right for right in relation.rights if right != "DELETE" or not may_delete]:
            yield table_error(table, f"role {role!r} may also {', '.join(extra)} in {relation.sql}", path, hint)
