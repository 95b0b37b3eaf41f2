"""Cleanup: delete from the source the rows that a verified archive is proved to hold, and nothing else.

What one transaction deletes is: the rows that delete.sql matches now, among the identities of one batch of the sidecar.
The identities that the DELETE returns are compared with the batch before the commit. How each commit is proved, and
what is not promised, is in docs/explanation/why-a-delete-is-safe.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import CleanupRefused, IntegrityError, SourceError
from export_pipelines.manifest import ArtifactManifest
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.table import CleanupMode
from export_pipelines.sql import Delete
from export_pipelines.steps import chain
from export_pipelines.steps.context import Progress, StepContext
from export_pipelines.steps.export import begin_locked, lock, table_session
from export_pipelines.steps.holding import refuse_held, window_of_row
from export_pipelines.steps.identity import relation_of
from export_pipelines.steps.proof import (
    Batch,
    Proof,
    Unprovable,
    check_archived,
    conditions,
    ctid_span,
    identities_by,
    place_now,
    proof_of,
)
from export_pipelines.steps.receipts import deleted_records, to_ranges, write_receipts
from export_pipelines.steps.settle import settle_open_batches
from export_pipelines.steps.statements import Statements, statements
from export_pipelines.steps.tombstones import expiry_of
from export_pipelines.windows import Window

_ATTEMPTS = 8
_CONFLICTS = ("40001", "40P01")


@dataclass(frozen=True)
class CleanupResult:
    """The outcome of one cleanup, in rows. What delete.sql matched is `deleted` + `late` + `not_exported` (and, in
    shadow mode, `would_delete`).

    `late` rows came, changed or were superseded since the export: they stay, and the next export takes them.
    `not_exported` are not given by select.sql, so it and delete.sql disagree. `archived` is what the files of the
    partition hold.
    """

    archived: int = 0
    would_delete: int = 0
    deleted: int = 0
    deleted_before: int = 0
    late: int = 0
    not_exported: int = 0
    batches: int = 0
    proof: str = ""
    seconds: float = 0.0
    shadow: bool = False
    """True when nothing was to be deleted: cleanup is off, and this was a comparison only."""

    @property
    def matched(self) -> int:
        """Rows that delete.sql matched."""
        return self.deleted + self.would_delete + self.late + self.not_exported

    @property
    def complete(self) -> bool:
        """Whether nothing that delete.sql matches is left."""
        return not self.shadow and self.late == 0 and self.not_exported == 0

    def as_dict(self) -> dict[str, Any]:
        """All figures, for metadata and JSON."""
        return {**asdict(self), "matched": self.matched, "complete": self.complete}


@dataclass(frozen=True)
class CleanupPlan:
    """What a cleanup would delete now. `bytes` is the size of these rows in the table, without indexes."""

    archived: int
    would_delete: int
    late: int
    not_exported: int
    bytes: int
    sql: str
    proof: str
    refusals: tuple[str, ...] = field(default=())


class _Strangers(Exception):
    """A deletion by span took rows that are not of the batch."""


class _Moved(Exception):
    """The place of the identities changed between the proof and the deletion."""


def cleanup_partition(ctx: StepContext, window: Window) -> CleanupResult:
    """Delete from the source the rows of a partition that its archive proves it holds.

    With cleanup off nothing is deleted; the comparison alone is made (shadow mode).

    Crash: committed batches stay deleted, all of them archived; a rerun settles the batch that was under way by the
    source's own word for its transaction, and goes on from there.

    Raises:
        CleanupRefused: the partition is not archived, is held or kept, its rows cannot be proved, or the deletion would
            set off triggers, rules or foreign keys that the definition does not acknowledge.
        IntegrityError: the archived file is not what its manifest says.
        PartitionBusy: another cleanup of the table is at work.
        SourceError: the source failed.
    """
    begun = time.monotonic()
    ctx = ctx.deleting
    if ctx.table.spec.cleanup.mode is CleanupMode.OFF:
        plan = plan_cleanup(ctx, window)
        result = CleanupResult(
            archived=plan.archived,
            would_delete=plan.would_delete,
            late=plan.late,
            not_exported=plan.not_exported,
            proof=plan.proof,
            shadow=True,
        )
    else:
        parts, archived = _prepare(ctx, window)
        _refuse_held_or_kept(ctx, window, archived)
        for partition in sorted({row.partition for row, _ in archived}):
            settle_open_batches(ctx, partition)
            write_receipts(ctx, partition)
        result = CleanupResult(archived=sum(manifest.export.rows for _, manifest in archived))
        left = (0, 0)
        for row, manifest in reversed(archived):
            before = result.deleted
            with _superseded(window, row, archived):
                result = _clean_file(ctx, window, parts, row, manifest, result)
            write_receipts(ctx, row.partition)
            if row is archived[-1][0] or result.deleted > before:
                left = _left(ctx, parts, archived[-1][1])
            if left == (0, 0):
                break
        result = replace(result, late=left[0], not_exported=left[1])
    result = replace(result, seconds=time.monotonic() - begun)
    ctx.catalog.save_cleanup(
        ctx.table.id, window.partition, complete=result.complete, result=result.as_dict(), run_id=ctx.run_id
    )
    return result


def plan_cleanup(ctx: StepContext, window: Window) -> CleanupPlan:
    """What `cleanup_partition` would delete now; deletes nothing. The same proof and the same statement are used.

    Raises:
        CleanupRefused: the partition is not archived or nothing can be proved. Other refusals are in the plan.
    """
    refusals = []
    ctx = ctx.deleting
    parts, archived = _prepare(ctx, window)
    try:
        _refuse_held_or_kept(ctx, window, archived)
    except CleanupRefused as error:
        refusals.append(error.message)
    delete = _delete_of(parts)
    rows = size = 0
    proofs = set()
    seen: set[bytes] = set()
    for row, manifest in reversed(archived):
        done = deleted_records(ctx, row)
        with _superseded(window, row, archived), proof_of(ctx, manifest, parts, done) as proof:
            proofs.add(proof.kind)
            for batch in proof.batches:
                with table_session(ctx, read_only=True) as session:
                    session.begin()
                    refusals += [r for r in _refused_side_effects(ctx, session, delete) if r not in refusals]
                    found = _matching(session, delete, proof, batch) - seen
                    seen |= found if len(archived) > 1 else set()
                    rows += len(found)
                    size += _bytes(session, delete, proof, batch) if found else 0
    late, not_exported = _left(ctx, parts, archived[-1][1])
    left = max(0, late + not_exported - rows)
    return CleanupPlan(
        archived=sum(manifest.export.rows for _, manifest in archived),
        would_delete=rows,
        late=left - min(left, not_exported),
        not_exported=min(left, not_exported),
        bytes=size,
        sql=delete.statement("<identity of an archived row>", "ctid, xmin"),
        proof=", ".join(sorted(proofs)),
        refusals=tuple(refusals),
    )


Archived = list[tuple[ExportRow, ArtifactManifest]]


def _refuse_held_or_kept(ctx: StepContext, window: Window, archived: Archived) -> None:
    """Refuse for a hold on the table, the partition, or an earlier one whose rows this cleanup would delete too.

    An earlier partition of which nothing is left to delete does not matter. Before each batch it is asked again, in the
    transaction of the catalog that registers the batch.
    """
    refuse_held(ctx, [window, *(window_of_row(row) for row, manifest in archived if not _all_done(ctx, row, manifest))])
    keep = ctx.table.spec.cleanup
    if keep.mode is CleanupMode.KEEP:
        # A snapshot of a table without partitions has no end of its own.
        due = (window.end or archived[-1][1].export.started) + timedelta(days=keep.keep_days)
        if due > datetime.now(UTC):
            raise CleanupRefused(
                f"partition {window.partition} of {ctx.table.id!r} is kept in the source until {due.isoformat()}",
                hint=f"keep_days is {keep.keep_days} in {ctx.table.folder / 'defs.yaml'}",
            )


@contextmanager
def _superseded(window: Window, row: ExportRow, archived: Archived) -> Iterator[None]:
    """Pass over a file that proves nothing (any more), unless it is the latest of the partition itself."""
    latest = next(each for each, _ in reversed(archived) if each.partition == window.partition)
    try:
        yield
    except Unprovable:
        if row is latest:
            raise


def _prepare(ctx: StepContext, window: Window) -> tuple[Statements, Archived]:
    """The statements, and the archived files that may hold rows of the window, oldest first."""
    with table_session(ctx, read_only=True) as session:
        parts = statements(ctx.table, window, session)
    if parts.delete is None:
        raise CleanupRefused(
            f"{ctx.table.id!r} has no delete.sql", hint="write one, or derive both statements from `table`"
        )
    partition = None if ctx.table.spec.cumulative else window.partition
    _refuse_expired(ctx, window)
    rows = [
        row
        for row in ctx.catalog.exports(ctx.table.id, partition)
        if row.state == "archived" and row.record is not None and not _later(row.record.window_end, window.end)
    ]
    if not any(row.partition == window.partition for row in rows):
        raise CleanupRefused(
            f"partition {window.partition} of {ctx.table.id!r} is not archived, so nothing of it can be deleted",
            hint="run its export and archive first",
        )
    rows.sort(
        key=lambda row: (row.record.window_end or row.started_at if row.record else row.started_at, row.generation)
    )
    found = [(row, _manifest_of(ctx, row)) for row in rows]
    # A byte that no comparison with the catalog shows would only be seen when the receipts are written: too late.
    numbers = [row.sequence for row in rows if row.sequence is not None]
    chain.refuse_altered(ctx.archive, ctx.table.id, numbers, ctx.catalog.head(ctx.table.id, ctx.archive.url))
    # What was adopted from an older service proves nothing; it must not stand in the way of what was exported since.
    own = [(row, manifest) for row, manifest in found if not manifest.adopted]
    if not any(row.partition == window.partition for row, _ in own):
        raise CleanupRefused(
            f"partition {window.partition} of {ctx.table.id!r} was adopted from an older service, and nothing is known "
            "of its rows in the source",
            hint="export and archive the partition: what of it is still in the source can be cleaned up then",
        )
    return parts, own


def _refuse_expired(ctx: StepContext, window: Window) -> None:
    """Raises CleanupRefused: the newest generation of the partition was given up."""
    newest = ctx.catalog.exports(ctx.table.id, window.partition, expired=True)[-1:]
    if not newest or not newest[0].given_up:
        return
    raise CleanupRefused(
        f"partition {window.partition} of {ctx.table.id!r} {expiry_of(ctx, newest[0])}, so nothing of it can be "
        "deleted",
        hint="export and archive the partition again; what is still in the source is taken then",
    )


def _manifest_of(ctx: StepContext, row: ExportRow) -> ArtifactManifest:
    """The manifest of an export, compared with what the catalog knows of it.

    Raises:
        IntegrityError: it is missing, altered, or another's.
    """
    manifest = chain.artifact_at(ctx.archive, ctx.table.id, row.sequence or 0)
    record = row.record
    files = (
        (manifest.file, record.file if record else None),
        (manifest.identity_file, record.identity.file if record else None),
    )
    same = manifest.export == record and all(
        (archived and archived.model_copy(update={"key": ""})) == (known and known.model_copy(update={"key": ""}))
        for archived, known in files
    )
    if not same:
        raise IntegrityError(
            f"manifest {row.sequence} of {ctx.table.id!r} in {ctx.archive.url} is not the one that was written for "
            f"partition {row.partition}, generation {row.generation}",
            hint="run `export-pipelines verify`; was `archive` in defs.yaml changed to another store?",
        )
    return manifest


def _later(end: datetime | None, other: datetime | None) -> bool:
    return end is not None and other is not None and end > other


def _all_done(ctx: StepContext, row: ExportRow, manifest: ArtifactManifest) -> bool:
    """Whether every row of a file is known to be deleted."""
    return manifest.export.identity.mode == "row" and len(deleted_records(ctx, row)) == manifest.export.rows


def _clean_file(
    ctx: StepContext,
    window: Window,
    parts: Statements,
    row: ExportRow,
    manifest: ArtifactManifest,
    result: CleanupResult,
) -> CleanupResult:
    """Delete the rows of one archived file, batch by batch; begins again if the place of the identities changes.

    The bytes of the file are checked just before, unless all of its rows are gone already.
    """
    done = deleted_records(ctx, row)
    result = replace(result, deleted_before=result.deleted_before + len(done))
    if len(done) == manifest.export.rows and manifest.export.identity.mode == "row":
        return replace(result, proof=result.proof or "row")
    check_archived(ctx.archive, manifest)
    for _ in range(_ATTEMPTS):
        done = deleted_records(ctx, row)
        try:
            with proof_of(ctx, manifest, parts, done) as proof, table_session(ctx, read_only=False) as session:
                for batch in proof.batches:
                    deleted = _delete_batch(ctx, session, parts, row, proof, batch)
                    result = replace(
                        result,
                        deleted=result.deleted + deleted,
                        batches=result.batches + (deleted > 0),
                        proof=proof.kind,
                    )
                    ctx.progress(Progress("cleanup", ctx.table.id, window.partition, result.deleted, 0))
            return replace(result, proof=result.proof or proof.kind)
        except _Moved:
            continue
    raise CleanupRefused(f"the table of {ctx.table.id!r} kept being rewritten or altered during the cleanup")


def _delete_batch(
    ctx: StepContext, session: Session, parts: Statements, row: ExportRow, proof: Proof, batch: Batch
) -> int:
    """Delete one batch in one transaction; on a conflict with other sessions, again on a new snapshot."""
    by_span = True
    for attempt in range(_ATTEMPTS):
        try:
            return _try_batch(ctx, session, parts, row, proof, batch, by_span=by_span)
        except _Strangers:
            session.rollback()
            by_span = False
        except SourceError as error:
            with suppress(SourceError):
                session.rollback()
            if error.code not in _CONFLICTS or attempt == _ATTEMPTS - 1:
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
    parts: Statements,
    row: ExportRow,
    proof: Proof,
    batch: Batch,
    *,
    by_span: bool,
) -> int:
    delete = _delete_of(parts)
    begin_locked(session, [delete.relation.sql], "ROW EXCLUSIVE")
    lock(session, ctx.table, "*", "cleaned up")
    if not proof.place.holds(place_now(session, delete.relation)):
        raise _Moved
    if refused := _refused_side_effects(ctx, session, delete):
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
    ordinals = _proved(returned, batch)
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


def _proved(returned: list[bytes], batch: Batch) -> list[int] | None:
    """Record numbers of the returned identities; None if one of them is not in the batch."""
    if returned == batch.identities:
        return batch.ordinals
    numbers: dict[bytes, list[int]] = {}
    for identity, ordinal in zip(batch.identities, batch.ordinals, strict=True):
        numbers.setdefault(identity, []).append(ordinal)
    if any(identity not in numbers for identity in returned):
        return None
    return sorted(ordinal for identity in set(returned) for ordinal in numbers[identity])


def _matching(session: Session, delete: Delete, proof: Proof, batch: Batch) -> set[bytes]:
    """The batch's identities that delete.sql matches now."""
    _prefer_identities(session)
    found = _execute(
        session, lambda condition, columns: delete.selection(columns, condition), delete, proof, batch.identities
    )
    return set(found) & set(batch.identities)


def _bytes(session: Session, delete: Delete, proof: Proof, batch: Batch) -> int:
    name = delete.relation.qualifier
    total = 0
    for condition in conditions(name, proof.tableoid, batch.identities):
        rows = delete.selection(f"{name}.ctid, pg_column_size({name}.*) AS size", condition)
        total += session.one(f"SELECT coalesce(sum(size), 0) FROM ({rows}\n) AS matched")[0]
    return int(total)


def _refused_side_effects(ctx: StepContext, session: Session, delete: Delete) -> list[str]:
    tree = inspect.relation_tree(session, delete.relation.sql, only=delete.relation.only)
    acknowledged = set(ctx.table.spec.cleanup.acknowledge)
    return [str(e) for e in inspect.side_effects(session, tree.oids) if e.name not in acknowledged]


def _left(ctx: StepContext, parts: Statements, latest: ArtifactManifest) -> tuple[int, int]:
    """Rows that delete.sql still matches: those that the next export will take, and the others."""
    delete = _delete_of(parts)
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


def _delete_of(parts: Statements) -> Delete:
    assert parts.delete is not None
    return parts.delete
