"""Numbers for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from export_pipelines.errors import ExportPipelinesError

if TYPE_CHECKING:
    from export_pipelines.api.service import Service

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What the service counts, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._calls = Counter("export_pipelines_http_requests", "Calls.", labels, registry=self._registry)
        self._seconds = Histogram(
            "export_pipelines_http_seconds",
            "Seconds until a call was answered, whole streams included.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.sent = Counter("export_pipelines_downloaded_bytes", "Bytes of files sent.", registry=self._registry)
        self.downloads = Gauge("export_pipelines_downloads", "Downloads under way here.", registry=self._registry)
        self._listeners = Gauge("export_pipelines_listeners", "Streams of events under way.", registry=self._registry)
        self.open_listeners = 0
        self._registry.register(_Queue(service))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count a stream of events for as long as it lasts."""
        self.open_listeners += 1
        try:
            with self._listeners.track_inprogress():
                yield
        finally:
            self.open_listeners -= 1

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Note a call that was answered. Addresses are counted by their pattern: they are many."""
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._calls.labels(method, route, str(status or 499)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class _Queue(Collector):
    """Asks the catalog when somebody looks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("export_pipelines_catalog_up", "Whether the catalog answers.")
        begun = time.perf_counter()
        try:
            queue = self._service.queue()
        except ExportPipelinesError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        seconds = GaugeMetricFamily("export_pipelines_catalog_seconds", "Seconds that the catalog took to answer.")
        seconds.add_metric([], time.perf_counter() - begun)
        yield seconds
        requests = GaugeMetricFamily("export_pipelines_requests", "Requests under way.", labels=["state"])
        requests.add_metric(["pending"], queue.pending)
        requests.add_metric(["processing"], queue.processing)
        yield requests
        oldest = GaugeMetricFamily("export_pipelines_oldest_pending_seconds", "Age of the oldest that waits.")
        oldest.add_metric([], queue.oldest_seconds)
        yield oldest
