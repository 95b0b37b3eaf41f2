"""What `check` looks at for one table of MySQL or MariaDB, and the accounts that `roles` prints for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from export_pipelines.cli.inspection_format import format_errors
from export_pipelines.cli.places import table_error
from export_pipelines.components.automation import Stage
from export_pipelines.components.tables import stages_of
from export_pipelines.errors import CleanupRefused, ExportPipelinesError, RequestError, SourceError, SpecError
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql_errors import DENIED
from export_pipelines.sources.mysql_inspect import UNSEEN, BaseTable
from export_pipelines.specs.table import CleanupMode, TableDefinition
from export_pipelines.sql_mysql import quote_identifier, split_name, tables_of
from export_pipelines.steps.mysql.reading import Plan, plan
from export_pipelines.steps.mysql.statements import MysqlStatements, parsed, statements
from export_pipelines.windows import Window

if TYPE_CHECKING:
    from export_pipelines.cli.inspection import TableFindings
    from export_pipelines.sources.mysql import MysqlSession, MysqlSource

OLDEST_MARIADB = (10, 5)
OLDEST_MYSQL = (8, 0)
_POWERS = ("SUPER", "FILE", "CREATE USER", "SHUTDOWN")
_WRITES = ("INSERT", "UPDATE", "DELETE", "DROP", "ALTER", "CREATE")
# Rows are compared and replaced under locks, and staged in temporary tables; TRIGGER shows which a load would set off.
_LOADS = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, CREATE TEMPORARY TABLES, LOCK TABLES, TRIGGER"
_RIGHTS = """
SELECT privilege_type, '' FROM information_schema.user_privileges WHERE grantee = %(grantee)s
UNION SELECT privilege_type, table_schema FROM information_schema.schema_privileges
 WHERE grantee = %(grantee)s AND %(schema)s LIKE table_schema
UNION SELECT privilege_type, CONCAT(table_schema, '.', table_name) FROM information_schema.table_privileges
 WHERE grantee = %(grantee)s AND table_schema = %(schema)s AND table_name = %(name)s
