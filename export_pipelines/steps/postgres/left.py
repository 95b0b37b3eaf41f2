"""What delete.sql matches after a cleanup: rows that came late, and rows that select.sql does not give."""

from __future__ import annotations

from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import Delete
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.postgres.identity import relation_of
from export_pipelines.steps.postgres.statements import Statements
from export_pipelines.steps.postgres.transactions import table_session


def left(ctx: StepContext, parts: Statements, delete: Delete, latest: ArtifactManifest) -> tuple[int, int]:
    """Rows that delete.sql still matches: those that the next export will take, and the others."""
    name = delete.relation.qualifier
    rows = delete.selection(f"{name}.tableoid, {name}.ctid, {name}.xmin")
    with table_session(ctx, read_only=True) as session:
        session.begin()
        total = int(session.one(f"SELECT count(*) FROM ({rows}\n) AS matched")[0])
        relation = relation_of(session, parts.select, delete.relation) if total else None
        if relation is not None and latest.export.identity.mode == "row":
            given = parts.select.with_identity(relation, tableoid=True)
            late = session.one(
                f"SELECT count(*) FROM ({rows}\n) AS matched WHERE (tableoid, ctid) IN "
                f"(SELECT a, c FROM ({given}\n) AS given (a, b, c))"
            )[0]
        else:
            late = _younger(session, rows, latest) if total else 0
        return int(late), total - int(late)


def _younger(session: Session, rows: str, latest: ArtifactManifest) -> int:
    """How many rows may have come or changed after an export: those of transactions that its snapshot did not know to
    be over. The 64-bit id of a transaction is had from its age, since xmin has 32 bits.

    pg_visible_in_snapshot() would say more, but takes subtransactions for over.
    """
    last, view = latest.export.source, inspect.snapshot(session)
    if (view.system_identifier, view.timeline) != (last.system_identifier, last.timeline):
        return int(session.one(f"SELECT count(*) FROM ({rows}\n) AS matched")[0])
    oldest = int(last.snapshot.partition(":")[0])
    return int(
        session.one(
            f"SELECT count(*) FROM ({rows}\n) AS matched WHERE age(xmin) >= 0 "
            f"AND age(xmin) <= age('{oldest % 2**32}'::xid)"
        )[0]
    )
