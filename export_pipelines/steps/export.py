"""Export: one snapshot of a partition, streamed into an immutable file with the identities of its rows beside it."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version

from export_pipelines import __version__
from export_pipelines.catalog import ExportRow
from export_pipelines.errors import CatalogError, IntegrityError, ObjectMissing, RequestError
from export_pipelines.formats.encryption import recipients
from export_pipelines.manifest import ExportRecord, IdentityProof
from export_pipelines.naming import file_key
from export_pipelines.steps.chain import artifact_at
from export_pipelines.steps.context import Progress, StepContext
from export_pipelines.steps.engine import Reading, engine_of
from export_pipelines.steps.reading import read_back
from export_pipelines.steps.records import layout_of, writer_of
from export_pipelines.steps.report import settle_reports
from export_pipelines.steps.rows import RowsWritten, RowWriter
from export_pipelines.steps.sidecar import ENCRYPTED_EXTENSION, EXTENSION, SidecarWriter
from export_pipelines.steps.writing import stored_writer
from export_pipelines.stores.base import ObjectWriter
from export_pipelines.windows import Window

_PROGRESS_SECONDS = 0.25


def export_partition(ctx: StepContext, window: Window) -> ExportRecord:
    """Export a partition as its next generation: one READ ONLY REPEATABLE READ transaction, streamed in bounded memory.

    When the file would be the same as that of the last generation, and that one is still of use, nothing is published
    and its record is returned with `unchanged` set.

    Crash: nothing is visible under the file's name, or the file is there but the catalog does not know it; either way
    the next export of the partition takes a new name, and `sweep` removes what was left. A file that the catalog knows
    and the table of reports does not is entered by the next export, dump or sweep.

    Raises:
        RequestError: the window is not closed yet.
        PartitionBusy: another run is exporting this partition.
        SpecError, SourceError, StoreError, CatalogError: as they say; nothing was published.
    """
    if window.end is not None and window.end > datetime.now(UTC):
        raise RequestError(
            f"partition {window.partition} of {ctx.table.id!r} is open until {window.end.isoformat()}",
            hint="rows may still arrive; export it when it is closed",
        )
    # Before the snapshot is taken: what was deleted by then, it did not see.
    started = datetime.now(UTC)
    with engine_of(ctx).reading(ctx, window) as reading:
        attempt = secrets.token_hex(8)
        export_id, generation = ctx.catalog.begin_export(
            ctx.table.id, window.partition, attempt, ctx.exports.url, ctx.run_id
        )
        with _noted_failure(ctx, export_id):
            make = _record_maker(ctx, window, reading, generation, attempt, started)
            record = _write_files(ctx, window, reading, generation, make)
            if record.unchanged:
                ctx.catalog.fail_export(export_id, "unchanged since the last generation")
            else:
                ctx.catalog.finish_export(export_id, record)
    settle_reports(ctx)
    return record


@contextmanager
def _noted_failure(ctx: StepContext, export_id: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # The first error says more; an attempt left as running is taken over by the next export.
        with suppress(CatalogError):
            ctx.catalog.fail_export(export_id, str(error) or type(error).__name__)
        raise


RecordMaker = Callable[[RowsWritten, IdentityProof], ExportRecord]


def _write_files(
    ctx: StepContext, window: Window, reading: Reading, generation: int, make: RecordMaker
) -> ExportRecord:
    """Stream the query into the file and its sidecar; publish both, the file last."""
    key = _free_key(ctx, window, generation)
    spec = ctx.table.spec
    identity = reading.identity
    sealed_to = recipients(spec.encryption)
    with ExitStack() as stack:
        writer = stack.enter_context(ctx.exports.writer(key))
        sidecar_writer: ObjectWriter | None = None
        sidecar = None
        if identity.mode != "none":
            # Identities by row are numbers of transactions and places; the others have keys, or digests of rows.
            hidden = () if identity.mode == "row" else sealed_to
            sidecar_key = key + (ENCRYPTED_EXTENSION if hidden else EXTENSION)
            sidecar_writer = stack.enter_context(ctx.exports.writer(sidecar_key))
            sidecar = SidecarWriter(
                stack.enter_context(stored_writer(sidecar_writer, hidden)), sidecar_key, spec.cleanup.batch_rows
            )
        layout = writer_of(ctx.table, reading.columns, reading.source.engine)
        if layout is not None:
            stack.callback(layout.close)
        rows = RowWriter(
            stack.enter_context(stored_writer(writer, sealed_to)),
            key,
            spec.packing,
            reading.csv,
            sidecar=sidecar if identity.aligned else None,
            identity_fields=reading.fields,
            keep=reading.keep,
            layout=layout,
            flushed=_reporter(ctx, window),
        )
        reading.rows.write(rows, sidecar)
        written = rows.finish()
        if sidecar is not None:
            file, buckets = sidecar.finish()
            identity = identity.model_copy(update={"file": file, "buckets": buckets})
        record = make(written, identity).model_copy(update={"recipients": sealed_to})
        if same := _same_as_before(ctx, window, record):
            return same.model_copy(update={"unchanged": True})
        if sidecar_writer is not None:
            sidecar_writer.publish()
        writer.publish()
        return record


def _record_maker(
    ctx: StepContext, window: Window, reading: Reading, generation: int, attempt: str, started: datetime
) -> RecordMaker:
    """What is known before the rows, waiting for what is known after them."""

    def make(written: RowsWritten, identity: IdentityProof) -> ExportRecord:
        return ExportRecord(
            table=ctx.table.id,
            partition=window.partition,
            window_start=window.start,
            window_end=window.end,
            generation=generation,
            attempt=attempt,
            rows=written.rows,
            row_digest=written.row_digest,
            columns=reading.columns,
            format=ctx.table.spec.format.type,
            csv=reading.csv,
            layout=layout_of(ctx.table),
            exact=written.exact,
            compression=ctx.table.spec.packing.value,
            file=written.file,
            identity=identity,
            source=reading.source,
            select_sql=reading.select_sql,
            select_sha256=reading.sha256,
            definition_version=ctx.table.version,
            software=software(reading.source.engine),
            run_id=ctx.run_id,
            upstream_run_id=ctx.upstream_run_id,
            started=started,
            finished=datetime.now(UTC),
        )

    return make


@cache
def software(engine: str) -> dict[str, str]:
    """Versions of what wrote a file."""
    driver = {"postgresql": "psycopg2-binary", "mysql": "PyMySQL"}[engine]
    return {
        "export_pipelines": __version__,
        "python": platform.python_version(),
        driver.removesuffix("-binary"): version(driver),
    }


def _free_key(ctx: StepContext, window: Window, generation: int) -> str:
    """The file's name by its template; a name that is taken (by a lost attempt, say) gets the next number."""
    number = generation
    # A crash between the two leaves a sidecar without its file: that takes the name, too.
    ends = ("", EXTENSION, ENCRYPTED_EXTENSION)
    while any(ctx.exports.head((key := file_key(ctx.table, window, number)) + end) for end in ends):
        number += 1
        if key == file_key(ctx.table, window, number):
            raise RequestError(
                f"file name {key!r} of {ctx.table.id!r} is taken", hint="put {partition} into `file_name` in defs.yaml"
            )
    return key


