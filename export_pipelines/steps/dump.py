"""Dump: one batch of any range, in one snapshot, as files beside the partitions: nothing of it is archived.

Files are noted in the catalog before the first is published, and published together. After a crash in between,
`settle_dumps` completes what is whole and takes back what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from export_pipelines.catalog.dumps import DumpRecord, DumpRow
from export_pipelines.errors import CatalogError, IntegrityError, ObjectMissing, PartitionBusy, RequestError
from export_pipelines.formats.csv import format_digest
from export_pipelines.formats.encryption import recipients
from export_pipelines.manifest import FileProof
from export_pipelines.naming import AGE, extension, safe, table_folder
from export_pipelines.specs.dump import Container
from export_pipelines.steps.context import Progress, StepContext
from export_pipelines.steps.dump_pages import FilePages, Pages, PageWriter, ZipPages
from export_pipelines.steps.dump_plan import Output
from export_pipelines.steps.engine import Reading, engine_of
from export_pipelines.steps.export import software
from export_pipelines.steps.reading import read_back
from export_pipelines.steps.records import layout_of, writer_of
from export_pipelines.steps.report import settle_reports
from export_pipelines.stores import Store, open_store
from export_pipelines.stores.base import ObjectWriter
from export_pipelines.windows import Window


def dump_window(ctx: StepContext, window: Window, output: Output) -> DumpRecord:
    """Dump a range, or a snapshot, streamed in bounded memory. Entered in the table of reports, if there is one.

    When the files would be those of the last dump of the range, and these are intact, nothing is published.

    Crash: nothing is visible, or all files are, or some that the next dump of the table, or a sweep, takes back.

    Raises:
        RequestError: the range is not over yet. PartitionBusy: another run is dumping the same range to the same place.
        SpecError, SourceError, StoreError, CatalogError: as they say; nothing is published then.
    """
    if window.end is not None and window.end > datetime.now(UTC):
        raise RequestError(f"{window.partition} of {ctx.table.id!r} is open", hint="dump it when it is over")
    store = open_store(output.folder) if output.folder else ctx.exports
    started = datetime.now(UTC)
    with _locked(ctx, window.partition, store.url):
        _settle(ctx, [r for r in _unsettled(ctx, window.partition) if r.store_url == store.url])
        with engine_of(ctx).reading(ctx, window) as reading:
            dump_id = ctx.catalog.begin_dump(ctx.table.id, window.partition, store.url, ctx.run_id)
            record = _Attempt(ctx, window, output, store, reading, started, dump_id).run()
    settle_reports(ctx)
    return record


def settle_dumps(ctx: StepContext) -> list[str]:
    """Complete or take back dumps of a table that were broken off; where their files were that are gone now.

    Those at work, and those in stores that are not reached from here, are left alone.
    """
    gone: list[str] = []
    for row in _unsettled(ctx, None):
        with suppress(PartitionBusy), _locked(ctx, row.range, row.store_url):
            gone += _settle(ctx, [each for each in _unsettled(ctx, row.range) if each.id == row.id])
    return gone


def store_of(ctx: StepContext, url: str) -> Store | None:
    """The store of an URL in the catalog, if it is the table's or a folder."""
    if url == ctx.exports.url:
        return ctx.exports
    return open_store(url) if url.startswith("file:") else None


def dump_stores(ctx: StepContext) -> dict[str, Store]:
    """The stores that dumps of a table were ever written to."""
    found = {row.store_url: store_of(ctx, row.store_url) for row in ctx.catalog.dumps(ctx.table.id)}
    return {url: store for url, store in found.items() if store is not None}


