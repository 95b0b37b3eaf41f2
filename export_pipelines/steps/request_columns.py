"""Columns and filters of a query against those that the source has: which are chosen, and whether filters fit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from export_pipelines.errors import SpecError
from export_pipelines.formats.fields import Field, Kind, fields_of
from export_pipelines.manifest import Column
from export_pipelines.specs.dataset import DataSetDefinition, FilterSpec, FilterType
from export_pipelines.specs.documents import suggest
from export_pipelines.specs.query import Filter, Problem, Query, QueryError

_NUMBERS = (Kind.INTEGER, Kind.DECIMAL, Kind.NUMERIC, Kind.FLOAT)
_FITTING: dict[FilterType, tuple[Kind, ...]] = {
    FilterType.TEXT: (Kind.TEXT, Kind.UUID),
    FilterType.INTEGER: _NUMBERS,
    FilterType.DECIMAL: _NUMBERS,
    FilterType.BOOLEAN: (Kind.BOOLEAN,),
    FilterType.DATE: (Kind.DATE,),
    FilterType.TIMESTAMP: (Kind.TIMESTAMP, Kind.TIMESTAMPTZ),
    FilterType.UUID: (Kind.UUID, Kind.TEXT),
}
_BETTER = {
    Kind.TIMESTAMP: FilterType.TIMESTAMP,
    Kind.TIMESTAMPTZ: FilterType.TIMESTAMP,
    Kind.DATE: FilterType.DATE,
    Kind.BOOLEAN: FilterType.BOOLEAN,
    Kind.INTEGER: FilterType.INTEGER,
    **dict.fromkeys((Kind.DECIMAL, Kind.NUMERIC, Kind.FLOAT), FilterType.DECIMAL),
    Kind.UUID: FilterType.UUID,
    Kind.TEXT: FilterType.TEXT,
}


@dataclass(frozen=True)
class Condition:
    """A filter of a query, with what it compares."""

    filter: Filter
    spec: FilterSpec
    field: Field


def conditions(dataset: DataSetDefinition, query: Query, columns: Sequence[Column]) -> list[Condition]:
    """The filters of a query with the columns that they compare.

    Raises:
        SpecError: the definition names a column that is not there, or is of a type that the filter does not fit.
    """
    fields = {field.name: field for field in fields_of(columns, dataset.engine)}
    found = []
    for each in query.filters:
        spec = dataset.spec.filters[each.name]
        name = spec.column or each.name
        if problem := misfit(each.name, spec, fields):
            raise SpecError(problem[0], file=_file(dataset), field=f"filters.{each.name}", hint=problem[1])
        found.append(Condition(each, spec, fields[name]))
    return found


def misfit(name: str, spec: FilterSpec, fields: dict[str, Field]) -> tuple[str, str] | None:
    """Why a filter does not fit the columns of its data set, with a hint; None if it does."""
    column = spec.column or name
    field = fields.get(column)
    if field is None:
        return f"filter {name!r} compares column {column!r}, which is not there", suggest(column, list(fields))
    if _fits(spec.type, field):
        return None
    better = _BETTER.get(field.kind)
    hint = f"write `type: {better.value}`" if better else "cast it in a select.sql, and filter by that"
    return f"filter {name!r} of type {spec.type.value} does not fit column {column!r} of type {field.type}", hint


def _fits(kind: FilterType, field: Field) -> bool:
    if field.engine == "opensearch":
        if field.type.startswith("date"):
            return kind in (FilterType.DATE, FilterType.TIMESTAMP)
        if field.type in ("ip", "version", "constant_keyword", "wildcard"):
            return kind is FilterType.TEXT
    if field.engine == "postgresql" and field.kind is Kind.OTHER:
        # Enums, domains, addresses …: compared by their text.
        return kind is FilterType.TEXT
    if field.engine == "mysql" and kind is FilterType.BOOLEAN:
        return field.kind is Kind.INTEGER
    return field.kind in _FITTING[kind]


def chosen(dataset: DataSetDefinition, query: Query | None, columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns of the answer, in its order; without a query those that may be asked for.

    Raises:
        SpecError: the definition names a column that is not there, or one comes twice. QueryError: the query does.
    """
    by_name = {column.name: column for column in columns}
    if double := [name for name, times in Counter(column.name for column in columns).items() if times > 1]:
        raise SpecError(
            f"columns {double} come more than once", file=_file(dataset), hint="name them by AS in select.sql"
        )
    allowed = dataset.spec.columns or tuple(by_name)
    if missing := [name for name in allowed if name not in by_name]:
        hint = suggest(missing[0], list(by_name)) or f"it has {', '.join(by_name)}"
        raise SpecError(
            f"column {missing[0]!r} of `columns` is not there", file=_file(dataset), field="columns", hint=hint
        )
    if query is None or not query.columns:
        return tuple(by_name[name] for name in allowed)
    if problems := list(_unknown(dataset, query, allowed)):
        raise QueryError(problems)
    return tuple(by_name[name] for name in query.columns)


def _unknown(dataset: DataSetDefinition, query: Query, allowed: Sequence[str]) -> Iterator[Problem]:
    for name in query.columns:
        if name not in allowed:
            hint = suggest(name, list(allowed)) or f"columns are {', '.join(allowed)}"
            yield Problem("columns", f"{dataset.id} has no column {name!r}", hint)


def order(dataset: DataSetDefinition, columns: Sequence[Column]) -> tuple[str, ...]:
    """Columns to sort by. Raises SpecError: one of them is not there."""
    names = [column.name for column in columns]
    for name in dataset.spec.order_by:
        if name not in names:
            message = f"column {name!r} of `order_by` is not there"
            raise SpecError(message, file=_file(dataset), field="order_by", hint=suggest(name, names))
    return dataset.spec.order_by


def _file(dataset: DataSetDefinition) -> str:
    return str(dataset.folder / "defs.yaml")
