"""Which versions of a loaded table there are, and which one is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.postgres import Session
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import columns_of, exists

_OLD = """
SELECT version FROM operations.table_version WHERE target_table = %s AND version <> %s ORDER BY version DESC OFFSET %s
"""

_TABLES = """
SELECT relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE nspname = %s AND relkind = 'r' AND starts_with(relname::text, %s)
"""


@dataclass(frozen=True)
class State:
    """A table that was loaded before."""

    current: int
    last: int
    """The highest number that was ever given."""
    definition_version: str


def lock(session: Session, names: TableNames) -> None:
    """Begin a transaction in which nobody else changes the table. Waits for who does.

    It is READ COMMITTED: a snapshot that was taken before the wait would not show what the other one did.
    """
    session.begin()
    session.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    session.execute("SELECT pg_advisory_xact_lock(%s)", (names.lock,))


def state(session: Session, names: TableNames, *, wait: bool = True) -> State | None:
    """What is known of the table; None before its first load. With `wait`, who changes it is waited for, and nobody
    else changes it until the transaction ends."""
    found = session.execute(
        "SELECT current_version, last_version, definition_version FROM operations.loaded_table "
        f"WHERE target_table = %s {'FOR UPDATE' if wait else ''}",
        (names.table,),
    )
    return State(*found[0]) if found else None


def point(session: Session, names: TableNames, current: int, last: int, definition_version: str) -> None:
    """Let the view show a version, from the commit on."""
    session.execute(
        "INSERT INTO operations.loaded_table (target_table, current_version, last_version, definition_version) "
        "VALUES (%s, %s, %s, %s) ON CONFLICT (target_table) DO UPDATE SET current_version = excluded.current_version, "
        "last_version = excluded.last_version, definition_version = excluded.definition_version, updated = now()",
        (names.table, current, last, definition_version),
    )


def record(session: Session, names: TableNames, number: int, rows: int, digest: str, entry: int | None) -> None:
    """Note what a version holds."""
    session.execute(
        "INSERT INTO operations.table_version (target_table, version, rows, digest, registry_id) "
        "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (target_table, version) DO UPDATE SET rows = excluded.rows, "
        "digest = excluded.digest, registry_id = excluded.registry_id",
        (names.table, number, rows, digest, entry),
    )


def rows_of(session: Session, names: TableNames, number: int) -> int:
    """Rows of a version; 0 if it is new."""
    found = session.execute(
        "SELECT rows FROM operations.table_version WHERE target_table = %s AND version = %s", (names.table, number)
    )
    return int(found[0][0]) if found else 0


def kept(session: Session, names: TableNames) -> list[int]:
    """Numbers of the versions that are kept, in order; those that were dropped by hand left out."""
    found = session.execute(
        "SELECT version FROM operations.table_version WHERE target_table = %s "
        "AND to_regclass(format('%%I.%%I', %s, %s || version)) IS NOT NULL ORDER BY version",
        (names.table, names.schema, f"{names.name}__v"),
    )
    return [int(row[0]) for row in found]


def is_gone(session: Session, names: TableNames, found: State | None) -> bool:
    """Whether somebody dropped what readers see by hand. (A view of a transform has no version.)"""
    return found is not None and found.current > 0 and not exists(session, names.version(found.current))


def forget_gone(session: Session, names: TableNames) -> None:
    """Take versions out of the list that were dropped by hand; where none is left, the migrations run on the next."""
    there = kept(session, names)
    for table in ("table_version", "table_block"):
        session.execute(
            f"DELETE FROM operations.{table} WHERE target_table = %s AND version <> ALL(%s)", (names.table, there)
        )
    if not there:
        session.execute("DELETE FROM operations.table_migration WHERE target_table = %s", (names.table,))


def forget_all(session: Session, names: TableNames) -> None:
    """Take all versions out of the list: nothing is built any more. `sweep` drops them."""
    for table in ("table_version", "table_block"):
        session.execute(f"DELETE FROM operations.{table} WHERE target_table = %s", (names.table,))


def forget_old(session: Session, names: TableNames, current: int, keep: int) -> None:
    """Take versions out of the list, all but the current one and the `keep` newest others. `sweep` drops them."""
    old = [int(row[0]) for row in session.execute(_OLD, (names.table, current, keep))]
    for table in ("table_version", "table_block"):
        session.execute(
            f"DELETE FROM operations.{table} WHERE target_table = %s AND version = ANY(%s)", (names.table, old)
        )


def sweep(session: Session, names: TableNames, *, raw: bool = False) -> None:
    """Drop tables of versions that are no longer kept, and with `raw` raw rows that no row came from, in transactions
    of their own. Tables that somebody reads stay for the next time; so does what a crash leaves."""
    _alone(session, names, _drop_old)
    if raw:
        _alone(session, names, _drop_raw)


def _alone(session: Session, names: TableNames, work: Callable[[Session, TableNames], None]) -> None:
    """Do what can wait, unless somebody is at the table, or it fails."""
    with suppress(SourceError):
        session.begin()
        if session.one("SELECT pg_try_advisory_xact_lock(%s)", (names.lock,))[0]:
            work(session, names)
            session.commit()
            return
    with suppress(SourceError):
        session.rollback()


def _drop_old(session: Session, names: TableNames) -> None:
    known = set(kept(session, names))
    found = state(session, names)
    prefix = f"{names.name}__v"
    numbers = [row[0].removeprefix(prefix) for row in session.execute(_TABLES, (names.schema, prefix))]
    old = [int(n) for n in numbers if re.fullmatch(r"[1-9]\d*", n) and int(n) not in known]
    for number in old:
        if found and number != found.current:
            session.execute(f"SET LOCAL lock_timeout = '300ms'; DROP TABLE {names.version(number)}")


def _drop_raw(session: Session, names: TableNames) -> None:
    """A row of a version that is kept, or of the quarantine, keeps its raw row. Each version keeps all of the file
    that it was last loaded from."""
    shown = state(session, names)
    if shown is None or not exists(session, names.raw):
        return
    relations = [names.version(number) for number in {shown.current, *kept(session, names)}]
    # A version that is older than `raw` in the definition has no such column.
    pointing = [each for each in relations if any(column.name == "raw_id" for column in columns_of(session, each))]
    held = " ".join(
        f"AND NOT EXISTS (SELECT FROM {each} AS t WHERE t.raw_id = r.row_id)" for each in [*pointing, names.quarantine]
    )
    newest = "SELECT registry_id FROM operations.table_version WHERE target_table = %s AND registry_id IS NOT NULL"
    session.execute(f"DELETE FROM {names.raw} AS r WHERE r.file_id NOT IN ({newest}) {held}", (names.table,))


def require(session: Session, names: TableNames, number: int) -> None:
    """Raises TargetError: the version is not kept."""
    numbers = kept(session, names)
    if number not in numbers:
        listed = ", ".join(map(str, numbers)) or "none"
        hint = f"versions that are kept: {listed}"
        if len(numbers) == 1:
            hint += " (styles that change a table in place keep one)"
        raise TargetError(f"{names.table} has no version {number}", hint=hint)
