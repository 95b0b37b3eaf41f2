"""Restore: bring partitions, or a whole table, back from the archive into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.formats.encryption import NO_KEYS, Keyring
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.ddl import postgres_columns
from export_pipelines.steps.generations import Generation
from export_pipelines.steps.loading import load
from export_pipelines.steps.merge import Counts, Merger, OnConflict
from export_pipelines.steps.pieces import Archived, Choice, pieces_of, reporter
from export_pipelines.steps.target import Target, begin_locked, create, existing, target_name
from export_pipelines.stores.base import Store

_DATES = "PostgreSQL has no such date: where MySQL has 0000-00-00, restore into a table that has text columns for it"
_HINTS = {
    "42501": "the role needs SELECT, INSERT and (to replace) UPDATE on the table, TEMPORARY on the database to compare "
    "rows, CREATE on the schema to make the table",
    "22007": _DATES,
    "22008": _DATES,
    "22021": "PostgreSQL has no character U+0000 in text: restore into MySQL or MariaDB, or into a file",
    "23505": "the archive has several versions of a row: `--on-conflict replace` keeps the one exported last",
}


@dataclass(frozen=True)
class RestoreResult:
    """What was restored, from how many files (`artifacts`); `created` says whether the table was made for it.

    `rows` of the archive are `inserted` + `replaced` + `skipped`. `differing` rows were there with other values: they
    were replaced, or were skipped and still differ. The other skipped ones were there already, byte for byte.
    """

    rows: int
    created: bool
    partitions: tuple[str, ...]
    artifacts: int
    inserted: int
    skipped: int = 0
    replaced: int = 0
    differing: int = 0
    key: tuple[str, ...] = ()
    """By which archived rows were compared with those of the table; empty where there was nothing to compare."""


def restore_table(
    archived: Archived,
    choice: Choice,
    target: PostgresSource | MysqlSource,
    into: str,
    *,
    on_conflict: OnConflict = OnConflict.FAIL,
    key: Sequence[str] = (),
    progress: Callable[[Progress], None] = silent,
) -> RestoreResult:
    """Load the chosen partitions into the table `into`, each row once.

    `into` is `name` or `schema.name`, read as SQL reads it: quote what is not all lower case. If it does not exist it
    is made, with the columns and types of the manifests. If it has rows, those of the archive are compared with them by
    its primary key or another unique index, or else by `key`, and `on_conflict` says what becomes of those that it has;
    of several archived versions of a row, the one that was exported last counts. Without any key it must be empty.

    Which records are taken of several generations says `steps/generations.py`. Streams in bounded memory; each file's
    digests and number of rows are compared with its manifest while it is loaded. No database but the target is needed.

    What was exported from MySQL or MariaDB goes into PostgreSQL with the types of `sources.mysql_types.postgres_type`;
    what was exported from PostgreSQL does not go into MySQL or MariaDB.

    Crash: one transaction does it all, so the target is as it was, and doing it again comes to the same. MySQL and
    MariaDB cannot undo a CREATE TABLE, so there an empty table may be left.

    Raises:
        RequestError: there is no such partition in the archive, or `into` is no name.
        IntegrityError: the archive is not what its manifests say; nothing was loaded.
        TargetError: the target is not fit for it, or rows conflict; nothing was loaded.
    """
    if isinstance(target, MysqlSource):
        from export_pipelines.steps.restore_mysql import restore_into

        return restore_into(archived, choice, target, into, on_conflict=on_conflict, key=key, progress=progress)
    name = target_name(into)
    found = archived.chosen(choice)
    pieces = pieces_of(found)
    with as_target_errors(name), target.session(read_only=False) as session:
        created = not begin_locked(session, name)
        if created:
            own = [postgres_columns(piece.manifest.export) for piece in pieces if not piece.manifest.adopted]
            create(session, name, own or [piece.manifest.export.columns for piece in pieces])
        fit = existing(session, name, frozenset().union(*map(columns_of, pieces)))
        found_key = fit.key_for(map(columns_of, pieces), key or declared_key(pieces))
        if merges(fit, found_key, on_conflict):
            merger = Merger(session, fit, found_key, on_conflict)
            rows = each_piece(archived, by_age(pieces, on_conflict), progress, merger.merge)
            counts = merger.counts if found_key else Counts(inserted=rows)
        else:
            rows = each_piece(archived, pieces, progress, lambda *each: load(session, name, *each))
            counts, found_key = Counts(inserted=rows), ()
        session.commit()
    return result_of(rows, created, found, len(pieces), counts, found_key)


def result_of(
    rows: int, created: bool, found: Iterable[str], artifacts: int, counts: Counts, key: tuple[str, ...]
) -> RestoreResult:
    """The result of what was done."""
    return RestoreResult(
        rows,
        created,
        tuple(found),
        artifacts,
        counts.inserted,
        counts.skipped,
        counts.replaced,
        counts.differing,
        key,
    )


def restore_partition(
    archive: Store,
    table_id: str,
    partition: str | None,
    target: PostgresSource | MysqlSource,
    into: str,
    *,
    progress: Callable[[Progress], None] = silent,
    keyring: Keyring = NO_KEYS,
) -> RestoreResult:
    """`restore_table` of one partition, or of all (`partition` None), into a table that has none of the rows."""
    return restore_table(Archived(archive, table_id, keyring), Choice(partition), target, into, progress=progress)


def merges(target: Target, key: tuple[str, ...], policy: OnConflict) -> bool:
    """Whether rows go through a comparison; else they are loaded straight into the table.

    Raises:
        TargetError: they must, and there is nothing to compare them by.
    """
    if not target.empty and not key:
        raise TargetError(
            f"{target.name} has rows already, and no unique index (nor `key` in defs.yaml) tells which of them are in "
            "the archive",
            hint="restore into an empty table or a name that is free, and merge from there",
        )
    return not target.empty or target.altered or (bool(key) and policy is not OnConflict.FAIL)


Take = Callable[[Archived, Generation, Callable[[int], None]], int]


def each_piece(
    archived: Archived, pieces: Sequence[Generation], progress: Callable[[Progress], None], take: Take
) -> int:
    """Take one file after the other, and tell how far it is; the number of rows of all."""
    rows = 0
    for piece in pieces:
        rows += take(archived, piece, reporter(progress, piece.manifest, rows))
    return rows


def by_age(pieces: Sequence[Generation], policy: OnConflict) -> list[Generation]:
    """In an order by which the version of a row that was exported last is the one that stays."""
    return sorted(pieces, key=lambda piece: piece.manifest.sequence, reverse=policy is OnConflict.SKIP)


def columns_of(piece: Generation) -> frozenset[str]:
    """The names of a file's columns."""
    return frozenset(column.name for column in piece.manifest.export.columns)


def declared_key(pieces: Sequence[Generation]) -> tuple[str, ...]:
    """The key by which the newest of the files knows its rows, if it does."""
    keys = [piece.manifest.export.identity.key for piece in pieces]
    return next((key for key in reversed(keys) if key), ())


@contextmanager
def as_target_errors(name: str, hints: Mapping[str, str] = _HINTS) -> Iterator[None]:
    """What a server says of restoring into `name` is an error of the target. `hints` are by the server's codes."""
    try:
        yield
    except SourceError as error:
        hint = hints.get(error.code, error.hint)
        raise TargetError(
            f"restore into {name} failed: {error.message}",
            hint=hint or "nothing was restored; mend the target, and run the restore again",
            transient=error.transient,
        ) from error
