"""What `check` looks at for one table: its SQL by itself, then against the live database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from export_pipelines import windows
from export_pipelines.cli import inspection_mysql
from export_pipelines.cli.inspection_format import format_errors
from export_pipelines.cli.places import line_of, table_error
from export_pipelines.cli.rights import excesses, powers_of
from export_pipelines.components.automation import Stage
from export_pipelines.components.tables import stages_of
from export_pipelines.errors import RequestError, SourceError, SpecError
from export_pipelines.sources import inspect
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.opensearch import OpenSearchSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.documents import DocumentPath
from export_pipelines.specs.table import CleanupMode, TableDefinition
from export_pipelines.sql import Delete, parameters, parameters_used, parse_delete, parse_select, render
from export_pipelines.steps.postgres.identity import IdentityPlan, plan_identity
from export_pipelines.steps.postgres.statements import Statements, statements
from export_pipelines.steps.texts import texts
from export_pipelines.windows import SNAPSHOT, Window

if TYPE_CHECKING:
    from export_pipelines.sources.postgres import Session
    from export_pipelines.steps.context import Source

_SECONDS = "30s"
_CONNECT_SECONDS = 10
OLDEST_SERVER = 130000


@dataclass
class TableFindings:
    """What is to be said of a table."""

    table: TableDefinition
    errors: list[SpecError] = field(default_factory=list)
    warnings: list[SpecError] = field(default_factory=list)
    columns: int | None = None
    proof: str | None = None
    """How a cleanup will prove the rows; None when the database was not asked."""
    of_connections: dict[str, RequestError] = field(default_factory=dict)
    """What is to be warned of the accounts of its connections, by their names, whatever the table."""


def check_sql(table: TableDefinition) -> list[SpecError]:
    """Parse the statements of a table, with the parameters of its first partition."""
    window = sample(table)
    select, delete = texts(table)
    if table.engine == "mysql":
        return inspection_mysql.check_sql(table, window, select, delete)
    derived = table.select_sql is None
    found = list(_mask_errors(table))
    for name, text, parse in (("select.sql", select, parse_select), ("delete.sql", delete, parse_delete)):
        if text is None:
            continue
        file = table.folder / name
        try:
            if table.spec.partitions is not None and not parameters_used(text):
                raise SpecError(
                    f"{name} uses no parameter, so each partition would be the whole table",
                    file=file,
                    line=1,
                    hint="compare a time column with %(window_start)s and %(window_end)s, or leave out `partitions`",
                )
            parse(render(text, parameters(window), file=file), file)
        except SpecError as error:
            written = table.delete_sql is not None if name == "delete.sql" else not derived
            found.append(error if written else table_error(table, error.message, ("table",), error.hint))
    return found


def _mask_errors(table: TableDefinition) -> Iterator[SpecError]:
    for name, expression in table.spec.mask_columns.items():
        try:
            parse_select(f"SELECT ({expression}) AS masked", table.folder / "defs.yaml")
        except SpecError as error:
            yield table_error(table, error.message, ("mask_columns", name), error.hint)


def sample(table: TableDefinition) -> Window:
    spec = table.spec.partitions
    return next(iter(windows.first_windows(spec, 1)), Window(SNAPSHOT)) if spec else Window(SNAPSHOT)


def check_table(source: Source, table: TableDefinition, deleter: Source | None = None) -> TableFindings:
    """Compare a table, whose SQL parses, with its database; the deletion by `deleter`, if that is another connection.
    Nothing of its rows is read."""
    found = TableFindings(table)
    settings: Any = {"timezone": table.spec.session_timezone, "statement_timeout": _SECONDS, "lock_timeout": _SECONDS}
    try:
        if isinstance(source, MysqlSource):
            other = deleter if isinstance(deleter, MysqlSource) else None
            inspection_mysql.inspect_table(found, source, other, sample(table))
            return found
        assert deleter is None or isinstance(deleter, PostgresSource)
        with ExitStack() as stack:
            session = stack.enter_context(source.session(**settings))
            session.begin()
            deleting = session
            if deleter is not None:
                deleting = stack.enter_context(deleter.session(**settings))
                deleting.begin()
            _Inspection(found, session, deleting).run()
    except SpecError as error:
        found.errors.append(error)
    except SourceError as error:
        found.errors.append(table_error(table, error.message, _field_of(table, error), error.hint))
    return found


def rendered(table: TableDefinition, session: Session) -> tuple[str, Delete | None]:
    """The query and the deletion of a table's first partition. Raises SpecError, SourceError."""
    parts = statements(table, sample(table), session)
    return parts.select.query, parts.delete


def _field_of(table: TableDefinition, error: SourceError) -> DocumentPath:
    if "time_column" in error.message:
        return ("time_column",)
    return ("table",) if table.spec.table else ()


