"""Load reports, as gRPC's own load balancer requests them."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from service.domain.engine import EngineStats
from service.rpc.serving import load_reports
from service.rpc.serving.load_reports import METHOD, REPORT, REQUEST
from tests.fakes.wait import failsafe, until
from tests.support.grpc_server import Running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_reports, "_LEAST_INTERVAL_S", 0.01)
    monkeypatch.setattr(load_reports, "_SAMPLE_S", 0.001)


def reports(running: Running, interval_s: int = 0) -> Any:
    method: Callable[..., Any] = running.channel.unary_stream(
        METHOD, REQUEST.SerializeToString, REPORT.FromString
    )
    request = REQUEST()
    request.report_interval.seconds = interval_s
    return method(request)


def load(running: Running, num_running: int, num_waiting: int = 0) -> None:
    stats = EngineStats(num_running=num_running, num_waiting=num_waiting, max_num_seqs=8)
    running.engine.stats = lambda: stats  # type: ignore[method-assign]  # replaced on a fake


async def test_messages_have_the_field_numbers_of_the_protocol() -> None:
    """Field 6 is the double 1 and field 9 the double 0.5, as in xds.data.orca.v3.OrcaLoadReport."""
    report = REPORT(rps_fractional=1, application_utilization=0.5)
    assert report.SerializeToString() == b"\x31\0\0\0\0\0\0\xf0\x3f\x49\0\0\0\0\0\0\xe0\x3f"
    request = REQUEST.FromString(b"\x0a\x08\x08\x02\x10\x80\xca\xb5\xee\x01\x12\x03cpu")
    assert (request.report_interval.seconds, request.report_interval.nanos) == (2, 500_000_000)


@pytest.mark.parametrize(
    ("num_running", "num_waiting", "utilization"), [(0, 0, 0.01), (2, 0, 0.25), (8, 4, 1.5)]
)
async def test_utilization_is_sequences_over_capacity(
    running: Running, num_running: int, num_waiting: int, utilization: float
) -> None:
    load(running, num_running, num_waiting)
    call = reports(running)
    report = await call.read()
    assert report.rps_fractional == 1
    assert report.application_utilization == pytest.approx(utilization)
    call.cancel()


async def test_reports_follow_the_load_smoothly(running: Running) -> None:
    load(running, 0)
    call = reports(running)
    assert (await call.read()).application_utilization == pytest.approx(0.01)
    load(running, 8)
    seen = [0.0]
    async with failsafe():
        while seen[-1] < 0.9:
            seen.append((await call.read()).application_utilization)
    assert seen == sorted(seen)
    call.cancel()


async def test_load_is_not_sampled_without_readers(running: Running) -> None:
    num_samples = 0

    def stats() -> EngineStats:
        nonlocal num_samples
        num_samples += 1
        return EngineStats(max_num_seqs=8)

    running.engine.stats = stats  # type: ignore[method-assign]  # replaced on a fake
    calls = [reports(running) for _ in range(3)]
    for call in calls:
        await call.read()
    await until(lambda: num_samples > 10)
    for call in calls:
        call.cancel()
    before = -1
    async with failsafe():
        while num_samples != before:  # for the duration of a hundred samples
            before = num_samples
            await asyncio.sleep(0.1)


async def test_draining_replica_ends_its_reports(running: Running) -> None:
    call = reports(running)
    await call.read()
    await running.lifecycle.drain(0, 0)
    async with failsafe():
        while await call.read() is not grpc.aio.EOF:
            pass
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reports(running).read()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_starting_replica_reports_its_load(starting: Running) -> None:
    call = reports(starting, interval_s=10**9)
    assert (await call.read()).application_utilization == pytest.approx(0.01)
    call.cancel()
