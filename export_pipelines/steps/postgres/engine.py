"""PostgreSQL as an engine: one COPY a partition, identities of row versions beside it, deletion by their proof."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from export_pipelines.catalog import BatchRow, ExportRow, Ranges
from export_pipelines.formats.csv import copy_options
from export_pipelines.manifest import IdentityProof, Snapshot
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import Session
from export_pipelines.steps import keys
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import Deletion, Reading
from export_pipelines.steps.postgres.archived_rows import not_yet_archived
from export_pipelines.steps.postgres.deletion import PostgresDeletion
from export_pipelines.steps.postgres.identity import IdentityPlan, plan_identity
from export_pipelines.steps.postgres.keys import write_sidecar
from export_pipelines.steps.postgres.settling import rows_still_there, status
from export_pipelines.steps.postgres.statements import Statements, statements
from export_pipelines.steps.postgres.transactions import begin_locked, lock, source_of, table_session
from export_pipelines.steps.rows import RowWriter
from export_pipelines.steps.sidecar import SidecarWriter
from export_pipelines.windows import Window


class PostgresEngine:
    """See `steps.engine.Engine`."""

    @contextmanager
    def reading(self, ctx: StepContext, window: Window) -> Iterator[Reading]:
        """One READ ONLY REPEATABLE READ transaction."""
        with table_session(ctx, read_only=True) as session, ExitStack() as stack:
            parts = statements(ctx.table, window, session)
            begin_locked(session, [relation.sql for relation in parts.select.relations], "ACCESS SHARE")
            # Cumulative partitions overlap: what one of them writes the others must know first.
            lock(session, ctx.table, "*exports" if ctx.table.spec.cumulative else window.partition, "exported")
            view = inspect.snapshot(session)
            plan = plan_identity(session, parts, ctx.table.spec.key)
            fingerprint = inspect.fingerprint(session, plan.tree.oids) if plan.relation else ""
            yield Reading(
                columns=plan.columns,
                csv=parts.csv,
                select_sql=parts.select.query,
                sha256=parts.sha256,
                source=_with_relations(view, plan, fingerprint),
                identity=_identity(plan),
                rows=PostgresRows(session, parts, plan),
                fields=plan.fields,
                keep=stack.enter_context(not_yet_archived(ctx, window, session, parts, plan)),
            )

    def deletion(self, ctx: StepContext, window: Window) -> Deletion | None:
        """The statements are read, and nothing else."""
        with table_session(ctx, read_only=True) as session:
            parts = statements(ctx.table, window, session)
        return PostgresDeletion(ctx, window, parts, parts.delete) if parts.delete else None

    @contextmanager
    def locked(self, ctx: StepContext, window: Window) -> Iterator[None]:
        """By the lock that an export takes."""
        with table_session(ctx, read_only=True) as session:
            session.begin()
            lock(session, ctx.table, window.partition, "exported")
            yield

    def deleted(self, ctx: StepContext, batch: BatchRow, row: ExportRow) -> Ranges | None:
        """By pg_xact_status, or else by the rows."""
        with source_of(ctx).session() as session:
            ended = status(session, batch, row)
            if ended is None:
                return [] if rows_still_there(ctx, session, batch, row) else batch.deleted
        if ended == "in progress":
            return None
        return batch.deleted if ended == "committed" else []


def _with_relations(view: Snapshot, plan: IdentityPlan, fingerprint: str) -> Snapshot:
    return view.model_copy(update={"relations": plan.tree.relations, "fingerprint": fingerprint})


def _identity(plan: IdentityPlan) -> IdentityProof:
    if plan.mode == "none" or plan.relation is None:
        return IdentityProof(mode=plan.mode, reason=plan.reason)
    return IdentityProof(
        mode=plan.mode,
        reason=plan.reason,
        relation=plan.relation.sql,
        only=plan.relation.only,
        tableoid=plan.tableoid,
        key=plan.key,
    )


@dataclass(frozen=True)
class PostgresRows:
    """See `steps.engine.Rows`."""

    session: Session
    parts: Statements
    plan: IdentityPlan

    def write(self, rows: RowWriter, sidecar: SidecarWriter | None) -> None:
        """COPY; then, in mode `key`, the rows that delete.sql matches."""
        options = copy_options(self.parts.csv)
        if self.plan.mode != "key" or sidecar is None or self.parts.delete is None:
            self.session.copy_out(self.plan.query, options, rows.write)
            return
        with keys.collector(self.plan.columns, self.plan.key, self.parts.csv) as collected:
            self.session.copy_out(self.plan.query, options, collected.tee(rows.write))
            write_sidecar(self.session, self.plan, self.parts.delete, collected, sidecar)
