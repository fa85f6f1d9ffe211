"""The metrics of a process, for Prometheus."""

import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

_AnyCollector = TypeVar("_AnyCollector", bound=Collector)

# The creation time of each counter would double the size of the page, and our dashboard and alerts
# do not use it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class ProcessMetrics:
    """A registry of metrics. Each of its methods creates and exports a metric.

    The metrics of the process and `chatrpc_build_info` are always exported.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        build = self.gauge(
            "chatrpc_build_info",
            "Version of chatrpc and of Python; the value is always 1.",
            ["version", "python"],
        )
        build.labels(version("chatrpc"), platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        """Create and export a counter with the HELP text `text`."""
        return self.export(Counter(name, text, labels, registry=None))

    def gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        """Create and export a gauge with the HELP text `text`."""
        return self.export(Gauge(name, text, labels, registry=None))

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()
    ) -> Histogram:
        """Create and export a histogram with the HELP text `text`."""
        return self.export(Histogram(name, text, labels, buckets=buckets, registry=None))

    def export(self, collector: _AnyCollector) -> _AnyCollector:
        """Export what `collector` collects at each scrape, and return it."""
        self.registry.register(collector)
        return collector

    def render(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        return generate_latest(self.registry)
