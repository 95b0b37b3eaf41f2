"""Files `ver/NNN_*.sql`: run on the table in order, once, each with the note of it in the same transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from pglast import ast, parse_sql, split
from pglast.parser import ParseError

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import quote_identifier
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import columns_of, lock_for_change, note_data, noted_as_data

Migrations = Sequence[tuple[str, str]]

# The column, table or index is there already, or is there no longer.
_DONE = ("42701", "42P07", "42710", "42703", "42704")


def pending_migrations(session: Session, names: TableNames, migrations: Migrations) -> Migrations:
    """Those that did not run yet, in order.

    Raises:
        TargetError: one was changed after it ran, or stands before one that ran.
    """
    found = session.execute(
        "SELECT name, sha256 FROM operations.table_migration WHERE target_table = %s", (names.table,)
    )
    done = dict(found)
    todo = [(name, text) for name, text in migrations if name not in done]
    for name, text in migrations:
        if name in done and done[name] != _sha256(text):
            raise TargetError(
                f"{name} was changed after it ran on {names.table}", hint="write another one instead, and restore this"
            )
    if done and todo and todo[0][0] < max(done):
        raise TargetError(
            f"{todo[0][0]} stands before {max(done)}, which ran on {names.table} already",
            hint="give it a higher number",
        )
    return todo


def migrate(session: Session, names: TableNames, version: int, todo: Migrations, reserved: Sequence[str]) -> None:
    """Run them on the table that is there, within the caller's transaction, which must make the view anew afterwards.

    They find the table under its own name, as if there were no view. Columns that they add are data, but for those
    whose name is `reserved`.
    """
    lock_for_change(session, names, names.version(version))
    _detach(session, names)
    _under_its_name(session, names, version, lambda: _run_all(session, names, todo, reserved, _run), view=True)


def migrate_new(session: Session, names: TableNames, version: int, todo: Migrations, reserved: Sequence[str]) -> None:
    """Run them on a table that was just made from the definition: a statement whose work the definition has done
    already is left out."""
    _under_its_name(session, names, version, lambda: _run_all(session, names, todo, reserved, _run_new), view=False)


def _detach(session: Session, names: TableNames) -> None:
    """Let the view depend on no table; it keeps its columns, rights, and what depends on it."""
    columns = ", ".join(f"NULL::{c.type} AS {quote_identifier(c.name)}" for c in columns_of(session, names.view))
    session.execute(f"CREATE OR REPLACE VIEW {names.view} AS SELECT {columns}")


def _under_its_name(
    session: Session, names: TableNames, version: int, work: Callable[[], object], *, view: bool
) -> None:
    plain, numbered = quote_identifier(names.name), quote_identifier(names.version_name(version))
    aside = quote_identifier(f"{names.name}__view")
    schema = quote_identifier(names.schema)
    if view:
        session.execute(f"ALTER VIEW {names.view} RENAME TO {aside}")
    session.execute(f"ALTER TABLE {names.version(version)} RENAME TO {plain}")
    work()
    there = {column.name for column in columns_of(session, names.view)}
    if not {"row_id", "file_id"} <= there:
        raise TargetError(f"a ver/NNN_*.sql took row_id or file_id from {names.table}", hint="loading needs them")
    session.execute(f"ALTER TABLE {schema}.{plain} RENAME TO {numbered}")
    if view:
        session.execute(f"ALTER VIEW {schema}.{aside} RENAME TO {plain}")


def _run_all(
    session: Session,
    names: TableNames,
    todo: Migrations,
    reserved: Sequence[str],
    run: Callable[[Session, TableNames, str, str], None],
) -> None:
    """Run them; columns that they add, or that were noted as data, are noted as such afterwards."""
    before = {column.name for column in columns_of(session, names.view)}
    data = noted_as_data(session, names.view)
    for name, text in todo:
        run(session, names, name, text)
    there = columns_of(session, names.view)
    note_data(session, names.view, [c for c in there if c.name in data or c.name not in {*before, *reserved}])


def _run(session: Session, names: TableNames, name: str, text: str) -> None:
    _refuse_transactions(name, text)
    try:
        session.execute(text)
    except SourceError as error:
        raise _failed(name, names, error) from error
    _note(session, names, name, text)


def _run_new(session: Session, names: TableNames, name: str, text: str) -> None:
    _refuse_transactions(name, text)
    for statement in split(text):
        session.execute("SAVEPOINT migration")
        try:
            session.execute(statement)
        except SourceError as error:
            if error.code not in _DONE:
                raise _failed(name, names, error) from error
            session.execute("ROLLBACK TO migration")
        session.execute("RELEASE migration")
    _note(session, names, name, text)


def _refuse_transactions(name: str, text: str) -> None:
    try:
        statements = parse_sql(text)
    except ParseError as error:
        raise TargetError(f"{name} is not SQL: {error.args[0]}") from error
    if any(isinstance(statement.stmt, ast.TransactionStmt) for statement in statements):
        raise TargetError(f"{name} begins or ends a transaction", hint="it runs in one already; take it out")


def _failed(name: str, names: TableNames, error: SourceError) -> TargetError:
    return TargetError(
        f"{name} failed on {names.table}: {error.message.removeprefix('query failed: ')}",
        hint=error.hint or "nothing was changed; mend it, since it did not run",
        transient=error.transient,
    )


def _note(session: Session, names: TableNames, name: str, text: str) -> None:
    session.execute(
        "INSERT INTO operations.table_migration (target_table, name, sha256) VALUES (%s, %s, %s)",
        (names.table, name, _sha256(text)),
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
