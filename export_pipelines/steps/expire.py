"""Expire: give up the archived files that retention does not want, and nothing else.

Of each file, in this order: it is fenced off in the catalog (`expiring`), so that no cleanup takes it for a proof; its
tombstone is written into the chain, the point of no return; the files are removed; the catalog is told (`expired`). A
crash leaves it at one of these edges, and the next expire, or `sweep`, goes on from there. What was fenced off and not
yet given up stays as it is for as long as a hold or a changed setting wants it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from export_pipelines.catalog import ExportRow
from export_pipelines.errors import CatalogError, ExportPipelinesError, PartitionBusy, RequestError
from export_pipelines.manifest import ArtifactManifest, ExpireTombstone
from export_pipelines.specs.table import OnlyCopies, RetentionSpec
from export_pipelines.steps import chain
from export_pipelines.steps.context import Progress, StepContext
from export_pipelines.steps.expiry import Attempt, attempts_of, judged
from export_pipelines.steps.receipts import write_receipts
from export_pipelines.steps.retention import Verdict
from export_pipelines.steps.settle import settle_open_batches


@dataclass(frozen=True)
class Amount:
    """A number of files with their rows and stored bytes."""

    files: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class ExpireResult:
    """What was decided about each file, oldest first. A file that could not be given up is among the kept ones, and
    among the `errors`; `completed` were given up by an earlier run that did not come to remove them."""

    table: str
    verdicts: tuple[Verdict, ...]
    errors: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def kept(self) -> Amount:
        """What stays."""
        return _amount(each for each in self.verdicts if each.kept)

    @property
    def freed(self) -> Amount:
        """What goes."""
        return _amount(each for each in self.verdicts if not each.kept)

    @property
    def by_rule(self) -> dict[str, Amount]:
        """What each rule keeps; what no rule wants and stays nevertheless counts as `other`."""
        rules = dict.fromkeys(rule for each in self.verdicts for rule in each.classes)
        found = {rule: _amount(each for each in self.verdicts if rule in each.classes) for rule in rules}
        other = _amount(each for each in self.verdicts if each.kept and not each.classes)
        return {**found, "other": other} if other.files else found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "table": self.table,
            "dry_run": self.dry_run,
            "kept": vars(self.kept),
            "freed": vars(self.freed),
            "by_rule": {rule: vars(amount) for rule, amount in self.by_rule.items()},
            "files": [
                {**vars(each.artifact), "kept": each.kept, "reason": each.reason, "rules": each.classes}
                for each in self.verdicts
            ],
            "completed": self.completed,
            "errors": self.errors,
            "seconds": round(self.seconds, 3),
        }


def _amount(verdicts: Iterable[Verdict]) -> Amount:
    found = [each.artifact for each in verdicts]
    return Amount(len(found), sum(each.rows for each in found), sum(each.bytes for each in found))


def expire_table(
    ctx: StepContext, *, dry_run: bool = False, only: Collection[str] | None = None, now: datetime | None = None
) -> ExpireResult:
    """Decide about all files of a table, and give up those that nothing wants. With `dry_run` nothing is given up; all
    else is the same. `only` names the attempts that may go: those that somebody was shown before.

    The local copy in the store of exports goes with its archived file.

    Crash: see above; a rerun goes on from there.

    Raises:
        RequestError: the table has no retention, so that nothing of it ever expires.
        PartitionBusy: another expire of the table is at work.
        IntegrityError: the chain is broken or cut off; nothing was given up.
        StoreError, CatalogError: of a transient kind; files before it are done. Others are in the result.
    """
    begun = time.monotonic()
    retention = ctx.table.spec.retention
    if retention is None:
        raise RequestError(
            f"{ctx.table.id!r} has no retention, so nothing of it ever expires",
            hint=f"say what stays under `retention:` in {ctx.table.folder / 'defs.yaml'}",
        )
    with ctx.catalog.lock(f"expire {ctx.table.id}", f"expiring files of {ctx.table.id}"):
        completed = _complete(ctx, dry_run=dry_run)
        unsettled = _settled(ctx)
        attempts = {each.first.export.attempt: each for each in attempts_of(ctx) if not each.tombstones}
        verdicts = judged(ctx, retention, attempts, unsettled, now or datetime.now(UTC))
        if only is not None:
            verdicts = [_not_shown(each, only) for each in verdicts]
        errors: list[str] = []
        if not dry_run:
            verdicts = [_carried_out(ctx, attempts, retention, each, errors) for each in verdicts]
    return ExpireResult(
        ctx.table.id, tuple(verdicts), tuple(errors), tuple(completed), dry_run, time.monotonic() - begun
    )


def complete_expired(ctx: StepContext, *, dry_run: bool = False) -> list[str]:
    """Remove what an expire that was killed gave up and did not come to remove; return where it was.

    Nothing is decided anew: only files with a tombstone are touched. Does nothing while an expire is at work.
    """
    try:
        with ctx.catalog.lock(f"expire {ctx.table.id}", f"expiring files of {ctx.table.id}"):
            return _complete(ctx, dry_run=dry_run)
    except PartitionBusy:
        return []


def _complete(ctx: StepContext, *, dry_run: bool) -> list[str]:
    if not any(row.given_up or row.state == "archived" for row in ctx.catalog.exports(ctx.table.id)):
        return []
    places = []
    for each in attempts_of(ctx):
        if each.tombstones and each.row is not None and each.row.state != "expired":
            places += [ctx.archive.locate(manifest.file.key) for manifest in each.manifests]
            if not dry_run:
                _finish(ctx, each, each.row)
    return places


def _settled(ctx: StepContext) -> dict[str, str]:
    """Ask the source how batches ended whose commit was not confirmed; by partition, why that is not known yet."""
    unknown = {}
    for partition in ctx.catalog.unsettled(ctx.table.id):
        try:
            settle_open_batches(ctx, partition)
        except CatalogError:
            raise
        except ExportPipelinesError as error:  # the source is away, its transaction goes on, its file cannot be read …
            unknown[partition] = f"a cleanup is not settled: {error.message}"
    return unknown


def _not_shown(verdict: Verdict, only: Collection[str]) -> Verdict:
    if verdict.kept or verdict.artifact.attempt in only:
        return verdict
    return replace(verdict, kept=True, reason="came up after the plan was confirmed; the next expire takes it")


def _carried_out(
    ctx: StepContext, attempts: dict[str, Attempt], retention: RetentionSpec, verdict: Verdict, errors: list[str]
) -> Verdict:
    """Give a file up if that was decided. What is in the way of one file keeps no other from going."""
    if verdict.kept:
        return verdict
    artifact = verdict.artifact
    try:
        _give_up(ctx, attempts[artifact.attempt], verdict, retention)
    except ExportPipelinesError as error:
        if error.transient:
            raise
        errors.append(str(error))
        return replace(verdict, kept=True, reason=error.message)
    ctx.progress(Progress("expire", ctx.table.id, artifact.partition, artifact.rows, artifact.bytes))
    return verdict


def _give_up(ctx: StepContext, each: Attempt, verdict: Verdict, retention: RetentionSpec) -> None:
    """Fence, receipts, tombstones, files, catalog."""
    assert each.row is not None  # a file that the catalog does not know is kept
    artifact = verdict.artifact
    ctx.catalog.begin_expire(each.row.id, artifact.deleted, cumulative=bool(ctx.table.spec.cumulative))
    # What cleanups deleted of it must stand in the chain before it: nobody writes more of it from here on.
    write_receipts(ctx, each.row.partition)
    only_copy = bool(artifact.only) and retention.only_copies is OnlyCopies.GIVE_UP
    for manifest in each.manifests:
        _bury(ctx, each, manifest, verdict.reason, only_copy=only_copy)
    _finish(ctx, each, each.row)


def _finish(ctx: StepContext, each: Attempt, row: ExportRow) -> None:
    """Everything after the first tombstone."""
    first = min(each.tombstones.values(), key=lambda tombstone: tombstone.sequence)
    for manifest in each.manifests:
        if manifest.sequence not in each.tombstones:
            _bury(ctx, each, manifest, first.reason, only_copy=first.only_copy)
    for manifest in each.manifests:
        for proof in manifest.objects:
            ctx.archive.delete(proof.key)
    _remove_local(ctx, each, row)
    ctx.catalog.finish_expire(row.id, first.sequence)


def _bury(ctx: StepContext, each: Attempt, manifest: ArtifactManifest, reason: str, *, only_copy: bool) -> None:
    """Write the tombstone of one manifest: from here on its files do not exist."""
    entry, sha256 = chain.append(
        ctx.archive,
        ctx.table.id,
        ctx.catalog.head(ctx.table.id, ctx.archive.url),
        _tombstone(ctx, manifest, reason, only_copy=only_copy),
        ctx.signer,
    )
    ctx.catalog.advance_head(ctx.table.id, ctx.archive.url, entry.sequence, sha256)
    each.tombstones[manifest.sequence] = entry


def _tombstone(
    ctx: StepContext, manifest: ArtifactManifest, reason: str, *, only_copy: bool
) -> Callable[[int, str, datetime], ExpireTombstone]:
    return lambda sequence, previous, written: ExpireTombstone(
        sequence=sequence,
        previous_sha256=previous,
        table=ctx.table.id,
        written=written,
        run_id=ctx.run_id,
        partition=manifest.export.partition,
        artifact_sequence=manifest.sequence,
        rows=manifest.export.rows,
        bytes=sum(proof.size for proof in manifest.objects),
        reason=reason,
        only_copy=only_copy,
    )


def _remove_local(ctx: StepContext, each: Attempt, row: ExportRow) -> None:
    """Remove the copy in the store of exports, if it is the one that was archived: rows that are given up shall not lie
    about elsewhere."""
    if each.first.adopted or row.record is None or row.store_url != ctx.exports.url:
        return
    for proof in (row.record.file, row.record.identity.file):
        if proof is None:
            continue
        head = ctx.exports.head(proof.key)
        if head is not None and head.size == proof.size:
            ctx.exports.delete(proof.key)
