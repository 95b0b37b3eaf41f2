"""Finds what stands still: runs that ended without a word, runs that vanished, requests that say nothing any more.

Whatever it finds goes back into the queue, up to the retries, or ends with a reason. It runs in a thread of its own and
looks only; children are ended by the worker's main thread, which it asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from dagster import DagsterRun, DagsterRunStatus

from export_pipelines.catalog.requests import Fault, RequestRow
from export_pipelines.components.request_job import REQUEST_TAG, Retries
from export_pipelines.worker.context import AT_WORK, LOST_SECONDS, OPEN, Context, age
from export_pipelines.worker.silence import Silence
from export_pipelines.worker.succeeding import report_succeeded

_GRACE_SECONDS = 8.0
"""After our start: what an earlier worker of this machine left puts its requests back by itself."""

_LOOKS = 4
"""At least, before somebody is taken for stuck: one look after a long time is none."""

_WORKERS = 3
"""A request may bring down worker after worker, none of which lives to count. One that is lost is not begun again when
it was begun so many times as often as one worker alone would begin it."""

_MANY = 1_000

Kill = Callable[[str, bool], bool]
"""Ends the child of a run, at once or (False) by an interrupt; whether there is one here."""


class Sweeper:
    """Looks at all requests under way."""

    def __init__(self, context: Context, kill: Kill, has_child: Callable[[str], bool]) -> None:
        self._context = context
        self._kill = kill
        self._has_child = has_child
        self._silence = Silence(context.silent_seconds / _LOOKS)
        self._started = time.monotonic()
        self._lost_times: Counter[str] = Counter()
        """How often the run of a request was lost, by its id. Its attempts are others: a run that ends before it begins
        is none, and one that was put back because its worker stopped was not lost."""

    def sweep(self) -> None:
        """One look. Safe at any time, and by several workers: each change is made under its own condition."""
        self._silence.look(time.time())
        rows = self._context.requests.unfinished()
        # Runs are read after the requests: one that ended meanwhile has settled its request before.
        runs = self._context.runs_of(rows)
        for row in rows:
            self._look(row, runs.get(row.run_id or ""))
        self._orphans({row.run_id for row in rows})
        if len(self._lost_times) > _MANY:
            live = {row.id for row in self._context.requests.many(list(self._lost_times)) if row.live}
            self._lost_times = Counter({each: n for each, n in self._lost_times.items() if each in live})

    def settle(self, request: str, run_id: str) -> None:
        """Look at one request of whose run the child has just ended. It may have another run by now, which is about to
        begin."""
        rows = [row for row in self._context.requests.many([request]) if row.live and row.run_id == run_id]
        runs = self._context.runs_of(rows)
        for row in rows:
            self._look(row, runs.get(row.run_id or ""), patience=0)

    def _look(self, row: RequestRow, run: DagsterRun | None, patience: float = LOST_SECONDS) -> None:
        run_id = row.run_id or ""
        if run is None or run.status is DagsterRunStatus.NOT_STARTED:
            if not self._has_child(run_id) and age(row.submitted_at) >= patience:
                self._lost(row, run, "its run was never launched")
        elif run.is_finished:
            if not self._has_child(run_id):
                self._ended(row, run)
        elif run.status in AT_WORK:
            self._at_work(row, run)

    def _at_work(self, row: RequestRow, run: DagsterRun) -> None:
        gone = self._context.executes_here(run) and not self._has_child(run.run_id)
        if row.state == "processing" and age(row.started_at) > self._context.service.max_runtime_minutes * 60:
            self._too_long(row, run)
        elif gone and time.monotonic() - self._started > _GRACE_SECONDS:
            self._break_off(row, run, "the process at work on it has ended")
        elif (silent := self._silent(row, run)) > self._context.stuck_after(row):
            self._break_off(row, run, f"it said nothing for {silent:.0f} seconds")

    def _silent(self, row: RequestRow, run: DagsterRun) -> float:
        """Seconds of silence since the last word: of the work, or of the launch of a run that has not begun to work."""
        if row.state == "processing":
            return self._silence.since(row.beat_at)
        if age(row.submitted_at) < self._context.silent_seconds:
            return 0.0
        record = self._context.instance.get_run_record_by_id(run.run_id)
        return self._silence.since(record.update_timestamp) if record else 0.0

    def _too_long(self, row: RequestRow, run: DagsterRun) -> None:
        most = self._context.service.max_runtime_minutes
        message = f"it took longer than the {most:g} minutes that a request may take"
        hint = "ask for less, or raise max_runtime_minutes of the service"
        if self._context.requests.fail(row.id, message, hint, Fault.QUESTION):
            self._context.say(f"request {row.id}: {message}")
        self._stop(row, run, message, at_once=False)

    def _break_off(self, row: RequestRow, run: DagsterRun, why: str) -> None:
        """End a run whose work stands still, and put its request back."""
        self._stop(row, run, f"Request {row.id} was taken from this run: {why}.", at_once=True)
        self._lost(row, None, why)

    def _stop(self, row: RequestRow, run: DagsterRun, message: str, *, at_once: bool) -> None:
        self._kill(run.run_id, at_once)
        if at_once or not self._has_child(run.run_id):
            # It may have succeeded since we looked.
            self.report_ended(run.run_id, row.id, message)

    def report_ended(self, run_id: str, request: str, message: str) -> None:
        """End a run in Dagster whose process is gone: as a success, if it had answered its request before."""
        row = self._context.requests.get(request)
        answered = row is not None and row.state == "succeeded" and row.run_id == run_id
        if row is None or not answered or not report_succeeded(self._context, row, message):
            self.report_failed(run_id, message)

    def report_failed(self, run_id: str, message: str) -> None:
        """End a run in Dagster that nobody executes any more."""
        run = self._context.instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return
        if run.status is DagsterRunStatus.CANCELING:
            self._context.instance.report_run_canceled(run, message)
        else:
            self._context.instance.report_run_failed(run, message)

    def _ended(self, row: RequestRow, run: DagsterRun) -> None:
        """The run has ended, and the request has not."""
        if row.cancel_at is not None or run.status is DagsterRunStatus.CANCELED:
            if self._context.requests.cancelled(row.id):
                self._context.say(f"request {row.id}: cancelled")
        else:
            self._lost(row, None, "its run broke off")

    def _lost(self, row: RequestRow, run: DagsterRun | None, why: str) -> None:
        """Back into the queue, or the end."""
        if run is not None:
            self.report_failed(run.run_id, f"Request {row.id}: {why}.")
        if row.cancel_at is not None:
            self._context.requests.cancelled(row.id)
            return
        dataset = self._context.project.datasets.get(row.dataset)
        retries = Retries.of(dataset, self._context.service).attempts if dataset else self._context.service.retries
        self._lost_times[row.id] += 1
        times = self._lost_times[row.id]
        if row.attempts >= _WORKERS * (retries + 1):
            times = row.attempts
        if times > retries:
            message = f"the work broke off {times} times; the last time {why}"
            del self._lost_times[row.id]
            if self._fails(row, message):
                self._context.say(f"request {row.id}: failed: {message}")
        elif self._context.requests.again(row.id, row.run_id or ""):
            self._context.say(f"request {row.id}: {why}; it is in the queue again")

    def _fails(self, row: RequestRow, message: str) -> bool:
        hint = "see its last run in Dagster" + (f"; before that: {row.error}" if row.error else "")
        return self._context.requests.fail(row.id, message, hint) is not None

    def _orphans(self, known: set[str | None]) -> None:
        """Runs that were made, are queued or are at work for no request any more."""
        runs = self._context.runs(*OPEN)
        loose = {run.tags.get(REQUEST_TAG, ""): run for run in runs.values() if run.run_id not in known}
        if not loose:
            return
        live = {row.id: row.run_id for row in self._context.requests.many(list(loose)) if row.live}
        for request, run in loose.items():
            if live.get(request) == run.run_id or self._has_child(run.run_id):
                continue
            if run.status in (DagsterRunStatus.NOT_STARTED, DagsterRunStatus.QUEUED):
                self._context.instance.report_run_canceled(run, "Its request is not wanted any more.")
            elif self._context.executes_here(run) and time.monotonic() - self._started > _GRACE_SECONDS:
                self.report_ended(run.run_id, request, "Its process has ended, and its request before it.")
