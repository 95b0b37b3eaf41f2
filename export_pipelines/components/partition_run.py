"""What a run does: each of its partitions, oldest first, through the stages that were asked for.

A result is told to Dagster as soon as it is there, by events that name their partition, and not by outputs: those would
come at the end of the run, and say of a failed partition that it was materialised.

A permanent error concerns its partition: the run goes on and fails at its end, naming each. A transient one concerns
the world: the run stops, and Dagster tries the step again as the table's `retries` say; what is done is not done
again. No Dagster RetryPolicy is used, since it would also try a run again that somebody terminates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import dagster as dg
from dagster import AssetCheckEvaluation

from export_pipelines import naming, windows
from export_pipelines.components import results
from export_pipelines.components.automation import Stage
from export_pipelines.components.progress import Reporter
from export_pipelines.components.retrying import another_attempt
from export_pipelines.errors import CleanupRefused, ExportPipelinesError, Held, IntegrityError, RequestError
from export_pipelines.formats.encryption import NO_KEYS
from export_pipelines.specs.table import CleanupMode, TableDefinition
from export_pipelines.steps.context import StepContext
from export_pipelines.windows import Window

UPSTREAM_TAG = "export_pipelines/upstream_run_id"
ROOT_TAG = "export_pipelines/root_run_id"

GIVE_UP_AFTER = 3
"""Transient errors in a row, all retries used up, after which the remaining partitions are not tried."""

StageFunction = Callable[[StepContext, Window], results.Outcome]

_FUNCTIONS: dict[Stage, StageFunction] = {
    Stage.EXPORT: results.export,
    Stage.ARCHIVE: results.archive,
    Stage.CLEANUP: results.cleanup,
}


@dataclass(frozen=True)
class Failed:
    """A partition that did not get through, and why."""

    partition: str
    stage: Stage
    error: Exception

    @property
    def transient(self) -> bool:
        return isinstance(self.error, ExportPipelinesError) and self.error.transient


@dataclass
class PartitionRun:
    """One run of one table."""

    context: dg.AssetExecutionContext | dg.OpExecutionContext
    table: TableDefinition
    step: StepContext
    stages: list[Stage]
    done: set[tuple[Stage, str]]
    failed: list[Failed] = field(default_factory=list)
    versions: dict[Stage, str] = field(default_factory=dict)
    columns: dg.TableSchema | None = None

    def run(self, todo: list[Window]) -> None:
        """Take each partition through its stages; raise at the end if one failed."""
        for number, window in enumerate(todo):
            failed = self.partition(window)
            if failed is None:
                continue
            self.failed.append(failed)
            self.log_failure(failed)
            if failed.transient and self.context.retry_number < self.table.spec.retries.attempts:
                raise self.retry()
            if len(self.failed) >= GIVE_UP_AFTER and all(each.transient for each in self.failed[-GIVE_UP_AFTER:]):
                raise self.failure(total=len(todo), untried=len(todo) - number - 1)
        if self.failed:
            raise self.failure(total=len(todo), untried=0)

    def partition(self, window: Window) -> Failed | None:
        """Take one partition through its stages, up to the first that fails."""
        for stage in self.stages:
            if (stage, window.partition) in self.done:
                continue
            if stage is Stage.CLEANUP and (due := self.due(window)):
                self.context.log.info(
                    f"cleanup of {self.table.id} {window.partition} is due on {due:%Y-%m-%d %H:%M %Z}"
                )
                continue
            try:
                self.stage(stage, window)
            except Exception as error:
                # BaseException (a terminated run) goes through.
                if self.merely_compared(stage, error):
                    self.context.log.warning(f"{window.partition} cannot be compared with the archive: {error}")
                    continue
                self.tell_failed_check(stage, window, error)
                return Failed(window.partition, stage, error)
        return None

    def due(self, window: Window) -> datetime | None:
        """When the cleanup of a chain comes due, if that is yet to come. A run of cleanup alone is left to the step."""
        cleanup = self.table.spec.cleanup
        if cleanup.mode is not CleanupMode.KEEP or len(self.stages) == 1:
            return None
        # A snapshot is kept from its export on, which was a moment ago.
        due = (window.end or datetime.now(UTC)) + timedelta(days=cleanup.keep_days)
        return due if due > datetime.now(UTC) else None

    def merely_compared(self, stage: Stage, error: Exception) -> bool:
        """Whether a chain only failed to compare: that is no reason to fail where cleanup is off."""
        off = self.table.spec.cleanup.mode is CleanupMode.OFF
        return stage is Stage.CLEANUP and off and len(self.stages) > 1 and isinstance(error, CleanupRefused)

    def stage(self, stage: Stage, window: Window) -> results.Metadata:
        """Do one stage of one partition, and tell Dagster; what it was told."""
        started = time.monotonic()
        outcome = _FUNCTIONS[stage](self.step, window)
        metadata = outcome.metadata(self.step, time.monotonic() - started)
        if upstream := self.step.upstream_run_id:
            metadata["upstream_run"] = dg.MetadataValue.dagster_run(upstream)
        self.versions[stage] = outcome.version
        checks = self.checks(outcome)
        self.context.log_event(
            dg.AssetMaterialization(
                self.key(stage),
                partition=self.partition_of(window),
                metadata=metadata,
                tags=self.event_tags(stage, outcome.version),
                description=outcome.summary,
            )
        )
        for each in checks:
            self.check(stage, window, each)
        return metadata

    def checks(self, outcome: results.Outcome) -> list[results.Check]:
        """The checks that the step's own result answers; those that compare with what Dagster knows from before."""
        if outcome.columns is None:
            return list(outcome.checks)
        before, self.columns = self.columns or self.last_columns(), outcome.columns
        return [*outcome.checks, results.schema_unchanged(before, outcome.columns)]

    def tell_failed_check(self, stage: Stage, window: Window, error: Exception) -> None:
        """An archive whose digests are wrong is an error and a failed check; so is a cleanup that is held."""
        if stage is Stage.CLEANUP and isinstance(error, Held):
            self.check(stage, window, results.not_held([error.message]))
        if stage is Stage.ARCHIVE and isinstance(error, IntegrityError):
            self.check(stage, window, results.Check("digests_agree", passed=False, description=str(error)))

    def check(self, stage: Stage, window: Window, check: results.Check) -> None:
        # An op of a job has the same log, with a narrower type.
        cast("dg.AssetExecutionContext", self.context).log_event(
            AssetCheckEvaluation(
                asset_key=self.key(stage),
                check_name=check.name,
                passed=check.passed,
                metadata=check.metadata,
                severity=check.severity,
                description=check.description,
                partition=self.partition_of(window),
            )
        )

    def event_tags(self, stage: Stage, version: str) -> dict[str, str]:
        """The tags from which Dagster knows code and data versions, and so what is out of date."""
        tags = {"dagster/data_version": version, "dagster/code_version": self.table.version}
        before = {Stage.EXPORT: "source", Stage.ARCHIVE: Stage.EXPORT, Stage.CLEANUP: Stage.ARCHIVE}[stage]
        key = self.key(before).to_user_string()
        # An external asset that never told of a version has version INITIAL.
        seen = "INITIAL" if before == "source" else self.versions.get(Stage(before), version)
        return {**tags, f"dagster/input_data_version/{key}": seen, f"dagster/input_event_pointer/{key}": "NULL"}

    def last_columns(self) -> dg.TableSchema | None:
        """Columns of the newest export that Dagster knows of, before this run's."""
        event = self.context.instance.get_latest_materialization_event(self.key(Stage.EXPORT))
        materialization = event.asset_materialization if event else None
        value = materialization.metadata.get("dagster/column_schema") if materialization else None
        return value.schema if isinstance(value, dg.TableSchemaMetadataValue) else None

    def key(self, stage: Stage | str) -> dg.AssetKey:
        return dg.AssetKey(naming.asset_key(self.table.id, str(stage)))

    def partition_of(self, window: Window) -> str | None:
        return window.partition if self.table.spec.partitions else None

    def log_failure(self, failed: Failed) -> None:
        """Say at once what failed; the end of a long run may be far away."""
        text = f"{failed.stage} of {self.table.id} {failed.partition} failed: {failed.error}"
        known = isinstance(failed.error, ExportPipelinesError)
        self.context.log.error(text, exc_info=None if known else failed.error)

    def retry(self) -> dg.RetryRequested:
        request = another_attempt(self.table.spec.retries, self.context.retry_number)
        request.__cause__ = self.failed[-1].error
        return request

    def failure(self, *, total: int, untried: int) -> dg.Failure:
        """The end of a run of which some partitions failed: each is named, the first ten with their reason."""
        lines = [f"{each.stage} of {self.table.id} {each.partition}: {each.error}" for each in self.failed]
        if total > 1:
            head = f"{len(self.failed)} of {total} partitions of {self.table.id} failed"
            head += f"; {untried} were not tried, since the cause seems to last" if untried else ""
            more = [f"… and {len(lines) - 10} more"] if len(lines) > 10 else []
            lines = [head, *lines[:10], *more]
        metadata = {
            "failed_partitions": dg.MetadataValue.json([each.partition for each in self.failed]),
            "error": type(self.failed[0].error).__name__,
            "hint": getattr(self.failed[0].error, "hint", "") or "see the log",
        }
        error = dg.Failure("\n".join(lines), metadata=metadata, allow_retries=False)
        error.__cause__ = self.failed[0].error if total == 1 else None
        return error


