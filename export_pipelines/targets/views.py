"""The stable view of a loaded table: which version it shows, its columns, its rights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import quote_identifier, quote_literal
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import TableColumn, columns_of, exists, patiently

_CANNOT_REPLACE = ("42P16", "42611")
_DEPENDENTS = "2BP01"

_RIGHTS = """
SELECT coalesce(quote_ident(r.rolname), 'PUBLIC'), a.privilege_type, a.is_grantable
FROM pg_class c CROSS JOIN aclexplode(c.relacl) AS a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE c.oid = to_regclass(%s) AND a.grantee <> c.relowner
"""


def show(
    session: Session, names: TableNames, numbers: Sequence[int], current: int, comments: Mapping[str, str]
) -> None:
    """Make the view, or make it anew if it must be: over `numbers`, of which it shows what operations.loaded_table
    says.

    A reader whose snapshot is older than a swap still sees the rows of its time: the number is a row like any other. A
    plain view over the newest table would show it nothing, since that table has no rows that are old enough. The
    planner leaves out the other versions, and uses the indexes of the one.

    Raises:
        TargetError: the columns changed so that it must be dropped, and other views depend on it.
    """
    kept = columns_of(session, names.version(current))
    wanted = _ordered(columns_of(session, names.view), kept)
    query = _query(session, names, numbers, current, wanted)
    _make(session, names, query)
    _comment(session, names, comments, {column.name for column in wanted})


def show_query(session: Session, names: TableNames, query: str, comments: Mapping[str, str]) -> None:
    """Make the view a query of its own, or make it anew if that has changed. Rights are kept.

    Raises:
        TargetError: the columns changed so that it must be dropped, and other views depend on it.
    """
    _make(session, names, query)
    _comment(session, names, comments, {column.name for column in columns_of(session, names.view)})


def refuse_foreign(session: Session, names: TableNames, maker: str) -> None:
    """To be asked before the first version. Raises TargetError: something has the name, and `maker` did not make it."""
    if exists(session, names.view):
        raise TargetError(
            f"{names.table} is there, and {maker} did not make it",
            hint="drop it if nobody needs it, or name another table",
        )


def _ordered(shown: Sequence[TableColumn], kept: Sequence[TableColumn]) -> list[TableColumn]:
    """Columns in the order of the view that is there, new ones behind: then it need not be dropped."""
    by_name = {column.name: column for column in kept}
    known = [by_name.pop(column.name) for column in shown if column.name in by_name]
    return [*known, *by_name.values()]


def _query(
    session: Session, names: TableNames, numbers: Sequence[int], current: int, columns: Sequence[TableColumn]
) -> str:
    listed = ", ".join(quote_identifier(column.name) for column in columns)
    fitting = [n for n in numbers if n == current or _fits(session, names.version(n), columns)]
    if len(fitting) == 1:
        return f"SELECT {listed} FROM {names.version(current)}"
    parts = " UNION ALL ".join(_branch(session, names.version(n), n, columns) for n in sorted(fitting))
    pointer = f"SELECT current_version FROM operations.loaded_table WHERE target_table = {quote_literal(names.table)}"
    return f"SELECT {listed} FROM ({parts}) AS versions WHERE version = ({pointer})"


def _fits(session: Session, relation: str, columns: Sequence[TableColumn]) -> bool:
    types = {column.name: column.type for column in columns}
    return all(types.get(column.name, column.type) == column.type for column in columns_of(session, relation))


def _branch(session: Session, relation: str, number: int, columns: Sequence[TableColumn]) -> str:
    there = {column.name for column in columns_of(session, relation)}
    values = ", ".join(
        quote_identifier(c.name) if c.name in there else f"NULL::{c.type} AS {quote_identifier(c.name)}"
        for c in columns
    )
    return f"SELECT {number} AS version, {values} FROM {relation}"


def _make(session: Session, names: TableNames, query: str) -> None:
    if not exists(session, names.view):
        session.execute(f"CREATE VIEW {names.view} AS {query}")
    elif _definition(session, names) != _canonical(session, query):
        patiently(session, lambda: _replace(session, names, query))


def _definition(session: Session, names: TableNames) -> str:
    return str(session.one("SELECT pg_get_viewdef(to_regclass(%s))", (names.view,))[0])


def _canonical(session: Session, query: str) -> str:
    """The query as the server would write it."""
    session.execute(f"SAVEPOINT canonical; CREATE TEMPORARY VIEW load_canonical AS {query}")
    text = str(session.one("SELECT pg_get_viewdef('pg_temp.load_canonical'::regclass)")[0])
    session.execute("ROLLBACK TO canonical; RELEASE canonical")
    return text


def _replace(session: Session, names: TableNames, query: str) -> None:
    session.execute("SAVEPOINT replacing")
    try:
        session.execute(f"CREATE OR REPLACE VIEW {names.view} AS {query}")
    except SourceError as error:
        if error.code not in _CANNOT_REPLACE:
            raise
        session.execute("ROLLBACK TO replacing")
        _drop_and_create(session, names, query)
    session.execute("RELEASE replacing")


def _drop_and_create(session: Session, names: TableNames, query: str) -> None:
    """The same where columns went or changed. Rights are given again."""
    rights = session.execute(_RIGHTS, (names.view,))
    comment = session.one("SELECT obj_description(to_regclass(%s))", (names.view,))[0]
    try:
        session.execute(f"DROP VIEW {names.view}")
    except SourceError as error:
        if error.code != _DEPENDENTS:
            raise
        raise TargetError(
            f"the columns of {names.table} changed, and others depend on the view: {error.hint or error.message}",
            hint="drop what depends on it in a ver/NNN_*.sql, and make it again there or afterwards",
        ) from error
    session.execute(f"CREATE VIEW {names.view} AS {query}")
    for role, right, grantable in rights:
        option = " WITH GRANT OPTION" if grantable else ""
        session.execute(f"GRANT {right} ON {names.view} TO {role}{option}")
    if comment:
        session.execute(f"COMMENT ON VIEW {names.view} IS {quote_literal(comment)}")


def _comment(session: Session, names: TableNames, comments: Mapping[str, str], columns: set[str]) -> None:
    found = session.execute(
        "SELECT attname::text, col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = to_regclass(%s)",
        (names.view,),
    )
    there = dict(found)
    table = session.one("SELECT obj_description(to_regclass(%s))", (names.view,))[0]
    for name, text in comments.items():
        if not name and text != (table or ""):
            session.execute(f"COMMENT ON VIEW {names.view} IS {quote_literal(text)}")
        elif name in columns and text != (there.get(name) or ""):
            session.execute(f"COMMENT ON COLUMN {names.view}.{quote_identifier(name)} IS {quote_literal(text)}")


def grant(session: Session, names: TableNames, roles: Sequence[str]) -> None:
    """Let roles read the view, and reach its schema.

    Raises:
        TargetError: there is no such role.
    """
    for role in roles:
        known = session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))
        if not known:
            raise TargetError(f"there is no role {role!r} to grant {names.table} to", hint="create it, or leave it out")
        session.execute(
            f"GRANT USAGE ON SCHEMA {quote_identifier(names.schema)} TO {quote_identifier(role)}; "
            f"GRANT SELECT ON {names.view} TO {quote_identifier(role)}"
        )
