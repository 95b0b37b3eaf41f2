"""Tells operators of what needs them, by e-mail and webhook: once a cause, with its hint and a link to the run."""

from __future__ import annotations

import json
import logging
import re
import smtplib
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, ScheduleInstigatorData
from dagster._utils.schedules import schedule_execution_time_iterator

from export_pipelines.components import run_feed
from export_pipelines.components.automation import FailureNoticeSpec
from export_pipelines.components.load_assets import LOAD_TAG, LoadAssets
from export_pipelines.components.resources import from_environment
from export_pipelines.components.sensors import sensor_status
from export_pipelines.components.tables import CHECKS, CHECKS_TAG, TableAssets, asset_key
from export_pipelines.components.transforms import TransformAssets
from export_pipelines.mail import TIMEOUT, MailServer, send_mail

GRACE = 300.0
"""Seconds that a schedule may be behind, as after a restart of the daemon."""

WATCHED = (*run_feed.SUCCEEDED, dg.DagsterEventType.RUN_FAILURE)


@dataclass(frozen=True)
class Notice:
    """Something to tell. The same `cause` is not told again for a while."""

    cause: str
    title: str
    text: str
    hint: str
    link: str
    table: str
    run_id: str
    owners: Sequence[str] = ()
    """Addresses that are told, too."""


def failure_notice(
    spec: FailureNoticeSpec, tables: Sequence[TableAssets], loads: Sequence[LoadAssets | TransformAssets] = ()
) -> dg.SensorDefinition:
    """A sensor that tells of failed runs (refused cleanups among them), of failed checks such as late rows, and of
    schedules that are on and were missed twice in a row.

    A notice that cannot be sent waits in the cursor for the next tick. If none can be sent, the tick fails, for all to
    see, and the next begins where this one did.
    """

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        state = json.loads(context.cursor) if context.cursor else {}
        runs, position = run_feed.finished_runs(context.instance, state.get("runs"), WATCHED)
        now = time.time()
        told = {cause: at for cause, at in state.get("told", {}).items() if at > now - spec.repeat_hours * 3600}
        waiting = [Notice(**each) for each in state.get("waiting", ())]
        found = [notice for run in runs for notice in _notices(context.instance, run, spec, tables, loads)]
        for notice in [*found, *_missed(context, spec, tables, now)]:
            if notice.cause not in told:
                told[notice.cause] = now
                waiting.append(notice)
        waiting = _send_all(spec, waiting, context.log)
        following = {"runs": position, "told": told, "waiting": [asdict(each) for each in waiting]}
        return dg.SensorResult(cursor=json.dumps(following))

    return dg.SensorDefinition(
        name=spec.name,
        evaluation_fn=evaluate,
        minimum_interval_seconds=spec.interval_seconds,
        default_status=sensor_status(spec),
        description=spec.description or FailureNoticeSpec.__doc__,
    )


def _send_all(spec: FailureNoticeSpec, notices: Sequence[Notice], log: logging.Logger) -> list[Notice]:
    """Send each; return those that could not be sent. Raises the first error if there was not one success."""
    failed: list[tuple[Notice, Exception]] = []
    for notice in notices:
        try:
            send(spec, notice)
        except (OSError, smtplib.SMTPException) as error:
            log.error("cannot tell of %r: %s", notice.title, error)
            failed.append((notice, error))
    if failed and len(failed) == len(notices):
        raise failed[0][1]
    return [notice for notice, _ in failed]


def _cause(text: str) -> str:
    """What the same trouble in other partitions and runs has in common: the text without its numbers."""
    return re.sub(r"\d+", "#", text)[:500]


def _notices(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    spec: FailureNoticeSpec,
    tables: Sequence[TableAssets],
    loads: Sequence[LoadAssets | TransformAssets],
) -> Iterator[Notice]:
    load = _load_of(run, loads)
    table = load.definition.id if load else _table_of(run, tables)
    if table is None:
        return
    owners = [each for each in load.definition.spec.owners if "@" in each] if load and spec.email_owners else []
    link = f"{from_environment(spec.ui_url).rstrip('/')}/runs/{run.run_id}"
    if run.status is dg.DagsterRunStatus.FAILURE:
        text, hint = _reason(instance, run)
        yield Notice(_cause(f"{table}: {text}"), f"{table}: a run failed", text, hint, link, table, run.run_id, owners)
    archives = {asset_key(each.table, "archive"): each.table.id for each in tables}
    for check in _failed_checks(instance, run):
        if CHECKS_TAG in run.tags:
            if check.asset_key not in archives:
                continue
            table = archives[check.asset_key]
        where = f" {check.partition}" if check.partition else ""
        text = f"{check.check_name} of {check.asset_key.to_user_string()}{where}: {check.description or 'failed'}"
        hint = "run the export of this partition again" if check.check_name == "no_late_rows" else "see the run"
        title = f"{table}: check {check.check_name} failed"
        yield Notice(_cause(text), title, text, hint, link, table, run.run_id, owners)


