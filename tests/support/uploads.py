"""A definition that takes uploads, and their runs done at once, as Dagster's daemon would."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.support.pages import Served

SETTINGS = """\
  rates: {requests_per_address: 100000/minute, requests_per_user: 100000/minute}
  public_url: http://127.0.0.1:PORT
"""

AREA_FILES = {
    "assets/people/inbox/defs.yaml": """
type: export_pipelines.LoadTable
attributes:
  description: Counts that hospitals send every month.
  source: {type: upload, organisations: [health, schools], who: [ann], max_bytes: 3000000}
  target: {connection: source, table: uploads.set, published: true}
  style: replace
  landing: archive
""",
    "workspace.yaml": """
load_from:
  - python_module: {module_name: export_pipelines.definitions, working_directory: ., location_name: served}
""",
}


def execute(page: Served, upload: str) -> None:
    """Do the run of an upload, which stands in Dagster's queue. In a thread: a browser's has a loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_execute, page, upload).result()


def _execute(page: Served, upload: str) -> None:
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.events import DagsterEvent, DagsterEventType
    from dagster._core.execution.api import execute_run

    row = page.service.uploads.get(upload)
    assert row is not None and row.run_id is not None
    instance = page.service.versions.instance()
    run = instance.get_run_by_id(row.run_id)
    starting = DagsterEvent(DagsterEventType.PIPELINE_STARTING.value, run.job_name)
    instance.report_dagster_event(starting, run.run_id)
    job = page.service.project.definitions().get_repository_def().get_job(run.job_name)
    execute_run(InMemoryJob(job), instance.get_run_by_id(run.run_id), instance)
