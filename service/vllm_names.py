"""Metrics under the names and labels that vLLM gives them."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.types import EngineStats

_OURS, _VLLMS = "chatrpc_", "vllm:"


class CacheConfig(Collector):
    """vLLM's `cache_config_info`, as far as inference gateways read it: the cache's blocks."""

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
            _VLLMS + "cache_config_info", "The KV cache; always 1.", labels=list(labels)
        )
        info.add_metric(list(labels.values()), 1)
        yield info


class Aliased(Collector):
    """Metrics of ours under their own names and, once the model has one, under vLLM's.

    Args:
        aliases: by our names what vLLM calls it, "" for nothing; None: the same.
    """

    def __init__(
        self,
        metrics: Collector,
        model_labels: Mapping[str, str],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._metrics = metrics
        self._model_labels = model_labels
        self._aliases = aliases

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics.collect():
            yield metric
            alias = self._alias(metric.name)
            if alias and self._model_labels:
                yield self._renamed(metric, _VLLMS + alias)

    def _alias(self, name: str) -> str:
        return name.removeprefix(_OURS) if self._aliases is None else self._aliases[name]

    def _renamed(self, metric: Metric, alias: str) -> Metric:
        renamed = Metric(alias, metric.documentation, metric.type, metric.unit)
        renamed.samples = [
            Sample(
                alias + sample.name.removeprefix(metric.name),
                {**self._model_labels, **sample.labels},
                sample.value,
                sample.timestamp,
                sample.exemplar,
            )
            for sample in metric.samples
        ]
        return renamed