@dataclass(frozen=True)
class _Attempt:
    """One dump at work."""

    ctx: StepContext
    window: Window
    output: Output
    store: Store
    reading: Reading
    started: datetime
    dump_id: int

    def run(self) -> DumpRecord:
        """Write, compare with the last one, publish."""
        with self._noted_failure(), ExitStack() as stack:
            number = self._free_number()
            pages = self._pages(stack, number)
            writer = PageWriter(
                pages, self.reading.csv, self.reading.fields, self.output.page_rows, _reporter(self.ctx, self)
            )
            self.reading.rows.write(writer, None)
            record = self._record(writer.complete(), writer)
            if same := self._same_as_before(record):
                self.ctx.catalog.fail_dump(self.dump_id, "unchanged since the last dump")
                return same.model_copy(update={"unchanged": True})
            self.ctx.catalog.publishing_dump(self.dump_id, record)
            self._publish(pages.writers, record.files)
            return record

    def _publish(self, writers: list[ObjectWriter], files: tuple[FileProof, ...]) -> None:
        """Publish all files, or none. What is in doubt stays noted as being published, and is settled later."""
        done: list[FileProof] = []
        try:
            for writer, file in zip(writers, files, strict=True):
                writer.publish()
                done.append(file)
            self.ctx.catalog.finish_dump(self.dump_id)
        except CatalogError:
            raise
        except BaseException:
            for file in done:
                self.store.delete(file.key)
            raise

    @contextmanager
    def _noted_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # The first error says more; an attempt that is not noted as failed is settled later.
            with suppress(CatalogError):
                self.ctx.catalog.fail_dump(self.dump_id, str(error) or type(error).__name__)
            raise

    def _pages(self, stack: ExitStack, number: int) -> Pages:
        sealed_to = recipients(self.ctx.table.spec.encryption)
        csv = self.reading.csv
        layout = partial(writer_of, self.ctx.table, self.reading.columns, self.reading.source.engine)
        if self.output.container is Container.ZIP:
            entry_of = partial(self._entry, number)
            return ZipPages(stack, self.store, self._key(number, None), entry_of, csv, sealed_to, layout)
        key_of = partial(self._key, number)
        return FilePages(stack, self.store, key_of, self.ctx.table.spec.packing, csv, sealed_to, layout)

    def _entry(self, number: int, page: int) -> str:
        return f"{self._stem(number)}{self._page_mark(page)}{self.ctx.table.spec.format.extension}"

    def _key(self, number: int, page: int | None) -> str:
        table = self.ctx.table
        folder = "" if self.output.folder else f"dumps/{table_folder(table.group)}/{safe(table.name)}/"
        if self.output.container is Container.ZIP:
            return f"{folder}{self._stem(number)}.zip{AGE if table.spec.encryption else ''}"
        return f"{folder}{self._stem(number)}{self._page_mark(page)}{extension(table)}"

    def _stem(self, number: int) -> str:
        name = self.window.partition.replace(":", "").replace("..", "_")
        return safe(f"{self.ctx.table.name}-{name}") + (f"-g{number}" if number > 1 else "")

    def _page_mark(self, page: int | None) -> str:
        return f"-p{page:04d}" if page is not None and self.output.page_rows else ""

    def _free_number(self) -> int:
        """The first number whose name is free; published files are never overwritten."""
        number = 1
        while self.store.head(self._key(number, 1)) is not None:
            number += 1
        return number

    def _record(self, files: tuple[FileProof, ...], writer: PageWriter) -> DumpRecord:
        reading, table = self.reading, self.ctx.table
        return DumpRecord(
            table=table.id,
            range=self.window.partition,
            window_start=self.window.start,
            window_end=self.window.end,
            rows=sum(page.rows for page in writer.pages),
            row_digest=format_digest(sum(int(page.row_digest, 16) for page in writer.pages)),
            columns=reading.columns,
            csv=reading.csv,
            layout=layout_of(table),
            compression=table.spec.packing.value,
            container=self.output.container,
            files=files,
            pages=tuple(writer.pages),
            source=reading.source,
            select_sql=reading.select_sql,
            select_sha256=reading.sha256,
            definition_version=table.version,
            software=software(reading.source.engine),
            recipients=recipients(table.spec.encryption),
            run_id=self.ctx.run_id,
            started=self.started,
            finished=datetime.now(UTC),
        )

    def _same_as_before(self, record: DumpRecord) -> DumpRecord | None:
        """The last dump of the range to this place, if it says the same and its files are intact."""
        rows = self.ctx.catalog.dumps(self.ctx.table.id, "published", name=self.window.partition)
        last = next((row.record for row in reversed(rows) if row.store_url == self.store.url), None)
        if last is None or _meaning(last) != _meaning(record):
            return None
        return last if all(_intact(self.store, file) for file in last.files) else None


def _meaning(record: DumpRecord) -> tuple[object, ...]:
    raw = [page.raw_sha256 for page in record.pages]
    how = (record.columns, record.csv, record.layout, record.compression, record.container, set(record.recipients))
    return raw, how, record.select_sha256


def _intact(store: Store, file: FileProof) -> bool:
    try:
        read_back(store, file, None)
    except (IntegrityError, ObjectMissing):
        return False
    return True


@contextmanager
def _locked(ctx: StepContext, name: str, store_url: str) -> Iterator[None]:
    with ctx.catalog.lock(f"dump {ctx.table.id} {name} {store_url}", f"dumping {ctx.table.id} {name} to {store_url}"):
        yield


def _unsettled(ctx: StepContext, name: str | None) -> list[DumpRow]:
    return ctx.catalog.dumps(ctx.table.id, "running", "publishing", name=name)


def _settle(ctx: StepContext, rows: list[DumpRow]) -> list[str]:
    """Settle rows whose lock is held: so nobody is at work on them."""
    gone: list[str] = []
    for row in rows:
        store = store_of(ctx, row.store_url)
        if store is None:
            continue
        files = row.record.files if row.record else ()
        there = [file for file in files if store.head(file.key) is not None and _intact(store, file)]
        if files and len(there) == len(files):
            ctx.catalog.finish_dump(row.id)
            continue
        for file in there:
            store.delete(file.key)
            gone.append(store.locate(file.key))
        ctx.catalog.fail_dump(row.id, "broken off", publishing=True)
    return gone


def _reporter(ctx: StepContext, attempt: _Attempt) -> Callable[[int, int], None]:
    told = [0]

    def report(rows: int, size: int) -> None:
        if rows - told[0] >= attempt.output.batch_rows:
            told[0] = rows
            ctx.progress(Progress("dump", ctx.table.id, attempt.window.partition, rows, size))

    return report