"""


def check_sql(table: TableDefinition, window: Window, select: str, delete: str | None) -> list[SpecError]:
    """Parse the statements, with the parameters of a window."""
    try:
        parsed(table, window, select, delete, table.spec.session_timezone)
    except SpecError as error:
        return [error if table.select_sql is not None else table_error(table, error.message, ("table",), error.hint)]
    return []


def inspect_table(found: TableFindings, source: MysqlSource, deleter: MysqlSource | None, window: Window) -> None:
    """Compare a table, whose SQL parses, with its database. Nothing of its rows is read.

    Raises:
        SpecError, SourceError: nothing more can be said.
    """
    settings: Any = {"timezone": found.table.spec.session_timezone, "statement_timeout": "30s", "lock_timeout": "30s"}
    with source.session(**settings) as session:
        session.begin()
        parts = statements(found.table, window, session)
        planned = plan(session, parts, found.table.spec.key)
        _columns(found, planned)
        found.errors += format_errors(found.table, planned.columns)
        cleans = found.table.spec.cleanup.mode is not CleanupMode.OFF and parts.delete is not None
        deletes = parts.delete is not None and planned.table is not None and _ever_cleaned(found.table)
        if planned.table is not None:
            _judge(found, _rights(session, planned.table), deletes=cleans and deleter is None)
        ever = parts.delete is not None and _ever_cleaned(found.table)
        found.proof = describe(planned) if ever else "not needed: nothing is deleted"
        if not deletes and parts.delete is not None and found.table.spec.cleanup.mode is not CleanupMode.OFF:
            _unproved(found, planned)
    if deletes and planned.table is not None:
        with (deleter or source).session(**settings) as session:
            session.begin()
            _deletion(found, session, parts, planned.table, separate=deleter is not None)


def _ever_cleaned(table: TableDefinition) -> bool:
    """Whether there is a stage that deletes, or compares what it would delete."""
    return table.spec.cleanup.mode is not CleanupMode.OFF or Stage.CLEANUP in stages_of(table)


def describe(planned: Plan) -> str:
    """How a cleanup will prove the rows."""
    identity = planned.identity
    if identity.mode == "none":
        return "cannot be proved"
    if identity.mode == "record" and not identity.key:
        return "by content of each row"
    return f"by key {', '.join(identity.key)} and content"


def _columns(found: TableFindings, planned: Plan) -> None:
    found.columns = len(planned.columns)
    double = [name for name, times in Counter(column.name.lower() for column in planned.columns).items() if times > 1]
    if double:
        hint = "name them by AS"
        found.warnings.append(table_error(found.table, f"columns named {double} come more than once", (), hint))


def _unproved(found: TableFindings, planned: Plan) -> None:
    found.errors.append(
        table_error(
            found.table,
            f"a cleanup would be refused, since nothing proves which rows are in the file: {planned.identity.reason}",
            ("cleanup",),
            "export from one table, give `key` columns that the file contains, or set `cleanup: off`",
        )
    )


def _deletion(
    found: TableFindings, session: MysqlSession, parts: MysqlStatements, table: BaseTable, *, separate: bool
) -> None:
    """The condition of delete.sql, the right to delete, and what a deletion would set off."""
    assert parts.delete is not None
    spec = found.table.spec.cleanup
    cleans = spec.mode is not CleanupMode.OFF
    told = found.errors if cleans else found.warnings
    session.describe(parts.delete.selection("1"))
    if cleans:
        found.errors += _may_not_delete(found.table, session, table)
    if separate:
        _judge(found, _rights(session, table), deletes=cleans, connection=spec.connection or "")
    try:
        effects = mysql_inspect.side_effects(session, table)
    except CleanupRefused as error:
        told.append(table_error(found.table, error.message, ("cleanup",), error.hint))
        return
    for effect in effects:
        if effect.name in spec.acknowledge:
            continue
        hint = f"if that is meant, add {effect.name!r} to `cleanup: acknowledge:`"
        if effect.name == UNSEEN:
            hint = f"GRANT PROCESS ON *.* to the account of the cleanup, which shows them; else acknowledge {UNSEEN}"
        message = f"deleting from {table.sql} would also set off {effect}"
        told.append(table_error(found.table, message, ("cleanup",), hint))


def _may_not_delete(table: TableDefinition, session: MysqlSession, target: BaseTable) -> Iterator[SpecError]:
    """The server's word, which knows of roles, too: it checks rights when it prepares a statement. In a transaction
    that only reads it would not even prepare this one, which is never run."""
    session.rollback()
    try:
        session.describe(f"DELETE FROM {target.sql}")
    except SourceError as error:
        if error.code not in DENIED:
            raise
        yield table_error(table, f"the account may not DELETE from {target.sql}", ("cleanup",), error.hint)
    session.begin()


def _rights(session: MysqlSession, table: BaseTable) -> dict[str, str]:
    """What the account may do with the table, and where that was granted. Rights of roles are not among them."""
    user, _, host = str(session.one("SELECT CURRENT_USER()")[0]).rpartition("@")
    values = {"grantee": f"'{user}'@'{host}'", "schema": table.schema, "name": table.name}
    return {str(right): str(where) or "everywhere" for right, where in session.execute(_RIGHTS, values)}


def _judge(found: TableFindings, rights: dict[str, str], *, deletes: bool, connection: str = "") -> None:
    """Warn of rights beyond what is needed: of general ones once a connection, of those on the table with the table."""
    hint = "`export-pipelines roles` prints accounts that have just what is needed"
    if powers := [power for power in _POWERS if power in rights]:
        warning = RequestError(f"the account has {', '.join(powers)}, which nothing here needs", hint=hint)
        found.of_connections[connection or found.table.spec.connection] = warning
        return
    extra = [right for right in _WRITES if right in rights and not (right == "DELETE" and deletes)]
    if extra:
        message = f"the account may also {', '.join(extra)}"
        found.warnings.append(table_error(found.table, message, ("connection",), hint))


def check_server(session: MysqlSession) -> None:
    """Raises SourceError: the server is too old."""
    digits = session.version.removeprefix("5.5.5-").partition("-")[0].split(".")
    version = (int(digits[0]), int(digits[1]))
    oldest = OLDEST_MARIADB if session.mariadb else OLDEST_MYSQL
    if version < oldest:
        kind = "MariaDB" if session.mariadb else "MySQL"
        raise SourceError(
            f"the server is {kind} {session.version}, and {oldest[0]}.{oldest[1]} or newer is needed", hint="upgrade it"
        )


def accounts(
    source: MysqlSource, tables: list[TableDefinition], windows: dict[str, Window], names: tuple[str, str]
) -> Iterator[str]:
    """The SQL of a reader and, if any table is cleaned up, a deleter, for the tables of one connection. What cannot be
    had is said in a comment."""
    reader, deleter = (f"{quote_identifier(name)}@'%'" for name in names)
    read: set[str] = set()
    delete: set[str] = set()
    problems: list[str] = []
    with source.session() as session:
        session.begin()
        for table in tables:
            try:
                found = _used(session, table, windows[table.id])
            except ExportPipelinesError as error:
                problems.append(f"-- {table.id} is left out: {' '.join(error.message.split())}")
                continue
            read |= found[0]
            delete |= found[1]
    yield from problems
    yield "-- exports: reads, and has no right to write anything"
    yield f"CREATE USER IF NOT EXISTS {reader} ACCOUNT LOCK;"
    yield from (f"GRANT SELECT ON {each} TO {reader};" for each in sorted(read))
    if delete:
        yield "-- cleans up: `cleanup: {connection: …}` of the tables names the connection with this account"
        yield f"CREATE USER IF NOT EXISTS {deleter} ACCOUNT LOCK;"
        yield "-- shows the foreign keys of all tables, so that none is set off unseen"
        yield f"GRANT PROCESS ON *.* TO {deleter};"
        yield from (f"GRANT SELECT ON {each} TO {deleter};" for each in sorted(read))
        yield from (f"GRANT DELETE, TRIGGER ON {each} TO {deleter};" for each in sorted(delete))


def reporter(source: MysqlSource, reports: Iterable[str], name: str) -> Iterator[str]:
    """The SQL of an account, which may be there already, that enters finished files in tables of reports."""
    account = f"{quote_identifier(name)}@'%'"
    yield f"CREATE USER IF NOT EXISTS {account} ACCOUNT LOCK;"
    with source.session() as session:
        session.begin()
        for each in sorted(reports):
            schema, table = split_name(each)
            try:
                yield f"GRANT SELECT, INSERT ON {mysql_inspect.base_table(session, schema, table).sql} TO {account};"
            except SourceError as error:
                yield f"-- {each} is left out: {' '.join(error.message.split())}"


def loader(database: str, name: str) -> Iterator[str]:
    """The SQL of an account that restores into a database of its own."""
    account, where = f"{quote_identifier(name)}@'%'", quote_identifier(database)
    # A grant takes the name of a database for a pattern.
    only = quote_identifier(database.replace("_", "\\_").replace("%", "\\%"))
    yield "-- restores into a database of its own, and sees nothing else"
    yield f"CREATE DATABASE IF NOT EXISTS {where};"
    yield f"CREATE USER IF NOT EXISTS {account} ACCOUNT LOCK;"
    yield f"GRANT {_LOADS} ON {only}.* TO {account};"


def _used(session: MysqlSession, table: TableDefinition, window: Window) -> tuple[set[str], set[str]]:
    """Quoted names of the tables and views that a table's statements read, and of that which is deleted from."""
    parts = statements(table, window, session)
    session.describe(parts.select.query)
    named = tables_of(parts.select.query)
    delete = set()
    if parts.delete is not None and table.spec.cleanup.mode is not CleanupMode.OFF:
        found = mysql_inspect.base_table(session, parts.delete.relation.schema, parts.delete.relation.name)
        delete.add(found.sql)
        named |= tables_of(parts.delete.selection("1"))
    read = set()
    for schema, name in named:
        # The server knows all of them, since it has prepared the query: what it does not list is a CTE, or built in.
        with suppress(SourceError):
            read.add(mysql_inspect.base_table(session, schema, name).sql)
    return read, delete
