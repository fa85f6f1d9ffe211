"""The metrics that our processes export, and those that PromQL expressions use."""

import re
from collections.abc import Iterator

from prometheus_client import CollectorRegistry

from chatrpc_process.reload_metrics import ReloadMetrics
from gateway_http.metrics import HostedModelStatus
from gateway_http.metrics import Metrics as GatewayMetrics
from service.domain.engine import EngineStats, UpstreamStats
from service.metrics import Metrics as ServiceMetrics

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
_NAME = re.compile(r"\b(?:chatrpc|grpc_server|process|vllm)[_:]\w+(?![\w-])")


def exported() -> set[str]:
    """Return the names of all samples that the processes can export."""
    service, gateway = ServiceMetrics(), GatewayMetrics()
    service.watch_engine(lambda: EngineStats(upstreams=(UpstreamStats("a.test"),)), 256)
    service.name_model("m")
    gateway.watch_upstreams(lambda: [("m", True)])
    gateway.watch_hosted_models(lambda: [HostedModelStatus("m", "loaded", 1, 0)])
    files = CollectorRegistry()
    files.register(ReloadMetrics())
    return {*_names(service.registry), *_names(gateway.registry), *_names(files)}


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression or a longer text names."""
    return set(_NAME.findall(expression))


def _names(registry: CollectorRegistry) -> Iterator[str]:
    for family in registry.collect():
        for suffix in _SUFFIXES.get(family.type, ("",)):
            yield family.name + suffix
