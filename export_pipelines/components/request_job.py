"""A data set as a Dagster asset, and the job `<data set>_request` that answers one request: a run with lineage.

The worker makes the runs; one that somebody starts in the Launchpad needs the id of a request that waits. What a run
ends with is what the catalog says of its request: the request is settled first, then the run.

No pool of Dagster is used: requests have their own limits (dagster.yaml), and one of a few rows does not wait for the
exports of tables.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotation of an op's context as an object.
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from export_pipelines import naming
from export_pipelines.components.code_references import code_references
from export_pipelines.components.warm_launcher import QUEUE_TAG
from export_pipelines.errors import ExportPipelinesError
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.service import ServiceSpec, resolve

if TYPE_CHECKING:
    from export_pipelines.catalog.requests import Fault, RequestFile, RequestRow, Requests

REQUEST = "request"

REQUEST_TAG = "export_pipelines/request"
"""Of a run: id of its request."""
USER_TAG = "export_pipelines/user"
"""Of a run: who asked first. dagster.yaml may limit the runs of each."""
DATASET_TAG = "export_pipelines/dataset"
ENVIRONMENT_TAG = "export_pipelines/environment"
QUEUE = "requests"
"""Value of QUEUE_TAG of all of them: dagster.yaml limits them together."""

MAX_DELAY_SECONDS = 300.0
"""Between two attempts at most, however often it has doubled."""

_KINDS = {"postgresql": "postgres", "mysql": "mysql", "opensearch": "opensearch"}


@dataclass(frozen=True)
class DataSetAssets:
    """What a data set gives to Dagster."""

    dataset: DataSetDefinition
    asset: dg.AssetsDefinition
    job: Any

    @property
    def definitions(self) -> dg.Definitions:
        """As Dagster's definitions."""
        return dg.Definitions(assets=[self.asset], jobs=[self.job])


@dataclass(frozen=True)
class Retries:
    """How often, and when, a request is tried again."""

    attempts: int
    delay_seconds: float
    on_all: bool

    @classmethod
    def of(cls, dataset: DataSetDefinition, service: ServiceSpec) -> "Retries":
        """The data set's own, else the service's."""
        own = "retries" in dataset.spec.model_fields_set
        attempts = dataset.spec.retries.attempts if own else service.retries
        delay = dataset.spec.retries.delay_seconds if own else service.retry_delay_seconds
        return cls(attempts, delay, service.retry_on == "all")

    def again(self, error: Exception, before: int) -> bool:
        """Whether there is another attempt after an error and so many retries."""
        transient = isinstance(error, ExportPipelinesError) and error.transient
        return before < self.attempts and (transient or self.on_all)

    def delay(self, before: int) -> float:
        """Seconds to wait after so many retries."""
        return float(min(self.delay_seconds * 2**before, MAX_DELAY_SECONDS))


def data_set_assets(
    dataset: DataSetDefinition, service: ServiceSpec, sources: Sequence[dg.AssetKey] = ()
) -> DataSetAssets:
    """The asset and the job of a data set. `sources` are assets that its rows come from, besides its `depends_on`.
    Nothing is read or connected to."""
    spec = dataset.spec

    asset = dg.AssetSpec(
        asset_key(dataset),
        deps=[*sources, *(dg.AssetKey(key.split("/")) for key in spec.depends_on)],
        group_name=naming.group_name(dataset.group),
        description=_description(dataset),
        kinds={_KINDS[dataset.engine], "request"},
        owners=list(spec.owners),
        tags=dict(spec.tags),
        code_version=dataset.version or None,
        metadata=_static_metadata(dataset),
    )

    @dg.multi_asset(
        name=op_name(dataset),
        specs=[asset],
        config_schema={REQUEST: dg.Field(str, description="Id of the request, as the page and the API show it.")},
        required_resource_keys={spec.connection, service.store, "catalog"},
    )
    def answer(context: dg.AssetExecutionContext) -> Any:
        return _Answer(context, dataset, service).run()

    job = dg.define_asset_job(
        job_name(dataset),
        selection=dg.AssetSelection.assets(asset_key(dataset)),
        description=f"Answers one request to {dataset.id}. The worker starts it; by hand it needs the id of a request "
        "that waits.",
        tags={DATASET_TAG: dataset.id, QUEUE_TAG: QUEUE, "dagster/max_retries": "0"},
    )
    return DataSetAssets(dataset, answer, job)


def asset_key(dataset: DataSetDefinition) -> dg.AssetKey:
    """Key of the data set's asset."""
    return dg.AssetKey(naming.asset_key(dataset.id, REQUEST))


def job_name(dataset: DataSetDefinition) -> str:
    """Name of the job that answers one request."""
    return f"{naming.dagster_name(dataset.id)}_{REQUEST}"


def op_name(dataset: DataSetDefinition) -> str:
    """Name of the job's op, under which its config stands. No table's own op has three underscores before a word."""
    return f"{naming.dagster_name(dataset.id)}___{REQUEST}"


