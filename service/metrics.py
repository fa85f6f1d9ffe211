"""What the service counts, for Prometheus.

Where vLLM counts the same thing it stands there under vLLM's name as well, such as
`vllm:num_requests_running`, with vLLM's labels `model_name` and `engine`: dashboards, autoscalers
and inference gateways read those. They are there as soon as the model's name is known.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.types import EngineStats
from service.vllm_names import Aliased, CacheConfig

_PREFIX = "chatrpc_"

_FIRST_TOKEN_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_REQUEST_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_REQUEST_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_CHOICE_BUCKETS = (1, 2, 5, 10, 20)

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
        self.phase_s = {
            name: _histogram(f"request_{name}_time_seconds", text, _REQUEST_BUCKETS_S)
            for name, text in (
                ("queue", "How long whole generations waited for their first step."),
                ("prefill", "From there to their first token."),
                ("decode", "From there to their last token."),
            )
        }
        self.inference_s = _histogram(
            "request_inference_time_seconds", "From the first step to the end.", _REQUEST_BUCKETS_S
        )
        self.per_token_s = _histogram(
            "request_time_per_output_token_seconds",
            "The time of decode, by the tokens behind the first.",
            _TOKEN_BUCKETS_S,
        )
        self.request_prompt_tokens = _histogram(
            "request_prompt_tokens", "Tokens of the prompts of a generation.", _REQUEST_BUCKETS
        )
        self.request_generation_tokens = _histogram(
            "request_generation_tokens", "Tokens of all its answers.", _REQUEST_BUCKETS
        )
        self.request_n = _histogram(
            "request_params_n", "Answers asked for to a prompt.", _CHOICE_BUCKETS
        )
        self.request_max_tokens = _histogram(
            "request_params_max_tokens", "Tokens that an answer may have.", _REQUEST_BUCKETS
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
            registry=self.registry,
        )
        self._model_labels: dict[str, str] = {}
        for metric in (
            self.first_token_s,
            self.inter_token_s,
            self.request_s,
            *self.phase_s.values(),
            self.inference_s,
            self.per_token_s,
            self.request_prompt_tokens,
            self.request_generation_tokens,
            self.request_n,
            self.request_max_tokens,
            self.prompt_tokens,
            self.generation_tokens,
            self.finished,
        ):
            self.registry.register(Aliased(metric, self._model_labels))
        Gauge(
            "chatrpc_build_info",
            "What runs here; always 1.",
            ["version", "python"],
            registry=self.registry,
        ).labels(version("chatrpc"), platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def name_model(self, model_id: str) -> None:
        """The model is loaded, and this is what it is called."""
        self._model_labels.update(model_name=model_id, engine="0")

    def watch_engine(self, stats: Callable[[], EngineStats]) -> None:
        """Tell what `stats` says whenever somebody reads the metrics."""
        engine = _Engine(stats)
        self.registry.register(Aliased(engine, self._model_labels, engine.aliases))
        self.registry.register(CacheConfig(stats, self._model_labels))


class _Engine(Collector):
    """What the engine counts itself."""

    aliases: Mapping[str, str] = {
        _PREFIX + name: alias for name, alias, _, _ in (*_GAUGES, *_COUNTERS)
    }

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, _, text, read in _GAUGES:
            yield GaugeMetricFamily(_PREFIX + name, text, value=read(stats))
        for name, _, text, read in _COUNTERS:
            yield CounterMetricFamily(_PREFIX + name, text, value=read(stats))


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(_PREFIX + name, text, buckets=buckets, registry=None)
