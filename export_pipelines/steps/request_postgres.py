"""A data set in PostgreSQL: its own query as a derived table, filters around it, every value a parameter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from export_pipelines.errors import SpecError
from export_pipelines.formats.csv import copy_options
from export_pipelines.formats.fields import Field, Kind
from export_pipelines.manifest import Column
from export_pipelines.sources import inspect
from export_pipelines.sources.postgres import PostgresSource, Session
from export_pipelines.specs.dataset import DataSetDefinition, FilterType, Operator
from export_pipelines.specs.format import PLAIN
from export_pipelines.specs.query import Query
from export_pipelines.sql import parse_select, quote_identifier
from export_pipelines.steps.request_columns import Condition, chosen, conditions, order
from export_pipelines.steps.request_reading import Limits, Take
from export_pipelines.steps.request_texts import SIGNS, masked_list, select_text

_BATCH_BYTES = 1 << 18
_BATCH_SECONDS = 0.4
_LOCK = "30s"
_DATA = "export_pipelines_data"
_LARGEST = 1 << 63


@contextmanager
def postgres_reading(
    dataset: DataSetDefinition, source: PostgresSource, query: Query | None, limits: Limits
) -> Iterator[PostgresReading]:
    """One READ ONLY REPEATABLE READ transaction."""
    with source.session(
        timezone=dataset.spec.timezone, statement_timeout=limits.timeout, lock_timeout=_LOCK, watch=limits.watch
    ) as session:
        session.begin()
        yield PostgresReading(session, dataset, query)


class PostgresReading:
    """See `steps.request_reading.Reading`."""

    def __init__(self, session: Session, dataset: DataSetDefinition, query: Query | None) -> None:
        self._session, self._dataset, self._query = session, dataset, query
        self._inner = _select(dataset, session)
        self.available = inspect.columns(session, self._inner)

    def misfits(self) -> list[SpecError]:
        return []

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        # A column of keys and values is read as the JSON that it means.
        found = chosen(self._dataset, self._query, self.available)
        return tuple(Column(name=each.name, type="jsonb") if each.type == "hstore" else each for each in found)

    def write(self, take: Take, at_most: int) -> None:
        text, values = self._statement(", ".join(map(self._column, self.columns)), at_most, ordered=True)
        batch: list[bytes] = []
        size, due = 0, time.monotonic() + _BATCH_SECONDS

        def write(record: bytes) -> None:
            nonlocal batch, size, due
            batch.append(record)
            size += len(record)
            # A slow query is to show its progress, too.
            if size >= _BATCH_BYTES or time.monotonic() >= due:
                full, batch, size = batch, [], 0
                take(full)
                due = time.monotonic() + _BATCH_SECONDS

        self._session.copy_out(text, copy_options(PLAIN), write, values)
        if batch:
            take(batch)

    def keys(self, column: str, at_most: int) -> list[str]:
        found = next(each for each in self.columns if each.name == column)
        function = "json" if found.type == "json" else "jsonb"
        name = quote_identifier(column).replace("%", "%%")
        rows, values = self._statement(self._column(found), None)
        text = (
            f"SELECT DISTINCT {function}_object_keys({name}) FROM ({rows}) AS data "
            f"WHERE {function}_typeof({name}) = 'object' LIMIT {int(at_most)}"
        )
        return sorted(row[0] for row in self._session.execute(text, values))

    def estimate(self) -> int:
        text, values = self._statement("1", None)
        plan = self._session.one(f"EXPLAIN (FORMAT JSON) {text}", values)[0][0]["Plan"]
        return int(plan["Plan Rows"])

    def count(self, at_most: int) -> int:
        text, values = self._statement("1", at_most)
        return int(self._session.one(f"SELECT count(*) FROM ({text}) AS counted", values)[0])

    def _column(self, column: Column) -> str:
        name = quote_identifier(column.name).replace("%", "%%")
        given = next(each.type for each in self.available if each.name == column.name)
        return f"hstore_to_jsonb({name}) AS {name}" if given == "hstore" else name

    def _statement(self, columns: str, at_most: int | None, *, ordered: bool = False) -> tuple[str, dict[str, Any]]:
        """The query of some columns, and its values. All text in it is that of the definition."""
        found = conditions(self._dataset, self._query, self.available) if self._query else []
        values: dict[str, Any] = {"zone": self._dataset.spec.timezone}
        where = " AND ".join(_condition(each, f"f{number}", values) for number, each in enumerate(found))
        inner = self._inner.replace("%", "%%")
        text = f"SELECT {columns} FROM ({inner}\n) AS {_DATA}" + (f" WHERE {where}" if where else "")
        sorted_by = (
            [quote_identifier(name).replace("%", "%%") for name in order(self._dataset, self.available)]
            if ordered
            else []
        )
        if sorted_by:
            text += f" ORDER BY {', '.join(sorted_by)}"
        limit = _least(at_most, self._query.limit if self._query else None)
        return text + (f" LIMIT {limit}" if limit is not None else ""), values


def _least(*limits: int | None) -> int | None:
    given = [int(each) for each in limits if each is not None]
    return min(given) if given else None


def _select(dataset: DataSetDefinition, session: Session) -> str:
    """The data set's own query. Raises SpecError, SourceError."""
    text = select_text(dataset)
    spec = dataset.spec
    if spec.exclude_columns or spec.mask_columns:
        names = [column.name for column in inspect.columns(session, text)]
        text = text.replace("*", masked_list(dataset, names, quote_identifier), 1)
    return parse_select(text, dataset.folder / "select.sql").query


