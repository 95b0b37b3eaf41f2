"""A request: a question to a data set, answered by a file.

One READ ONLY snapshot → records → widened → format → compression → encryption → store → read back and verified. The
file is nobody's before the catalog knows it (`Requests.succeed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC

from export_pipelines import naming
from export_pipelines.catalog.requests import RequestFile, RequestRow, Requests
from export_pipelines.errors import CatalogError, RequestError, StoreError
from export_pipelines.formats.encryption import NO_KEYS, Keyring, recipients
from export_pipelines.formats.fields import Field, fields_of
from export_pipelines.formats.writers import FormatWriter, extension, media_type, open_writer
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.format import ANY_COLUMN, Compression, CsvSpec, FormatName, FormatSpec
from export_pipelines.specs.query import Query
from export_pipelines.specs.service import ServiceSpec
from export_pipelines.steps.context import Progress, silent
from export_pipelines.steps.request_files import FOLDER
from export_pipelines.steps.request_looking import Preview, columns_of, count, estimate, preview
from export_pipelines.steps.request_reading import Limits, Reading, RequestSource, open_reading
from export_pipelines.steps.request_widening import Widening, widening
from export_pipelines.steps.request_writing import AnswerWriter, Layout, Written, verify_answer
from export_pipelines.steps.writing import stored_writer
from export_pipelines.stores.base import Store

__all__ = [
    "Preview",
    "RequestCancelled",
    "RequestContext",
    "RequestSource",
    "columns_of",
    "count",
    "estimate",
    "format_of",
    "preview",
    "recipients_of",
    "run_request",
]

_BEAT_SECONDS = 0.4
_WITHOUT_CATALOG_SECONDS = 30.0
# Below that, rows that are too many are found soon enough while they come.
_DOUBTFUL = 4
_MEDIA = {Compression.GZIP: "application/gzip", Compression.ZSTD: "application/zstd"}


class RequestCancelled(RequestError):
    """A request is not wanted any more, or is another run's. Its database query has ended, and there is no file."""


@dataclass(frozen=True)
class RequestContext:
    """A data set with all that a request to it needs."""

    dataset: DataSetDefinition
    source: RequestSource
    store: Store
    requests: Requests
    service: ServiceSpec
    keyring: Keyring = field(default=NO_KEYS, repr=False)
    """What opens files that are encrypted to the service."""
    recipients: tuple[str, ...] = ()
    """To whom the file is encrypted, see `recipients_of`; to nobody when empty."""
    run_id: str = ""
    progress: Callable[[Progress], None] = silent


def recipients_of(service: ServiceSpec, dataset: DataSetDefinition, own: str) -> tuple[str, ...]:
    """To whom files of a data set are encrypted. `own` is the service's public key, which is always among them."""
    named = (*recipients(service.recipients), *recipients(dataset.spec.encryption))
    if service.encryption == "off" and not named:
        return ()
    return tuple(dict.fromkeys((own, *named)))


# -- the answer


def run_request(ctx: RequestContext, row: RequestRow) -> RequestFile:
    """Answer a request that `Requests.begin` has given to this run, and note the answer in the catalog.

    Crash: no file is visible, or one that the catalog does not know, which `sweep_requests` removes. The catalog knows
    only files that were read back.

    Raises:
        RequestCancelled: the catalog says that the answer is not wanted from this run.
        RequestError: more rows than are allowed. FormatError: a value does not fit the format.
        SpecError, SourceError, StoreError, CatalogError, IntegrityError: as they say; there is no file then.
    """
    pulse = _Pulse(ctx, row)
    limits = Limits(ctx.dataset.spec.statement_timeout, pulse)
    with open_reading(ctx.dataset, ctx.source, row.query, limits) as reading:
        _refuse_too_many(ctx.dataset, row.query, reading)
        wide = widening(ctx.dataset, row.query, reading)
        answer = _write(ctx, row, reading, wide, pulse)
    return _handed_over(ctx, row, answer, pulse)


@dataclass(frozen=True)
class _Answer:
    """A published file that nobody knows of yet."""

    written: Written
    layout: Layout


def _write(ctx: RequestContext, row: RequestRow, reading: Reading, wide: Widening | None, pulse: _Pulse) -> _Answer:
    fields = wide.fields if wide else fields_of(reading.columns, ctx.dataset.engine)
    spec = format_of(ctx.dataset, row.query)
    key = _key(ctx, row, spec)
    limit = None if row.query.limit else ctx.dataset.spec.row_limit
    with (
        _format_writer(ctx.dataset, spec, fields) as writer,
        ctx.store.writer(key) as object_writer,
        stored_writer(object_writer, ctx.recipients) as stored,
    ):
        answer = AnswerWriter(
            stored,
            writer,
            row.query.compression,
            limit=limit,
            too_many=_too_many(ctx.dataset),
            widener=wide.widener if wide else None,
        )
        pulse.follow(answer)
        at_most = row.query.limit or ctx.dataset.spec.row_limit + 1
        reading.write(answer.take, at_most)
        pulse()
        written = answer.finish(key)
        pulse(now=True)
        object_writer.publish()
    return _Answer(written, Layout(spec, fields, row.query.compression, writer.exact))


