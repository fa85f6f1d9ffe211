"""Copies of metrics under the names and labels of vLLM."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.domain.engine import EngineStats

_PREFIX = "vllm:"


class CacheConfig(Collector):
    """Collects vLLM's `cache_config_info`, reduced to the labels that inference gateways read."""

    def __init__(self, stats: Callable[[], EngineStats], model_labels: Mapping[str, str]) -> None:
        self._stats = stats
        self._model_labels = model_labels

    def collect(self) -> Iterator[Metric]:
        if not self._model_labels:
            return
        stats = self._stats()
        labels = {
            "block_size": str(stats.kv_block_size),
            "num_gpu_blocks": str(stats.num_kv_blocks),
            **self._model_labels,
        }
        info = GaugeMetricFamily(
            _PREFIX + "cache_config_info",
            "Blocks of the KV cache; the value is always 1.",
            labels=list(labels),
        )
        info.add_metric(list(labels.values()), 1)
        yield info


class Aliased(Collector):
    """Collects the metrics of a collector, and copies of them under vLLM's names.

    Args:
        metrics: The collector.
        aliases: vLLM's names without their prefix, by our names. Other metrics have no copy.
        model_labels: Labels that are added to the copies. While it is empty, because the model is
            not loaded yet, there are no copies.
    """

    def __init__(
        self, metrics: Collector, aliases: Mapping[str, str], model_labels: Mapping[str, str]
    ) -> None:
        self._metrics = metrics
        self._aliases = aliases
        self._model_labels = model_labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics.collect():
            yield metric
            alias = self._aliases.get(metric.name)
            if alias is not None and self._model_labels:
                yield self._copied(metric, _PREFIX + alias)

    def _copied(self, metric: Metric, alias: str) -> Metric:
        copy = Metric(alias, metric.documentation, metric.type, metric.unit)
        copy.samples = [
            Sample(
                alias + sample.name.removeprefix(metric.name),
                {**self._model_labels, **sample.labels},
                sample.value,
                sample.timestamp,
                sample.exemplar,
            )
            for sample in metric.samples
        ]
        return copy
