"""Verification as the asset check `verified` of the archives, as much of it at a time as a budget allows.

One op for all tables of a document, since they share its budget: what was verified longest ago comes first, of
whichever table it is.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from export_pipelines.components.automation import VerifyScheduleSpec
from export_pipelines.components.restore_job import Places
from export_pipelines.components.schedules import clock_schedule
from export_pipelines.components.tables import CHECKS_TAG, TableAssets, asset_key
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.formats.encryption import NO_KEYS
from export_pipelines.specs.sizes import parse_size

if TYPE_CHECKING:
    from export_pipelines.steps.verify import VerifyReport

CHECK = "verified"
SHOWN = 20
"""Problems, and files that no manifest names, that are listed at most."""

DESCRIPTION = (
    "The chain of manifests is whole, and the archived files are what it says: both SHA-256, rows and row digest. Each "
    "time as many files are read as the budget of the schedule allows, those that were verified longest ago first."
)


def verify_definitions(
    spec: VerifyScheduleSpec, tables: Sequence[TableAssets], resources: Mapping[str, Any]
) -> dg.Definitions:
    """The check of a document's tables, the job that runs it, and its schedule; nothing without tables."""
    if not tables:
        return dg.Definitions()
    check = _check(spec, tables, resources)
    job = dg.define_asset_job(
        f"{spec.name}_job",
        selection=dg.AssetSelection.checks(*check.check_keys),
        description=f"Verifies archives: at most {spec.budget} of files, those first that were verified longest ago.",
        tags={CHECKS_TAG: spec.name},
    )
    schedule = clock_schedule(spec, job, f"verifies at most {spec.budget} of archived files")
    return dg.Definitions(asset_checks=[check], jobs=[job], schedules=[schedule])


def _check(
    spec: VerifyScheduleSpec, tables: Sequence[TableAssets], resources: Mapping[str, Any]
) -> dg.AssetChecksDefinition:
    by_key = {dg.AssetCheckKey(asset_key(each.table, "archive"), CHECK): each for each in tables}
    places = Places(
        {each.table.id: each.table for each in tables},
        resources,
        tuple({identity: None for each in tables for identity in each.identities}),
    )

    @dg.multi_asset_check(
        # No name of a table's op has three of them.
        name=f"{spec.name}___{CHECK}",
        specs=[dg.AssetCheckSpec(CHECK, asset=key.asset_key, description=DESCRIPTION) for key in by_key],
        can_subset=True,
        config_schema={
            "budget": dg.Field(str, default_value=spec.budget, description="Bytes of files at most, such as 10GB."),
            "minutes": dg.Field(float, default_value=spec.minutes, description="Minutes at most."),
            "jobs": dg.Field(int, default_value=spec.jobs, description="Processes at work."),
        },
    )
    def verify(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        if context.run.asset_selection:
            context.log.info("a run that makes an archive reads back what it writes, and verifies no more than that")
            return
        config = context.op_execution_context.op_config
        chosen = [by_key[key] for key in by_key if key in context.selected_asset_check_keys]
        try:
            reports = _verify(places, chosen, config, context.run.run_id)
        except ExportPipelinesError as error:
            raise dg.Failure(str(error), metadata={"hint": error.hint or "see the log"}, allow_retries=False) from None
        for each, report in zip(chosen, reports, strict=True):
            key = asset_key(each.table, "archive")
            metadata = _metadata(report)
            context.op_execution_context.log_event(
                dg.AssetObservation(key, description=_text(report), metadata=_figures(report))
            )
            yield dg.AssetCheckResult(
                passed=report.intact and not report.too_large,
                asset_key=key,
                check_name=CHECK,
                description=_text(report),
                severity=dg.AssetCheckSeverity.WARN if report.intact else dg.AssetCheckSeverity.ERROR,
                metadata=metadata,
            )

    return verify


def _verify(
    places: Places, tables: Sequence[TableAssets], config: Mapping[str, Any], run_id: str
) -> "list[VerifyReport]":
    """Verify tables, all within one budget. Raises RequestError, StoreError, CatalogError."""
    from export_pipelines.errors import RequestError
    from export_pipelines.steps.chain_check import Expected
    from export_pipelines.steps.verification import InCatalog
    from export_pipelines.steps.verify import Budget, Target, verify_tables

    try:
        budget = Budget(parse_size(config["budget"]), config["minutes"] * 60)
    except ValueError as error:
        raise RequestError(f"budget: {error}") from error
    catalog = places.open("catalog")
    archives = {key: places.open(key) for key in {each.table.spec.archive for each in tables}}
    heads = {key: catalog.heads(archive.url) for key, archive in archives.items()}
    targets = []
    for each in tables:
        key, head = each.table.spec.archive, heads[each.table.spec.archive].get(each.table.id)
        expected = (Expected(head[0], head[1], "the catalog"),) if head else ()
        targets.append(Target(archives[key], each.table.id, expected, may_be_empty=True))
    try:
        return verify_tables(
            targets,
            jobs=config["jobs"],
            budget=budget,
            state=InCatalog(catalog, run_id),
            keyring=sum((places.open(key) for key in places.identities), NO_KEYS),
            keys=places.open("signing").public,
        )
    finally:
        catalog.close()


def _text(report: "VerifyReport") -> str:
    """One sentence for people."""
    if not report.intact:
        more = f" … and {len(report.problems) - SHOWN} more" if len(report.problems) > SHOWN else ""
        return "; ".join(report.problems[:SHOWN]) + more
    if not report.total and not report.head[0]:
        return "nothing is archived yet"
    read = f"{report.artifacts:,} of {report.total:,} files read, all intact" if report.artifacts else "no file read"
    parts = [read, f"{report.never:,} never verified so far" if report.never else "", report.limits]
    if report.oldest and not report.never:
        parts.append(f"the oldest verification is {_days(report.oldest):.1f} days old")
    parts += [f"larger than the whole budget, so it is never verified: {file}" for file in report.too_large[:SHOWN]]
    return "; ".join(part for part in parts if part)


def _days(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds() / 86_400


def _figures(report: "VerifyReport") -> dict[str, Any]:
    """Numbers that plot over time."""
    return {
        "verified_files": report.artifacts,
        "verified_bytes": report.bytes,
        "verified_rows": report.rows,
        "files": report.total,
        "unverified_files": report.never,
        "oldest_verification_days": round(_days(report.oldest), 3) if report.oldest else 0.0,
        "problems": len(report.problems),
        "unaccounted": len(report.unaccounted),
        "verify_seconds": round(report.seconds, 3),
    }


def _metadata(report: "VerifyReport") -> dict[str, Any]:
    """The figures, and what is wrong in full."""
    more: dict[str, Any] = {"head": f"{report.head[0]}:{report.head[1]}", "expired_files": report.expired}
    if report.signed is not None:
        more["signed_manifests"] = report.signed
    if report.problems:
        more["first_problems"] = dg.MetadataValue.md("\n".join(f"- {each}" for each in report.problems[:SHOWN]))
    if report.unaccounted:
        more["first_unaccounted"] = dg.MetadataValue.json(list(report.unaccounted[:SHOWN]))
    return {**_figures(report), **more}
