"""How a load ends: what it did, what it did before, or why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export_pipelines.errors import SourceError, TargetError
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import LoadSpec, Style
from export_pipelines.steps.load_columns import given_columns
from export_pipelines.steps.load_context import Action, LoadContext, LoadResult
from export_pipelines.targets import registry
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.registry import Counts
from export_pipelines.targets.tables import TableColumn, ensure_companions

if TYPE_CHECKING:
    from export_pipelines.steps.load_run import LoadRun


def grown(spec: LoadSpec, counts: Counts) -> int:
    """How many rows more the table has."""
    if spec.style is Style.HISTORY:
        return counts.added + counts.changed
    marked = spec.style is Style.SNAPSHOT and spec.removal.mark
    return counts.added - (0 if marked else counts.removed)


def refuse_changed(ctx: LoadContext) -> None:
    """Raises TargetError (transient) if the definition is another one than when the load began."""
    now = ctx.current_version() if ctx.current_version else ctx.load.version
    if now != ctx.load.version:
        raise TargetError(
            f"the definition of {ctx.load.id} was changed while it was loaded, so nothing was",
            hint="load again, by the new definition",
            transient=True,
        )


def already(session: Session, names: TableNames, entry: int) -> LoadResult:
    """What an entry that is processed did."""
    counts = registry.counts_of(session, entry)
    columns = given_columns(session, names.version(counts.table_version))
    session.rollback()
    return result_of("already", entry, counts, columns)


def superseded(session: Session, entry: int, current: int) -> LoadResult:
    """Let an entry wait no more, since a newer file is loaded."""
    registry.set_ignored(session, entry, "a newer file is loaded already")
    session.commit()
    return result_of("superseded", entry, Counts(table_version=current))


def note_failure(session: Session, names: TableNames, entry: int, run: LoadRun | None, error: BaseException) -> None:
    """Turn the entry `failed`, and put the first of what did not fit into the quarantine, for whoever looks."""
    session.begin()
    registry.fail(session, entry, str(error))
    session.commit()
    if run is None or run.misfits is None or not run.misfits.count:
        return
    session.begin()
    try:
        ensure_companions(session, names, None)
        run.misfits.write(session, names, entry)
        session.commit()
    except SourceError:
        session.rollback()


def result_of(
    action: Action, entry: int, counts: Counts, columns: Sequence[TableColumn] = (), digest: str = ""
) -> LoadResult:
    """What is told of a load."""
    return LoadResult(
        action=action,
        rows=counts.rows,
        quarantined=counts.quarantined,
        added=counts.added,
        changed=counts.changed,
        removed=counts.removed,
        table_version=counts.table_version,
        digest=digest,
        registry_id=entry,
        columns=tuple((column.name, column.type) for column in columns),
    )
