"""The service's metrics, for Prometheus.

The metrics that autoscalers, load balancers and service level objectives of inference platforms
read are exported under vLLM's names as well, such as `vllm:num_requests_running`, with vLLM's
labels `model_name` and `engine`. These copies appear when the model's name is known.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from chatrpc_process.metrics import ProcessMetrics
from service.domain.engine import EngineStats, UpstreamStats
from service.vllm_names import Aliased, CacheConfig

_FIRST_TOKEN_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_REQUEST_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_COUNT_BUCKETS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500),
    *(1000, 2000, 5000, 10_000, 20_000, 50_000),
)
_CHOICE_BUCKETS = (1, 2, 5, 10, 20)
_METHOD = ["grpc_service", "grpc_method"]

_AnyCollector = TypeVar("_AnyCollector", bound=Collector)


class Metrics(ProcessMetrics):
    """The metrics of one service."""

    def __init__(self) -> None:
        super().__init__()
        self._model_labels: dict[str, str] = {}
        self.started = self.counter("grpc_server_started", "gRPC calls that started.", _METHOD)
        self.handled = self.counter(
            "grpc_server_handled",
            "gRPC calls that ended, by status code.",
            [*_METHOD, "grpc_code"],
        )
        self.handling_s = self.histogram(
            "grpc_server_handling_seconds",
            "Duration of gRPC calls, in seconds.",
            _REQUEST_BUCKETS_S,
            _METHOD,
        )
        self.aborted = self.counter(
            "chatrpc_aborted_requests", "Generations that were cancelled before their end."
        )
        self.finished = self.counter(
            "chatrpc_request_success",
            "Choices that were generated to their end, by finish reason.",
            ["finished_reason"],
            alias="request_success",
        )
        self.prompt_tokens = self.counter(
            "chatrpc_prompt_tokens",
            "Prompt tokens that were computed, including the inputs of embeddings.",
            alias="prompt_tokens",
        )
        self.generation_tokens = self.counter(
            "chatrpc_generation_tokens", "Tokens that were generated.", alias="generation_tokens"
        )
        self.first_token_s = self.histogram(
            "chatrpc_time_to_first_token_seconds",
            "Seconds from the start of a streamed call to its first chunk.",
            _FIRST_TOKEN_BUCKETS_S,
            alias="time_to_first_token_seconds",
        )
        self.inter_token_s = self.histogram(
            "chatrpc_inter_token_latency_seconds",
            "Seconds between two chunks of a stream, divided by the tokens of the later chunk.",
            _TOKEN_BUCKETS_S,
            alias="inter_token_latency_seconds",
        )
        self.request_s = self.histogram(
            "chatrpc_e2e_request_latency_seconds",
            "Seconds from the start of the call to the end of a completed generation.",
            _REQUEST_BUCKETS_S,
            alias="e2e_request_latency_seconds",
        )
        self.phase_s = {
            phase: self.histogram(f"chatrpc_request_{phase}_time_seconds", text, _REQUEST_BUCKETS_S)
            for phase, text in (
                ("queue", "Seconds that a completed generation waited for its first step."),
                ("prefill", "Seconds from the first step of a generation to its first token."),
                ("decode", "Seconds from the first token of a generation to its last."),
            )
        }
        self.prepare_s = self.histogram(
            "chatrpc_request_prepare_time_seconds",
            "Seconds from the start of a call until its request entered the engine's queue.",
            _REQUEST_BUCKETS_S,
        )
        self.preparing = self.gauge(
            "chatrpc_requests_preparing",
            "Requests that are being parsed, tokenized or compiled, or that wait for one of these.",
        )
        self.inference_s = self.histogram(
            "chatrpc_request_inference_time_seconds",
            "Seconds from the first step of a generation to its last token.",
            _REQUEST_BUCKETS_S,
        )
        self.per_token_s = self.histogram(
            "chatrpc_request_time_per_output_token_seconds",
            "Decode seconds of a generation, divided by its tokens after the first.",
            _TOKEN_BUCKETS_S,
        )
        self.request_prompt_tokens = self.histogram(
            "chatrpc_request_prompt_tokens", "Prompt tokens of a generation.", _TOKEN_COUNT_BUCKETS
        )
        self.request_generation_tokens = self.histogram(
            "chatrpc_request_generation_tokens",
            "Tokens generated for all choices of a generation.",
            _TOKEN_COUNT_BUCKETS,
        )
        self.request_n = self.histogram(
            "chatrpc_request_params_n", "Choices requested for a prompt.", _CHOICE_BUCKETS
        )
        self.request_max_tokens = self.histogram(
            "chatrpc_request_params_max_tokens",
            "Maximum tokens of a choice, for requests that set it.",
            _TOKEN_COUNT_BUCKETS,
        )

    def name_model(self, model_id: str) -> None:
        """Export the id of the loaded model, and the copies of metrics under vLLM's names."""
        self._model_labels.update(model_name=model_id, engine="0")
        info = self.gauge(
            "chatrpc_model_info", "Id of the loaded model; the value is always 1.", ["model"]
        )
        info.labels(model_id).set(1)

    def watch_engine(self, stats: Callable[[], EngineStats], max_queue_size: int) -> None:
        """Export the engine's statistics.

        Args:
            stats: Called at each scrape.
            max_queue_size: The capacity of the queue, in sequences.
        """
        engine = _Engine(stats, max_queue_size)
        self.export(Aliased(engine, engine.aliases, self._model_labels))
        self.export(CacheConfig(stats, self._model_labels))

    def counter(
        self, name: str, text: str, labels: Iterable[str] = (), *, alias: str = ""
    ) -> Counter:
        """Create and export a counter; also under vLLM's name `alias` unless that is ""."""
        return self._aliased(Counter(name, text, labels, registry=None), name, alias)

    def histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...],
        labels: Iterable[str] = (),
        *,
        alias: str = "",
    ) -> Histogram:
        """Create and export a histogram; also under vLLM's name `alias` unless that is ""."""
        created = Histogram(name, text, labels, buckets=buckets, registry=None)
        return self._aliased(created, name, alias)

    def _aliased(self, metric: _AnyCollector, name: str, alias: str) -> _AnyCollector:
        self.export(Aliased(metric, {name: alias} if alias else {}, self._model_labels))
        return metric


