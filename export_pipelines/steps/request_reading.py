"""How the rows of a data set are asked for: each kind of source does it in its own way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from export_pipelines.errors import SpecError
from export_pipelines.manifest import Column
from export_pipelines.sources.mysql import MysqlSource
from export_pipelines.sources.opensearch import OpenSearchSource
from export_pipelines.sources.postgres import PostgresSource
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.query import Query

RequestSource = PostgresSource | MysqlSource | OpenSearchSource
Take = Callable[[list[bytes]], object]
"""Gets some records at a time: plain CSV, each with its line end, without a header. May be called in another thread."""


@dataclass(frozen=True)
class Limits:
    """What bounds a reading. `timeout` as PostgreSQL writes it; `watch` is called every now and then in the caller's
    thread, and what it raises ends what the source does."""

    timeout: str
    watch: Callable[[], None] | None = None


class Reading(Protocol):
    """A query in one snapshot of its source, ready to be read."""

    @property
    def available(self) -> tuple[Column, ...]:
        """All columns of the source, whether they may be asked for or not."""

    def misfits(self) -> list[SpecError]:
        """What else is wrong with the definition's filters, beyond the types of their columns."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of the answer, in its order. Raises SpecError, QueryError: one of them is not there."""

    def write(self, take: Take, at_most: int) -> None:
        """Give the records, no more than `at_most`. Raises SourceError, and what `take` raises."""

    def keys(self, column: str, at_most: int) -> list[str]:
        """Keys that occur in a JSON column of the answer, sorted; no more than `at_most`."""

    def estimate(self) -> int:
        """Rows that the source expects; may be far off."""

    def count(self, at_most: int) -> int:
        """Rows, exact up to `at_most`."""


def open_reading(
    dataset: DataSetDefinition, source: RequestSource, query: Query | None, limits: Limits
) -> AbstractContextManager[Reading]:
    """A query to read, in one READ ONLY snapshot; without a query all that may be asked for.

    Raises:
        SpecError: the definition does not fit the source. SourceError: as it says.
    """
    if isinstance(source, OpenSearchSource):
        from export_pipelines.steps.request_opensearch import opensearch_reading

        return opensearch_reading(dataset, source, query, limits)
    if isinstance(source, MysqlSource):
        from export_pipelines.steps.request_mysql import mysql_reading

        return mysql_reading(dataset, source, query, limits)
    from export_pipelines.steps.request_postgres import postgres_reading

    return postgres_reading(dataset, source, query, limits)