def run_config(dataset: DataSetDefinition, request: str) -> dict[str, Any]:
    """Config of a run of the job."""
    return {"ops": {op_name(dataset): {"config": {REQUEST: request}}}}


def run_tags(row: "RequestRow") -> dict[str, str]:
    """Tags of the run of a request, besides those of its job."""
    return {
        REQUEST_TAG: row.id,
        USER_TAG: row.created_by[:255],
        DATASET_TAG: row.dataset,
        ENVIRONMENT_TAG: row.environment,
        QUEUE_TAG: QUEUE,
        # Who has waited for fewer turns comes first; all have 0 unless users take turns.
        "dagster/priority": str(-row.turn),
        # A request is tried again by its own retries, and by the worker: not by the daemon besides.
        "dagster/max_retries": "0",
    }


def _description(dataset: DataSetDefinition) -> str:
    spec = dataset.spec
    text = spec.description.strip() or f"Rows that people ask for: {dataset.title}."
    origin = f"Reads `{spec.table or spec.index}`." if dataset.select_sql is None else ""
    sql = f"```sql\n{dataset.select_sql.strip()}\n```" if dataset.select_sql else ""
    return "\n\n".join(part for part in (text, "Each materialisation answers one request.", origin, sql) if part)


def _static_metadata(dataset: DataSetDefinition) -> dict[str, Any]:
    spec = dataset.spec
    files = ["select.sql"] * (dataset.folder / "select.sql").is_file() + ["defs.yaml"]
    found: dict[str, Any] = {
        "connection": spec.connection,
        "dagster/code_references": code_references(dataset.folder, files),
    }
    if spec.table:
        found["dagster/table_name"] = spec.table
    if columns := spec.columns or tuple(spec.column_descriptions):
        found["dagster/column_schema"] = _schema(dataset, columns)
    return found


def _schema(dataset: DataSetDefinition, columns: Sequence[str]) -> dg.TableSchema:
    told = dataset.spec.column_descriptions
    return dg.TableSchema([dg.TableColumn(name, description=told.get(name)) for name in columns])


