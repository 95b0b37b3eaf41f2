"""Loads of copies of another table: it gives the types, and at the end the copy must have its digest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from export_pipelines.errors import IntegrityError
from export_pipelines.sources.postgres import Session
from export_pipelines.specs.load import LoadColumn, LoadSpec, Style
from export_pipelines.steps.load_context import LoadContext
from export_pipelines.steps.table_digest import measured, noted_columns, portable_type
from export_pipelines.targets.tables import columns_of

if TYPE_CHECKING:
    from export_pipelines.manifest import LandedManifest


def as_copy(ctx: LoadContext, landed: LandedManifest) -> LoadContext:
    """The load of a file that is a copy of a table: without columns of its own it has those of that table, and is
    compared. Others are as they are."""
    columns = noted_columns(landed.state)
    if not columns or ctx.load.spec.columns:
        return ctx
    typed = {name: LoadColumn(type=portable_type(kind)) for name, kind in columns.items()}
    load = ctx.load.model_copy(update={"spec": ctx.load.spec.model_copy(update={"columns": typed})})
    return replace(ctx, load=load, expected=landed.state.get("digest", ""))


def is_whole(spec: LoadSpec) -> bool:
    """Whether the table is what the file holds, and nothing else."""
    return (
        spec.style in (Style.REPLACE, Style.SHADOW)
        or (spec.style is Style.SNAPSHOT and not spec.removal.mark)
        or spec.partition_by == "all"
    )


def compare_copy(ctx: LoadContext, session: Session, relation: str, where: str = "", *, quarantined: int = 0) -> None:
    """Compare rows of a relation with what they were copied from, within the transaction that loads them. If the
    definition let some go to quarantine, only their number can be.

    Raises:
        IntegrityError: they are something else.
    """
    if not ctx.expected:
        return
    kinds = {column.name: column.type for column in columns_of(session, relation)}
    columns = [(name, kinds[name]) for name in ctx.load.spec.columns]
    found = measured(session, f"(SELECT * FROM {relation} {where})" if where else relation, columns)
    rows = ctx.expected.partition(" ")[0]
    if found.text != ctx.expected and not (quarantined and str(found.rows + quarantined) == rows):
        raise IntegrityError(
            f"the copy {ctx.load.spec.target.table} is not what it was made of: it has {found.rows} rows, there were "
            f"{rows}, and the digests differ",
            hint="nothing was changed; if it comes again, say `columns` and their types in the definition",
        )
