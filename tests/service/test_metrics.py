"""The metrics of both processes, and their HELP texts."""

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway_http.metrics import Metrics as GatewayMetrics
from service.domain.engine import EngineStats, UpstreamStats
from service.metrics import Metrics as ServiceMetrics

# Words that begin a phrase which makes sense only after another phrase.
_DANGLING = re.compile(r"(Those|These|They|Them|It|Its|From there|Of|And|How|What|Whether|Which)\b")


def families(registry: CollectorRegistry) -> list[Metric]:
    return list(text_string_to_metric_families(generate_latest(registry).decode()))


def service() -> ServiceMetrics:
    metrics = ServiceMetrics()
    upstreams = (UpstreamStats("a.test", 3, 2, 1, is_up=False), UpstreamStats("b.test", 4))
    metrics.watch_engine(lambda: EngineStats(upstreams=upstreams), 256)
    metrics.name_model("m")
    return metrics


def gateway() -> GatewayMetrics:
    metrics = GatewayMetrics()
    metrics.watch_upstreams(lambda: [("m", True)])
    return metrics


ALL = [*families(service().registry), *families(gateway().registry)]
OURS = [family for family in ALL if not family.name.startswith(("process_", "vllm:"))]


@pytest.mark.parametrize("family", OURS, ids=lambda family: family.name)
def test_help_of_a_metric_is_a_complete_phrase(family: Metric) -> None:
    text = family.documentation
    assert re.fullmatch(r"[A-Zg].*\.", text)  # or "gRPC ..."
    assert not _DANGLING.match(text)
    assert len(text.split()) >= 3


def test_metrics_have_no_times_of_creation() -> None:
    for family in ALL:
        for sample in family.samples:
            assert not sample.name.endswith("_created")


def test_copies_under_vllm_names_are_those_that_others_read() -> None:
    copies = {family.name for family in ALL if family.name.startswith("vllm:")}
    assert copies == {
        f"vllm:{name}"
        for name in (
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "cache_config_info",
            "num_preemptions",
            "prefix_cache_queries",
            "prefix_cache_hits",
            "prompt_tokens",
            "generation_tokens",
            "request_success",
            "time_to_first_token_seconds",
            "inter_token_latency_seconds",
            "e2e_request_latency_seconds",
        )
    }


def test_every_created_metric_is_exported() -> None:
    exported = {family.name for family in ALL}
    for metrics in (service(), gateway()):
        made = [value for value in vars(metrics).values() if hasattr(value, "_name")]
        assert len(made) > 5
        assert {metric._name for metric in made} <= exported


def test_model_is_exported_when_it_is_known() -> None:
    metrics = ServiceMetrics()
    assert not [each for each in families(metrics.registry) if each.name == "chatrpc_model_info"]
    metrics.name_model("org/tiny")
    value = metrics.registry.get_sample_value("chatrpc_model_info", {"model": "org/tiny"})
    assert value == 1


def test_upstreams_are_labels_of_their_metrics() -> None:
    found = {
        (sample.name, sample.labels["upstream"]): sample.value
        for family in OURS
        for sample in family.samples
        if "upstream" in sample.labels
    }
    assert found == {
        ("chatrpc_upstream_up", "a.test"): 0,
        ("chatrpc_upstream_up", "b.test"): 1,
        ("chatrpc_upstream_attempts_total", "a.test"): 3,
        ("chatrpc_upstream_attempts_total", "b.test"): 4,
        ("chatrpc_upstream_failures_total", "a.test"): 2,
        ("chatrpc_upstream_failures_total", "b.test"): 0,
        ("chatrpc_upstream_failovers_total", "a.test"): 1,
        ("chatrpc_upstream_failovers_total", "b.test"): 0,
    }
