"""A data set in MySQL or MariaDB: its own query as a derived table, filters around it, every value bound by the driver.

Text is compared by its characters, whatever the collation of a column: what is asked for is what one gets, as in
PostgreSQL. The collation's own comparison stands beside that, so that an index is of use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from export_pipelines.errors import RequestError, SpecError
from export_pipelines.manifest import Column
from export_pipelines.sources import mysql_inspect
from export_pipelines.sources.mysql import MysqlSession, MysqlSource
from export_pipelines.sources.mysql_types import NOT_NULL
from export_pipelines.sources.mysql_wire import Columns
from export_pipelines.specs.dataset import DataSetDefinition, FilterType, Operator
from export_pipelines.specs.format import PLAIN
from export_pipelines.specs.query import Query
from export_pipelines.sql_mysql import MysqlSelect, parse_select, quote_identifier, split_name
from export_pipelines.steps.mysql.reading import text_of
from export_pipelines.steps.request_columns import Condition, chosen, conditions, order
from export_pipelines.steps.request_reading import Limits, Take
from export_pipelines.steps.request_texts import SIGNS, masked_list, select_text

_LOCK = "30s"
_DATA = "export_pipelines_data"
_ALL = "18446744073709551615"
_DIGITS = 65


@contextmanager
def mysql_reading(
    dataset: DataSetDefinition, source: MysqlSource, query: Query | None, limits: Limits
) -> Iterator[MysqlReading]:
    """One READ ONLY REPEATABLE READ transaction with a consistent snapshot."""
    with source.session(
        timezone=dataset.spec.timezone, statement_timeout=limits.timeout, lock_timeout=_LOCK, watch=limits.watch
    ) as session:
        session.begin()
        yield MysqlReading(session, dataset, query)


class MysqlReading:
    """See `steps.request_reading.Reading`."""

    def __init__(self, session: MysqlSession, dataset: DataSetDefinition, query: Query | None) -> None:
        self._session, self._dataset, self._query = session, dataset, query
        self._select = _select(dataset, session)
        found = session.describe(self._select.query)
        if self._select.opaque:
            # GROUP BY … WITH ROLLUP gives NULLs where the server says that there are none.
            found = [replace(column, flags=column.flags & ~NOT_NULL) for column in found]
        self._results = {column.name: column for column in found}
        self.available = mysql_inspect.types(session, found)

    def misfits(self) -> list[SpecError]:
        return []

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        return chosen(self._dataset, self._query, self.available)

    def write(self, take: Take, at_most: int) -> None:
        record = text_of([self._results[column.name] for column in self.columns], PLAIN)

        def lines(found: Columns) -> None:
            take([line + b"\n" for line in found[-1]])

        self._session.stream(self._statement(record, at_most, ordered=True), lines)

    def keys(self, column: str, at_most: int) -> list[str]:
        rows = self._statement(quote_identifier(column), None)
        sets = self._session.execute(f"SELECT DISTINCT JSON_KEYS({quote_identifier(column)}) FROM ({rows}) AS data")
        found = {key for (text,) in sets if text is not None for key in json.loads(text)}
        return sorted(found)[:at_most]

    def estimate(self) -> int:
        names, rows = self._explained()
        total = 1.0
        for row in rows:
            told = dict(zip(names, row, strict=True))
            # Of what is within it, the derived table's own row has the number.
            if str(told.get("id")) == "1" and told.get("rows") is not None:
                total *= float(str(told["rows"])) * float(str(told.get("filtered") or 100)) / 100
        limit = self._query.limit if self._query else None
        return min(int(total), limit) if limit is not None else int(total)

    def _explained(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        extended = "EXPLAIN EXTENDED" if self._session.mariadb else "EXPLAIN"
        return self._session.table(f"{extended} {self._statement('1', None)}")

    def count(self, at_most: int) -> int:
        return int(self._session.one(f"SELECT COUNT(*) FROM ({self._statement('1', at_most)}) AS counted")[0])

    def _statement(self, columns: str, at_most: int | None, *, ordered: bool = False) -> str:
        """The query of some columns, values bound. All other text in it is that of the definition."""
        values: list[Any] = []
        found = conditions(self._dataset, self._query, self.available) if self._query else []
        where = " AND ".join(_condition(each, values, self._dataset.spec.timezone) for each in found)
        inner = self._select.query
        sorted_by = [quote_identifier(name) for name in order(self._dataset, self.available)] if ordered else []
        if self._select.ordered and not self._select.limited and ordered and not sorted_by:
            # An ORDER BY in a derived table counts only with a LIMIT.
            inner += f"\nLIMIT {_ALL}"
        # What stands before the conditions has no parameter.
        head = f"SELECT {columns} FROM ({inner}\n) AS {_DATA}"
        text = head + (self._session.bound(f" WHERE {where}", values) if where else "")
        if sorted_by:
            text += f" ORDER BY {', '.join(sorted_by)}"
        limits = [int(each) for each in (at_most, self._query.limit if self._query else None) if each is not None]
        return text + (f" LIMIT {min(limits)}" if limits else "")


def _select(dataset: DataSetDefinition, session: MysqlSession) -> MysqlSelect:
    """The data set's own query. Raises SpecError, SourceError."""
    text = select_text(dataset)
    if dataset.spec.exclude_columns or dataset.spec.mask_columns:
        names = mysql_inspect.base_table(session, *split_name(dataset.spec.table or "")).names
        text = text.replace("*", masked_list(dataset, names, quote_identifier), 1)
    return parse_select(text, dataset.folder / "select.sql")


