"""Dagster's run launcher of this project: runs of requests are executed by a child of the worker's warm process.

Such a process has everything imported, so that a run begins in a fraction of the second that a new one takes. All other
runs, and those of requests while no worker is there, go the default way. dagster.yaml names this class; daemon and web
server import it, so nothing heavy may be imported here.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from dagster import Field, StringSource
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.dagster_run import DagsterRun
from dagster._serdes import ConfigurableClassData

from export_pipelines.local.children import lives

WORKER_TAG = ".dagster/export_pipelines_worker"
"""Of a run: the host and the process that execute it, as JSON."""
QUEUE_TAG = "export_pipelines/request_queue"
_SECONDS = 10.0
_MOST_BYTES = 65_536


class WorkerAway(Exception):
    """There is no worker at the socket, or it does not answer."""


def ask_worker(path: str | Path, question: Mapping[str, Any], *, seconds: float = _SECONDS) -> dict[str, Any]:
    """Send a question to the worker of this machine and return its answer. One line of JSON each.

    Raises:
        WorkerAway: nobody answers.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline(_MOST_BYTES))
    except (OSError, ValueError) as error:
        raise WorkerAway(str(error)) from error
    if not isinstance(answer, dict):
        raise WorkerAway("no answer")
    return answer


class WarmRunLauncher(DefaultRunLauncher):
    """Launches runs of requests in the worker of this machine, and others by the default launcher."""

    def __init__(self, worker_socket: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data=inst_data)
        self._socket = worker_socket

    @classmethod
    def config_type(cls) -> Any:
        return {"socket": Field(StringSource, description="Path of the worker's Unix socket.")}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        return cls(worker_socket=config_value["socket"], inst_data=inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Hand the run to the worker. It may be launched twice: the worker knows what it has begun.

        Where the worker answers in vain, or not at all, the default launcher starts the run: later, not never.
        """
        run = context.dagster_run
        if QUEUE_TAG in run.tags:
            with suppress(WorkerAway):
                if ask_worker(self._socket, {"do": "launch", "run": run.run_id}).get("ok"):
                    return
        super().launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run: it ends as cancelled."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished or not _is_ours(run):
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        with suppress(WorkerAway):
            if ask_worker(self._socket, {"do": "interrupt", "run": run_id}).get("ok"):
                return True
        # Another machine's worker sees for itself that the run is to end.
        return not _is_here(run)

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a run is there. Of those that others launched nothing is known: they count as well."""
        if not _is_ours(run) or not _is_here(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not watched by this launcher")
        try:
            answer = ask_worker(self._socket, {"do": "health", "run": run.run_id})
        except WorkerAway:
            alive = _process_lives(_worker_of(run).get("pid"))
            return CheckRunHealthResult(WorkerStatus.RUNNING if alive else WorkerStatus.NOT_FOUND, "no worker answers")
        if answer.get("alive"):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the worker does not know the run")


def _worker_of(run: DagsterRun) -> dict[str, Any]:
    try:
        found = json.loads(run.tags.get(WORKER_TAG, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(run: DagsterRun) -> bool:
    return WORKER_TAG in run.tags


def _is_here(run: DagsterRun) -> bool:
    return _worker_of(run).get("host") == socket.gethostname()


def _process_lives(pid: object) -> bool:
    """Whether the worker that began the run is there; its children end with it."""
    return isinstance(pid, int) and pid > 0 and lives(pid)
