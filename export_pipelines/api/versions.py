"""Which version of the data a question is about."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from export_pipelines.specs.dataset import DataSetDefinition

LIVE = "live"
_SECONDS = 2.0


class Versions:
    """Asks Dagster's event log for latest materialisations, and remembers each for two seconds."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._made: Any = None

    def of(self, dataset: DataSetDefinition) -> tuple[str, datetime | None]:
        """The data version, and since when an answer must have begun to be fresh, if that decides."""
        if dataset.spec.version_of is None:
            return LIVE, datetime.now(UTC) - timedelta(minutes=dataset.spec.freshness_minutes)
        return self._latest(dataset.spec.version_of), None

    def instance(self) -> Any:
        """Dagster's instance, opened when it is first needed."""
        from dagster import DagsterInstance

        with self._lock:
            if self._made is None:
                self._made = DagsterInstance.get()
                # A few connections that are kept, where Dagster would connect anew for each question.
                self._made.optimize_for_webserver(statement_timeout=10_000, pool_recycle=60, max_overflow=4)
            return self._made

    def _latest(self, asset: str) -> str:
        found = self._known.get(asset)
        if found is not None and found[1] > time.monotonic():
            return found[0]
        from dagster import AssetKey

        event = self.instance().get_latest_materialization_event(AssetKey(asset.split("/")))
        version = f"{event.timestamp:.6f} {event.run_id}" if event else "none"
        self._known[asset] = (version, time.monotonic() + _SECONDS)
        return version

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._made is not None:
                self._made.dispose()
                self._made = None
