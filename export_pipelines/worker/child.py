"""What a child of the warm process does: make a run, queue it or execute it, and end."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from types import FrameType
from typing import Any, BinaryIO

import dagster as dg

from export_pipelines.components.request_job import job_name, requests_of, run_config, run_tags
from export_pipelines.settings import Settings
from export_pipelines.worker.context import keep_connected

_PRELOADED = (
    "_strptime",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "dagster._core.execution.plan.active",
    "dagster._core.execution.plan.inputs",
    "dagster._core.executor.in_process",
    "dagster._core.instance.runs.run_domain",
    "dagster._core.storage.noop_compute_log_manager",
    "dagster._core.system_config.composite_descent",
    "dagster_postgres",
    "dateutil.easter",
    "export_pipelines.catalog.requests",
    "export_pipelines.service_keys",
    "grp",
    "isal.igzip",
    "isal.igzip_threaded",
    "isal.isal_zlib",
    "orjson",
    "psycopg2.extras",
    "pyrage",
    "sqlalchemy.dialects.postgresql",
    "zoneinfo",
    "zstandard",
)
_OUR_PACKAGES = ("formats", "sources", "steps", "stores")
_PR_SET_PDEATHSIG = 1

_NICE = 10
"""Work yields the processor to the API, to Dagster and to the databases: whoever asks is answered at once, however many
exports are at work."""

MOST_TASKS = 50
"""Tasks of a child, after which another one takes its place: whatever a library holds on to goes with it."""
MOST_MEGABYTES = 400
"""A child that has needed more is not kept either."""


@dataclass
class Prepared:
    """What children share: the project as it was read."""

    settings: Settings
    project: Any
    repository: Any
    origin: Any
    catalog: tuple[str, str]
    errors: list[str] = field(default_factory=list)

    @cached_property
    def jobs(self) -> dict[str, Any]:
        """Jobs of the data sets, by their ids."""
        return {id: self.repository.get_job(job_name(each)) for id, each in self.project.datasets.items()}


def prepare() -> Prepared:
    """Read the project and import what a run may need. Nothing is connected to, and no thread is started."""
    from export_pipelines import settings as settings_module
    from export_pipelines.components.opening import initialized
    from export_pipelines.components.project import load_project
    from export_pipelines.components.run_origin import repository_origin

    settings = settings_module.load_settings()
    settings_module.apply(settings)
    project = load_project(settings.root, settings.dsl_path)
    repository = project.definitions().get_repository_def()
    catalog = initialized("catalog", project.resources["catalog"])
    prepared = Prepared(
        settings,
        project,
        repository,
        repository_origin(settings.root, repository.name),
        (catalog.url, catalog.schema_name),
        [str(each) for each in project.service_errors],
    )
    for name in (*_PRELOADED, *_ours(), *_more(prepared)):
        with suppress(ImportError):
            importlib.import_module(name)
    if "pyarrow" in sys.modules:
        _arrow_without_pandas()
    for job in prepared.jobs.values():
        # Computed once and kept by the job: each of its runs stores them.
        job.get_job_snapshot_id()
        job.get_parent_job_snapshot()
    return prepared


class _NoPandas:
    """As if it were not installed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name.partition(".")[0] == "pandas":
            raise ImportError("not in this process")


def _arrow_without_pandas() -> None:
    """Let pyarrow look for pandas in vain, once: it would import it with its first array, which takes longer than most
    runs, and serves nobody here."""
    import pyarrow

    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)
    try:
        pyarrow.array([""])
    finally:
        sys.meta_path.remove(_NoPandas)


def _ours() -> Iterator[str]:
    """Our own modules that a run may use."""
    for package in _OUR_PACKAGES:
        name = f"export_pipelines.{package}"
        for found in pkgutil.iter_modules(importlib.import_module(name).__path__):
            # Those that adopt and restore archives have nothing to do with requests.
            if package != "steps" or found.name.startswith("request"):
                yield f"{name}.{found.name}"


def _more(prepared: Prepared) -> tuple[str, ...]:
    """Heavy libraries that some data set or the store needs."""
    found = []
    datasets = prepared.project.datasets.values()
    if datasets:
        found += ["pyarrow", "pyarrow.compute", "pyarrow.csv"]
    if any("parquet" in each.spec.formats for each in datasets):
        found.append("pyarrow.parquet")
    if any(each.engine == "opensearch" for each in datasets):
        found.append("opensearchpy")
    if any(each.engine == "mysql" for each in datasets):
        found.append("pymysql")
    if "S3" in type(prepared.project.resources.get(prepared.project.service.store)).__name__:
        found += ["boto3", "botocore.session"]
    return tuple(found)