def _same_as_before(ctx: StepContext, window: Window, record: ExportRecord) -> ExportRecord | None:
    """The record of the last generation, if the new file would say nothing that it does not say."""
    before: list[ExportRow] = ctx.catalog.exports(ctx.table.id, window.partition)
    if not before or before[-1].record is None or before[-1].given_up:
        return None
    last = before[-1].record
    same_file = last.file.raw_sha256 == record.file.raw_sha256 and last.columns == record.columns
    same_rows = (last.identity.file and last.identity.file.raw_sha256) == (
        record.identity.file and record.identity.file.raw_sha256
    )
    same_place = (last.source.system_identifier, last.source.timeline, last.source.relations) == (
        record.source.system_identifier,
        record.source.timeline,
        record.source.relations,
    )
    same_definition = (last.select_sha256, last.csv, last.layout, last.compression, set(last.recipients)) == (
        record.select_sha256,
        record.csv,
        record.layout,
        record.compression,
        set(record.recipients),
    )
    same_meaning = last.source.fingerprint == record.source.fingerprint and last.identity.mode == record.identity.mode
    same = same_file and same_rows and same_place and same_definition and same_meaning
    return last if same and _still_there(ctx, before[-1], last) else None


def _still_there(ctx: StepContext, row: ExportRow, record: ExportRecord) -> bool:
    """Whether the files of an earlier generation are where they should be, and intact: a damaged one is no excuse."""
    store, file, identity_file = ctx.exports, record.file, record.identity.file
    if row.state == "archived" and row.sequence is not None:
        manifest = artifact_at(ctx.archive, ctx.table.id, row.sequence)
        store, file, identity_file = ctx.archive, manifest.file, manifest.identity_file
    try:
        for proof in (file, identity_file):
            if proof is not None:
                read_back(store, proof, None)
    except (IntegrityError, ObjectMissing):
        return False
    return True


def _reporter(ctx: StepContext, window: Window) -> Callable[[int, int], None]:
    last = [time.monotonic()]

    def report(rows: int, size: int) -> None:
        if time.monotonic() - last[0] >= _PROGRESS_SECONDS:
            last[0] = time.monotonic()
            ctx.progress(Progress("export", ctx.table.id, window.partition, rows, size))

    return report
