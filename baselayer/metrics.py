"""Prometheus metrics, added up over all worker processes.

Names follow ``<noun>_<what>_<unit>``. The processes share a folder of memory-mapped files, which the entry point names
in PROMETHEUS_MULTIPROC_DIR before this module is imported; without it, a process counts for itself.
"""

from __future__ import annotations

import functools
import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector


class RequestMetrics:
    """How many requests, and how long they took."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("handler", "method")
        self._total = Counter("http_requests_total", "Requests answered.", (*labels, "status"), registry=self.registry)
        self._seconds = Histogram("http_request_seconds", "Time to answer.", labels, registry=self.registry)

    def observe(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        total, histogram = self._children(handler, method, status)
        total.inc()
        histogram.observe(seconds)

    @functools.lru_cache(maxsize=1000)  # noqa: B019 - one of us per process
    def _children(self, handler: str, method: str, status: int) -> tuple[Counter, Histogram]:
        return self._total.labels(handler, method, str(status)), self._seconds.labels(handler, method)

    def render(self) -> bytes:
        """Everything counted, in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
