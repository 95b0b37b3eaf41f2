"""Runs in Dagster's instance, executed in this process: no daemon, web server or code server is needed.

The run is created as a launcher would find it – job, tags, partitions, the code location it belongs to – so that the UI
shows it like any other and can execute it again. Only its worker is this process. What it prints goes to the run's own
log, as that of other workers does; a termination in the UI, which has no worker to tell, is seen by asking for it.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.api import execute_run_iterator
from dagster._core.remote_origin import RemoteJobOrigin
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX
from dagster._utils.interrupts import capture_interrupts

from export_pipelines import naming
from export_pipelines.components.run_origin import know_pools, repository_origin
from export_pipelines.local.children import lives

# Hidden ones: in the UI's list of runs they would crowd out those that people look for.
HOST_TAG = f"{HIDDEN_TAG_PREFIX}export_pipelines_cli_host"
PID_TAG = f"{HIDDEN_TAG_PREFIX}export_pipelines_cli_pid"
_ASK_SECONDS = 1.5
_RECYCLE_SECONDS = 60
_BATCH = 500


@dataclass
class RunResult:
    """How a run ended. `materializations` are in the order in which they were made."""

    run_id: str
    status: str = ""
    errors: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def succeeded(self) -> bool:
        return self.status == dg.DagsterRunStatus.SUCCESS.value


@dataclass(frozen=True)
class Event:
    """Something that a run told: a materialisation, an observation, or a warning or an error in its log."""

    kind: str
    step: str = ""
    """Of the table that the run is of; empty for what concerns no asset."""
    partition: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    text: str = ""


class Launcher:
    """Creates and executes runs of a project's jobs."""

    def __init__(self, instance: dg.DagsterInstance, definitions: dg.Definitions, root: Path) -> None:
        # Events of what is planned, one a partition and stage, are written together.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(_BATCH))
        # Dagster would connect anew for each event, which takes longer than all else of a small partition.
        instance.optimize_for_webserver(statement_timeout=0, pool_recycle=_RECYCLE_SECONDS, max_overflow=-1)
        self._instance = instance
        self._repository = definitions.get_repository_def()
        self._origin = repository_origin(root, self._repository.name)

    def run(self, request: dg.RunRequest, listen: Callable[[Event], None]) -> RunResult:
        """Create and execute a run; `listen` is told of what it does, in this thread and while it is under way.

        Raises:
            KeyboardInterrupt: Ctrl-C, or somebody terminated the run; it ended as cancelled.
        """
        job = self._repository.get_job(request.job_name or "")
        know_pools(self._instance, job)
        run = self._instance.create_run_for_job(
            job,
            run_config=request.run_config or None,
            tags=self._tags(job, request),
            remote_job_origin=RemoteJobOrigin(self._origin, job.name) if self._origin else None,
        )
        result = RunResult(run.run_id)

        def heard(entry: Any) -> None:
            if _is_interruption(entry):
                # Ctrl-C: without a request to terminate it, Dagster would take the run for a failed one.
                self._cancel(run.run_id)
            event = _event_of(entry)
            if event is not None:
                if event.kind == "error":
                    result.errors.append(event.text)
                listen(event)

        self._instance.add_event_listener(run.run_id, heard)
        with capture_interrupts(), _own_log(), _terminable(self._instance, run.run_id):
            try:
                for event in execute_run_iterator(InMemoryJob(job), run, self._instance):
                    if event.is_step_failure:
                        result.failure = _failure_text(event)
                    elif event.is_job_failure and not result.failure:
                        # Nothing of ours failed, but Dagster around it.
                        error = event.job_failure_data.error
                        result.failure = without_class_path(error.message.strip()) if error else event.message or ""
            except DagsterExecutionInterruptedError as error:
                raise KeyboardInterrupt from error
        ended = self._instance.get_run_by_id(run.run_id)
        result.status = ended.status.value if ended else ""
        return result

    def _cancel(self, run_id: str) -> None:
        run = self._instance.get_run_by_id(run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            self._instance.report_run_canceling(run)

    def _tags(self, job: Any, request: dg.RunRequest) -> dict[str, str]:
        partition = job.get_tags_for_partition_key(request.partition_key, None) if request.partition_key else {}
        # Not to be tried again by the daemon: whoever typed the command sees that it failed.
        own = {HOST_TAG: socket.gethostname(), PID_TAG: str(os.getpid()), "dagster/max_retries": "0"}
        return {**job.run_tags, **request.tags, **partition, **own}

    def end_orphans(self) -> list[str]:
        """Mark runs of this command line as failed whose process is gone from this machine; return their ids."""
        filters = dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING],
            tags={HOST_TAG: socket.gethostname()},
        )
        orphans = [run for run in self._instance.get_runs(filters) if not lives(int(run.tags.get(PID_TAG, "0")))]
        for run in orphans:
            self._instance.report_run_failed(run, "The process that executed this run has ended.")
        return [run.run_id for run in orphans]


def _is_interruption(entry: Any) -> bool:
    event = entry.dagster_event
    if event is None or not event.is_step_failure:
        return False
    error = event.step_failure_data.error
    return error is not None and error.cls_name in ("DagsterExecutionInterruptedError", "KeyboardInterrupt")


def _event_of(entry: Any) -> Event | None:
    event = entry.dagster_event
    if event is None:
        kind = "error" if entry.level >= logging.ERROR else "warning"
        return Event(kind, text=entry.user_message) if entry.level >= logging.WARNING else None
    if event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION:
        made, kind = event.step_materialization_data.materialization, "materialization"
    elif event.event_type is dg.DagsterEventType.ASSET_OBSERVATION:
        made, kind = event.asset_observation_data.asset_observation, "observation"
    else:
        return None
    metadata = {name: value.value for name, value in made.metadata.items()}
    return Event(kind, naming.step_of(made.asset_key.path), made.partition, metadata, made.description or "")


def _failure_text(event: Any) -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return without_class_path(error.message.strip()) if error else "the step failed"


def without_class_path(text: str) -> str:
    """An error as Dagster serializes it, without the class (ours) or without its module (of others)."""
    text = re.sub(r"^export_pipelines\.errors\.\w+: ", "", text)
    return re.sub(r"^(?:[A-Za-z_]\w*\.)+(?=\w+: )", "", text)


def terminal() -> TextIO:
    """Stderr as it is now, by a descriptor of its own: it still leads to the terminal while a run has ours."""
    return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace")


@contextmanager
def _own_log() -> Iterator[None]:
    """Keep what a run prints off the terminal (unless --verbose): Dagster copies it into the run's log files."""
    if os.environ.get("EXPORT_PIPELINES_VERBOSE"):
        yield
        return
    saved = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(nowhere, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)


@contextmanager
def _terminable(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Interrupt ourselves when somebody terminates the run in the UI."""
    over = threading.Event()
    ending = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)

    def watch() -> None:
        while not over.wait(_ASK_SECONDS):
            with suppress(Exception):  # the storage is away for a moment
                run = instance.get_run_by_id(run_id)
                if run is not None and run.status in ending:
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    watcher = threading.Thread(target=watch, name="termination", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(_ASK_SECONDS)
