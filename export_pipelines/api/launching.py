"""Runs of tables that the service starts: created as the UI would, and put into Dagster's queue."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from export_pipelines import windows
from export_pipelines.components.opening import unset_variable
from export_pipelines.errors import RequestError
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.table import TableDefinition

if TYPE_CHECKING:
    from export_pipelines.api.service import Service
    from export_pipelines.components.project import Project

TABLE_TAG = "export_pipelines/table"
USER_TAG = "export_pipelines/user"
_UNDER_WAY = ("NOT_STARTED", "QUEUED", "STARTING", "STARTED")
_STATUS = {
    "NOT_STARTED": "Pending", "QUEUED": "Pending", "STARTING": "Processing", "STARTED": "Processing",
    "CANCELING": "Processing", "SUCCESS": "Succeeded", "FAILURE": "Failed", "CANCELED": "Cancelled",
}  # fmt: skip


@dataclass(frozen=True)
class Started:
    """What became of the wish to export a table."""

    table: TableDefinition
    partition: str | None = None
    run_id: str | None = None
    why_not: str = ""
    """Why there is no run."""


class TableRuns:
    """Starts and finds runs of tables. Safe for threads."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._made: tuple[Project, Any] | None = None

    def start(self, table: TableDefinition, user: str) -> Started:
        """Start the chain of the newest partition that is over. One that is under way already is not started twice."""
        from export_pipelines.components.automation import Stage
        from export_pipelines.components.requests import run_requests

        if why_not := self._why_not(table):
            return Started(table, why_not=why_not)
        closed = windows.closed_windows(table.spec.partitions, datetime.now(UTC))
        if not closed:
            return Started(table, why_not="no partition is over yet")
        cause = f"api-{time.time_ns()}"
        (request,) = run_requests(table, Stage.CHAIN, closed[-1:], cause, {USER_TAG: user})
        with self._lock, self._service.pool.transaction() as cursor:
            # Two calls at once, here or in another process, start one run.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 2))", (table.id,))
            run_id = self._running(request) or self._submit(request)
        return Started(table, request.partition_key, run_id)

    def runs(self, table: TableDefinition, limit: int, cursor: str | None) -> list[dict[str, Any]]:
        """Runs of a table, newest first; `cursor` is the id of the last one of the page before."""
        import dagster as dg

        found = self._service.versions.instance().get_run_records(
            dg.RunsFilter(tags={TABLE_TAG: table.id}), limit=limit, cursor=cursor
        )
        return [_described(each) for each in found]

    def load(self, load: LoadDefinition, names: Sequence[str], user: str) -> str:
        """Start the job of a table to load for what has landed under some names; the run's id."""
        import dagster as dg

        from export_pipelines.components.load_assets import load_job_name, load_op_name

        config = {"names": list(names), "land": False}
        request = dg.RunRequest(
            job_name=load_job_name(load.id),
            run_config={"ops": {load_op_name(load.id): {"config": config}}},
            tags={USER_TAG: user},
        )
        with self._lock:
            return self._submit(request)

    def state(self, run_id: str) -> tuple[str, str]:
        """Status of a run, and the reason of its failure."""
        import dagster as dg

        instance = self._service.versions.instance()
        run = instance.get_run_by_id(run_id)
        if run is None:
            return "Failed", "the run is gone"
        if run.status is not dg.DagsterRunStatus.FAILURE:
            return _STATUS.get(run.status.value, "Pending"), ""
        return "Failed", _reason(instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE))

    def percent_read(self, run_id: str) -> int | None:
        """How much of its landed file the load of a run has read, as it told last; None if it told nothing yet."""
        import dagster as dg

        from export_pipelines.components.progress import PERCENT

        told = self._service.versions.instance().get_records_for_run(
            run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION, limit=1, ascending=False
        )
        observation = told.records[0].asset_observation if told.records else None
        found = observation.metadata.get(PERCENT) if observation else None
        return int(found.value) if found else None

    def _why_not(self, table: TableDefinition) -> str:
        from export_pipelines.components.tables import required_resources

        resources = self._service.project.resources
        unset = (unset_variable(resources[key]) for key in required_resources(table) if key in resources)
        name = next((each for each in unset if each), "")
        return f"the variable {name} is not set" if name else ""

    def _running(self, request: Any) -> str | None:
        import dagster as dg

        tags = {"dagster/partition": request.partition_key} if request.partition_key else {}
        found = self._service.versions.instance().get_runs(
            dg.RunsFilter(
                job_name=request.job_name,
                statuses=[dg.DagsterRunStatus(each) for each in _UNDER_WAY],
                tags={**tags, **{k: v for k, v in request.tags.items() if k.startswith("dagster/")}},
            ),
            limit=1,
        )
        return found[0].run_id if found else None

    def _submit(self, request: Any) -> str:
        """Create a run and put it into the queue; its id."""
        from dagster._core.events import DagsterEvent
        from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin
        from dagster._core.remote_origin import RemoteJobOrigin

        from export_pipelines.components.run_origin import know_pools, repository_origin

        instance, root = self._service.versions.instance(), self._service.settings.root
        repository = self._repository()
        job = repository.get_job(request.job_name)
        origin = repository_origin(root, repository.name)
        if origin is None:
            raise RequestError(
                "workspace.yaml does not name export_pipelines.definitions, so that nobody would execute a run",
                hint="compare it with the one that `export-pipelines init` writes",
            )
        pointer = origin.code_location_origin.loadable_target_origin
        python = RepositoryPythonOrigin(
            executable_path=pointer.executable_path or sys.executable,
            code_pointer=_pointer(pointer, root),
            entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
        )
        know_pools(instance, job)
        partition = job.get_tags_for_partition_key(request.partition_key, None) if request.partition_key else {}
        run = instance.create_run_for_job(
            job,
            run_config=dict(request.run_config or {}),
            tags={**job.run_tags, **request.tags, **partition},
            remote_job_origin=RemoteJobOrigin(origin, job.name),
            job_code_origin=JobPythonOrigin(job.name, python),
        )
        # What its run coordinator, which wants a whole workspace for it, does in the end.
        instance.report_dagster_event(DagsterEvent.job_enqueue(run), run_id=run.run_id)
        return str(run.run_id)

    def _repository(self) -> Any:
        """The definitions of the project as it is now."""
        project = self._service.project
        if self._made is None or self._made[0] is not project:
            self._made = (project, project.definitions().get_repository_def())
        return self._made[1]


def _reason(events: Sequence[Any]) -> str:
    """What the last failure of a step said; what is inside stays inside."""
    for each in reversed(events):
        data = each.dagster_event.step_failure_data if each.dagster_event else None
        if data is not None and data.user_failure_data is not None:
            return str(data.user_failure_data.description or "")
    return "the run failed; its log in Dagster says why"


def _pointer(target: Any, root: Any) -> Any:
    from dagster._core.code_pointer import CodePointer

    return CodePointer.from_module(
        target.module_name, target.attribute or "defs", str(target.working_directory or root)
    )


def _described(record: Any) -> dict[str, Any]:
    run = record.dagster_run
    tags = run.tags
    first, last = (tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end"))
    partition = tags.get("dagster/partition") or (f"{first}…{last}" if first else None)
    return {
        "id": run.run_id,
        "status": _STATUS.get(run.status.value, "Pending"),
        "stage": run.job_name.rpartition("_")[2],
        "partition": partition,
        "user": tags.get(USER_TAG, ""),
        "created_at": record.create_timestamp.replace(tzinfo=UTC)
        if record.create_timestamp.tzinfo is None
        else record.create_timestamp,
        "started_at": _moment(record.start_time),
        "finished_at": _moment(record.end_time),
    }


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