def _missed(
    context: dg.SensorEvaluationContext, spec: FailureNoticeSpec, tables: Sequence[TableAssets], now: float
) -> Iterator[Notice]:
    """Schedules of the tables that are on, and that the scheduler has passed over twice or more."""
    if context.instance.schedule_storage is None:
        return
    jobs = {job.name: each.table.id for each in tables for job in each.jobs.values()}
    own = {each.name: each for each in context.repository_def.schedule_defs} if context.repository_def else {}
    for state in context.instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE):
        schedule = own.get(state.name)
        if schedule is None or schedule.job_name not in jobs or state.status is not InstigatorStatus.RUNNING:
            continue
        last = _last_tick(context.instance, state)
        times = schedule_execution_time_iterator(last + 1, schedule.cron_schedule, schedule.execution_timezone)
        next(times)
        if last and next(times).timestamp() + GRACE < now:
            table = jobs[schedule.job_name]
            text = f"schedule {state.name} has not ticked since {datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M} UTC"
            hint = "does the daemon run, and does the code location load? Run what was missed by a backfill"
            link = f"{from_environment(spec.ui_url).rstrip('/')}/automation"
            yield Notice(f"missed {state.name}", f"{table}: a schedule was missed", text, hint, link, table, "")


def _last_tick(instance: dg.DagsterInstance, state: InstigatorState) -> float:
    """When the scheduler last looked at a schedule, else when that was switched on; 0 if neither is known."""
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    data = state.instigator_data
    # Ticks are purged after a while; the scheduler's own mark stays.
    known = (data.start_timestamp, data.last_iteration_timestamp) if isinstance(data, ScheduleInstigatorData) else ()
    return max([0.0, *(tick.timestamp for tick in ticks), *(each or 0.0 for each in known)])


def _table_of(run: dg.DagsterRun, tables: Sequence[TableAssets]) -> str | None:
    """Id of the table that a run was for."""
    if name := run.tags.get("export_pipelines/table"):
        return name if any(each.table.id == name for each in tables) else None
    if name := run.tags.get(CHECKS_TAG):
        return name
    selected = run.asset_selection or frozenset()
    own = [each.table.id for each in tables if any(asset_key(each.table, stage) in selected for stage in CHECKS)]
    return ", ".join(own) or None


def _load_of(run: dg.DagsterRun, loads: Sequence[LoadAssets | TransformAssets]) -> LoadAssets | TransformAssets | None:
    """The table to load or the transform that a run was for."""
    name, selected = run.tags.get(LOAD_TAG), run.asset_selection or frozenset()
    return next((each for each in loads if each.definition.id == name or selected & each.steps.keys), None)


def _reason(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[str, str]:
    """What a failed run says, and its hint."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        failure = entry.dagster_event.step_failure_data if entry.dagster_event else None
        data = failure.user_failure_data if failure else None
        if data and data.description:
            hint = data.metadata.get("hint")
            return data.description, str(hint.value) if hint else ""
        if failure and failure.error:
            return failure.error.message.strip(), "see the run"
    return "the run ended before its work began, or its process was lost", "see the run's log; it may be run again"


def _failed_checks(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[Any]:
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        event = entry.dagster_event
        if event and not event.asset_check_evaluation_data.passed:
            yield event.asset_check_evaluation_data


def send(spec: FailureNoticeSpec, notice: Notice) -> None:
    """Send by all ways that the spec names. Raises OSError or smtplib.SMTPException if one fails."""
    if spec.webhook_url:
        _post(from_environment(spec.webhook_url), notice)
    if spec.email_to or notice.owners:
        _mail(spec, notice)


def _post(url: str, notice: Notice) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("the webhook's URL is neither http:// nor https://")
    body = json.dumps(asdict(notice)).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            reply.read(1)
    except ValueError:
        # Its text quotes the URL, which is a secret.
        raise ValueError("the webhook's URL is not valid; has it a space or a line end?") from None


def _mail(spec: FailureNoticeSpec, notice: Notice) -> None:
    message = EmailMessage()
    message["Subject"] = notice.title
    message["From"] = spec.email_from
    message["To"] = ", ".join(dict.fromkeys((*spec.email_to, *notice.owners)))
    message.set_content(f"{notice.text}\n\nhint: {notice.hint or 'see the run'}\n\n{notice.link}\n")
    with_login = spec.smtp_user and spec.smtp_password
    server = MailServer(
        from_environment(spec.smtp_host),
        spec.smtp_port,
        spec.smtp_security,
        from_environment(spec.smtp_user) if spec.smtp_user and with_login else None,
        from_environment(spec.smtp_password) if spec.smtp_password and with_login else None,
    )
    send_mail(server, message)
