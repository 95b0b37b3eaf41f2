"""What a format cannot hold exactly, by the types of columns: told before a row is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from export_pipelines.formats.excel_types import MOST_COLUMNS, inexact
from export_pipelines.formats.fields import Field
from export_pipelines.specs.format import ANY_COLUMN, FormatSpec


def problems(spec: FormatSpec, fields: Sequence[Field]) -> list[str]:
    """What the format cannot hold exactly unless that is declared, a sentence each; empty when all is well."""
    if spec.type == "csv":
        return []
    return [*_names(spec, fields), *(_excel(spec, fields) if spec.type == "excel" else ())]


def unknown_conversions(spec: FormatSpec, fields: Sequence[Field]) -> list[str]:
    """Conversions of columns that do not exist, a sentence each."""
    names = {field.name for field in fields} | {ANY_COLUMN}
    return [f"conversions name {column!r}, and there is no such column" for column in spec.conversions.keys() - names]


def _names(spec: FormatSpec, fields: Sequence[Field]) -> Iterator[str]:
    double = [name for name, times in Counter(field.name for field in fields).items() if times > 1]
    # A sheet has columns of the same name, and so has CSV; where values are known by name, one would hide the other.
    if double and spec.type != "excel":
        yield f"columns named {double} come more than once, which {spec.type} cannot tell apart: name them by AS"


def _excel(spec: FormatSpec, fields: Sequence[Field]) -> Iterator[str]:
    if len(fields) > MOST_COLUMNS:
        yield f"Excel holds {MOST_COLUMNS:,} columns, and there are {len(fields):,}"
    for field in fields:
        why = inexact(field)
        if why and field.name not in spec.conversions and ANY_COLUMN not in spec.conversions:
            yield (
                f"Excel does not hold column {field.name!r} exactly, since {why}: declare "
                f"`conversions: {{{field.name}: text}}` (or checked, float, datetime)"
            )