class _Answer:
    """The work of a run."""

    def __init__(self, context: dg.AssetExecutionContext, dataset: DataSetDefinition, service: ServiceSpec) -> None:
        self.context = context
        self.dataset = dataset
        self.service = service
        self.retries = Retries.of(dataset, service)
        self.request = str(context.op_execution_context.op_config[REQUEST])
        self.run_id = context.run.run_id
        self.reads = False
        """Whether rows are being read: before, nothing that fails is the question's fault."""
        self.requests: Requests = requests_of(context.resources.catalog.url, context.resources.catalog.schema_name)

    def run(self) -> "dg.MaterializeResult[Any]":
        """Begin, answer, and settle the request, whatever happens.

        Raises:
            dagster.Failure: the request has failed, or is none of this run's.
            dagster.RetryRequested: another attempt comes.
            DagsterExecutionInterruptedError: it was cancelled, or this process is to end.
        """
        try:
            row = self.requests.begin(self.request, self.run_id, retry=self.context.retry_number)
            if row is None:
                row = self._answered()
            file = row.file or self._file(row)
            row = self.requests.get(self.request) or row
        except ExportPipelinesError as error:
            self._failed(error)
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            self._interrupted()
            raise
        except Exception as error:
            if isinstance(error, dg.Failure):
                raise
            self.context.log.exception("the request failed by an error that was not foreseen")
            self._failed(error)
        return dg.MaterializeResult(metadata=self._metadata(row, file))

    def _file(self, row: "RequestRow") -> "RequestFile":
        from export_pipelines.steps.request import RequestCancelled, run_request

        try:
            context = self._context()
            self.reads = True
            return run_request(context, row)
        except RequestCancelled:
            self._settle_stopped()
            self._end_as_cancelled("the request was cancelled")

    def _context(self) -> Any:
        from export_pipelines.formats.encryption import Keyring
        from export_pipelines.service_keys import IDENTITY, load_service_keys
        from export_pipelines.settings import load_settings
        from export_pipelines.steps.request import RequestContext, recipients_of

        state = load_settings().state
        resources = self.context.resources
        return RequestContext(
            dataset=self.dataset,
            source=getattr(resources, self.dataset.spec.connection).open(),
            store=getattr(resources, self.service.store).open(),
            requests=self.requests,
            service=self.service,
            keyring=Keyring((str(state / "keys" / "service.age"),), (IDENTITY,)),
            recipients=recipients_of(self.service, self.dataset, load_service_keys(state).recipient),
            run_id=self.run_id,
        )

    def _answered(self) -> "RequestRow":
        """The request, if this run has answered it in an earlier attempt whose end got lost; else the run ends."""
        row = self.requests.get(self.request)
        if row is None:
            self._fail(
                f"there is no request {self.request!r}",
                "ask by the page, the API or `export-pipelines request`: the worker starts this job by itself",
            )
        if row.state == "succeeded" and row.run_id == self.run_id:
            return row
        if row.run_id == self.run_id and (row.state == "cancelled" or row.cancel_at is not None):
            self.requests.cancelled(self.request)
            self._end_as_cancelled("the request was cancelled before it began")
        if row.live:
            self._fail(f"request {self.request} is the work of run {row.run_id}", "nothing is to be done")
        return self._fail(f"request {self.request} has {row.state} already", "ask anew for an answer of now")

    def _failed(self, error: Exception) -> NoReturn:
        """Another attempt, or the end of the request with its reason."""
        message, hint = getattr(error, "message", None), getattr(error, "hint", "")
        # What was not foreseen may quote anything: people are told its kind, operators find it in the run's log.
        message = message or f"it was not foreseen: {type(error).__name__}"
        before = self.context.retry_number
        if self.retries.again(error, before):
            delay = self.retries.delay(before)
            self._note(lambda: self.requests.note_error(self.request, message, hint))
            self.context.log.warning(f"attempt {before + 1} failed, the next is in {delay:g} s: {message}")
            raise dg.RetryRequested(max_retries=self.retries.attempts, seconds_to_wait=delay) from None
        self._note(lambda: self.requests.fail(self.request, message, hint, self._fault(error)))
        self._fail(message, hint, type(error).__name__)

    def _fault(self, error: Exception) -> "Fault":
        from export_pipelines.catalog.requests import Fault, fault_of

        found = fault_of(error)
        return found if self.reads or found is Fault.AWAY else Fault.INSIDE

    def _note(self, what: Any) -> None:
        """Write to the catalog; where it is away, the worker finds the request when the run has ended."""
        try:
            what()
        except ExportPipelinesError as error:
            self.context.log.warning(f"the catalog could not be told: {error}")

    def _interrupted(self) -> None:
        """Somebody cancelled the request or terminated the run, or this machine stops: then it is put back."""
        row = self.requests.get(self.request)
        run = self.context.instance.get_run_by_id(self.run_id)
        if row is None or run is None or row.run_id != self.run_id:
            return
        ending = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
        if row.cancel_at is not None or run.status in ending:
            self.requests.cancelled(self.request)
        else:
            self.requests.again(self.request, self.run_id)
        if run.status not in ending:
            self.context.instance.report_run_canceling(run, "The work was interrupted.")

    def _settle_stopped(self) -> None:
        """After a beat said stop: cancelled, unless the request was put back or given to another run."""
        row = self.requests.get(self.request)
        if row is not None and row.run_id == self.run_id and row.cancel_at is not None:
            self.requests.cancelled(self.request)

    def _end_as_cancelled(self, message: str) -> NoReturn:
        run = self.context.instance.get_run_by_id(self.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            self.context.instance.report_run_canceling(run, message)
        raise DagsterExecutionInterruptedError(message)

    def _fail(self, message: str, hint: str, kind: str = "RequestError") -> NoReturn:
        raise dg.Failure(
            f"{message}\nhint: {hint}" if hint else message,
            metadata={"hint": hint or "see the log", "error": kind, "request": self._link()},
            allow_retries=False,
        )

    def _link(self) -> Any:
        return link_of(self.service, self.request)

    def _metadata(self, row: "RequestRow", file: "RequestFile") -> dict[str, Any]:
        store = getattr(self.context.resources, self.service.store).open()
        return metadata_of(self.dataset, self.service, row, file, store.locate(file.proof.key))


def link_of(service: ServiceSpec, request: str) -> Any:
    """A request in the page, as metadata."""
    try:
        base = resolve(service.public_url)
    except ExportPipelinesError:
        return request
    return dg.MetadataValue.url(f"{base.rstrip('/')}/requests/{request}")


def metadata_of(
    dataset: DataSetDefinition, service: ServiceSpec, row: "RequestRow", file: "RequestFile", place: str
) -> dict[str, Any]:
    """What the materialisation of a request that succeeded says; `place` is where its file is."""
    return {
        "dagster/row_count": row.rows,
        "rows": row.rows,
        "raw_bytes": file.proof.raw_size,
        "stored_bytes": file.proof.size,
        "request": link_of(service, row.id),
        "asked_by": row.created_by,
        "query": row.summary,
        "file": dg.MetadataValue.path(place),
        "sha256": file.proof.raw_sha256,
        "dagster/column_schema": _schema(dataset, file.columns[:1000]),
        "columns": len(file.columns),
    }


@lru_cache(maxsize=4)
def requests_of(url: str, schema: str) -> "Requests":
    """Requests in a catalog, one pool of connections a process. Not to be called before a fork."""
    from export_pipelines.catalog.pool import CatalogPool
    from export_pipelines.catalog.requests import Requests

    return Requests(CatalogPool(url, schema, size=2))
