"""Cumulative partitions overlap: rows that an earlier partition holds, and that are still in the source, are known by
their identity and not written again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import ObjectMissing
from export_pipelines.manifest import ExportRecord
from export_pipelines.scratch import scratch_database
from export_pipelines.sources.postgres import Session
from export_pipelines.steps.chain import artifact_at
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.identity import IdentityPlan
from export_pipelines.steps.proof import Place, place_now, place_of
from export_pipelines.steps.sidecar import read_buckets
from export_pipelines.windows import Window

Keep = Callable[[list[bytes]], list[bool]]


@contextmanager
def not_yet_archived(ctx: StepContext, window: Window, session: Session, plan: IdentityPlan) -> Iterator[Keep | None]:
    """A filter that says which identities no other partition of a cumulative table holds; None for other tables."""
    if not ctx.table.spec.cumulative or plan.mode != "row" or plan.relation is None:
        yield None
        return
    earlier = [row for row in _latest_generations(ctx) if row.partition != window.partition]
    now = place_now(session, plan.relation)
    with scratch_database() as database:
        database.execute("CREATE TABLE seen (identity BLOB PRIMARY KEY) WITHOUT ROWID")
        for row in earlier:
            record = row.record
            if record is not None and _same_place(record, plan, now):
                _remember(ctx, row, record, database)
        yield lambda heads: [
            database.execute("SELECT 1 FROM seen WHERE identity = ?", (head,)).fetchone() is None for head in heads
        ]


def _latest_generations(ctx: StepContext) -> list[ExportRow]:
    """Of each partition the last file that is not given up. Rows of one that is, and that are still in the source, are
    written again: no file that a cleanup could rely on has them."""
    rows = [row for row in ctx.catalog.exports(ctx.table.id) if not row.given_up]
    return list({row.partition: row for row in rows}.values())


def _same_place(record: ExportRecord, plan: IdentityPlan, now: Place) -> bool:
    """Whether identities of an earlier export still mean the same rows, with the same content."""
    identity = record.identity
    return identity.mode == "row" and identity.tableoid == plan.tableoid and place_of(record).holds(now)


def _given_up_meanwhile(ctx: StepContext, row: ExportRow) -> bool:
    now = ctx.catalog.exports(ctx.table.id, row.partition, expired=True)
    return any(each.id == row.id and each.given_up for each in now)


def _remember(ctx: StepContext, row: ExportRow, record: ExportRecord, database: sqlite3.Connection) -> None:
    if record.identity.file is None or not record.rows:
        return
    store, key = ctx.exports, record.identity.file.key
    if row.state == "archived" and row.sequence is not None:
        archived = artifact_at(ctx.archive, ctx.table.id, row.sequence).identity_file
        store, key = ctx.archive, archived.key if archived else key
    try:
        opened = store.open(key)
    except ObjectMissing:
        if _given_up_meanwhile(ctx, row):
            return
        raise
    with opened as stream:
        for _, lines in read_buckets(stream, record.identity):
            database.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((line,) for line in lines.splitlines()))
