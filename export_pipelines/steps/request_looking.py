"""What is asked of a data set before a request: its columns, the first rows, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

from export_pipelines.manifest import Column
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.query import Query
from export_pipelines.steps.request_reading import Limits, RequestSource, open_reading

_SECONDS = 2.0


@dataclass(frozen=True)
class Preview:
    """The first rows of an answer, as text; NULL is None."""

    columns: tuple[Column, ...]
    rows: list[list[str | None]]


def preview(
    dataset: DataSetDefinition, source: RequestSource, query: Query, rows: int = 20, *, seconds: float = 5
) -> Preview:
    """The first rows that a query gives, before any widening.

    Raises:
        SpecError: the definition does not fit the source. QueryError: a column is not there.
        SourceError: as it says, also after `seconds`.
    """
    records: list[bytes] = []
    with open_reading(dataset, source, query, _within(seconds)) as reading:
        columns = reading.columns
        reading.write(records.extend, rows)
    return Preview(columns, [_values(record) for record in records[:rows]])


def estimate(dataset: DataSetDefinition, source: RequestSource, query: Query, *, seconds: float = _SECONDS) -> int:
    """Rows that the source's planner expects; may be far off. Raises SpecError, SourceError."""
    with open_reading(dataset, source, query, _within(seconds)) as reading:
        return reading.estimate()


def count(
    dataset: DataSetDefinition,
    source: RequestSource,
    query: Query,
    at_most: int,
    *,
    seconds: float = _SECONDS,
) -> int:
    """Rows of a query, exact up to `at_most`; `at_most + 1` when there are more.

    Raises:
        SpecError, SourceError: as they say, also after `seconds`: counting may need long where nothing is found.
    """
    with open_reading(dataset, source, query, _within(seconds)) as reading:
        return reading.count(at_most + 1)


def columns_of(dataset: DataSetDefinition, source: RequestSource) -> tuple[Column, ...]:
    """Columns that may be asked for, with their types, before any widening. Raises SpecError, SourceError."""
    with open_reading(dataset, source, None, _within(_SECONDS)) as reading:
        return reading.columns


def _within(seconds: float) -> Limits:
    return Limits(f"{max(1, round(seconds * 1000))}ms")


def _values(record: bytes) -> list[str | None]:
    """The values of a plain record."""
    text, place = record.decode().removesuffix("\n"), 0
    found: list[str | None] = []
    while True:
        if text.startswith('"', place):
            end = place + 1
            while text.startswith('""', end := text.index('"', end)):
                end += 2
            found.append(text[place + 1 : end].replace('""', '"'))
            place = end + 1
        else:
            end = text.find(",", place)
            end = len(text) if end < 0 else end
            found.append(text[place:end] or None)
            place = end
        if place >= len(text):
            return found
        place += 1
