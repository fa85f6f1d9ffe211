"""What the gateway counts, in a registry of its own."""

import platform
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

# From a refusal in a millisecond to a long answer.
_DURATION_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """One of these per application; `render` is the page that Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "chatrpc_gateway_requests",
            "Requests answered. Status 499 is a client that went away.",
            ["route", "status"],
            registry=self.registry,
        )
        self.duration_s = Histogram(
            "chatrpc_gateway_request_duration_seconds",
            "From the request's head to the answer's end.",
            ["route"],
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self.first_byte_s = Histogram(
            "chatrpc_gateway_time_to_first_byte_seconds",
            "From the request's head to the answer's head.",
            ["route"],
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self.first_token_s = Histogram(
            "chatrpc_gateway_time_to_first_token_seconds",
            "From a streamed request's body to the first event with a token.",
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self.inter_token_s = Histogram(
            "chatrpc_gateway_inter_token_latency_seconds",
            "From event to event of a stream, each as it is written, by the later one's tokens.",
            buckets=_TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "chatrpc_gateway_prompt_tokens", "Tokens of prompts answered.", registry=self.registry
        )
        self.generation_tokens = Counter(
            "chatrpc_gateway_generation_tokens", "Tokens of answers.", registry=self.registry
        )
        self.in_flight = Gauge(
            "chatrpc_gateway_requests_in_flight",
            "Requests being answered.",
            registry=self.registry,
        )
        self.disconnects = Counter(
            "chatrpc_gateway_client_disconnects",
            "Clients that went away before their answer was whole.",
            ["route"],
            registry=self.registry,
        )
        self.cut_connections = Counter(
            "chatrpc_gateway_cut_connections",
            "Connections ended by a limit: of their number, or of the time for a head, for a body "
            "or until what was written is read.",
            ["reason"],
            registry=self.registry,
        )
        self.upstream_requests = Counter(
            "chatrpc_gateway_upstream_requests",
            "Calls of services, retries not counted, by the registry's name and the status code.",
            ["model", "code"],
            registry=self.registry,
        )
        Gauge(
            "chatrpc_build_info",
            "What runs here; always 1.",
            ["version", "python"],
            registry=self.registry,
        ).labels(version("chatrpc"), platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def watch_upstreams(self, connected: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        """Tell what `connected` says whenever somebody reads the metrics."""
        self.registry.register(_Upstreams(connected))

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _Upstreams(Collector):
    """Read, not counted: models come and go with the registry."""

    def __init__(self, connected: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        self._connected = connected

    def collect(self) -> Iterator[GaugeMetricFamily]:
        ready = GaugeMetricFamily(
            "chatrpc_gateway_upstream_ready",
            "Whether a replica of the model is connected and says it is ready.",
            labels=["model"],
        )
        for model, is_connected in self._connected():
            ready.add_metric([model], float(is_connected))
        yield ready
