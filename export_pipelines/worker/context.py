"""What the parts of the worker work with."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import DagsterRunStatus

from export_pipelines.catalog.pool import CatalogPool
from export_pipelines.catalog.requests import RequestRow, Requests
from export_pipelines.components.project import Project, load_project
from export_pipelines.components.request_job import MAX_DELAY_SECONDS, Retries
from export_pipelines.components.warm_launcher import QUEUE_TAG, WORKER_TAG
from export_pipelines.settings import Settings
from export_pipelines.specs.service import ServiceSpec

AT_WORK = (DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
OPEN = (*AT_WORK, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.QUEUED)

LOST_SECONDS = 10.0
"""A request has a run which is nowhere, or which nobody has launched, for so long: it will not come."""
_RECYCLE_SECONDS = 60

SILENT_SECONDS = 60.0
"""A request at work that has not told its progress for so long is stuck."""


@dataclass
class Context:
    """The project, and the two places where its state is: our catalog and Dagster's storage."""

    settings: Settings
    project: Project
    pool: CatalogPool
    instance: dg.DagsterInstance
    say: Callable[[str], object]
    silent_seconds: float = SILENT_SECONDS
    host: str = field(default_factory=socket.gethostname)

    @property
    def requests(self) -> Requests:
        """The requests in the catalog."""
        return Requests(self.pool)

    @property
    def service(self) -> ServiceSpec:
        """The service's settings."""
        return self.project.service

    @property
    def tag(self) -> str:
        """Value of WORKER_TAG: which process, of which machine, executes a run."""
        return json.dumps({"host": self.host, "pid": os.getpid()})

    def reload(self) -> None:
        """Read the project anew. Connections stay."""
        self.project = load_project(self.settings.root, self.settings.dsl_path, automations=False)

    def runs(self, *statuses: DagsterRunStatus) -> dict[str, dg.DagsterRun]:
        """Runs of requests in some states, by id."""
        filters = dg.RunsFilter(statuses=list(statuses), tags={QUEUE_TAG: "requests"})
        return {run.run_id: run for run in self.instance.get_runs(filters)}

    def runs_of(self, rows: list[RequestRow]) -> dict[str, dg.DagsterRun]:
        """The runs of some requests, by id, as far as there are any."""
        ids = [row.run_id for row in rows if row.run_id]
        return {run.run_id: run for run in self.instance.get_runs(dg.RunsFilter(run_ids=ids))} if ids else {}

    def stuck_after(self, row: RequestRow) -> float:
        """Seconds of silence after which a request is stuck: it says nothing while it waits for its next attempt."""
        dataset = self.project.datasets.get(row.dataset)
        if dataset is None:
            return self.silent_seconds + MAX_DELAY_SECONDS
        retries = Retries.of(dataset, self.service)
        return self.silent_seconds + (retries.delay(retries.attempts - 1) if retries.attempts else 0)

    def executes_here(self, run: dg.DagsterRun) -> bool:
        """Whether a worker of this machine, this or an earlier one, has begun a run."""
        return bool(worker_of(run).get("host") == self.host)


def age(moment: datetime | None) -> float:
    """Seconds since a time, 0 if there is none."""
    return (datetime.now(UTC) - moment).total_seconds() if moment else 0.0


def worker_of(run: dg.DagsterRun) -> dict[str, Any]:
    """Host and process id of the worker that executes a run; empty if none does."""
    try:
        found = json.loads(run.tags.get(WORKER_TAG, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def keep_connected(instance: dg.DagsterInstance) -> None:
    """Let Dagster's storage keep its connections, and remember of its tables what cannot change meanwhile: as it comes,
    it connects for each event, and asks for the columns of `runs` several times a run."""
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=_RECYCLE_SECONDS, max_overflow=-1)
    for each in (instance.run_storage, instance.event_log_storage):
        engine = getattr(each, "_engine", None)
        if engine is not None:
            # What was cut meanwhile is noticed before it is used.
            engine.pool._pre_ping = True
    storage: Any = instance.run_storage
    if hasattr(storage, "has_run_stats_index_cols"):
        storage.has_run_stats_index_cols = cache(storage.has_run_stats_index_cols)
