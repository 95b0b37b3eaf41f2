"""Sessions of a table's steps, and the locks that keep two of them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from export_pipelines.errors import SourceError
from export_pipelines.sources.postgres import PostgresSource, Session
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import busy

_WRONG_OBJECT_TYPE = "42809"


def source_of(ctx: StepContext) -> PostgresSource:
    """The source of a table whose engine is this."""
    assert isinstance(ctx.source, PostgresSource)
    return ctx.source


@contextmanager
def table_session(ctx: StepContext, *, read_only: bool) -> Iterator[Session]:
    """A session on the table's source with its time-outs and time zone."""
    spec = ctx.table.spec
    with source_of(ctx).session(
        read_only=read_only,
        timezone=spec.session_timezone,
        statement_timeout=spec.statement_timeout,
        lock_timeout=spec.lock_timeout,
    ) as session:
        yield session


def begin_locked(session: Session, relations: Sequence[str], mode: str) -> None:
    """Start a transaction with its tables locked before its snapshot is taken.

    A table that is rewritten (TRUNCATE, some ALTER TABLE) between snapshot and lock would look empty to the snapshot.
    """
    session.begin()
    for relation in relations:
        try:
            session.execute(f"LOCK TABLE {relation} IN {mode} MODE")
        except SourceError as error:
            if error.code != _WRONG_OBJECT_TYPE:
                raise
            # A foreign table, say: it cannot be locked, and has no file node either.
            session.rollback()
            session.begin()
            return


def lock(session: Session, table: TableDefinition, partition: str, doing: str) -> None:
    """Take the lock of a partition (or of the table: `*`, `*exports`) in the source's transaction, which frees it.

    Raises:
        PartitionBusy: another transaction has it.
    """
    name = f"export_pipelines {table.id} {partition}"
    if not session.one("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", (name,))[0]:
        raise busy(table, partition, doing)
