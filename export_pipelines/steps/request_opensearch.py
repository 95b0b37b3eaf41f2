"""A data set in OpenSearch: an index read once, filters as typed clauses of its query, hits as records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from export_pipelines.errors import SpecError
from export_pipelines.manifest import Column
from export_pipelines.sources.opensearch import OpenSearchSession, OpenSearchSource
from export_pipelines.sources.opensearch_json import Number, picked, text_of
from export_pipelines.specs.dataset import DataSetDefinition, FilterType, Operator
from export_pipelines.specs.query import Query
from export_pipelines.steps.request_columns import Condition, chosen, conditions, order
from export_pipelines.steps.request_reading import Limits, Take

_RANGES = {Operator.LT: "lt", Operator.LE: "lte", Operator.GT: "gt", Operator.GE: "gte"}
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@contextmanager
def opensearch_reading(
    dataset: DataSetDefinition, source: OpenSearchSource, query: Query | None, limits: Limits
) -> Iterator[OpenSearchReading]:
    """The view of the index begins with `write`."""
    with source.session(timeout=_seconds(limits.timeout), watch=limits.watch) as session:
        yield OpenSearchReading(session, dataset, query)


def _seconds(text: str) -> float:
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz ")
    return float(digits) * _UNITS[text.strip()[len(digits) :].strip() or "ms"]


class OpenSearchReading:
    """See `steps.request_reading.Reading`."""

    def __init__(self, session: OpenSearchSession, dataset: DataSetDefinition, query: Query | None) -> None:
        self._session, self._dataset, self._query = session, dataset, query
        declared = dataset.spec.fields
        self._mapping: dict[str, dict[str, Any]] = (
            {name: {"type": kind} for name, kind in declared.items()} if declared else session.mappings(self._index)
        )
        self.available = tuple(Column(name=name, type=str(told["type"])) for name, told in self._mapping.items())

    @property
    def _index(self) -> str:
        return self._dataset.spec.index or ""

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        return chosen(self._dataset, self._query, self.available)

    def write(self, take: Take, at_most: int) -> None:
        names = [column.name for column in self.columns]
        limit = min(at_most, self._query.limit) if self._query and self._query.limit else at_most
        sorted_by = [self._exact(name) for name in order(self._dataset, self.available)]
        fields = [name for name in names if name != "_id"]
        for hits in self._session.pages(self._index, self._clauses(), fields, sorted_by, limit):
            take([_record(hit, names) for hit in hits])

    def keys(self, column: str, at_most: int) -> list[str]:
        found: set[str] = set()
        for hits in self._session.pages(self._index, self._clauses(), [column], (), None):
            values = (picked(hit.get("_source") or {}, column) for hit in hits)
            found.update(key for value in values if isinstance(value, dict) for key in value)
            if len(found) >= at_most:
                break
        return sorted(found)[:at_most]

    def estimate(self) -> int:
        found = self._session.count(self._index, self._clauses())
        return min(found, self._query.limit) if self._query and self._query.limit else found

    def count(self, at_most: int) -> int:
        limit = self._query.limit if self._query and self._query.limit else at_most
        return self._session.count(self._index, self._clauses(), min(at_most, limit))

    def misfits(self) -> list[SpecError]:
        """Filters by fields that cannot be compared."""
        found = []
        for name, spec in self._dataset.spec.filters.items():
            try:
                self._exact(spec.column or name)
            except SpecError as error:
                found.append(SpecError(error.message, file=error.file, field=f"filters.{name}", hint=error.hint))
        return found

    def _clauses(self) -> dict[str, Any]:
        """The query: typed clauses, no query strings."""
        wanted: list[Any] = []
        unwanted: list[Any] = []
        for each in conditions(self._dataset, self._query, self.available) if self._query else ():
            clause, negated = _clause(each, self._exact(each.field.name), self._dataset.spec.timezone)
            (unwanted if negated else wanted).append(clause)
            if each.filter.operator is Operator.NE:
                # As in SQL, what has no value is not unequal to one.
                wanted.append({"exists": {"field": each.field.name}})
        if not wanted and not unwanted:
            return {"match_all": {}}
        return {"bool": {"filter": wanted, "must_not": unwanted}}

    def _exact(self, name: str) -> str:
        """The field by which whole values are compared and sorted: of an analysed text, a keyword within it.

        Raises:
            SpecError: there is none.
        """
        told = self._mapping.get(name, {})
        if told.get("type") not in ("text", "match_only_text"):
            return name
        inner = told.get("fields", {})
        keyword = next((key for key, each in inner.items() if each.get("type") == "keyword"), None)
        if keyword is None:
            raise SpecError(
                f"field {name!r} is an analysed text without a keyword, so whole values cannot be compared",
                file=self._dataset.folder / "defs.yaml",
                hint="filter by a field of type keyword",
            )
        return f"{name}.{keyword}"


def _clause(each: Condition, field: str, zone: str) -> tuple[dict[str, Any], bool]:
    """A clause, and whether it is of what is not wanted."""
    operator, texts = each.filter.operator, each.filter.values
    if operator is Operator.IS_NULL:
        return {"exists": {"field": each.field.name}}, texts[0] == "true"
    values = [_value(each.spec.type, text) for text in texts]
    if each.field.type.startswith("date"):
        local = {"time_zone": zone} if each.spec.type is FilterType.DATE and zone != "UTC" else {}
        return _moments(field, operator, values, local), operator is Operator.NE
    if operator is Operator.IN:
        return {"terms": {field: values}}, False
    if operator in _RANGES:
        return {"range": {field: {_RANGES[operator]: values[0]}}}, False
    if operator is Operator.CONTAINS:
        escaped = "".join(f"\\{sign}" if sign in "\\*?" else sign for sign in texts[0])
        return {"wildcard": {field: {"value": f"*{escaped}*"}}}, False
    if operator is Operator.STARTS_WITH:
        return {"prefix": {field: {"value": texts[0]}}}, False
    return {"term": {field: {"value": values[0]}}}, operator is Operator.NE


def _moments(field: str, operator: Operator, values: list[Any], local: dict[str, str]) -> dict[str, Any]:
    """A clause of dates, which are ranges: a day is all of its moments."""
    if operator in _RANGES:
        return {"range": {field: {_RANGES[operator]: values[0], **local}}}
    ranges = [{"range": {field: {"gte": value, "lte": value, **local}}} for value in values]
    return {"bool": {"should": ranges, "minimum_should_match": 1}}


def _value(kind: FilterType, text: str) -> Any:
    if kind in (FilterType.INTEGER, FilterType.DECIMAL):
        return Number(text)
    return text == "true" if kind is FilterType.BOOLEAN else text


def _record(hit: dict[str, Any], names: list[str]) -> bytes:
    """A hit as a plain record."""
    source = hit.get("_source") or {}
    texts = [text_of(hit["_id"] if name == "_id" else picked(source, name)) for name in names]
    single = len(names) == 1
    return (",".join("" if text is None else _quoted(text, single) for text in texts) + "\n").encode()


def _quoted(text: str, single: bool) -> str:
    # The last is what COPY takes for the end of the data.
    if not text or any(sign in text for sign in ',"\r\n') or (single and text == "\\."):
        return '"' + text.replace('"', '""') + '"'
    return text
