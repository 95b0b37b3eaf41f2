"""Transform: run SQL in a target database in one transaction, and show what it makes behind a stable view."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.postgres import PostgresSource, Session
from export_pipelines.specs.transform import TransformDefinition
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.transform_sql import Statement, read_transform
from export_pipelines.targets import schema, versions, views
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import (
    TableColumn,
    add_key,
    add_primary_key,
    columns_of,
    copy_structure,
    exists,
    make_schema,
)

_NUMBER = "row_id"
_DESCRIBED = '"transform described"'


@dataclass(frozen=True)
class TransformContext:
    """A transform with all that it needs. Knows nothing of Dagster."""

    transform: TransformDefinition
    target: PostgresSource
    """Its database; the role may create schemas and tables there."""
    current_version: Callable[[], str] | None = None
    """Gives the version of the definition as it is on disk now. Asked just before the commit: a transform that was
    changed meanwhile is given up."""

    @property
    def names(self) -> TableNames:
        """Of what is made; of statements a name that nothing has, which their lock goes by."""
        spec, transform = self.transform.spec, self.transform
        return TableNames.of(spec.target) if spec.target.table else TableNames("transform", transform.id)


@dataclass(frozen=True)
class TransformResult:
    """What a transform did."""

    rows: int | None
    """Rows of the table, or that statements changed; None of a view."""
    table_version: int | None
    """Number of the version that readers see, of a table."""
    columns: tuple[tuple[str, str], ...]
    """Names and types of what was made."""
    seconds: float
    statements: tuple[tuple[str, int], ...] = ()
    """Of statements: what each is, and how many rows it gave or changed."""


@dataclass(frozen=True)
class TransformPlan:
    """What a transform would do."""

    columns: tuple[tuple[str, str], ...]
    rows: int | None
    """As the planner guesses."""
    table_version: int | None
    """Number of the version that it would make."""
    plan: tuple[str, ...] = ()
    """Lines of EXPLAIN."""


def run_transform(ctx: TransformContext) -> TransformResult:
    """Run it. Two at once: the second waits.

    A table is built beside, with `row_id` in the order of the query's rows, and shown by its view from the commit on;
    constraints and indexes that people gave the version before are made on it, too. Rights on the view stay.

    Crash, lost connection: nothing has changed. If the connection is lost during the commit, the next run makes the
    same table or view again; statements must bear to run twice.

    Raises:
        TargetError: a statement failed (with its line), the key does not tell the rows apart, something else has the
            name, or the definition was changed meanwhile (transient).
        SourceError: the database is away.
    """
    started = time.monotonic()
    work = {"table": _table, "view": _view, "statements": _statements}[ctx.transform.spec.materialize]
    with _transaction(ctx) as session:
        made = work(ctx, session)
        _refuse_changed(ctx)
        session.commit()
        if ctx.transform.spec.materialize != "statements":
            versions.sweep(session, ctx.names)
    return TransformResult(**made, seconds=time.monotonic() - started)


def plan_transform(ctx: TransformContext) -> TransformPlan:
    """Ask the database what the query gives, in a transaction that is rolled back. Statements are not asked: each may
    need what the one before makes.

    Raises:
        TargetError: the query does not fit the database (with its line), or something else has the name.
    """
    if ctx.transform.spec.materialize == "statements":
        return TransformPlan((), None, None)
    with ctx.target.session(read_only=False, statement_timeout="1min", lock_timeout="10s") as session:
        session.begin()
        _apply_settings(ctx, session)
        statement = _query(ctx)
        known = exists(session, "operations.loaded_table")
        state = versions.state(session, ctx.names) if known else None
        _refuse_foreign(ctx, session, state)
        columns = _described(ctx, session, statement)
        lines = tuple(row[0] for row in _guarded(ctx, statement, session, f"EXPLAIN {statement.text}"))
        (tree,) = session.one(f"EXPLAIN (FORMAT JSON) {statement.text}")
        session.rollback()
    number = (state.last if state else 0) + 1 if ctx.transform.spec.materialize == "table" else None
    return TransformPlan(_pairs(columns), int(tree[0]["Plan"]["Plan Rows"]), number, lines)


@contextmanager
def _transaction(ctx: TransformContext) -> Iterator[Session]:
    """A session in a transaction that holds the lock of what is made."""
    spec = ctx.transform.spec
    with ctx.target.session(
        read_only=False, statement_timeout=spec.statement_timeout, lock_timeout=spec.lock_timeout
    ) as session:
        if spec.materialize != "statements":
            schema.ensure(session)
            make_schema(session, ctx.names)
        versions.lock(session, ctx.names)
        _apply_settings(ctx, session)
        yield session


def _apply_settings(ctx: TransformContext, session: Session) -> None:
    for name, value in ctx.transform.spec.settings.items():
        try:
            session.execute("SELECT set_config(%s, %s, true)", (name, value))
        except SourceError as error:
            raise TargetError(
                f"setting {name!r} of {ctx.transform.id} is refused: {_said(error)}",
                hint="see `settings`",
                transient=error.transient,
            ) from error


# A table


def _table(ctx: TransformContext, session: Session) -> dict[str, Any]:
    names, spec = ctx.names, ctx.transform.spec
    state = versions.state(session, names)
    _refuse_foreign(ctx, session, state)
    statement = _query(ctx)
    columns = _described(ctx, session, statement)
    number = (state.last if state else 0) + 1
    relation = names.version(number)
    listed = "".join(f", {quote_identifier(column.name)}" for column in columns)
    rows = _changed(
        ctx,
        statement,
        session,
        f"CREATE TABLE {relation} AS SELECT row_number() OVER () AS {_NUMBER}{listed} FROM (",
        "\n) AS result",
    )
    _index(ctx, session, relation, state)
    versions.record(session, names, number, rows, "", None)
    versions.point(session, names, number, number, ctx.transform.version)
    versions.forget_old(session, names, number, spec.target.keep_versions)
    views.show(session, names, versions.kept(session, names), number, _comments(ctx))
    if state is None:
        views.grant(session, names, spec.target.grants)
    return {"rows": rows, "table_version": number, "columns": _pairs(columns)}


def _index(ctx: TransformContext, session: Session, relation: str, state: versions.State | None) -> None:
    """What makes the new table fit to be read: the key of its pages, the definition's key, and what people added."""
    key = ctx.transform.spec.key
    add_primary_key(session, relation)
    try:
        if key and not add_key(session, relation, key):
            raise TargetError(
                f"rows of {ctx.transform.id} have the same key ({', '.join(key)})",
                hint="mend transform.sql, or `key`; the table stays as it was",
            )
        if state and state.current and exists(session, ctx.names.version(state.current)):
            copy_structure(session, ctx.names.version(state.current), relation, [[_NUMBER], ["file_id"], list(key)])
    except SourceError as error:
        raise TargetError(
            f"the rows of {ctx.transform.id} do not fit its table: {_said(error)}", transient=error.transient
        ) from error
    session.execute(f"ANALYZE {relation}")