@dataclass(frozen=True, slots=True)
class _EngineMetric:
    """A metric that is read from the engine's statistics.

    Attributes:
        alias: The metric's name in vLLM without the prefix `vllm:`; "" if vLLM does not have it.
    """

    name: str
    text: str
    read: Callable[[EngineStats], float]
    alias: str = ""


_GAUGES = (
    _EngineMetric(
        "chatrpc_sequences_running",
        "Sequences in the running batch.",
        lambda s: s.num_running,
        "num_requests_running",
    ),
    _EngineMetric(
        "chatrpc_sequences_running_limit",
        "Maximum number of running sequences; 0 until the model is loaded.",
        lambda s: s.max_num_seqs,
    ),
    _EngineMetric(
        "chatrpc_sequences_waiting",
        "Sequences that wait in the queue.",
        lambda s: s.num_waiting,
        "num_requests_waiting",
    ),
    _EngineMetric(
        "chatrpc_kv_cache_usage_ratio",
        "Share of the KV cache that sequences use, from 0 to 1.",
        lambda s: 1 - s.num_free_kv_blocks / s.num_kv_blocks if s.num_kv_blocks else 0.0,
        "kv_cache_usage_perc",
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_disk_bytes",
        "Bytes of the blocks in the prefix cache on disk, those of other processes included.",
        lambda s: s.disk_cache.num_bytes,
    ),
)
_COUNTERS = (
    _EngineMetric(
        "chatrpc_preemptions",
        "Preempted sequences: they freed their KV cache and returned to the queue.",
        lambda s: s.num_preemptions,
        "num_preemptions",
    ),
    _EngineMetric("chatrpc_steps", "Engine steps that were computed.", lambda s: s.num_steps),
    _EngineMetric(
        "chatrpc_failed_steps", "Engine steps that failed.", lambda s: s.num_failed_steps
    ),
    _EngineMetric(
        "chatrpc_step_seconds",
        "Duration of the engine steps that did not fail, in seconds.",
        lambda s: s.step_s,
    ),
    _EngineMetric(
        "chatrpc_predicted_step_seconds",
        "Duration of these steps that the scheduler predicted, in seconds.",
        lambda s: s.predicted_step_s,
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        lambda s: s.num_prefix_cache_queries,
        "prefix_cache_queries",
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_hits",
        "Prompt tokens served from the prefix cache.",
        lambda s: s.num_prefix_cache_hits,
        "prefix_cache_hits",
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_disk_queries",
        "Prompt tokens looked up in the prefix cache on disk, because memory did not have them.",
        lambda s: s.disk_cache.num_queries,
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_disk_hits",
        "Prompt tokens loaded from the prefix cache on disk.",
        lambda s: s.disk_cache.num_hits,
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_disk_read_bytes",
        "Bytes of blocks loaded from the prefix cache on disk.",
        lambda s: s.disk_cache.num_read_bytes,
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_disk_written_bytes",
        "Bytes of blocks written to the prefix cache on disk.",
        lambda s: s.disk_cache.num_written_bytes,
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_disk_evictions",
        "Blocks removed from the prefix cache on disk to make room.",
        lambda s: s.disk_cache.num_evictions,
    ),
    _EngineMetric(
        "chatrpc_prefix_cache_disk_errors",
        "Failed reads and writes of the prefix cache on disk, and damaged files in it.",
        lambda s: s.disk_cache.num_errors,
    ),
    _EngineMetric(
        "chatrpc_draft_tokens",
        "Draft tokens of speculative decoding.",
        lambda s: s.num_draft_tokens,
    ),
    _EngineMetric(
        "chatrpc_accepted_tokens",
        "Draft tokens that the model accepted.",
        lambda s: s.num_accepted_tokens,
    ),
)