@contextmanager
def _format_writer(dataset: DataSetDefinition, spec: FormatSpec, fields: tuple[Field, ...]) -> Iterator[FormatWriter]:
    told = dataset.spec
    dictionary = {"title": dataset.title, "description": told.description, "columns": dict(told.column_descriptions)}
    with closing(open_writer(spec, fields, dictionary=dictionary)) as writer:
        yield writer


def _handed_over(ctx: RequestContext, row: RequestRow, answer: _Answer, pulse: _Pulse) -> RequestFile:
    """Verify a file and let the catalog know of it; else remove it."""
    written = answer.written
    try:
        verify_answer(ctx.store, written, answer.layout, ctx.keyring, pulse)
        file = RequestFile(
            proof=written.file,
            name=file_name(ctx.dataset, row, answer.layout.spec),
            media_type=_MEDIA.get(row.query.compression) or media_type(answer.layout.spec),
            columns=tuple(each.name for each in answer.layout.fields),
            row_digest=written.row_digest,
        )
    except BaseException:
        _remove(ctx.store, written.file.key)
        raise
    # When the catalog fails here it may know the file all the same: then it stays, and is swept if nobody knows it.
    noted = ctx.requests.succeed(
        row.id, ctx.run_id, ctx.store.url, file, written.rows, written.bytes, ctx.dataset.spec.keep_hours
    )
    if noted is None:
        _remove(ctx.store, written.file.key)
        raise _cancelled(row)
    return file


def _remove(store: Store, key: str) -> None:
    # The error that led here says more; what is left is swept.
    with suppress(StoreError):
        store.delete(key)


def _cancelled(row: RequestRow) -> RequestCancelled:
    return RequestCancelled(f"request {row.id} is not wanted any more", hint="ask anew")


class _Pulse:
    """Notes in the catalog how far a request is, some times a second, and ends it where the catalog says so."""

    def __init__(self, ctx: RequestContext, row: RequestRow) -> None:
        self._ctx, self._row = ctx, row
        self._answer: AnswerWriter | None = None
        self._next = time.monotonic() + _BEAT_SECONDS
        self._heard = time.monotonic()

    def follow(self, answer: AnswerWriter) -> None:
        """Whose rows to tell."""
        self._answer = answer

    def __call__(self, *, now: bool = False) -> None:
        """Raises RequestCancelled; CatalogError: the catalog is away for too long."""
        if time.monotonic() < self._next and not now:
            return
        rows, size = (self._answer.rows, self._answer.bytes) if self._answer else (0, 0)
        try:
            wanted = self._ctx.requests.beat(self._row.id, rows, size, self._ctx.run_id)
        except CatalogError as error:
            if not error.transient or time.monotonic() - self._heard > _WITHOUT_CATALOG_SECONDS:
                raise
            wanted = True
        else:
            self._heard = time.monotonic()
        self._next = time.monotonic() + _BEAT_SECONDS
        if not wanted:
            raise _cancelled(self._row)
        self._ctx.progress(Progress("request", self._row.dataset, self._row.id, rows, size))


# -- limits, names


def _refuse_too_many(dataset: DataSetDefinition, query: Query, reading: Reading) -> None:
    """Before the work: where the planner expects far too many rows, or keys would be looked for in vain, as many rows
    are counted as make it certain."""
    limit = dataset.spec.row_limit
    if query.limit is not None:
        return
    discovers = dataset.spec.widen is not None and dataset.spec.widen.keys == "discover"
    if (discovers or reading.estimate() > limit * _DOUBTFUL) and reading.count(limit + 1) > limit:
        raise _too_many(dataset)


def _too_many(dataset: DataSetDefinition) -> RequestError:
    return RequestError(
        f"{dataset.id} has more rows for this question than the {dataset.spec.row_limit} that are allowed",
        hint="narrow it down by filters, or ask for a `limit`",
    )


def format_of(dataset: DataSetDefinition, query: Query) -> FormatSpec:
    """The format of an answer with its options."""
    csv = CsvSpec(delimiter=query.delimiter, bom=query.bom, neutralise_formulas=query.neutralise_formulas)
    return format_spec(dataset, query.format, csv)


def format_spec(dataset: DataSetDefinition, kind: FormatName, csv: CsvSpec) -> FormatSpec:
    """A format with the conversions of a data set."""
    checked = {ANY_COLUMN: "checked"} if kind is FormatName.EXCEL else {}
    return FormatSpec(type=kind, csv=csv, conversions={**checked, **dataset.spec.conversions})


def file_name(dataset: DataSetDefinition, row: RequestRow, spec: FormatSpec) -> str:
    """Name of an answer's file for people, with the time at which it was asked for in UTC."""
    asked = row.created_at.astimezone(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{dataset.name}-{asked}{extension(spec)}{row.query.compression.extension}"


def _key(ctx: RequestContext, row: RequestRow, spec: FormatSpec) -> str:
    """An attempt's own: never taken before."""
    name = naming.safe(f"{row.attempts}-{file_name(ctx.dataset, row, spec)}")
    encrypted = naming.AGE if ctx.recipients else ""
    return f"{FOLDER}/{naming.safe(row.environment)}/{naming.safe(row.id)}/{name}{encrypted}"