# A view


def _view(ctx: TransformContext, session: Session) -> dict[str, Any]:
    names = ctx.names
    state = versions.state(session, names)
    _refuse_foreign(ctx, session, state)
    statement = _query(ctx)
    _described(ctx, session, statement)
    views.show_query(session, names, statement.text, _comments(ctx))
    versions.forget_all(session, names)
    versions.point(session, names, 0, state.last if state else 0, ctx.transform.version)
    if state is None:
        views.grant(session, names, ctx.transform.spec.target.grants)
    return {"rows": None, "table_version": None, "columns": _pairs(columns_of(session, names.view))}


# Statements


def _statements(ctx: TransformContext, session: Session) -> dict[str, Any]:
    done = []
    for statement in read_transform(ctx.transform).statements:
        done.append((statement.kind, max(_changed(ctx, statement, session), 0)))
    changing = ("INSERT", "UPDATE", "DELETE", "MERGE", "CREATE TABLE AS")
    rows = sum(number for kind, number in done if kind in changing)
    return {"rows": rows, "table_version": None, "columns": (), "statements": tuple(done)}


# What they share


def _query(ctx: TransformContext) -> Statement:
    return read_transform(ctx.transform).statements[0]


def _described(ctx: TransformContext, session: Session, statement: Statement) -> list[TableColumn]:
    """The query's columns, without the number of rows of another loaded table: this one gives its own.

    Raises:
        TargetError: the query does not fit the database, or has a name twice.
    """
    session.execute("SAVEPOINT described")
    _changed(ctx, statement, session, f"CREATE TEMPORARY TABLE {_DESCRIBED} AS ", "\nWITH NO DATA")
    found = columns_of(session, f"pg_temp.{_DESCRIBED}")
    session.execute("ROLLBACK TO described; RELEASE described")
    kept = [column for column in found if column.name != _NUMBER]
    if unfit := [name for name in ctx.transform.spec.key if name not in {column.name for column in kept}]:
        raise TargetError(f"{ctx.transform.id} has no column {unfit[0]!r}, which is of its key", hint="see `key`")
    return kept


def _changed(ctx: TransformContext, statement: Statement, session: Session, before: str = "", behind: str = "") -> int:
    """Run a statement, or one around it; how many rows it gave or changed."""
    with _explained(ctx, statement, len(before)):
        return session.change(f"{before}{statement.text}{behind}")


def _guarded(ctx: TransformContext, statement: Statement, session: Session, text: str) -> list[tuple[Any, ...]]:
    with _explained(ctx, statement, len(text) - len(statement.text)):
        return session.execute(text)


@contextmanager
def _explained(ctx: TransformContext, statement: Statement, offset: int) -> Iterator[None]:
    """An error of the server as one of the transform, with its line."""
    try:
        yield
    except SourceError as error:
        if not error.code:
            raise
        diagnosis = getattr(error.__cause__, "diag", None)
        place = int(getattr(diagnosis, "statement_position", None) or 0) - 1 - offset
        line = statement.line + statement.text.count("\n", 0, max(place, 0))
        raise TargetError(
            f"{ctx.transform.id}, transform.sql:{line}: {_said(error)}",
            hint=error.hint or "nothing was changed",
            transient=error.transient,
        ) from error


def _said(error: SourceError) -> str:
    return error.message.removeprefix("query failed: ")


def _refuse_foreign(ctx: TransformContext, session: Session, state: versions.State | None) -> None:
    if state is None:
        views.refuse_foreign(session, ctx.names, ctx.transform.id)


def _comments(ctx: TransformContext) -> dict[str, str]:
    text = ctx.transform.spec.description
    return {"": text} if text else {}


def _pairs(columns: list[TableColumn]) -> tuple[tuple[str, str], ...]:
    return tuple((column.name, column.type) for column in columns)


def _refuse_changed(ctx: TransformContext) -> None:
    now = ctx.current_version() if ctx.current_version else ctx.transform.version
    if now != ctx.transform.version:
        raise TargetError(
            f"{ctx.transform.id} was changed while it ran, so nothing was done", hint="run it again", transient=True
        )
