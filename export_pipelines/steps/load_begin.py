"""How a load begins: with its table locked, if it may be loaded at all."""

from __future__ import annotations

from export_pipelines.errors import TargetError
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import LoadDefinition
from export_pipelines.specs.load_sources import UploadSource
from export_pipelines.targets import registry, versions
from export_pipelines.targets.names import TableNames
from export_pipelines.targets.tables import exists


def lock_table(
    session: Session, load: LoadDefinition, source: str, *, force: bool
) -> tuple[versions.State | None, int]:
    """Begin a transaction, with the table locked against other loaders. What is known of it, None before its first
    load, and the highest number of a version that was ever given. `source` is the id under which files landed.

    With `force`, a table that somebody dropped is made anew, and one of another definition is taken over.

    Raises:
        TargetError: the table was dropped, or only another definition has loaded it.
    """
    names = TableNames.of(load.spec.target)
    versions.lock(session, names)
    state = versions.state(session, names)
    gone = versions.is_gone(session, names, state)
    if not force:
        _refuse(session, load, source, gone=gone)
    if gone:
        versions.forget_gone(session, names)
    return (None if gone else state), (state.last if state else 0)


def check_table(session: Session, load: LoadDefinition) -> None:
    """Look whether a table may be loaded, without a lock. Raises TargetError as `lock_table` does."""
    names = TableNames.of(load.spec.target)
    session.begin()
    if exists(session, "operations.datafile_registry"):
        state = versions.state(session, names, wait=False)
        _refuse(session, load, load.landed_as, gone=versions.is_gone(session, names, state))
    session.rollback()


def _refuse(session: Session, load: LoadDefinition, source: str, *, gone: bool) -> None:
    if gone:
        _refuse_gone(TableNames.of(load.spec.target))
    _refuse_other(session, load, source)


def _refuse_gone(names: TableNames) -> None:
    """With the next file alone it would lack what all others gave."""
    raise TargetError(
        f"{names.table} was loaded before, and what it showed was dropped by hand",
        hint="`export-pipelines load run --force` makes it anew from all that landed",
    )


def _refuse_other(session: Session, load: LoadDefinition, source: str) -> None:
    """All that lands anew would be loaded once more."""
    table = load.spec.target.table
    if other := registry.other_definition(session, table, source):
        # Of a data set that was uploaded, the folder is that of its area.
        moved = other.removesuffix(f"/{load.name}") if isinstance(load.spec.source, UploadSource) else other
        raise TargetError(
            f"{table} was loaded by the definition {other} until now, not by {source}",
            hint=f"if its folder was moved, say `moved_from: {moved}`; else name another table, or load with `force`",
        )
