"""What is known of each archived export of a table, and what retention decides about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from export_pipelines.catalog import ExportRow, HoldRow
from export_pipelines.catalog.holds import first_on
from export_pipelines.manifest import ArtifactManifest, CleanupReceipt, ExpireTombstone
from export_pipelines.specs.table import RetentionSpec, TableDefinition
from export_pipelines.steps import chain
from export_pipelines.steps.context import StepContext
from export_pipelines.steps.holding import reach, window_of_row
from export_pipelines.steps.retention import Artifact, Verdict, judge


@dataclass
class Attempt:
    """An archived export: a crashed archiver and its successor may both have written a manifest for it."""

    manifests: list[ArtifactManifest]
    row: ExportRow | None
    tombstones: dict[int, ExpireTombstone] = field(default_factory=dict)
    deleted: int = 0
    """Rows of which the chain has receipts."""

    @property
    def first(self) -> ArtifactManifest:
        return self.manifests[0]

    @property
    def bytes(self) -> int:
        return sum(proof.size for manifest in self.manifests for proof in manifest.objects)


def whole_snapshots(table: TableDefinition) -> bool:
    """Whether each file of a table has all of it, as it was at one moment."""
    return table.spec.partitions is None


def attempts_of(ctx: StepContext) -> list[Attempt]:
    """All exports that the archive has a manifest of. Raises IntegrityError if the chain is broken, or cut off."""
    chain.end_of_chain(ctx.archive, ctx.table.id, ctx.catalog.head(ctx.table.id, ctx.archive.url))
    rows = {row.record.attempt: row for row in ctx.catalog.exports(ctx.table.id, expired=True) if row.record}
    found: dict[str, Attempt] = {}
    of_sequence: dict[int, Attempt] = {}
    for entry in chain.entries(ctx.archive, ctx.table.id):
        if isinstance(entry, ArtifactManifest):
            attempt = entry.export.attempt
            each = found.setdefault(attempt, Attempt([], rows.get(attempt)))
            each.manifests.append(entry)
            of_sequence[entry.sequence] = each
        elif isinstance(entry, ExpireTombstone | CleanupReceipt):
            of = of_sequence.get(entry.artifact_sequence)
            if of and isinstance(entry, ExpireTombstone):
                of.tombstones[entry.artifact_sequence] = entry
            elif of and isinstance(entry, CleanupReceipt):
                of.deleted += entry.deleted_rows
    return list(found.values())


@dataclass(frozen=True)
class _Known:
    """What the catalog knows: deleted rows by export, why deletions of a partition are not known, holds."""

    deletions: Mapping[int, int]
    unsettled: Mapping[str, str]
    holds: Sequence[HoldRow]


def judged(
    ctx: StepContext, retention: RetentionSpec, attempts: dict[str, Attempt], unsettled: dict[str, str], now: datetime
) -> list[Verdict]:
    """A verdict on each attempt. `unsettled` says of partitions why their deletions are not known."""
    whole = whole_snapshots(ctx.table)
    newest = _newest(attempts.values(), whole=whole)
    known = _Known(ctx.catalog.deletions(ctx.table.id), unsettled, ctx.catalog.holds(ctx.table.id))
    artifacts = [
        _artifact(ctx.table, each, known, is_newest=newest.get(_group(each, whole=whole)) is each)
        for each in attempts.values()
    ]
    verdicts = judge(artifacts, retention, now, whole=whole)
    going = {each.artifact.attempt for each in verdicts if not each.kept}
    leaning = {_group(attempts[name], whole=whole) for name in going}
    damaged = ctx.catalog.damaged(ctx.table.id, ctx.archive.url) if leaning else set()
    lost = {group for group in leaning if (last := newest.get(group)) and not _sound(ctx, last, damaged)}
    return [
        replace(each, kept=True, reason="the newest file is missing or damaged, so no other goes")
        if not each.kept
        and (group := _group(attempts[each.artifact.attempt], whole=whole)) in lost
        and newest[group] is not attempts[each.artifact.attempt]
        else each
        for each in verdicts
    ]


def _group(each: Attempt, *, whole: bool) -> str:
    """Files of which a later one may stand for an earlier one."""
    return "" if whole else each.first.export.partition


def _newest(attempts: Iterable[Attempt], *, whole: bool) -> dict[str, Attempt]:
    """The newest file of ours of each group. What was adopted stands for nothing else."""
    own = [each for each in attempts if not each.first.adopted]
    own.sort(key=lambda each: each.first.export.generation)
    return {_group(each, whole=whole): each for each in own}


def _artifact(table: TableDefinition, each: Attempt, known: _Known, *, is_newest: bool) -> Artifact:
    export, row = each.first.export, each.row
    whole = whole_snapshots(table)
    noted = known.deletions.get(row.id, 0) if row else 0
    deleted = max(each.deleted, noted)
    only = ""
    if each.first.adopted:
        only = "it was adopted, and nothing is known of its rows in the source"
    elif deleted:
        only = f"cleanups deleted {deleted:,} of its rows from the source"
    elif is_newest and not whole:
        only = "it is the newest of its partition"
    return Artifact(
        attempt=export.attempt,
        partition=export.partition,
        generation=row.generation if row else export.generation,
        moment=export.started if whole or export.window_end is None else export.window_end,
        rows=export.rows,
        bytes=each.bytes,
        deleted=noted,
        only=only,
        stays=_obstacle(table, each, known.holds) or known.unsettled.get(export.partition, ""),
    )


def _obstacle(table: TableDefinition, each: Attempt, holds: Sequence[HoldRow]) -> str:
    """Why a file stays whatever the settings say."""
    if each.row is None:
        return "the catalog does not know it"
    if each.row.state not in ("archived", "expiring"):
        return "its archive is not finished"
    window = window_of_row(each.row)
    if hold := first_on(holds, window.partition, *reach(table, window.start, window.end)):
        return str(hold)
    if each.first.adopted and whole_snapshots(table):
        return "it was adopted, and nobody knows of when it is"
    return ""


def _sound(ctx: StepContext, each: Attempt, damaged: set[int]) -> bool:
    """Whether a copy is there, by its size, and no verification has found it damaged."""
    for manifest in each.manifests:
        head = ctx.archive.head(manifest.file.key)
        if head is not None and head.size == manifest.file.size and manifest.sequence not in damaged:
            return True
    return False