def _condition(each: Condition, values: list[Any], zone: str) -> str:
    """SQL of a condition; adds its values to `values`."""
    column = quote_identifier(each.field.name).replace("%", "%%")
    operator, texts = each.filter.operator, each.filter.values
    if operator is Operator.IS_NULL:
        return f"{column} IS {'' if texts[0] == 'true' else 'NOT '}NULL"
    if each.spec.type in (FilterType.TEXT, FilterType.UUID):
        return _text_condition(column, operator, texts, values)
    value = _VALUES[each.spec.type]
    if operator is Operator.IN:
        places = [value(text, zone, values) for text in texts]
        return f"{column} IN ({', '.join(places)})"
    return f"{column} {SIGNS[operator]} {value(texts[0], zone, values)}"


def _text_condition(column: str, operator: Operator, texts: tuple[str, ...], values: list[Any]) -> str:
    exact = f"CAST(CONVERT({column} USING utf8mb4) AS BINARY)"
    value = "CAST(%s AS BINARY)"
    if operator is Operator.IN:
        values += [*texts, *texts]
        return f"({column} IN ({', '.join(['%s'] * len(texts))}) AND {exact} IN ({', '.join([value] * len(texts))}))"
    if operator is Operator.EQ:
        values += [texts[0], texts[0]]
        return f"({column} = %s AND {exact} = {value})"
    values.append(texts[0])
    if operator is Operator.CONTAINS:
        return f"LOCATE({value}, {exact}) > 0"
    if operator is Operator.STARTS_WITH:
        return f"LOCATE({value}, {exact}) = 1"
    return f"{exact} <> {value}" if operator is Operator.NE else f"{column} {SIGNS[operator]} %s"


Value = Callable[[str, str, list[Any]], str]


def _number(text: str, zone: str, values: list[Any]) -> str:
    digits = text.lstrip("-").replace(".", "")
    if len(digits) > _DIGITS:
        raise RequestError(f"a number of {len(digits)} digits is more than the database compares", hint="round it")
    places = len(text.partition(".")[2])
    values.append(text)
    return f"CAST(%s AS DECIMAL({_DIGITS},{places}))" if places <= 30 else "CAST(%s AS DOUBLE)"


def _integer(text: str, zone: str, values: list[Any]) -> str:
    values.append(int(text))
    return "%s"


def _boolean(text: str, zone: str, values: list[Any]) -> str:
    values.append(int(text == "true"))
    return "%s"


def _date(text: str, zone: str, values: list[Any]) -> str:
    values.append(text)
    return "CAST(%s AS DATE)"


def _timestamp(text: str, zone: str, values: list[Any]) -> str:
    """An instant as the time that clocks of the data set's zone, which is the session's, showed then."""
    local = datetime.fromisoformat(text).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    values.append(local.isoformat(sep=" ", timespec="microseconds"))
    return "CAST(%s AS DATETIME(6))"


_VALUES: dict[FilterType, Value] = {
    FilterType.INTEGER: _integer,
    FilterType.DECIMAL: _number,
    FilterType.BOOLEAN: _boolean,
    FilterType.DATE: _date,
    FilterType.TIMESTAMP: _timestamp,
}


def parse(dataset: DataSetDefinition) -> None:
    """Read the data set's own query without a server. Raises SpecError."""
    parse_select(select_text(dataset), dataset.folder / "select.sql")
    for name, expression in dataset.spec.mask_columns.items():
        file = dataset.folder / "defs.yaml"
        try:
            parse_select(f"SELECT ({expression}) AS masked FROM t", file)
        except SpecError as error:
            raise SpecError(error.message, file=file, field=f"mask_columns.{name}", hint=error.hint) from error
