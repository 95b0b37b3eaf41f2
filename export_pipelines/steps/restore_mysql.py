"""Restore into MySQL or MariaDB: the counterpart of `restore.py`, with the same promises but for one.

A CREATE TABLE cannot be rolled back there: a table that was made is removed again when its load fails, and a process
that is killed leaves it behind, empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from export_pipelines.errors import TargetError
from export_pipelines.sources.mysql import MysqlSession, MysqlSource
from export_pipelines.sql_mysql import MysqlRelation
from export_pipelines.steps.context import Progress
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.merge import Counts, OnConflict
from export_pipelines.steps.mysql.loading import load
from export_pipelines.steps.mysql.merging import Merger
from export_pipelines.steps.mysql.target import create, drop_if_empty, existing, exists, target_name
from export_pipelines.steps.pieces import Archived, Choice, pieces_of
from export_pipelines.steps.restore import (
    RestoreResult,
    as_target_errors,
    by_age,
    columns_of,
    declared_key,
    each_piece,
    merges,
    result_of,
)

_RIGHTS = (
    "the user needs SELECT, INSERT and (to replace) UPDATE on the table, CREATE TEMPORARY TABLES on the database to "
    "compare rows, CREATE on it to make the table"
)
HINTS = {
    "1044": _RIGHTS,
    "1142": _RIGHTS,
    "1143": _RIGHTS,
    "1049": "create the database first",
    "1062": "the archive has several versions of a row: `--on-conflict replace` keeps the one exported last",
    "1452": "rows of the table that its foreign key refers to are missing: restore those first",
    "1118": "create the table first, with text types for the longest columns",
    "1265": "the column has no such value: of an enum perhaps the empty one of an error; restore into a text column",
    "1366": "the column's character set or type has no such value; restore into a column of utf8mb4, or a name that is "
    "free",
    "1813": "remove what is left of the table, or restore into another name",
    "4161": "the server has no such type: create the table first, with text or binary types instead",
}


def restore_into(
    archived: Archived,
    choice: Choice,
    target: MysqlSource,
    into: str,
    *,
    on_conflict: OnConflict,
    key: Sequence[str],
    progress: Callable[[Progress], None],
) -> RestoreResult:
    """`restore.restore_table` for a target of MySQL or MariaDB; `into` is `name` or `database.name`, as MySQL reads it.

    Raises:
        RequestError, IntegrityError, TargetError: as there; also what was exported from PostgreSQL is refused.
    """
    name = target_name(into)
    found = archived.chosen(choice)
    pieces = pieces_of(found)
    _refuse_others(pieces, name.sql)
    with as_target_errors(name.sql, HINTS):
        created = _made(target, name, pieces)
        try:
            with target.session(read_only=False) as session:
                rows, counts, by = _restored(session, name, archived, pieces, on_conflict, key, progress)
                session.commit()
        except BaseException:
            if created:
                drop_if_empty(target, name.sql)
            raise
    return result_of(rows, created, found, len(pieces), counts, by)


def _made(target: MysqlSource, name: MysqlRelation, pieces: Sequence[Generation]) -> bool:
    """Make the table if there is none; whether it was made."""
    with target.session(read_only=False) as session:
        if exists(session, name):
            return False
        create(session, name.sql, [piece.manifest.export.columns for piece in pieces])
        return True


def _restored(
    session: MysqlSession,
    name: MysqlRelation,
    archived: Archived,
    pieces: Sequence[Generation],
    policy: OnConflict,
    key: Sequence[str],
    progress: Callable[[Progress], None],
) -> tuple[int, Counts, tuple[str, ...]]:
    """All rows, within a transaction that is begun here; how many, what became of them, and the key they were compared
    by."""
    fit = existing(session, name, frozenset().union(*map(columns_of, pieces)))
    found_key = fit.key_for(map(columns_of, pieces), key or declared_key(pieces))
    if not merges(fit, found_key, policy):
        rows = each_piece(archived, pieces, progress, lambda *each: load(session, fit.name, *each))
        return rows, Counts(inserted=rows), ()
    merger = Merger(session, fit, found_key, policy)
    rows = each_piece(archived, by_age(pieces, policy), progress, merger.merge)
    return rows, merger.counts if found_key else Counts(inserted=rows), found_key


def _refuse_others(pieces: Sequence[Generation], name: str) -> None:
    for piece in pieces:
        if piece.manifest.export.source.engine != "mysql":
            raise TargetError(
                f"the archive of {piece.manifest.table} was exported from PostgreSQL, whose types have no equals in "
                f"MySQL, so it is not restored into {name}",
                hint="restore it into PostgreSQL, or into a file with --to-file",
            )
