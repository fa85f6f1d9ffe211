"""Misbehaving clients: each call ends as documented, and other clients are still served."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chatrpc.v1 import chat_service_pb2, model_service_pb2
from service.domain.engine import FinishReason, TokenOutput
from service.domain.timeouts import ClientTimeouts
from service.metrics import Metrics
from service.rpc.server import MAX_METADATA_BYTES
from tests.fakes.wait import until
from tests.service.rpc.raw_h2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    SETTINGS,
    RawH2,
)
from tests.support.api_keys import SECRET, key, write
from tests.support.grpc_server import Running, params, served
from tests.support.rpc_errors import rpc_error

STREAM = "/chatrpc.v1.ChatService/StreamChatCompletion"
CREATE = "/chatrpc.v1.ChatService/CreateChatCompletion"


@dataclass
class VariableTimeouts:
    """`ClientTimeouts` that can change: short for misbehaving clients, then long."""

    receive_s: float = 60.0
    write_s: float = 60.0


async def no_request() -> AsyncIterator[bytes]:
    """Wait forever, so that the request never arrives and never ends."""
    await asyncio.Event().wait()
    yield b""


async def empty() -> AsyncIterator[bytes]:
    """End the request without a message."""
    if never := b"":
        yield never


def begin(running: Running, method: str, requests: Any, **options: Any) -> Any:
    """Begin a call. `requests` yields the pieces of its request."""
    return running.channel.stream_stream(method)(requests(), **options)


async def check_is_served(running: Running) -> None:
    """Check that other calls are served."""
    status = await running.health.Check(health_pb2.HealthCheckRequest())
    assert status.status == health_pb2.HealthCheckResponse.SERVING
    request = chat_service_pb2.CreateChatCompletionRequest(params=params())
    assert (await running.chat.CreateChatCompletion(request)).completion.choices


@pytest.mark.parametrize("method", [STREAM, CREATE])
async def test_call_whose_request_never_arrives_times_out(method: str) -> None:
    timeouts = VariableTimeouts(receive_s=0.05)
    async with served(client_timeouts=timeouts) as running:
        rejected = await rpc_error(begin(running, method, no_request))
        assert rejected.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert rejected.reason == "DEADLINE"
        timeouts.receive_s = 60
        await check_is_served(running)


@pytest.mark.parametrize("method", [STREAM, CREATE])
async def test_call_without_a_request_is_rejected(running: Running, method: str) -> None:
    rejected = await rpc_error(begin(running, method, empty))
    assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT
    assert rejected.fields == ["request"]


@pytest.mark.parametrize("method", [STREAM, CREATE])
async def test_call_without_a_key_is_rejected_before_its_request_is_read(
    tmp_path: Path, method: str
) -> None:
    async with served(write(tmp_path / "keys.toml", key())) as running:
        rejected = await rpc_error(begin(running, method, no_request))
        assert rejected.code == grpc.StatusCode.UNAUTHENTICATED


async def test_reflection_without_a_key_is_rejected(tmp_path: Path) -> None:
    async with served(write(tmp_path / "keys.toml", key())) as running:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)  # type: ignore[arg-type]
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        rejected = await rpc_error(stub.ServerReflectionInfo(iter([request])))
        assert rejected.code == grpc.StatusCode.UNAUTHENTICATED
        assert rejected.reason == "UNAUTHENTICATED"
        responses = stub.ServerReflectionInfo(iter([request]), metadata=(("x-api-key", SECRET),))
        assert [response.list_services_response async for response in responses]


async def test_stream_that_is_not_read_ends_and_frees_its_sequence() -> None:
    async with served(client_timeouts=ClientTimeouts(write_s=0.05)) as running:
        running.engine.script = [TokenOutput((97,) * 100) for _ in range(5000)]
        running.engine.script.append(TokenOutput((97,), FinishReason.LENGTH))
        request = chat_service_pb2.StreamChatCompletionRequest(params=params())
        call = running.chat.StreamChatCompletion(request)
        await call.initial_metadata()
        await until(lambda: len(running.engine.requests) == 1)
        await until(lambda: running.engine.num_running == 0)
        drain = asyncio.ensure_future(running.lifecycle.drain(0, 60))
        await asyncio.wait_for(drain, 60)  # no call is active
        rejected = await rpc_error(call)  # a client that reads later receives the status
        assert rejected.code == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_slow_reader_receives_all_tokens() -> None:
    async with served(client_timeouts=ClientTimeouts(write_s=60)) as running:
        running.engine.script = [TokenOutput((97,) * 100) for _ in range(3000)]
        running.engine.script.append(TokenOutput((97,), FinishReason.LENGTH))
        request = chat_service_pb2.StreamChatCompletionRequest(params=params())
        call = running.chat.StreamChatCompletion(request)
        await call.initial_metadata()
        await check_models_are_listed(running)
        assert sum([r.chunk.choices[0].num_tokens async for r in call if r.chunk.choices]) > 299_000


async def check_models_are_listed(running: Running) -> None:
    for _ in range(20):
        assert (await running.models.ListModels(model_service_pb2.ListModelsRequest())).models


async def test_metadata_above_the_limit_is_rejected(running: Running) -> None:
    request = model_service_pb2.ListModelsRequest()
    fits, exceeds = "x" * (MAX_METADATA_BYTES // 2), "x" * (MAX_METADATA_BYTES + 1)
    for _ in range(5):
        await running.models.ListModels(request, metadata=(("x-large", fits),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.models.ListModels(request, metadata=(("x-large", exceeds),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    many = tuple((f"x-{i}", "x" * 50) for i in range(1000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.models.ListModels(request, metadata=many)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_flood_of_streams_without_requests_times_out() -> None:
    metrics, timeouts = Metrics(), VariableTimeouts(receive_s=0.05)
    method = "chatrpc.v1.ChatService", "StreamChatCompletion"
    begun = metrics.started.labels(*method)
    ended = metrics.handled.labels(*method, "DEADLINE_EXCEEDED")
    async with served(client_timeouts=timeouts, metrics=metrics) as running:
        async with RawH2(running.port) as client:
            for stream in range(1, 2001, 2):
                await client.open(stream, STREAM)
            await until(lambda: begun._value.get() == 1000)
            timeouts.receive_s = 60
            await check_is_served(running)
            await until(lambda: ended._value.get() == 1000)
        assert len(running.engine.requests) == 1


async def test_health_watch_that_is_not_read_does_not_delay_others(running: Running) -> None:
    """The client leaves no flow-control window for the five bytes of a status."""
    async with RawH2(running.port) as client, asyncio.timeout(60):
        await client.send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
        await client.open(1, "/grpc.health.v1.Health/Watch")
        await client.send(DATA, END_STREAM, 1, bytes(5))
        await client.until(HEADERS)
        watch = running.health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await running.lifecycle.drain(0, 0)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_rapid_reset_does_not_stop_the_service() -> None:
    """The attack is CVE-2023-44487."""
    async with served() as running, RawH2(running.port) as client:
        try:
            for stream in range(1, 6001, 2):
                await client.open(stream, CREATE)
                await client.reset(stream)
        except ConnectionError:
            pass  # gRPC core may close the connection
        await check_is_served(running)


async def test_flood_of_pings_closes_only_its_own_connection() -> None:
    async with served() as running:
        async with RawH2(running.port) as client, asyncio.timeout(60):
            with suppress(ConnectionError):  # the service may close the connection at any time
                for i in range(10):
                    await client.send(PING, 0, 0, i.to_bytes(8))
                assert b"too_many_pings" in await client.until(GOAWAY)
        async with RawH2(running.port) as other, asyncio.timeout(60):
            await other.send(PING, 0, 0, bytes(8))
            assert await other.until(PING) == bytes(8)
        await check_is_served(running)
