"""Health, admission and drain, as clients and probes observe them."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from chatrpc.v1 import chat_service_pb2, model_service_pb2
from service.domain.engine import FinishReason, TokenOutput
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.serving.lifecycle import State
from tests.fakes.wait import until
from tests.support.grpc_server import Running, params
from tests.support.programs import Client
from tests.support.rpc_errors import rpc_error
from tests.support.tcp_proxy import TcpProxy

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READY_NAMES = [
    "",
    "readiness",
    "chatrpc.v1.ChatService",
    "chatrpc.v1.ModelService",
]


async def check(running: Running, name: str) -> int:
    request = health_pb2.HealthCheckRequest(service=name)
    return int((await running.health.Check(request)).status)


def request() -> chat_service_pb2.CreateChatCompletionRequest:
    return chat_service_pb2.CreateChatCompletionRequest(params=params())


async def test_service_without_a_loaded_model_is_alive_and_not_ready(starting: Running) -> None:
    assert await check(starting, "liveness") == SERVING
    for name in READY_NAMES:
        assert await check(starting, name) == NOT_SERVING
    rejected = await rpc_error(starting.chat.CreateChatCompletion(request()))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
    rejected = await rpc_error(starting.models.GetModel(model_service_pb2.GetModelRequest(id="x")))
    assert rejected.reason == "STARTING"


async def test_health_of_every_name_is_serving_once_the_model_is_loaded(running: Running) -> None:
    for name in [*READY_NAMES, "liveness", "fake", "alias"]:
        assert await check(running, name) == SERVING


async def test_startup_probe_succeeds_from_the_first_model_on(starting: Running) -> None:
    assert await check(starting, "startup") == NOT_SERVING
    await starting.lifecycle.serve(locally_served(starting.model))
    assert await check(starting, "startup") == SERVING
    await starting.lifecycle.drain(delay_s=0, timeout_s=0)
    assert await check(starting, "readiness") == NOT_SERVING
    assert await check(starting, "startup") == SERVING


async def test_health_list_has_every_name(starting: Running) -> None:
    async def listed() -> dict[str, int]:
        messages: Any = health_pb2  # the type stubs lack this method
        response = await starting.health.List(messages.HealthListRequest())
        return {name: status.status for name, status in response.statuses.items()}

    names = {"", "liveness", "readiness", "startup", *SERVICE_NAMES}
    before = await listed()
    assert before.keys() == names
    assert {name for name in names if before[name] == SERVING} == {"liveness"}
    await starting.lifecycle.serve(locally_served(starting.model))
    assert await listed() == dict.fromkeys(names | {"fake", "alias"}, SERVING)


async def test_health_of_an_unknown_name_is_not_found(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(running, "no-such-service")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_service_with_a_dead_engine_is_neither_ready_nor_alive(running: Running) -> None:
    await running.lifecycle.die()
    assert await check(running, "readiness") == NOT_SERVING
    assert await check(running, "liveness") == NOT_SERVING


async def test_health_watch_receives_changes(starting: Running) -> None:
    watch = starting.health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    assert (await watch.read()).status == NOT_SERVING
    await starting.lifecycle.serve(locally_served(starting.model))
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_health_check_is_served_while_every_slot_is_in_use(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    calls = [running.chat.CreateChatCompletion(request()) for _ in range(40)]
    await until(lambda: running.engine.num_running == 40)
    assert await check(running, "readiness") == SERVING
    for call in calls:
        call.cancel()
    await until(lambda: running.engine.num_running == 0)


async def test_drain_finishes_running_calls_and_rejects_new_ones(running: Running) -> None:
    go_on = asyncio.Event()
    running.engine.script = [go_on, TokenOutput((97,), FinishReason.LENGTH)]
    call = running.chat.CreateChatCompletion(request())
    await until(lambda: running.engine.num_running == 1)
    drain = asyncio.create_task(running.server.drain(delay_s=0, timeout_s=60))
    await until(lambda: running.lifecycle.state is State.DRAINING)
    assert await check(running, "readiness") == NOT_SERVING
    assert await check(running, "liveness") == SERVING
    rejected = await rpc_error(running.chat.CreateChatCompletion(request()))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert rejected.retry_after_s is not None
    go_on.set()
    assert (await call).completion.choices[0].message.content[0].text == "a"
    await drain


async def test_drain_waits_until_a_large_response_is_sent(running: Running) -> None:
    go_on = asyncio.Event()
    running.engine.script = [go_on, TokenOutput((97,) * 300_000, FinishReason.LENGTH)]
    small = ("grpc.http2.bdp_probe", 0)  # so that the response exceeds the client's receive window
    async with TcpProxy(running.port) as proxy, Client(proxy.target, small) as client:
        call = client.create(num_tokens=300_000)
        await until(lambda: running.engine.num_running == 1)
        proxy.freeze()
        go_on.set()
        await until(lambda: running.engine.num_running == 0)
        drain = asyncio.create_task(running.server.drain(delay_s=0, timeout_s=3600))
        await until(lambda: running.lifecycle.state is State.DRAINING)
        for _ in range(2):
            rejected = await rpc_error(running.chat.CreateChatCompletion(request()))
            assert rejected.reason == "DRAINING"
        proxy.thaw()
        assert (await call).completion.usage.completion_tokens == 300_000
    await drain


async def test_call_at_the_end_of_a_drain_is_rejected_with_its_reason(
    running: Running,
) -> None:
    drain = asyncio.create_task(running.server.drain(delay_s=0, timeout_s=0))
    await until(lambda: running.lifecycle.state is State.DRAINING)
    rejected = await rpc_error(running.chat.CreateChatCompletion(request()))
    assert rejected.reason == "DRAINING"
    await drain


async def test_drain_does_not_wait_for_an_open_watch(running: Running) -> None:
    watch = running.health.Watch(health_pb2.HealthCheckRequest(service=""))
    await watch.read()
    await running.server.drain(delay_s=0, timeout_s=3600)  # does not wait an hour for the watch
    with pytest.raises(grpc.aio.AioRpcError):
        while True:
            await watch.read()


async def test_request_during_the_drain_delay_is_served(running: Running) -> None:
    running.engine.answer("late")
    drain = asyncio.create_task(running.server.drain(delay_s=3600, timeout_s=0))
    watch = running.health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    while (await watch.read()).status != NOT_SERVING:
        pass
    await running.chat.CreateChatCompletion(request())
    watch.cancel()
    drain.cancel()


async def test_drain_cancels_calls_after_its_timeout(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    call = running.chat.CreateChatCompletion(request())
    await until(lambda: running.engine.num_running == 1)
    await running.server.drain(delay_s=0, timeout_s=0)
    await until(lambda: running.engine.num_running == 0)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
