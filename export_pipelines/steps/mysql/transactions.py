"""Sessions of a table's steps, and the locks that keep two of them apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from export_pipelines.sources.mysql import MysqlSession, MysqlSource
from export_pipelines.specs.table import TableDefinition
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import busy


def source_of(ctx: StepContext) -> MysqlSource:
    """The source of a table whose engine is this."""
    assert isinstance(ctx.source, MysqlSource)
    return ctx.source


@contextmanager
def table_session(ctx: StepContext, *, read_only: bool) -> Iterator[MysqlSession]:
    """A session on the table's source with its time-outs and time zone."""
    spec = ctx.table.spec
    with source_of(ctx).session(
        read_only=read_only,
        timezone=spec.session_timezone,
        statement_timeout=spec.statement_timeout,
        lock_timeout=spec.lock_timeout,
    ) as session:
        yield session


def lock(session: MysqlSession, table: TableDefinition, partition: str, doing: str) -> None:
    """Take the lock of a partition (or of the table: `*`, `*exports`), which the end of the session frees.

    The server ends a transaction before it frees the locks of its session: who has the lock finds what its predecessor
    did either committed or gone.

    Raises:
        PartitionBusy: another session has it.
    """
    if not try_lock(session, table, partition):
        raise busy(table, partition, doing)


def try_lock(session: MysqlSession, table: TableDefinition, partition: str) -> bool:
    """Whether the lock could be had."""
    # Names of locks have 64 characters at most, and are those of the whole server.
    database = session.one("SELECT COALESCE(DATABASE(), '')")[0]
    name = blake2b(f"{database}\0{table.id}\0{partition}".encode(), digest_size=16).hexdigest()
    # A moment of patience: the server may not have noticed yet that a session which had it is gone.
    return bool(session.one("SELECT GET_LOCK(%s, 1)", (f"export_pipelines:{name}",))[0])
