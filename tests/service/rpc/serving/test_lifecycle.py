"""Health, admission and drain as callers and probes see them."""

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


async def test_while_the_model_loads_it_is_alive_and_not_ready(starting: Running) -> None:
    assert await check(starting, "liveness") == SERVING
    for name in READY_NAMES:
        assert await check(starting, name) == NOT_SERVING
    refused = await rpc_error(starting.chat.CreateChatCompletion(request()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
    refused = await rpc_error(starting.models.GetModel(model_service_pb2.GetModelRequest(id="x")))
    assert refused.reason == "STARTING"


async def test_when_the_model_is_loaded_every_name_serves(running: Running) -> None:
    for name in [*READY_NAMES, "liveness", "fake", "alias"]:
        assert await check(running, name) == SERVING


async def test_startup_is_told_once_and_for_all(starting: Running) -> None:
    assert await check(starting, "startup") == NOT_SERVING
    await starting.lifecycle.serve(locally_served(starting.model))
    assert await check(starting, "startup") == SERVING
    await starting.lifecycle.drain(delay_s=0, timeout_s=0)
    assert await check(starting, "readiness") == NOT_SERVING
    assert await check(starting, "startup") == SERVING


async def test_every_name_is_listed(starting: Running) -> None:
    async def listed() -> dict[str, int]:
        messages: Any = health_pb2  # its type stubs do not know this method
        answer = await starting.health.List(messages.HealthListRequest())
        return {name: status.status for name, status in answer.statuses.items()}

    names = {"", "liveness", "readiness", "startup", *SERVICE_NAMES}
    before = await listed()
    assert before.keys() == names
    assert {name for name in names if before[name] == SERVING} == {"liveness"}
    await starting.lifecycle.serve(locally_served(starting.model))
    assert await listed() == dict.fromkeys(names | {"fake", "alias"}, SERVING)


async def test_a_name_nobody_knows_is_not_found(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(running, "no-such-service")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_dead_engine_is_neither_ready_nor_alive(running: Running) -> None:
    await running.lifecycle.die()
    assert await check(running, "readiness") == NOT_SERVING
    assert await check(running, "liveness") == NOT_SERVING


async def test_a_watch_sees_the_changes(starting: Running) -> None:
    watch = starting.health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    assert (await watch.read()).status == NOT_SERVING
    await starting.lifecycle.serve(locally_served(starting.model))
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_health_answers_while_every_slot_is_busy(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    calls = [running.chat.CreateChatCompletion(request()) for _ in range(40)]
    await until(lambda: running.engine.num_running == 40)
    assert await check(running, "readiness") == SERVING
    for call in calls:
        call.cancel()
    await until(lambda: running.engine.num_running == 0)


async def test_a_drain_finishes_what_runs_and_refuses_what_comes(running: Running) -> None:
    go_on = asyncio.Event()
    running.engine.script = [go_on, TokenOutput((97,), FinishReason.LENGTH)]
    call = running.chat.CreateChatCompletion(request())
    await until(lambda: running.engine.num_running == 1)
    drain = asyncio.create_task(running.server.drain(delay_s=0, timeout_s=60))
    await until(lambda: running.lifecycle.state is State.DRAINING)
    assert await check(running, "readiness") == NOT_SERVING
    assert await check(running, "liveness") == SERVING
    refused = await rpc_error(running.chat.CreateChatCompletion(request()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert refused.retry_after_s is not None
    go_on.set()
    assert (await call).completion.choices[0].message.content[0].text == "a"
    await drain


async def test_a_drain_waits_until_a_whole_answer_has_left(running: Running) -> None:
    go_on = asyncio.Event()
    running.engine.script = [go_on, TokenOutput((97,) * 300_000, FinishReason.LENGTH)]
    small = ("grpc.http2.bdp_probe", 0)  # so that the answer does not fit what is taken unread
    async with TcpProxy(running.port) as proxy, Client(proxy.target, small) as client:
        call = client.create(num_tokens=300_000)
        await until(lambda: running.engine.num_running == 1)
        proxy.freeze()
        go_on.set()
        await until(lambda: running.engine.num_running == 0)
        drain = asyncio.create_task(running.server.drain(delay_s=0, timeout_s=3600))
        await until(lambda: running.lifecycle.state is State.DRAINING)
        for _ in range(2):
            refused = await rpc_error(running.chat.CreateChatCompletion(request()))
            assert refused.reason == "DRAINING"
        proxy.thaw()
        assert (await call).completion.usage.completion_tokens == 300_000
    await drain


async def test_calls_that_come_at_the_very_end_of_a_drain_are_refused_by_name(
    running: Running,
) -> None:
    drain = asyncio.create_task(running.server.drain(delay_s=0, timeout_s=0))
    await until(lambda: running.lifecycle.state is State.DRAINING)
    refused = await rpc_error(running.chat.CreateChatCompletion(request()))
    assert refused.reason == "DRAINING"
    await drain


async def test_a_drain_does_not_wait_for_an_open_watch(running: Running) -> None:
    watch = running.health.Watch(health_pb2.HealthCheckRequest(service=""))
    await watch.read()
    await running.server.drain(delay_s=0, timeout_s=3600)  # would wait an hour if it did
    with pytest.raises(grpc.aio.AioRpcError):
        while True:
            await watch.read()


async def test_during_the_delay_of_a_drain_requests_are_still_taken(running: Running) -> None:
    running.engine.answer("late")
    drain = asyncio.create_task(running.server.drain(delay_s=3600, timeout_s=0))
    watch = running.health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    while (await watch.read()).status != NOT_SERVING:
        pass
    await running.chat.CreateChatCompletion(request())
    watch.cancel()
    drain.cancel()


async def test_a_drain_ends_what_does_not_end_by_itself(running: Running) -> None:
    running.engine.script = [asyncio.Event()]
    call = running.chat.CreateChatCompletion(request())
    await until(lambda: running.engine.num_running == 1)
    await running.server.drain(delay_s=0, timeout_s=0)
    await until(lambda: running.engine.num_running == 0)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
