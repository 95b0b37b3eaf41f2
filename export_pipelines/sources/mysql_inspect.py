"""Questions to MySQL and MariaDB about themselves and their tables, asked inside of a session's transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from export_pipelines.errors import CleanupRefused, SourceError
from export_pipelines.manifest import Column, Snapshot
from export_pipelines.sources.inspect import SideEffect
from export_pipelines.sources.mysql import MysqlSession
from export_pipelines.sources.mysql_types import ResultColumn, declared_types
from export_pipelines.sql_mysql import quote_identifier

_TABLE = """
SELECT table_schema, table_name, table_type, COALESCE(engine, '') FROM information_schema.tables
WHERE table_schema = COALESCE(%s, DATABASE()) AND table_name = %s
"""
_COLUMNS = """
SELECT column_name, column_type, COALESCE(collation_name, '') FROM information_schema.columns
WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position
"""
# The primary key first, then unique ones with the fewest columns; no prefixes, no expressions, no NULLs.
_KEYS = """
SELECT index_name, column_name, COALESCE(sub_part, 0), nullable FROM information_schema.statistics
WHERE table_schema = %s AND table_name = %s AND non_unique = 0
ORDER BY index_name <> 'PRIMARY', index_name, seq_in_index
"""
_TRIGGERS = """
SELECT trigger_name, CONCAT(event_object_schema, '.', event_object_table) FROM information_schema.triggers
WHERE event_object_schema = %s AND event_object_table = %s AND event_manipulation LIKE '%%DELETE%%'
"""
_FOREIGN = """
SELECT CONVERT(id USING utf8mb4), for_name, type FROM information_schema.{table}
WHERE LOWER(ref_name) = LOWER(CONCAT(CONVERT(CONVERT(%s USING filename) USING binary), '/',
                                     CONVERT(CONVERT(%s USING filename) USING binary)))
"""
# What a function does is said by who made it; who says nothing says CONTAINS SQL.
_FUNCTIONS = """
SELECT LOWER(routine_schema), LOWER(routine_name), LOWER(DATABASE()) FROM information_schema.routines
WHERE routine_type = 'FUNCTION' AND LOWER(routine_name) IN %s
  AND (sql_data_access = 'MODIFIES SQL DATA' OR (sql_data_access = 'CONTAINS SQL' AND is_deterministic = 'NO'))
"""
_MAY_SEE_TRIGGERS = """
SELECT COUNT(*) FROM (
  SELECT grantee FROM information_schema.user_privileges WHERE privilege_type = 'TRIGGER'
  UNION ALL SELECT grantee FROM information_schema.schema_privileges
   WHERE privilege_type = 'TRIGGER' AND %s LIKE table_schema
  UNION ALL SELECT grantee FROM information_schema.table_privileges
   WHERE privilege_type = 'TRIGGER' AND table_schema = %s AND table_name = %s) AS found
"""
_ACTIONS = {1: "ON DELETE CASCADE", 2: "ON DELETE SET NULL"}
UNSEEN = "unseen_foreign_keys"
"""What is acknowledged by who knows that no table beyond the account's sight refers to this one."""


@dataclass(frozen=True)
class BaseTable:
    """A table as the server knows it."""

    schema: str
    name: str
    columns: tuple[tuple[str, str, str], ...]
    """Name, COLUMN_TYPE and collation of each, in their order."""
    keys: tuple[tuple[str, ...], ...]
    """Unique keys without NULLs, the primary key first."""
    unsound: str
    """Why its rows cannot be locked and proved; empty when they can."""

    @property
    def sql(self) -> str:
        """Its quoted name."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.columns)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, types and collations; changes when the text of its rows may."""
        return hashlib.sha256(repr(self.columns).encode()).hexdigest()

    def has_key(self, columns: Sequence[str]) -> bool:
        """Whether some unique key has no other columns than these."""
        return any(set(key) <= set(columns) for key in self.keys)


def snapshot(session: MysqlSession) -> Snapshot:
    """The server and the view that the session's transaction reads."""
    server = "@@global.server_uid" if session.mariadb else "@@server_uuid"
    position = "@@gtid_binlog_pos" if session.mariadb else "@@global.gtid_executed"
    try:
        uid, database = session.one(f"SELECT {server}, COALESCE(DATABASE(), '')")
    except SourceError:
        # MariaDB before 10.11 has no name of its own.
        uid, database = session.one("SELECT CONCAT(@@hostname, ':', @@port), COALESCE(DATABASE(), '')")
    gtid = ""
    with suppress(SourceError):
        gtid = str(session.one(f"SELECT {position}")[0])
    return Snapshot(
        engine="mysql",
        server_version=session.version,
        database=database,
        system_identifier=str(uid),
        timeline=0,
        snapshot=gtid,
        next_xid=0,
        settings=session.settings,
    )


