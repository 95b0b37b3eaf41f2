"""Columns of data sets as their sources have them, remembered: asking for data hardly ever waits for the source."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from export_pipelines.errors import ExportPipelinesError
from export_pipelines.manifest import Column
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.documents import suggest
from export_pipelines.specs.query import Problem, QueryError

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

_FRESH_SECONDS = 60.0


class Columns:
    """What sources said, by data set and its version. What is older than a minute is asked for anew, beside the answer.
    Safe for threads."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[str, tuple[str, tuple[Column, ...], float]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def of(self, dataset: DataSetDefinition) -> tuple[Column, ...]:
        """The columns that may be asked for. Raises SourceError: nothing is known, and the source does not answer."""
        found = self._remembered(dataset)
        if found is None:
            with self._own(dataset):
                # Who waited for another's question has its answer.
                return (self._remembered(dataset) or self._ask(dataset))[1]
        if found[2] < time.monotonic():
            self._service.later(lambda: self._renew(dataset))
        return found[1]

    def check(self, dataset: DataSetDefinition, names: Sequence[str]) -> None:
        """Raises QueryError: there is no such column. While the source does not answer, nothing is known of it."""
        if not names:
            return
        try:
            known = [each.name for each in self.of(dataset)]
        except ExportPipelinesError:
            return
        problems = [_unknown(dataset, name, known) for name in names if name not in known]
        if problems:
            raise QueryError(problems[:50])

    def _own(self, dataset: DataSetDefinition) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(dataset.id, threading.Lock())

    def _remembered(self, dataset: DataSetDefinition) -> tuple[str, tuple[Column, ...], float] | None:
        found = self._known.get(dataset.id)
        return found if found is not None and found[0] == dataset.version else None

    def _renew(self, dataset: DataSetDefinition) -> None:
        own = self._own(dataset)
        if own.acquire(blocking=False):
            try:
                self._ask(dataset)
            finally:
                own.release()

    def _ask(self, dataset: DataSetDefinition) -> tuple[str, tuple[Column, ...], float]:
        from export_pipelines.steps.request import columns_of

        columns = columns_of(dataset, self._service.source(dataset))
        found = (dataset.version, columns, time.monotonic() + _FRESH_SECONDS)
        self._known[dataset.id] = found
        return found


def _unknown(dataset: DataSetDefinition, name: str, known: Sequence[str]) -> Problem:
    hint = suggest(name, list(known)) or f"columns are {', '.join(known[:50])}"
    return Problem("columns", f"{dataset.id} has no column {name!r}", hint)
