"""A JSON column of a data set that becomes columns, with the keys that occur in the snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export_pipelines.errors import RequestError, SpecError
from export_pipelines.formats.fields import Field, Kind, fields_of
from export_pipelines.specs.dataset import DataSetDefinition, WidenSpec
from export_pipelines.specs.query import Query

if TYPE_CHECKING:
    from export_pipelines.formats.widen import Widener
    from export_pipelines.steps.request_reading import Reading


@dataclass(frozen=True)
class Widening:
    """How records are widened, and what their fields are then."""

    widener: Widener
    fields: tuple[Field, ...]


def widening(dataset: DataSetDefinition, query: Query, reading: Reading) -> Widening | None:
    """How the records of an answer are widened; None if they are not, or the column was not asked for.

    Raises:
        RequestError: there are more keys than are allowed, or more rows. SpecError: the column is no JSON.
    """
    spec = dataset.spec.widen
    names = [column.name for column in reading.columns]
    if spec is None or spec.column not in names:
        return None
    from export_pipelines.formats.widen import Widener

    fields = fields_of(reading.columns, dataset.engine)
    index = names.index(spec.column)
    if problem := widen_misfit(spec, fields):
        file = str(dataset.folder / "defs.yaml")
        raise SpecError(problem, file=file, field="widen.column", hint="cast it to jsonb in a select.sql")
    keys = list(spec.keys) if spec.keys != "discover" else _discovered(spec, reading)
    widener = Widener(len(fields), index, keys, spec.prefix, others=spec.others)
    return Widening(widener, widener.fields(fields))


def widen_misfit(spec: WidenSpec, fields: Sequence[Field]) -> str:
    """Why a column cannot be widened; empty if it can."""
    field = next((each for each in fields if each.name == spec.column), None)
    if field is None:
        return f"column {spec.column!r} to widen is not there"
    # JSON of MariaDB is a text with a check.
    if field.kind is Kind.JSON or (field.engine == "mysql" and field.kind is Kind.TEXT):
        return ""
    return f"column {spec.column!r} to widen is of type {field.type}, which is no JSON"


def _discovered(spec: WidenSpec, reading: Reading) -> list[str]:
    keys = reading.keys(spec.column, spec.max_columns + 1)
    if len(keys) > spec.max_columns:
        raise RequestError(
            f"column {spec.column!r} has more than {spec.max_columns} keys, each of which would be a column",
            hint="raise `max_columns` of `widen`, or list the `keys` that are wanted",
        )
    return keys