def _condition(each: Condition, name: str, values: dict[str, Any]) -> str:
    """SQL of a condition; adds its value to `values`."""
    column = quote_identifier(each.field.name).replace("%", "%%")
    operator, texts = each.filter.operator, each.filter.values
    if operator is Operator.IS_NULL:
        return f"{column} IS {'' if texts[0] == 'true' else 'NOT '}NULL"
    left, cast = _compared(each.spec.type, each.field, column, texts)
    values[name] = list(texts) if operator is Operator.IN else texts[0]
    if operator is Operator.IN:
        return f"{left} = ANY({cast(f'%({name})s', '[]')})"
    value = cast(f"%({name})s", "")
    if operator is Operator.CONTAINS:
        return f"strpos({column}::text, {value}) > 0"
    if operator is Operator.STARTS_WITH:
        return f"starts_with({column}::text, {value})"
    return f"{left} {SIGNS[operator]} {value}"


def _compared(kind: FilterType, field: Field, column: str, texts: Sequence[str]) -> tuple[str, Any]:
    """What stands on the left, and how a parameter is cast: to a type by which an index of the column is of use."""
    if kind is FilterType.TEXT or (kind is FilterType.UUID and field.kind is not Kind.UUID):
        plain = field.type == "text" or field.type.startswith("character varying")
        return (column if plain else f"{column}::text"), _cast("text")
    if kind is FilterType.INTEGER:
        whole = all(-_LARGEST <= int(text) < _LARGEST for text in texts) and field.kind is Kind.INTEGER
        return column, _cast("bigint" if whole else "numeric")
    if kind is FilterType.TIMESTAMP and field.kind is Kind.TIMESTAMP:
        return column, _local_time
    types = {FilterType.DECIMAL: "numeric", FilterType.TIMESTAMP: "timestamptz"}
    return column, _cast(types.get(kind, kind.value))


def _cast(type_name: str) -> Any:
    return lambda value, many: f"{value}::{type_name}{many}"


def _local_time(value: str, many: str) -> str:
    """An instant as the time that clocks of the data set's zone showed then."""
    if not many:
        return f"({value}::timestamptz AT TIME ZONE %(zone)s)"
    return f"ARRAY(SELECT unnest({value}::timestamptz[]) AT TIME ZONE %(zone)s)"


def parse(dataset: DataSetDefinition) -> None:
    """Read the data set's own query without a server. Raises SpecError."""
    file = dataset.folder / "select.sql"
    parse_select(select_text(dataset), file)
    for name, expression in dataset.spec.mask_columns.items():
        try:
            parse_select(f"SELECT ({expression}) AS masked", dataset.folder / "defs.yaml")
        except SpecError as error:
            field = f"mask_columns.{name}"
            raise SpecError(error.message, file=dataset.folder / "defs.yaml", field=field, hint=error.hint) from error