def base_table(session: MysqlSession, schema: str | None, name: str) -> BaseTable:
    """The table of that name; without a schema that of the connection's database.

    Raises:
        SourceError: there is none, or the account may not see it.
    """
    found = session.execute(_TABLE, (schema, name))
    if not found:
        raise missing(f"{schema}.{name}" if schema else name)
    schema, name, kind, engine = (str(value) for value in found[0])
    unsound = ""
    if kind not in ("BASE TABLE", "SYSTEM VERSIONED"):
        unsound = f"{schema}.{name} is a {kind.lower()}"
    elif engine.lower() != "innodb":
        unsound = f"{schema}.{name} is stored by {engine}, which has no transactions"
    columns = tuple((str(n), str(t), str(c)) for n, t, c in session.execute(_COLUMNS, (schema, name)))
    return BaseTable(schema, name, columns, _keys(session, schema, name), unsound)


def missing(table: str) -> SourceError:
    """The error for a table that is not there."""
    return SourceError(f"table {table} does not exist", hint="check its name and database, and the account's rights")


def _keys(session: MysqlSession, schema: str, name: str) -> tuple[tuple[str, ...], ...]:
    indexes: dict[str, list[tuple[str, bool]]] = {}
    for index, column, prefix, nullable in session.execute(_KEYS, (schema, name)):
        fit = column is not None and not prefix and str(nullable) != "YES"
        indexes.setdefault(str(index), []).append((str(column), fit))
    sound = [index for index in indexes.values() if all(fit for _, fit in index)]
    return tuple(tuple(column for column, _ in index) for index in sound)


def types(session: MysqlSession, columns: Sequence[ResultColumn]) -> tuple[Column, ...]:
    """The columns of a file, with their types as they would be declared."""
    base: dict[tuple[str, str, str], str] = {}
    for schema, name in {(c.database, c.org_table) for c in columns if c.org_table}:
        for column, declared, _ in session.execute(_COLUMNS, (schema, name)):
            base[schema, name, str(column)] = str(declared)
    return declared_types(columns, base)


def doubtful_functions(session: MysqlSession, called: Collection[tuple[str | None, str]]) -> list[str]:
    """Stored functions among these (schema or None, and name, in lower case) that are not declared to read only."""
    if not called:
        return []
    found = session.execute(_FUNCTIONS, (sorted({name for _, name in called}),))
    return sorted(
        f"{schema}.{name}"
        for schema, name, current in found
        if (schema, name) in called or (schema == current and (None, name) in called)
    )


def side_effects(session: MysqlSession, table: BaseTable) -> list[SideEffect]:
    """Delete triggers, and foreign keys with an ON DELETE action, of tables anywhere on the server.

    Raises:
        CleanupRefused: this account cannot see them.
    """
    here = (table.schema, table.name)
    if not session.mariadb and not session.one(_MAY_SEE_TRIGGERS, (table.schema, *here))[0]:
        raise CleanupRefused(
            f"triggers of {table.sql} cannot be seen by this account",
            hint="GRANT TRIGGER on the table to the account of the cleanup: it is what shows them",
        )
    found = [SideEffect("trigger", str(name), str(on)) for name, on in session.execute(_TRIGGERS, here)]
    view = "innodb_sys_foreign" if session.mariadb else "innodb_foreign"
    try:
        rows = session.execute(_FOREIGN.format(table=view), here)
    except SourceError as error:
        if error.code not in ("1227", "1142", "1044"):
            raise
        return [*found, SideEffect("foreign keys that this account cannot see, perhaps:", UNSEEN, table.sql)]
    for name, child, kind in rows:
        if action := next((text for bit, text in _ACTIONS.items() if int(kind) & bit), ""):
            found.append(SideEffect(action, str(name).rpartition("/")[2], str(child).replace("/", ".")))
    return found


def is_instant(session: MysqlSession, schema: str | None, table: str, column: str) -> bool:
    """Whether a column is a TIMESTAMP, which is an instant, and no DATETIME or DATE, which are local.

    Raises:
        SourceError: there is no such column, or it is no time.
    """
    base = base_table(session, schema, table)
    kind = next((t for name, t, _ in base.columns if name.lower() == column.lower()), "missing")
    if not kind.startswith(("timestamp", "datetime", "date")):
        raise SourceError(
            f"time_column {column!r} of {base.sql} is {kind}", hint="it must be a TIMESTAMP, DATETIME or DATE"
        )
    return kind.startswith("timestamp")
