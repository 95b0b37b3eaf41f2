"""Reports: each published file of a table is entered in a table of downloadable files, in this or another database.

A file is entered after the catalog knows that it is published, and the catalog notes it after the entry is committed.
A crash in between is made good the next time: what is not noted is looked for by its path, and entered if it is
missing.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Protocol
from zoneinfo import ZoneInfo

from export_pipelines.catalog.dumps import PublishedFile
from export_pipelines.errors import PartitionBusy, RequestError, SourceError
from export_pipelines.specs.dump import ReportSpec
from export_pipelines.sql import quote_identifier
from export_pipelines.steps.context import Source, StepContext
from export_pipelines.stores import Store, open_store

if TYPE_CHECKING:
    from export_pipelines.specs.table import TableDefinition

_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.2


class ReportSession(Protocol):
    """What is asked of a database with a table of reports."""

    def begin(self) -> None: ...

    def execute(self, sql: str, values: Sequence[object] | None = None, /) -> object: ...

    def commit(self) -> None: ...


def settle_reports(ctx: StepContext) -> int:
    """Enter every published file of the table that is not entered yet; how many were. Nothing without a report.

    Crash: the entries of a call are committed together or not at all.

    Raises:
        RequestError: the connection of the report is missing. SourceError: its database refused; the files stay, and
            are entered the next time. PartitionBusy: another run has been entering those of this table for long.
    """
    spec = ctx.table.spec.dump.report
    if spec is None or not ctx.catalog.not_entered(ctx.table.id):
        return 0
    with _locked(ctx):
        found = [(each, where) for each in ctx.catalog.not_entered(ctx.table.id) if (where := _place(ctx, each))]
        if found:
            _enter(ctx, spec, found)
            ctx.catalog.note_entered(ctx.table.id, [each for each, _ in found])
    return len(found)


@contextmanager
def _locked(ctx: StepContext) -> Iterator[None]:
    """One run enters the files of a table at a time; the others wait, since what it enters may not be theirs."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        lock = ctx.catalog.lock(f"report {ctx.table.id}", f"entering the files of {ctx.table.id} in its report")
        try:
            lock.__enter__()
        except PartitionBusy:
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK_SECONDS)
            continue
        break
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _place(ctx: StepContext, file: PublishedFile) -> str:
    """Where a file is; empty when it is gone, or in a store that is not reached from here."""
    store: Store | None = ctx.exports if file.store_url == ctx.exports.url else None
    if store is None and file.store_url.startswith("file:"):
        store = open_store(file.store_url)
    return store.locate(file.key) if store is not None and store.head(file.key) is not None else ""


def _enter(ctx: StepContext, spec: ReportSpec, found: Sequence[tuple[PublishedFile, str]]) -> None:
    target = _target(ctx, spec)
    zone = _zone(ctx.table)
    try:
        # PostgreSQL is given instants, and turns them into local times where the column has no zone.
        with target.session(read_only=False, timezone=zone if target.engine == "postgresql" else "UTC") as session:
            session.begin()
            for each, place in found:
                _enter_one(session, spec, _values(ctx, each, place, zone, target.engine), target.engine)
            session.commit()
    except SourceError as error:
        raise SourceError(
            f"{len(found)} files of {ctx.table.id} are published but not entered in {spec.table}: {error.message}",
            hint=error.hint
            if error.transient
            else "`export-pipelines check` says what the table of reports lacks; the next dump, export or sweep enters "
            "the files",
            transient=error.transient,
            code=error.code,
        ) from error


def _enter_one(session: ReportSession, spec: ReportSpec, values: dict[str, object], engine: str) -> None:
    looking, entering = entry_statements(spec, list(values), engine)
    if not session.execute(looking, (values[spec.columns.path],)):
        session.execute(entering, tuple(values.values()))


def entry_statements(spec: ReportSpec, columns: Sequence[str], engine: str) -> tuple[str, str]:
    """The statements, with a `%s` for each value, that look for the entry of a path, and that make one."""
    table = spec.table.replace("%", "%%")
    names = ", ".join(_quoted(name, engine) for name in columns)
    marks = ", ".join(["%s"] * len(columns))
    return (
        f"SELECT 1 FROM {table} WHERE {_quoted(spec.columns.path, engine)} = %s LIMIT 1",
        f"INSERT INTO {table} ({names}) VALUES ({marks})",
    )


def _target(ctx: StepContext, spec: ReportSpec) -> Source:
    if ctx.reports is not None:
        return ctx.reports
    if spec.connection is not None and spec.connection != ctx.table.spec.connection:
        raise RequestError(f"the connection {spec.connection!r} of the report of {ctx.table.id} is not open here",
                           hint="name a connection in resources/")  # fmt: skip
    return ctx.source


def _values(ctx: StepContext, file: PublishedFile, place: str, zone: str, engine: str) -> dict[str, object]:
    """The values by their columns, those that are wanted."""

    def local(moment: datetime | None) -> datetime | None:
        if moment is None:
            return None
        found = moment.astimezone(ZoneInfo(zone)).replace(microsecond=0)
        return found if engine == "postgresql" else found.replace(tzinfo=None)

    columns = ctx.table.spec.dump.report.columns if ctx.table.spec.dump.report else None
    given: dict[str, object] = {
        "path": place,
        "name": posixpath.basename(file.key),
        "type": ctx.table.name,
        "size": file.size,
        "rows": file.rows,
        "range_start": local(file.start),
        "range_end": local(file.end),
        "date": local(file.finished),
    }
    return {name: value for field, value in given.items() if (name := getattr(columns, field))}


def _zone(table: TableDefinition) -> str:
    return table.spec.partitions.timezone if table.spec.partitions else table.spec.session_timezone


def _quoted(name: str, engine: str) -> str:
    quoted = quote_identifier(name) if engine == "postgresql" else "`" + name.replace("`", "``") + "`"
    return quoted.replace("%", "%%")
