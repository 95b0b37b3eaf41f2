"""The asset `<table>_expire`: what retention keeps and frees, with its job.

It has no partitions, since what goes is decided by looking at all files of a table together. Each run is one point of
its plots.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from export_pipelines import naming
from export_pipelines.catalog import HoldRow
from export_pipelines.components.partition_run import step_context
from export_pipelines.components.retrying import another_attempt
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.specs.table import OnlyCopies, TableDefinition
from export_pipelines.steps.retention import Verdict, described

if TYPE_CHECKING:
    from export_pipelines.steps.expire import Amount, ExpireResult

EXPIRE = "expire"
SHOWN = 200
"""Files that are listed in the metadata of a run, at most: those that went, then those that were kept."""

CHECK = "all_expired"


def expire_asset(table: TableDefinition, resources: set[str], identities: Sequence[str] = ()) -> dg.AssetsDefinition:
    """The asset of a table that has a retention. `identities` are keys of the resources which open encrypted files."""
    key = dg.AssetKey(naming.asset_key(table.id, EXPIRE))
    spec = dg.AssetSpec(
        key,
        deps=[dg.AssetKey(naming.asset_key(table.id, "archive"))],
        description=_description(table),
        group_name=naming.group_name(table.group),
        owners=list(table.spec.owners),
        tags=dict(table.spec.tags),
        kinds={"archive", "retention"},
    )

    @dg.multi_asset(
        # No part of a table's name begins or ends with `_`, so that no op of another table has this name.
        name=f"{naming.dagster_name(table.id)}___{EXPIRE}",
        specs=[spec],
        check_specs=[dg.AssetCheckSpec(CHECK, asset=key, description="All files that were to go could go.")],
        required_resource_keys=resources | set(identities),
    )
    def expire(context: dg.AssetExecutionContext) -> Iterator[Any]:
        from export_pipelines.steps.expire import expire_table

        step = step_context(context, table, identities)
        try:
            result = expire_table(step)
        except ExportPipelinesError as error:
            raise _failure(context, table, error) from error
        yield dg.MaterializeResult(key, metadata=_metadata(result, step.catalog.holds(table.id)))
        yield dg.AssetCheckResult(
            passed=not result.errors, asset_key=key, check_name=CHECK, description="; ".join(result.errors)
        )

    return expire


def expire_job(table: TableDefinition) -> Any:
    """The job of that asset alone."""
    return dg.define_asset_job(
        f"{naming.dagster_name(table.id)}_{EXPIRE}",
        selection=dg.AssetSelection.assets(dg.AssetKey(naming.asset_key(table.id, EXPIRE))),
        description=f"expire of {table.id}: gives up the archived files that its retention does not want.",
        tags={"export_pipelines/table": table.id},
    )


def _failure(context: dg.AssetExecutionContext, table: TableDefinition, error: ExportPipelinesError) -> Exception:
    """Try again after what may go away by itself."""
    retries = table.spec.retries
    if error.transient and context.retry_number < retries.attempts:
        return another_attempt(retries, context.retry_number)
    return dg.Failure(str(error), metadata={"hint": error.hint or "see the log"}, allow_retries=False)


def _description(table: TableDefinition) -> str:
    retention = table.spec.retention
    assert retention is not None
    only = {
        OnlyCopies.KEEP: "A file that has the only copy of rows stays, whatever that says.",
        OnlyCopies.GIVE_UP: "Files that have the only copy of rows go, too: their rows are then nowhere any more.",
    }[retention.only_copies]
    rules = ", ".join(f"`{rule}`" for rule in described(retention).split(", "))
    return f"Gives up the archived files that are wanted by none of {rules}. {only}"


def _metadata(result: "ExpireResult", holds: list[HoldRow]) -> dict[str, Any]:
    """Figures that plot over runs, and a table of what went and what stayed."""
    figures: dict[str, Any] = {**_figures("kept", result.kept), **_figures("freed", result.freed)}
    for rule, amount in result.by_rule.items():
        figures |= _figures(f"kept_by_{rule.partition(' ')[0] if rule != 'the newest' else 'newest'}", amount)
    figures["seconds"] = round(result.seconds, 3)
    if result.completed:
        figures["completed"] = dg.MetadataValue.json(list(result.completed))
    if holds:
        lines = [f"- {hold.scope}: {hold}" for hold in holds]
        figures["holds"] = dg.MetadataValue.md("\n".join(lines))
    return {**figures, "files": dg.MetadataValue.md(_listed(result.verdicts))}


def _figures(name: str, amount: "Amount") -> dict[str, int]:
    return {f"{name}_files": amount.files, f"{name}_rows": amount.rows, f"{name}_bytes": amount.bytes}


def _listed(verdicts: tuple[Verdict, ...]) -> str:
    """A table in Markdown."""
    ordered = sorted(verdicts, key=lambda each: each.kept)
    lines = ["| partition | generation | rows | bytes | fate | why |", "|---|---|---|---|---|---|"]
    lines += [_line(each) for each in ordered[:SHOWN]]
    more = len(ordered) - SHOWN
    return "\n".join(lines) + (f"\n\n… and {more} more" if more > 0 else "")


def _line(each: Verdict) -> str:
    of, why = each.artifact, each.reason.replace("|", "\\|").replace("\n", " ")
    fate = "kept" if each.kept else "gone"
    return f"| {of.partition} | {of.generation} | {of.rows:,} | {of.bytes:,} | {fate} | {why} |"
