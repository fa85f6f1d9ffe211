"""What the service counts, for Prometheus.

Where vLLM counts the same thing it stands there under vLLM's name as well, such as
`vllm:num_requests_running`: dashboards, autoscalers and inference gateways read those.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.types import EngineStats

_PREFIX, _ALIAS_PREFIX = "chatrpc_", "vllm:"

_FIRST_TOKEN_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_REQUEST_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# name, what vLLM calls it ("" for nothing), what it is
_GAUGES: tuple[tuple[str, str, str, Callable[[EngineStats], float]], ...] = (
    (
        "sequences_running",
        "num_requests_running",
        "Sequences in the batch.",
        lambda s: s.num_running,
    ),
    (
        "sequences_waiting",
        "num_requests_waiting",
        "Sequences that wait for a place in the batch.",
        lambda s: s.num_waiting,
    ),
    (
        "kv_cache_usage_ratio",
        "kv_cache_usage_perc",
        "The share of the KV cache that sequences hold; 1 is all of it.",
        lambda s: 1 - s.num_free_kv_blocks / s.num_kv_blocks if s.num_kv_blocks else 0.0,
    ),
)
_COUNTERS: tuple[tuple[str, str, str, Callable[[EngineStats], float]], ...] = (
    (
        "preemptions",
        "num_preemptions",
        "Sequences that gave their cache back and waited again.",
        lambda s: s.num_preemptions,
    ),
    ("steps", "", "Steps of the engine.", lambda s: s.num_steps),
    ("failed_steps", "", "Steps that failed.", lambda s: s.num_failed_steps),
    (
        "prefix_cache_queries",
        "prefix_cache_queries",
        "Tokens of prompts that were looked for in the prefix cache.",
        lambda s: s.num_prefix_cache_queries,
    ),
    (
        "prefix_cache_hits",
        "prefix_cache_hits",
        "Those of them that were found.",
        lambda s: s.num_prefix_cache_hits,
    ),
    (
        "draft_tokens",
        "spec_decode_num_draft_tokens",
        "Tokens that were guessed for the model to check.",
        lambda s: s.num_draft_tokens,
    ),
    (
        "accepted_tokens",
        "spec_decode_num_accepted_tokens",
        "Those of them that were right.",
        lambda s: s.num_accepted_tokens,
    ),
)


class Metrics:
    """One of these per service; `registry` is what an exporter renders."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = Counter(
            "grpc_server_started",
            "Calls begun.",
            ["grpc_service", "grpc_method"],
            registry=self.registry,
        )
        self.handled = Counter(
            "grpc_server_handled",
            "Calls ended, by status code.",
            ["grpc_service", "grpc_method", "grpc_code"],
            registry=self.registry,
        )
        self.handling_s = Histogram(
            "grpc_server_handling_seconds",
            "How long calls took.",
            ["grpc_service", "grpc_method"],
            buckets=_REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.first_token_s = Histogram(
            "chatrpc_time_to_first_token_seconds",
            "From a streamed call's begin to its first chunk.",
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=None,
        )
        self.inter_token_s = Histogram(
            "chatrpc_inter_token_latency_seconds",
            "From chunk to chunk of a stream, by the tokens that the later one holds.",
            buckets=_TOKEN_BUCKETS_S,
            registry=None,
        )
        self.request_s = Histogram(
            "chatrpc_e2e_request_latency_seconds",
            "How long whole generations took, those alone that came to their end.",
            buckets=_REQUEST_BUCKETS_S,
            registry=None,
        )
        self.prompt_tokens = Counter(
            "chatrpc_prompt_tokens", "Tokens of prompts answered.", registry=None
        )
        self.generation_tokens = Counter(
            "chatrpc_generation_tokens", "Tokens generated.", registry=None
        )
        self.finished = Counter(
            "chatrpc_request_success",
            "Choices that came to their end, by why.",
            ["finished_reason"],
            registry=None,
        )
        self.aborted = Counter(
            "chatrpc_aborted_requests",
            "Generations that their callers left before their end.",
            registry=None,
        )
        for metric in (
            self.first_token_s,
            self.inter_token_s,
            self.request_s,
            self.prompt_tokens,
            self.generation_tokens,
            self.finished,
        ):
            self.registry.register(_Aliased(metric))
        self.registry.register(self.aborted)
        ProcessCollector(registry=self.registry)

    def watch_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Tell what `stats` says whenever somebody reads the metrics."""
        self.registry.register(_EngineCollector(stats))


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, alias, text, read in _GAUGES:
            for full_name in _names(name, alias):
                yield GaugeMetricFamily(full_name, text, value=read(stats))
        for name, alias, text, read in _COUNTERS:
            for full_name in _names(name, alias):
                yield CounterMetricFamily(full_name, text, value=read(stats))


class _Aliased(Collector):
    """A metric of ours under its own name and under vLLM's."""

    def __init__(self, metric: Collector) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        metrics: Iterable[Metric] = self._metric.collect()
        for metric in metrics:
            yield metric
            alias = Metric(_aliased(metric.name), metric.documentation, metric.type, metric.unit)
            alias.samples = [
                Sample(_aliased(s.name), s.labels, s.value, s.timestamp, s.exemplar)
                for s in metric.samples
            ]
            yield alias


def _names(name: str, alias: str) -> Iterator[str]:
    yield _PREFIX + name
    if alias:
        yield _ALIAS_PREFIX + alias


def _aliased(name: str) -> str:
    return _ALIAS_PREFIX + name.removeprefix(_PREFIX)
