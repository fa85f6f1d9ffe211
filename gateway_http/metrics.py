"""What the gateway counts, in a registry of its own."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

# From a refusal in a millisecond to a long answer.
_DURATION_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


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
        ProcessCollector(registry=self.registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)