def be_a_child(control: socket.socket, prepared: Prepared, parent: int) -> int:
    """Connect, and do what comes, one task a line, until there is nothing more; the exit code.

    {"do": "run", "key": …, "request": …, "run": …, "host": …, "make": bool, "queue": bool}: make the run first, if
    `make`; then leave it in Dagster's queue, if `queue`, else execute it. After one that went as it should, `{"done":
    key}` is answered. Whatever was interrupted or broke off ends the process, and so does having done many.
    """
    _arrange_signals(parent)
    instance = dg.DagsterInstance.get()
    _keep_connected(instance)
    with suppress(Exception):
        # What fails here fails again where it is told.
        _warm_up(instance, prepared)
    with control, control.makefile("rb") as stream:
        for _ in range(MOST_TASKS):
            task = _next(stream)
            if task is None:
                return 0
            outcome = do(task, instance, prepared)
            if outcome is not Outcome.DONE or _megabytes() > MOST_MEGABYTES:
                return outcome.value
            control.sendall(json.dumps({"done": task["key"]}).encode() + b"\n")
    return 0


class Outcome(IntEnum):
    """How a task went. The values are exit codes, of which 0 leaves nothing to do for the worker."""

    DONE = 0
    BROKEN_OFF = 1
    INTERRUPTED = 4
    """The run has ended and its request is settled, as a rule."""


def _next(stream: BinaryIO) -> dict[str, Any] | None:
    """The next task; None when none comes any more."""
    try:
        line = stream.readline()
    except KeyboardInterrupt:
        # It was meant for a run that had ended before it came.
        return None
    return dict(json.loads(line)) if line else None


def _megabytes() -> float:
    """Greatest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def do(task: dict[str, Any], instance: dg.DagsterInstance, prepared: Prepared) -> Outcome:
    """A task of the worker."""
    run = make_run(task, instance, prepared) if task["make"] else instance.get_run_by_id(task["run"])
    if run is None:
        return Outcome.BROKEN_OFF
    if task["queue"]:
        enqueue(instance, run)
        return Outcome.DONE
    if run.status in (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED):
        starting(instance, run)
    return execute(instance, prepared, task["run"])


def make_run(task: dict[str, Any], instance: dg.DagsterInstance, prepared: Prepared) -> dg.DagsterRun | None:
    """The run of a request, as the catalog and Dagster's UI will know it. None: the request is gone."""
    from dagster._core.remote_origin import RemoteJobOrigin

    from export_pipelines.components.warm_launcher import WORKER_TAG

    row = requests_of(*prepared.catalog).get(task["request"])
    if row is None or row.run_id != task["run"]:
        return None
    dataset = prepared.project.datasets.get(row.dataset)
    if dataset is None:
        requests_of(*prepared.catalog).fail(
            row.id,
            f"there is no data set {row.dataset!r} any more, or it is broken",
            "`export-pipelines check` says what is wrong",
        )
        return None
    job = prepared.jobs[dataset.id]
    tags = {**job.run_tags, **run_tags(row)}
    if not task["queue"]:
        tags[WORKER_TAG] = task["host"]
    return instance.create_run_for_job(
        job,
        run_id=task["run"],
        run_config=run_config(dataset, row.id),
        tags=tags,
        remote_job_origin=RemoteJobOrigin(prepared.origin, job.name) if prepared.origin else None,
    )


def enqueue(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Put a run into Dagster's queue, as its run coordinator does."""
    from dagster._core.events import DagsterEvent

    instance.report_dagster_event(DagsterEvent.job_enqueue(run), run_id=run.run_id)


def starting(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Say that a run is being launched."""
    from dagster._core.events import DagsterEvent

    event = DagsterEvent(event_type_value=dg.DagsterEventType.PIPELINE_STARTING.value, job_name=run.job_name)
    instance.report_dagster_event(event, run_id=run.run_id)


def execute(instance: dg.DagsterInstance, prepared: Prepared, run_id: str) -> Outcome:
    """Execute a run in this process. A run that fails has gone as it should, here."""
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.errors import DagsterExecutionInterruptedError
    from dagster._core.execution.api import execute_run_iterator
    from dagster._utils.interrupts import capture_interrupts

    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return Outcome.DONE
    job = prepared.repository.get_job(run.job_name)
    # SIGTERM does what SIGINT does in here.
    with capture_interrupts():
        try:
            for _ in execute_run_iterator(InMemoryJob(job), run, instance):
                pass
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            return Outcome.INTERRUPTED
    return Outcome.DONE


def _arrange_signals(parent: int) -> None:
    """End with the warm process, be deaf to the terminal's Ctrl-C no more than it is, and have own output."""
    os.setpgid(0, 0)
    os.nice(_NICE)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(0)
    if not os.environ.get("EXPORT_PIPELINES_VERBOSE"):
        # Dagster tells of each event on the terminal; all of it is in the run's log as well.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        os.close(nowhere)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)


def _keep_connected(instance: dg.DagsterInstance) -> None:
    """Keep connections between events, and what is printed out of files: nothing prints, and each would cost a
    process that follows the file."""
    from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

    keep_connected(instance)
    instance._compute_log_manager = NoOpComputeLogManager()
    instance._compute_log_manager.register_instance(instance)


def _warm_up(instance: dg.DagsterInstance, prepared: Prepared) -> None:
    """Open the connections that a run needs."""
    instance.get_run_by_id("00000000-0000-0000-0000-000000000000")
    instance.event_log_storage.get_records_for_run("none", limit=1)
    requests_of(*prepared.catalog).get("none")