def run_partitions(context: dg.AssetExecutionContext, table: TableDefinition, identities: Iterable[str] = ()) -> None:
    """The body of every table's op. `identities` are keys of the resources which open encrypted files.

    Raises:
        dagster.Failure: some partitions failed; all others are done.
        dagster.RetryRequested: a transient error; the next attempt goes on where this one stopped.
    """
    _keep_storage_connected(context.instance)
    selected = context.selected_asset_keys
    stages = [s for s in _FUNCTIONS if dg.AssetKey(naming.asset_key(table.id, s)) in selected]
    step = step_context(context, table, identities)
    run = PartitionRun(context, table, step, stages, _done_before(context, table))
    run.run(_windows(context, table))


def step_context(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, table: TableDefinition, identities: Iterable[str] = ()
) -> StepContext:
    """What the steps of a table are given in a run."""
    report = table.spec.dump.report
    return StepContext(
        table=table,
        source=getattr(context.resources, table.spec.connection).open(),
        deleter=getattr(context.resources, table.spec.cleanup.connection).open()
        if table.spec.cleanup.connection
        else None,
        reports=getattr(context.resources, report.connection).open() if report and report.connection else None,
        exports=getattr(context.resources, table.spec.store).open(),
        archive=getattr(context.resources, table.spec.archive).open(),
        catalog=context.resources.catalog.open(),
        run_id=context.run.run_id,
        upstream_run_id=context.run.tags.get(UPSTREAM_TAG, ""),
        progress=Reporter(context, table),
        signer=context.resources.signing.open().signer,
        keyring=sum((getattr(context.resources, key).open() for key in identities), NO_KEYS),
    )


