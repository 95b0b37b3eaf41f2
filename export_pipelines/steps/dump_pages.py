"""The pages of a dump on their way to the store: in files of their own or in one ZIP."""

from __future__ import annotations

import hashlib
import posixpath
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from export_pipelines.catalog.dumps import DumpPage
from export_pipelines.errors import RequestError
from export_pipelines.formats.writers import FormatWriter
from export_pipelines.manifest import FileProof
from export_pipelines.specs.table import Compression, CsvSpec
from export_pipelines.steps.rows import RowsWritten, RowWriter, split_identities
from export_pipelines.steps.writing import StoredWriter, Writable, stored_writer
from export_pipelines.stores.base import ObjectWriter, Store

MAX_FILES = 500
"""Pages in files of their own; none is visible before all are written, so all are open until then."""

_FLUSH_BYTES = 1 << 18
_NO_TIME = (1980, 1, 1, 0, 0, 0)


OpenLayout = Callable[[], FormatWriter | None]
"""Gives what turns the records of a page into its bytes; None where they are that."""


class Pages(Protocol):
    """Where pages go."""

    writers: list[ObjectWriter]
    """In the order of the files, each to be published."""

    def begin(self, number: int) -> RowWriter:
        """Begin the page of that number, from 1."""

    def end(self, written: RowsWritten) -> None:
        """The page is written."""

    def finish(self) -> tuple[FileProof, ...]:
        """All pages are written; the files. Does not publish."""


def _opened(stack: ExitStack, layout_of: OpenLayout) -> FormatWriter | None:
    layout = layout_of()
    if layout is not None:
        stack.callback(layout.close)
    return layout


class FilePages:
    """A file a page. `key_of` gives its name by its number."""

    def __init__(
        self,
        stack: ExitStack,
        store: Store,
        key_of: Callable[[int], str],
        compression: Compression,
        csv: CsvSpec,
        recipients: tuple[str, ...],
        layout_of: OpenLayout,
    ) -> None:
        self._stack, self._store, self._key_of = stack, store, key_of
        self._compression, self._csv, self._recipients = compression, csv, recipients
        self._layout_of = layout_of
        self._files: list[FileProof] = []
        self.writers: list[ObjectWriter] = []

    def begin(self, number: int) -> RowWriter:
        if number > MAX_FILES:
            raise RequestError(
                f"the dump has more than {MAX_FILES} pages",
                hint="raise page_rows, make the batches shorter, or put the pages into a ZIP (container: zip)",
            )
        key = self._key_of(number)
        writer = self._stack.enter_context(self._store.writer(key))
        stored = self._stack.enter_context(stored_writer(writer, self._recipients))
        self.writers.append(writer)
        return RowWriter(stored, key, self._compression, self._csv, layout=_opened(self._stack, self._layout_of))

    def end(self, written: RowsWritten) -> None:
        self._files.append(written.file)

    def finish(self) -> tuple[FileProof, ...]:
        return tuple(self._files)


class ZipPages:
    """One ZIP, an entry a page. Its bytes depend on the rows alone: no times are in it."""

    def __init__(
        self,
        stack: ExitStack,
        store: Store,
        key: str,
        entry_of: Callable[[int], str],
        csv: CsvSpec,
        recipients: tuple[str, ...],
        layout_of: OpenLayout,
    ) -> None:
        self._key, self._entry_of, self._csv = key, entry_of, csv
        self._stack, self._layout_of = stack, layout_of
        writer = stack.enter_context(store.writer(key))
        self._stored = stack.enter_context(stored_writer(writer, recipients))
        self.writers: list[ObjectWriter] = [writer]
        self._sink = _Sink(self._stored)
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_DEFLATED, compresslevel=3)  # type: ignore[call-overload]
        self._entry: Any = None
        stack.callback(self._abandon)

    def begin(self, number: int) -> RowWriter:
        name = self._entry_of(number)
        info = zipfile.ZipInfo(name, _NO_TIME)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o600 << 16
        self._entry = self._zip.open(info, "w", force_zip64=True)
        layout = _opened(self._stack, self._layout_of)
        return RowWriter(StoredWriter(self._entry), name, Compression.NONE, self._csv, layout=layout)

    def end(self, written: RowsWritten) -> None:
        self._entry.close()

    def finish(self) -> tuple[FileProof, ...]:
        self._zip.close()
        return (self._stored.finish(self._key, self._sink.size, self._sink.sha256.hexdigest()),)

    def _abandon(self) -> None:
        """Let go of a ZIP that is not finished: what it would still write goes nowhere."""
        self._sink.closed = True
        with suppress(Exception):
            if self._entry is not None:
                self._entry.close()
        with suppress(Exception):
            self._zip.close()


class _Sink:
    """What zipfile takes for a file that it cannot seek in."""

    def __init__(self, writer: Writable) -> None:
        self._writer = writer
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        if not self.closed:
            data = bytes(data)
            self.sha256.update(data)
            self.size += len(data)
            self._writer.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""


class PageWriter(RowWriter):
    """Takes records as an export does, identities left out, and cuts them into pages, each with the header."""

    def __init__(
        self, pages: Pages, csv: CsvSpec, fields: int, page_rows: int | None, told: Callable[[int, int], None]
    ) -> None:
        # Nothing of the base is used but its shape: each page has a RowWriter of its own.
        self._pages, self._dialect, self._identity_fields = pages, csv, fields
        self._limit, self._told = page_rows, told
        self._header = b""
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._header_comes = csv.header
        self._page: RowWriter | None = None
        self._page_count = self._in_page = self._count = self._bytes = 0
        self.pages: list[DumpPage] = []

    def write(self, record: bytes) -> None:
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        if self._waiting_bytes >= _FLUSH_BYTES:
            self._take()

    def header(self, record: bytes) -> None:
        self._header_comes = False
        self._header = record

    def add(self, identities: list[bytes] | None, records: list[bytes]) -> None:
        first = 0
        while first < len(records):
            if self._page is None or (self._limit is not None and self._in_page >= self._limit):
                self._turn()
            assert self._page is not None
            room = len(records) if self._limit is None else self._limit - self._in_page
            taken = records[first : first + room]
            self._page.add(None, taken)
            self._in_page += len(taken)
            first += len(taken)
        self._count += len(records)
        self._bytes += sum(map(len, records))
        self._told(self._count, self._bytes)

    def complete(self) -> tuple[FileProof, ...]:
        """Write what is left; the files. A dump without rows has one page. Does not publish."""
        self._take()
        if self._page is None:
            self._turn()
        self._close_page()
        return self._pages.finish()

    def _take(self) -> None:
        records, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self._header_comes and records:
            self.header(records.pop(0).split(self._dialect.delimiter.encode(), self._identity_fields)[-1])
        if records:
            self.add(None, split_identities(records, self._dialect)[1] if self._identity_fields else records)

    def _turn(self) -> None:
        """End the page, and begin the next."""
        self._close_page()
        self._page_count += 1
        self._page = self._pages.begin(self._page_count)
        self._in_page = 0
        if self._header:
            self._page.header(self._header)

    def _close_page(self) -> None:
        if self._page is None:
            return
        written = self._page.finish()
        self._pages.end(written)
        file = written.file
        name = posixpath.basename(file.key)
        self.pages.append(DumpPage(name=name, rows=written.rows, row_digest=written.row_digest,
                                   raw_size=file.raw_size, raw_sha256=file.raw_sha256))  # fmt: skip
        self._page = None