class _Engine(Collector):
    """Collects the engine's statistics and the capacity of its queue."""

    aliases: Mapping[str, str] = {m.name: m.alias for m in (*_GAUGES, *_COUNTERS) if m.alias}

    def __init__(self, stats: Callable[[], EngineStats], max_queue_size: int) -> None:
        self._stats = stats
        self._max_queue_size = max_queue_size

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield GaugeMetricFamily(
            "chatrpc_sequences_waiting_limit",
            "Capacity of the queue, in sequences.",
            value=self._max_queue_size,
        )
        for metric in _GAUGES:
            yield GaugeMetricFamily(metric.name, metric.text, value=metric.read(stats))
        for metric in _COUNTERS:
            yield CounterMetricFamily(metric.name, metric.text, value=metric.read(stats))
        if stats.upstreams:
            yield from _of_upstreams(stats.upstreams)


def _of_upstreams(upstreams: Sequence[UpstreamStats]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "chatrpc_upstream_up",
        "State of an upstream: 1 if its last request or probe did not fail, else 0.",
        labels=["upstream"],
    )
    attempts = CounterMetricFamily(
        "chatrpc_upstream_attempts",
        "Attempts to send a request to an upstream, without probes.",
        labels=["upstream"],
    )
    failures = CounterMetricFamily(
        "chatrpc_upstream_failures",
        "Attempts that failed because of the upstream.",
        labels=["upstream"],
    )
    failovers = CounterMetricFamily(
        "chatrpc_upstream_failovers",
        "Failed attempts after which the request was sent to another upstream.",
        labels=["upstream"],
    )
    for each in upstreams:
        up.add_metric([each.name], float(each.is_up))
        attempts.add_metric([each.name], each.num_attempts)
        failures.add_metric([each.name], each.num_failed)
        failovers.add_metric([each.name], each.num_failovers)
    yield from (up, attempts, failures, failovers)
