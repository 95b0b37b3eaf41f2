"""Deleting a batch of proved row versions in one transaction.

What it deletes is: the rows that delete.sql matches now, among the identities of one batch of the sidecar. The
identities that the DELETE returns are compared with the batch before the commit. How each commit is proved, and what is
not promised, is in docs/explanation/why-a-delete-is-safe.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import CleanupRefused, SourceError
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import Session
from export_pipelines.sql import Delete
from export_pipelines.steps.batches import Batch, proved
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.engine import ATTEMPTS, Moved
from export_pipelines.steps.postgres.proof import Proof, conditions, ctid_span, identities_by, place_now
from export_pipelines.steps.postgres.transactions import begin_locked, lock
from export_pipelines.steps.receipts import to_ranges

_CONFLICTS = ("40001", "40P01")


class _Strangers(Exception):
    """A deletion by span took rows that are not of the batch."""


def delete_batch(ctx: StepContext, session: Session, delete: Delete, row: ExportRow, proof: Proof, batch: Batch) -> int:
    """Delete one batch in one transaction; on a conflict with other sessions, again on a new snapshot."""
    by_span = True
    for attempt in range(ATTEMPTS):
        try:
            return _try_batch(ctx, session, delete, row, proof, batch, by_span=by_span)
        except _Strangers:
            session.rollback()
            by_span = False
        except SourceError as error:
            with suppress(SourceError):
                session.rollback()
            if error.code not in _CONFLICTS or attempt == ATTEMPTS - 1:
                raise
            by_span = False  # the conflict may be with a row beside the batch
            time.sleep(0.05 * 2**attempt)
        except BaseException:
            with suppress(SourceError):
                session.rollback()
            raise
    raise AssertionError("unreachable")


def _try_batch(
    ctx: StepContext,
    session: Session,
    delete: Delete,
    row: ExportRow,
    proof: Proof,
    batch: Batch,
    *,
    by_span: bool,
) -> int:
    begin_locked(session, [delete.relation.sql], "ROW EXCLUSIVE")
    lock(session, ctx.table, "*", "cleaned up")
    if not proof.place.holds(place_now(session, delete.relation)):
        raise Moved
    if refused := refused_side_effects(ctx, session, delete):
        raise CleanupRefused(
            f"deleting from {delete.relation.sql} would also set off {'; '.join(refused)}",
            hint="name them under `cleanup: acknowledge:` in defs.yaml if that is meant",
        )
    _prefer_identities(session)
    returned = _delete_by_span(session, delete, proof, batch) if by_span else []
    if rest := _without(batch, returned):
        returned += _execute(session, delete.statement, delete, proof, rest)
    if not returned:
        session.rollback()
        return 0
    ordinals = proved(returned, batch)
    if ordinals is None or _still_there(ctx, session, delete, proof, batch, returned):
        raise CleanupRefused(
            f"the deletion from {delete.relation.sql} returned rows that are not in the archive or are still there, "
            "and was rolled back",
            hint="a trigger or rule may redirect it; this is a reason to look closely",
        )
    xid = int(session.one("SELECT pg_current_xact_id()::text")[0])
    batch_id = ctx.catalog.begin_batch(
        row.id,
        batch.number,
        xid,
        to_ranges(ordinals),
        proof.kind,
        ctx.run_id,
        cumulative=bool(ctx.table.spec.cumulative),
    )
    session.commit()
    ctx.catalog.settle_batch(batch_id, committed=True)
    return len(returned)


def _prefer_identities(session: Session) -> None:
    """Let the planner fetch rows by ctid; other ways would test each row of the table against the batch.

    And let the commit be durable when it is told: a receipt must not outlive the deletion that it tells of.
    """
    session.execute(
        "SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; "
        "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
    )


def _still_there(
    ctx: StepContext, session: Session, delete: Delete, proof: Proof, batch: Batch, returned: list[bytes]
) -> bool:
    """Whether a row that was returned as deleted is not: an acknowledged trigger or rule may do something else."""
    if not ctx.table.spec.cleanup.acknowledge:
        return False

    def remaining(condition: str, columns: str) -> str:
        return f"SELECT {columns} FROM {delete.target} WHERE {condition}"

    return not set(returned).isdisjoint(_execute(session, remaining, delete, proof, batch.identities))


def _delete_by_span(session: Session, delete: Delete, proof: Proof, batch: Batch) -> list[bytes]:
    """Delete what lies between the first and the last of a dense batch: a third less work for the server than to look
    up each row. What of the batch it did not find is for the caller to look up.

    Raises:
        _Strangers: it deleted rows that are not of the batch; the transaction must be given up.
    """
    span = None if proof.tableoid or session.server_version < 140000 else ctid_span(delete.relation, batch.identities)
    if span is None:
        return []
    returned = _run(session, delete.statement, delete, proof, span, expected=batch.identities)
    if returned != batch.identities and not set(batch.identities).issuperset(returned):
        raise _Strangers
    return returned


def _without(batch: Batch, gone: list[bytes]) -> list[bytes]:
    """Identities of the batch that are not among `gone`."""
    if gone == batch.identities:
        return []
    known = set(gone)
    return [identity for identity in batch.identities if identity not in known]


def _execute(
    session: Session, statement: Callable[[str, str], str], delete: Delete, proof: Proof, identities: list[bytes]
) -> list[bytes]:
    """Run a statement on identities; the identities that it returns, as lines like the sidecar's."""
    found: list[bytes] = []
    for condition in conditions(delete.relation.qualifier, proof.tableoid, identities):
        found += _run(session, statement, delete, proof, condition)
    return found


def _run(
    session: Session,
    statement: Callable[[str, str], str],
    delete: Delete,
    proof: Proof,
    condition: str,
    expected: list[bytes] | None = None,
) -> list[bytes]:
    name = delete.relation.qualifier
    guarded = f"{condition} AND {proof.guard(name)}"
    return identities_by(session, statement, name, proof.tableoid, guarded, expected=expected)


def matching(session: Session, delete: Delete, proof: Proof, batch: Batch) -> set[bytes]:
    """The batch's identities that delete.sql matches now."""
    _prefer_identities(session)
    found = _execute(
        session, lambda condition, columns: delete.selection(columns, condition), delete, proof, batch.identities
    )
    return set(found) & set(batch.identities)


def size_of(session: Session, delete: Delete, proof: Proof, batch: Batch) -> int:
    name = delete.relation.qualifier
    total = 0
    for condition in conditions(name, proof.tableoid, batch.identities):
        rows = delete.selection(f"{name}.ctid, pg_column_size({name}.*) AS size", condition)
        total += session.one(f"SELECT coalesce(sum(size), 0) FROM ({rows}\n) AS matched")[0]
    return int(total)


def refused_side_effects(ctx: StepContext, session: Session, delete: Delete) -> list[str]:
    tree = inspect.relation_tree(session, delete.relation.sql, only=delete.relation.only)
    acknowledged = set(ctx.table.spec.cleanup.acknowledge)
    return [str(e) for e in inspect.side_effects(session, tree.oids) if e.name not in acknowledged]