def _keep_storage_connected(instance: dg.DagsterInstance) -> None:
    """Let Dagster's storage keep its connection between events, as it does in the web server.

    A run otherwise connects three to four times an event, which is most of what a small partition costs. Connections
    are renewed before a proxy might have cut them.
    """
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=20, max_overflow=20)


def names_partitions(run: dg.DagsterRun) -> bool:
    """Whether a run was given a partition, or a range of them."""
    return any(name in run.tags for name in ("dagster/partition", "dagster/asset_partition_range_start"))


def _windows(context: dg.AssetExecutionContext, table: TableDefinition) -> list[Window]:
    """The partitions of this run, whether it was given one or a range. A run without bounds is refused."""
    if table.spec.partitions is None:
        return [windows.window_of(None, windows.SNAPSHOT)]
    if not names_partitions(context.run):
        raise dg.Failure(
            f"this run of {table.id} names no partition, and its SQL never runs without bounds",
            metadata={"hint": "choose a partition or a range of partitions"},
            allow_retries=False,
        )
    try:
        found = [windows.window_of(table.spec.partitions, key) for key in context.partition_keys]
    except RequestError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return sorted(found, key=lambda window: window.end.timestamp() if window.end else 0)


def _done_before(context: dg.AssetExecutionContext, table: TableDefinition) -> set[tuple[Stage, str]]:
    """What an earlier attempt of this same run has done; nothing on the first attempt."""
    if not context.retry_number:
        return set()
    stages = {dg.AssetKey(naming.asset_key(table.id, stage)): stage for stage in _FUNCTIONS}
    return {
        (stages[event.asset_key], event.partition or windows.SNAPSHOT)
        for event in _materializations(context)
        if event.asset_key in stages
    }


def _materializations(context: dg.AssetExecutionContext) -> Iterable[dg.AssetMaterialization]:
    logs = context.instance.all_logs(context.run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return [entry.asset_materialization for entry in logs if entry.asset_materialization]
