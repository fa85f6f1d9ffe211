"""Measures the response times of probes. Each has its own connection, as kubelet's probes have."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.loadgen import OnDone
from bench.metrics import Outcome, percentiles

_TIMEOUT_S = 10.0

# Without these options, gRPC would share connections within the process. Kubelet shares none.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]

Probe = Callable[[], Awaitable[bool]]


def service_probes(target: str) -> dict[str, Probe]:
    """Return the probes of the service at `target`, by name."""
    return {f"grpc_{name}_ms": _grpc(target, name) for name in ("liveness", "readiness")}


def gateway_probes(base_url: str) -> dict[str, Probe]:
    """Return the probes of the gateway at `base_url`, by name."""
    return {f"http_{path}_ms": _http(f"{base_url}/{path}") for path in ("healthz", "readyz")}


async def probe(
    probes: Mapping[str, Probe], num_rounds: int, interval_s: float, on_done: OnDone
) -> Outcome:
    """Call each probe in turn, `num_rounds` times. Return the times, or the first failure."""
    times_s: dict[str, list[float]] = {name: [] for name in probes}
    for _ in range(num_rounds):
        for name, ask in probes.items():
            start_s = time.perf_counter()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    is_well = await ask()
            except (TimeoutError, OSError, aiohttp.ClientError, grpc.aio.AioRpcError) as error:
                return Outcome({}, f"{name}: {type(error).__name__}")
            if not is_well:
                return Outcome({}, f"{name}: not well")
            times_s[name].append(time.perf_counter() - start_s)
            await asyncio.sleep(interval_s)
        on_done()
    figures: dict[str, float] = {}
    for name, values in times_s.items():
        figures |= percentiles(name, values)
    return Outcome(figures)


def _grpc(target: str, name: str) -> Probe:
    async def ask() -> bool:
        async with grpc.aio.insecure_channel(target, _OPTIONS) as channel:
            # The type stubs lack the methods of HealthStub.
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = await check(health_pb2.HealthCheckRequest(service=name))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ask


def _http(url: str) -> Probe:
    async def ask() -> bool:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status == 200

    return ask
