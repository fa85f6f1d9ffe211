"""A model that fails, is lost or hangs: the errors on both wires, and requests that continue."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.fakes.wait import failsafe
from tests.support.programs import Client, Gateway, Launch, Service, body, http_client
from tests.support.raw_http import RawClient
from tests.support.rpc_errors import rpc_error

LONG = 50_000  # tokens of 2 ms each; no test waits for the last
HIDDEN = "secret words"


async def test_failed_step_ends_only_its_requests(launch: Launch) -> None:
    service = launch(Service())
    await service.ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with Client(service.target) as client, RawClient(gateway.url) as http:
        stream = client.stream(num_tokens=LONG)
        await anext(aiter(stream))
        await http.post(body(num_tokens=LONG, stream=True))
        await http.read_until(b'"content":"a')

        culprit = await rpc_error(client.create("!fail"))
        beside = await rpc_error(stream)
        events = await http.read_until(b"[DONE]")
        for error in (culprit, beside):
            assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")
            assert HIDDEN not in repr(error)
        assert b'"error":{' in events
        assert b'"server_error"' in events
        assert HIDDEN.encode() not in events

        assert (await client.create()).completion.usage.completion_tokens == 3
        await service.idle()
    assert service.is_running
    assert len(service.events("step_failed")) == 1
    assert HIDDEN in service.log  # only the log contains it


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["!lose", "!hang"])
async def test_lost_or_hanging_engine_fails_all_requests_and_ends_the_process(
    launch: Launch, fault: str
) -> None:
    service = launch(Service("--step-timeout-s", "1"))
    await service.ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with (
        Client(service.target) as client,
        RawClient(gateway.url) as http,
        http_client(gateway.url) as whole,
    ):
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service="liveness"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stream = client.stream(num_tokens=LONG)
        await anext(aiter(stream))
        await http.post(body(num_tokens=LONG, stream=True))
        await http.read_until(b'"content":"a')
        waiting = asyncio.create_task(
            whole.post("/v1/chat/completions", json=body(num_tokens=LONG))
        )
        async with failsafe():
            while (await service.metrics())["chatrpc_sequences_running"] < 3:
                await asyncio.sleep(0.01)

        culprit = client.create(fault)
        for error in (await rpc_error(culprit), await rpc_error(stream)):
            assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DEAD")
            assert HIDDEN not in repr(error)
        events = await http.read_until(b"[DONE]")
        assert b'"server_error"' in events
        assert HIDDEN.encode() not in events
        assert (await waiting).status_code == 500
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING

        assert await service.ended() == 1
        after = await whole.post("/v1/chat/completions", json=body())
        assert after.status_code == 503
        assert "retry-after" in after.headers
    assert len(service.events("engine_hangs" if fault == "!hang" else "engine_failed")) == 1
