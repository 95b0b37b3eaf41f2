"""How many rows a question may give, by the source's planner: within a moment, or later, beside the answer."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import TYPE_CHECKING

from export_pipelines.errors import ExportPipelinesError
from export_pipelines.specs.dataset import DataSetDefinition
from export_pipelines.specs.query import Query

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

log = logging.getLogger("export_pipelines.api")

WAIT_SECONDS = 0.02
"""How long recording a request waits for its estimate."""

HOPELESS = 20
"""An estimate of so many times the row limit is believed; less may be a mistake of the planner."""

_KEEP_SECONDS = 60.0
_MOST = 2_000
_WAITING = 50


class Estimates:
    """Asks two questions at a time, and remembers each answer for a minute. Safe for threads."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="estimate")
        self._known: dict[str, tuple[Future[int | None], float]] = {}
        self._lock = threading.Lock()

    def soon(self, dataset: DataSetDefinition, query: Query, seconds: float = WAIT_SECONDS) -> int | None:
        """The estimate, if it is there within some seconds."""
        future = self.future(dataset, query)
        try:
            return future.result(seconds) if future else None
        except NotYet:
            return None

    def future(self, dataset: DataSetDefinition, query: Query) -> Future[int | None] | None:
        """The estimate, or None when too many are asked for."""
        # What does not change the number of rows does not count.
        key = json.dumps([query.dataset, query.limit, [each.model_dump(mode="json") for each in query.filters]])
        now = time.monotonic()
        with self._lock:
            found = self._known.get(key)
            if found is not None and found[1] > now:
                return found[0]
            if len(self._known) >= _MOST:
                self._known = {name: each for name, each in self._known.items() if each[1] > now}
            if sum(not each[0].done() for each in self._known.values()) >= _WAITING or len(self._known) >= _MOST:
                return None
            future = self._pool.submit(self._ask, dataset, query)
            self._known[key] = (future, now + _KEEP_SECONDS)
            return future

    def _ask(self, dataset: DataSetDefinition, query: Query) -> int | None:
        from export_pipelines.steps.request import estimate

        try:
            return estimate(dataset, self._service.source(dataset), query)
        except ExportPipelinesError as error:
            log.info("no estimate of %s: %s", dataset.id, error.message)
        except Exception:
            log.exception("no estimate of %s", dataset.id)
        return None

    def close(self) -> None:
        """Wait for those that are asked for now, and for no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
