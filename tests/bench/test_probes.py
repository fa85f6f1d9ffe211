"""Probes of a real stack, and the outcome if one fails."""

from bench.probes import gateway_probes, probe, service_probes
from tests.support.gateway import checking_service, serving


async def test_each_successful_probe_is_timed() -> None:
    rounds = []
    async with checking_service() as target, serving(upstream=target) as url:
        probes = {**service_probes(target), **gateway_probes(url)}
        outcome = await probe(probes, 3, 0, lambda: rounds.append(1))
    assert outcome.fault is None
    assert len(rounds) == 3
    names = {name.partition(".")[0] for name in outcome.figures}
    assert names == {
        "grpc_liveness_ms",
        "grpc_readiness_ms",
        "http_healthz_ms",
        "http_readyz_ms",
    }
    for name in names:
        assert 0 < outcome.figures[f"{name}.p50"] <= outcome.figures[f"{name}.max"]


async def test_failing_probe_is_not_timed() -> None:
    async with serving(upstream="127.0.0.1:1") as url:
        outcome = await probe(gateway_probes(url), 1, 0, lambda: None)
    assert outcome.fault == "http_readyz_ms: not well"


async def test_probe_without_a_response_is_not_timed() -> None:
    outcome = await probe(service_probes("127.0.0.1:1"), 1, 0, lambda: None)
    assert outcome.fault == "grpc_liveness_ms: AioRpcError"
