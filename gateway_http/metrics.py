"""The gateway's metrics, in a registry of their own."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

# From a rejection in a millisecond to a long completion.
_DURATION_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)

# The label of a model that nobody serves, as far as is known: clients can make up any number.
OTHER_MODEL = "other"
_MAX_LEARNED_NAMES = 1000

# A time of creation beside each counter doubles the page, and no query of ours reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs


class Metrics:
    """The metrics of one application; `render` is the page that Prometheus reads.

    `models` makes the values of the label `model`, which is "" for requests that name no model.
    """

    def __init__(self) -> None:
        self.models = ModelLabels()
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "chatrpc_gateway_requests",
            "Finished HTTP requests, without probes and scrapes. Status 499 means that the client "
            "disconnected before the response was complete.",
            ["route", "model", "status"],
            registry=self.registry,
        )
        self.failures = Counter(
            "chatrpc_gateway_request_failures",
            "HTTP requests that failed or were rejected, by the reason.",
            ["route", "model", "reason"],
            registry=self.registry,
        )
        self.probes = Counter(
            "chatrpc_gateway_probes",
            "Requests to the health and metrics endpoints.",
            ["route", "status"],
            registry=self.registry,
        )
        self.duration_s = Histogram(
            "chatrpc_gateway_request_duration_seconds",
            "Seconds from the head of a request to the end of its response.",
            ["route", "model"],
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self.first_byte_s = Histogram(
            "chatrpc_gateway_time_to_first_byte_seconds",
            "Seconds from the head of a request to the head of its response.",
            ["route", "model"],
            buckets=_DURATION_BUCKETS_S,
            registry=self.registry,
        )
        self.first_token_s = Histogram(
            "chatrpc_gateway_time_to_first_token_seconds",
            "Seconds from the body of a streamed request to the first event with a token.",
            ["model"],
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self.inter_token_s = Histogram(
            "chatrpc_gateway_inter_token_latency_seconds",
            "Seconds between two events of a stream, divided by the tokens of the later event.",
            ["model"],
            buckets=_TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "chatrpc_gateway_prompt_tokens",
            "Prompt tokens of the completions that were sent to clients.",
            ["model"],
            registry=self.registry,
        )
        self.generation_tokens = Counter(
            "chatrpc_gateway_generation_tokens",
            "Generated tokens that were sent to clients.",
            ["model"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "chatrpc_gateway_requests_in_flight",
            "HTTP requests in progress, without probes and scrapes.",
            registry=self.registry,
        )
        self.body_bytes = Gauge(
            "chatrpc_gateway_body_bytes",
            "Bytes of the large request bodies in progress.",
            registry=self.registry,
        )
        self.body_bytes_capacity = Gauge(
            "chatrpc_gateway_body_bytes_capacity",
            "The most bytes that the large request bodies in progress may have.",
            registry=self.registry,
        )
        self.bodies_preparing = Gauge(
            "chatrpc_gateway_bodies_preparing",
            "Request bodies that wait for a thread to be decoded, or are being decoded on one.",
            registry=self.registry,
        )
        self.disconnects = Counter(
            "chatrpc_gateway_client_disconnects",
            "Requests whose client disconnected before the response was complete.",
            ["route", "model"],
            registry=self.registry,
        )
        self.cut_connections = Counter(
            "chatrpc_gateway_cut_connections",
            "Connections closed by a limit: `limit` of their number, `idle` of their number while "
            "they were idle, `head`, `body` and `write` of the time to receive a head or a body "
            "and to send a response.",
            ["reason"],
            registry=self.registry,
        )
        self.tls_handshake_failures = Counter(
            "chatrpc_gateway_tls_handshake_failures",
            "TLS handshakes with clients that failed.",
            registry=self.registry,
        )
        self.upstream_requests = Counter(
            "chatrpc_gateway_upstream_requests",
            "Calls of services by model and gRPC status code, without retries.",
            ["model", "code"],
            registry=self.registry,
        )
        Gauge(
            "chatrpc_build_info",
            "Version of chatrpc and of Python; the value is always 1.",
            ["version", "python"],
            registry=self.registry,
        ).labels(version("chatrpc"), platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def watch_upstreams(self, connected: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        """Export what `connected` returns at each scrape: models, and whether each is ready."""
        self.registry.register(_Upstreams(connected))

    def render(self) -> bytes:
        return generate_latest(self.registry)


class ModelLabels:
    """From the names that clients use for models to a bounded number of label values.

    With a registry, the names are those of the registry. Without one, a name counts once the
    service has answered to it; at most 1000 names are kept.
    """

    def __init__(self) -> None:
        self._registered: Mapping[str, str] = {}
        self._learned: dict[str, str] = {}

    def register(self, names: Mapping[str, str]) -> None:
        """Replace the registry's names: from each name and alias to the model's own name."""
        self._registered = names

    def learn(self, name: str, model: str) -> None:
        """Note that a response came for `name` which calls the model `model`."""
        if name not in self._registered and len(self._learned) < _MAX_LEARNED_NAMES:
            self._learned[name] = model

    def of(self, name: str) -> str:
        """Return the label for a request that names `name`; "" for one that names no model."""
        if not name:
            return ""
        return self._registered.get(name) or self._learned.get(name, OTHER_MODEL)


class _Upstreams(Collector):
    """Read at each scrape, since models come and go with the registry."""

    def __init__(self, connected: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        self._connected = connected

    def collect(self) -> Iterator[GaugeMetricFamily]:
        ready = GaugeMetricFamily(
            "chatrpc_gateway_upstream_ready",
            "Readiness of a model: 1 if a replica is connected and ready, else 0.",
            labels=["model"],
        )
        for model, is_connected in self._connected():
            ready.add_metric([model], float(is_connected))
        yield ready