class _Inspection:
    """Questions about one table, in one transaction that only reads."""

    def __init__(self, found: TableFindings, session: Session, deleting: Session) -> None:
        self.found = found
        self.deleting = deleting
        self.table = found.table
        self.session = session
        self.cleans = found.table.spec.cleanup.mode is not CleanupMode.OFF

    def run(self) -> None:
        inspect.snapshot(self.session)
        parts = statements(self.table, sample(self.table), self.session)
        try:
            self.select(parts)
        except SourceError as error:
            raise self.placed(error, "select.sql", self.table.select_sql) from error
        plan = plan_identity(self.session, parts, self.table.spec.key)
        self.found.errors += format_errors(self.table, plan.columns)
        deletes = parts.delete is not None and Stage.CLEANUP in stages_of(self.table)
        self.found.proof = self.describe(plan) if deletes else "not needed: nothing is deleted"
        spec = self.table.spec
        for name, session in (
            (spec.cleanup.connection or spec.connection, self.deleting),
            (spec.connection, self.session),
        ):
            if powers := powers_of(session):
                self.found.of_connections[name] = powers
        self.found.warnings += excesses(self.table, self.session, self.deleting, parts)
        if parts.delete is None or not deletes:
            return
        self.same_database()
        try:
            self.delete(parts.delete, plan)
        except SourceError as error:
            raise self.placed(error, "delete.sql", self.table.delete_sql) from error

    def same_database(self) -> None:
        """A cleanup by another connection must be of the database that was exported."""
        one, other = (inspect.snapshot(each) for each in (self.session, self.deleting))
        if (one.system_identifier, one.database) != (other.system_identifier, other.database):
            self.complain(
                f"the connection of the cleanup leads to database {other.database!r} and that of the export to "
                f"{one.database!r}, or to another server",
                ("cleanup", "connection"),
                "give both the same database; only their roles may differ",
            )

    def select(self, parts: Statements) -> None:
        """Columns, and the right to read them."""
        columns = inspect.columns(self.session, parts.select.query)
        self.found.columns = len(columns)
        double = [name for name, times in Counter(column.name for column in columns).items() if times > 1]
        if double:
            self.warn(f"columns named {double} come more than once, so no restore is possible", hint="name them by AS")

    def delete(self, delete: Delete, plan: IdentityPlan) -> None:
        """Columns of delete.sql, the right to delete, and what a deletion would set off."""
        returning = "ctid, xmin" if plan.mode != "none" else "1"
        name = delete.relation.qualifier
        returned = ", ".join(f"{name}.{column}" for column in returning.split(", ")) if returning != "1" else "1"
        if self.cleans:
            self.deleting.execute(f"EXPLAIN {delete.statement('true', returned)}")
        else:
            self.deleting.execute(f"EXPLAIN {delete.selection('1')}")
        self.proof(plan)
        tree = inspect.relation_tree(self.session, delete.relation.sql, only=delete.relation.only)
        effects = inspect.side_effects(self.session, tree.oids)
        known = {effect.name for effect in effects}
        acknowledged = set(self.table.spec.cleanup.acknowledge)
        for effect in effects:
            if effect.name not in acknowledged:
                self.complain(
                    f"deleting from {delete.relation.sql} would also set off {effect}",
                    ("cleanup",),
                    f"if that is meant, add {effect.name!r} to `cleanup: acknowledge:`",
                )
        for each in sorted(acknowledged - known):
            self.warn(f"{each!r} is acknowledged, and nothing of that name is set off", ("cleanup", "acknowledge"))

    def proof(self, plan: IdentityPlan) -> None:
        if plan.mode == "none":
            self.complain(
                f"a cleanup would be refused, since nothing can prove which rows are in the file: {plan.reason}",
                ("cleanup",),
                "export from one table, give `key` columns that the file contains, or set `cleanup: off`",
            )

    @staticmethod
    def describe(plan: IdentityPlan) -> str:
        """How a cleanup will prove the rows."""
        if plan.mode == "key":
            return f"by key {', '.join(plan.key)} and content"
        return "by identity and version of each row" if plan.mode == "row" else "cannot be proved"

    def placed(self, error: SourceError, name: str, text: str | None) -> SpecError:
        """The server's error, at the line of the file that it is about."""
        if text is None:
            return table_error(self.table, error.message, _field_of(self.table, error), error.hint)
        cause: Any = error.__cause__
        diagnostics = getattr(cause, "diag", None)
        position = getattr(diagnostics, "statement_position", None)
        line = 1
        if position is not None:
            lines = str(cause).splitlines()
            shown = next((n for n, each in enumerate(lines) if each.startswith("LINE ")), None)
            if shown is not None and shown + 1 < len(lines):
                column = len(lines[shown + 1]) - 1
                line = line_of(text, lines[shown][column:].removesuffix("..."))
        return SpecError(error.message, file=self.table.folder / name, line=line, hint=error.hint)

    def complain(self, message: str, path: DocumentPath = (), hint: str = "") -> None:
        """An error where rows are to be deleted; a warning where they are only compared."""
        error = table_error(self.table, message, path, hint)
        (self.found.errors if self.cleans else self.found.warnings).append(error)

    def warn(self, message: str, path: DocumentPath = (), hint: str = "") -> None:
        self.found.warnings.append(table_error(self.table, message, path, hint))


def check_connection(source: Source | OpenSearchSource) -> None:
    """Connect. Raises SourceError: it cannot be reached, or is too old."""
    if isinstance(source, OpenSearchSource):
        with source.session(timeout=_CONNECT_SECONDS) as search:
            search.version()
        return
    if isinstance(source, MysqlSource):
        with source.session() as mysql:
            inspection_mysql.check_server(mysql)
        return
    with source.session() as session:
        session.begin()
        if session.server_version < OLDEST_SERVER:
            raise SourceError(
                f"the server is PostgreSQL {session.one('SHOW server_version')[0]}, and 13 or newer is needed",
                hint="upgrade it",
            )
