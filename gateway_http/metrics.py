"""The gateway's metrics, in a registry of their own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from chatrpc_process.metrics import ProcessMetrics

# A rejection takes a millisecond. A long completion takes minutes.
_DURATION_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)

# The label value of all models that no service is known to have. Clients can send any number of
# names, and each label value takes memory.
OTHER_MODEL = "other"
_MAX_LEARNED_NAMES = 1000


class HostedModelStatus(NamedTuple):
    """The state of a model that the gateway hosts.

    Attributes:
        memory_bytes: The resident memory of its process.
        num_waiting: Number of requests that wait for it to be loaded.
    """

    model: str
    state: str
    memory_bytes: int
    num_waiting: int


class Metrics(ProcessMetrics):
    """The metrics of one gateway.

    Attributes:
        models: Returns the values of the label `model`, which is "" for requests without a model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.models = ModelLabels()
        self.requests = self.counter(
            "chatrpc_gateway_requests",
            "Finished HTTP requests, without probes and scrapes. Status 499 means that the client "
            "disconnected before the response was complete.",
            ["route", "model", "status"],
        )
        self.failures = self.counter(
            "chatrpc_gateway_request_failures",
            "HTTP requests that failed or were rejected, by the reason.",
            ["route", "model", "reason"],
        )
        self.probes = self.counter(
            "chatrpc_gateway_probes",
            "Requests to the health and metrics endpoints.",
            ["route", "status"],
        )
        self.duration_s = self.histogram(
            "chatrpc_gateway_request_duration_seconds",
            "Seconds from the head of a request to the end of its response.",
            _DURATION_BUCKETS_S,
            ["route", "model"],
        )
        self.first_byte_s = self.histogram(
            "chatrpc_gateway_time_to_first_byte_seconds",
            "Seconds from the head of a request to the head of its response.",
            _DURATION_BUCKETS_S,
            ["route", "model"],
        )
        self.first_token_s = self.histogram(
            "chatrpc_gateway_time_to_first_token_seconds",
            "Seconds from the end of a streamed request's body to the first event with a token.",
            _FIRST_TOKEN_BUCKETS_S,
            ["model"],
        )
        self.inter_token_s = self.histogram(
            "chatrpc_gateway_inter_token_latency_seconds",
            "Seconds between two events of a stream, divided by the tokens of the later event.",
            _TOKEN_BUCKETS_S,
            ["model"],
        )
        self.prompt_tokens = self.counter(
            "chatrpc_gateway_prompt_tokens",
            "Prompt tokens of the completions and embeddings that were sent to clients.",
            ["model"],
        )
        self.generation_tokens = self.counter(
            "chatrpc_gateway_generation_tokens",
            "Generated tokens that were sent to clients.",
            ["model"],
        )
        self.in_flight = self.gauge(
            "chatrpc_gateway_requests_in_flight",
            "HTTP requests in progress, without probes and scrapes.",
        )
        self.body_bytes = self.gauge(
            "chatrpc_gateway_body_bytes",
            "Bytes of the request bodies in progress that are larger than 32 KiB.",
        )
        self.body_bytes_capacity = self.gauge(
            "chatrpc_gateway_body_bytes_capacity",
            "Maximum value of chatrpc_gateway_body_bytes. Further bodies wait or are rejected with "
            "503.",
        )
        self.bodies_preparing = self.gauge(
            "chatrpc_gateway_bodies_preparing",
            "Request bodies that wait for a thread to be decoded, or are being decoded on one.",
        )
        self.disconnects = self.counter(
            "chatrpc_gateway_client_disconnects",
            "Requests whose client disconnected before the response was complete.",
            ["route", "model"],
        )
        self.cut_connections = self.counter(
            "chatrpc_gateway_cut_connections",
            "Connections closed because of a limit. The reason is `limit` or `idle` for the number "
            "of connections (`idle` connections are closed first), and `head`, `body` or `write` "
            "for the time to receive a head or a body or to send a response.",
            ["reason"],
        )
        self.tls_handshake_failures = self.counter(
            "chatrpc_gateway_tls_handshake_failures",
            "Failed TLS handshakes with clients.",
        )
        self.upstream_requests = self.counter(
            "chatrpc_gateway_upstream_requests",
            "gRPC calls to services by model and status code. A call and its retries count once.",
            ["model", "code"],
        )

        self.hosted_starts = self.counter(
            "chatrpc_gateway_hosted_model_starts",
            "Starts of hosted models. The outcome is `ok` or `failed`.",
            ["model", "outcome"],
        )
        self.hosted_ends = self.counter(
            "chatrpc_gateway_hosted_model_ends",
            "Ends of hosted models. The reason is `unloaded` or `died`.",
            ["model", "reason"],
        )

    def watch_hosted_models(self, statuses: Callable[[], Iterable[HostedModelStatus]]) -> None:
        """Export the states of hosted models, which `statuses` returns at each scrape."""
        self.export(_HostedModels(statuses))

    def watch_upstreams(self, connected: Callable[[], Iterable[tuple[str, bool]]]) -> None:
        """Export the readiness of models.

        Args:
            connected: Called at each scrape. It returns each model's name, and True if it is ready.
        """
        self.export(_Upstreams(connected))


class ModelLabels:
    """Maps the names that clients use for models to a bounded number of label values.

    With a registry, label values are the registry's names. Without one, a name is a label value
    after the service has responded to it; at most 1000 names are kept.
    """

    def __init__(self) -> None:
        self._registered: Mapping[str, str] = {}
        self._learned: dict[str, str] = {}

    def register(self, names: Mapping[str, str]) -> None:
        """Replace the registry's names. `names` maps each name and alias to the model's name."""
        self._registered = names

    def learn(self, name: str, model: str) -> None:
        """Note that the response to a request for `name` named the model `model`."""
        if name not in self._registered and len(self._learned) < _MAX_LEARNED_NAMES:
            self._learned[name] = model

    def of(self, name: str) -> str:
        """Return the label for a request for the model `name`; "" if `name` is ""."""
        if not name:
            return ""
        return self._registered.get(name) or self._learned.get(name, OTHER_MODEL)


class _HostedModels(Collector):
    """Collects the states of hosted models at the time of a scrape."""

    def __init__(self, statuses: Callable[[], Iterable[HostedModelStatus]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[GaugeMetricFamily]:
        loaded = GaugeMetricFamily(
            "chatrpc_gateway_hosted_model_loaded",
            "State of a hosted model: 1 if it is loaded, else 0.",
            labels=["model"],
        )
        memory = GaugeMetricFamily(
            "chatrpc_gateway_hosted_model_memory_bytes",
            "Resident memory of the process of a hosted model; 0 if there is none.",
            labels=["model"],
        )
        waiting = GaugeMetricFamily(
            "chatrpc_gateway_hosted_model_waiting_requests",
            "Requests that wait for a hosted model to be loaded.",
            labels=["model"],
        )
        for status in self._statuses():
            loaded.add_metric([status.model], float(status.state == "loaded"))
            memory.add_metric([status.model], status.memory_bytes)
            waiting.add_metric([status.model], status.num_waiting)
        yield from (loaded, memory, waiting)


class _Upstreams(Collector):
    """Collects the readiness of the models that the registry has at the time of a scrape."""

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
