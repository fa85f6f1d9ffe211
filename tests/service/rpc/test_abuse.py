"""Clients that take much and give nothing: each ends as documented, and others notice nothing."""

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
    """`ClientTimeouts` that a test may change: short for misbehaving clients, then long."""

    receive_s: float = 60.0
    write_s: float = 60.0


async def nothing() -> AsyncIterator[bytes]:
    """A request that never comes, and never ends."""
    await asyncio.Event().wait()
    yield b""


async def no_more() -> AsyncIterator[bytes]:
    if not_ever := b"":
        yield not_ever


def begin(running: Running, method: str, requests: Any, **options: Any) -> Any:
    """A call whose request is sent piece by piece."""
    return running.channel.stream_stream(method)(requests(), **options)


async def answers(running: Running) -> None:
    """Somebody else is served as ever."""
    status = await running.health.Check(health_pb2.HealthCheckRequest())
    assert status.status == health_pb2.HealthCheckResponse.SERVING
    request = chat_service_pb2.CreateChatCompletionRequest(params=params())
    assert (await running.chat.CreateChatCompletion(request)).completion.choices


@pytest.mark.parametrize("method", [STREAM, CREATE])
async def test_a_request_that_never_comes_ends(method: str) -> None:
    timeouts = VariableTimeouts(receive_s=0.05)
    async with served(client_timeouts=timeouts) as running:
        refused = await rpc_error(begin(running, method, nothing))
        assert refused.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert refused.reason == "DEADLINE"
        timeouts.receive_s = 60
        await answers(running)


@pytest.mark.parametrize("method", [STREAM, CREATE])
async def test_a_call_without_a_request_is_refused(running: Running, method: str) -> None:
    refused = await rpc_error(begin(running, method, no_more))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == ["request"]


@pytest.mark.parametrize("method", [STREAM, CREATE])
async def test_a_key_is_asked_for_before_the_request_is_read(tmp_path: Path, method: str) -> None:
    async with served(write(tmp_path / "keys.toml", key())) as running:
        refused = await rpc_error(begin(running, method, nothing))
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED


async def test_reflection_is_asked_for_a_key_too(tmp_path: Path) -> None:
    async with served(write(tmp_path / "keys.toml", key())) as running:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)  # type: ignore[arg-type]
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        refused = await rpc_error(stub.ServerReflectionInfo(iter([request])))
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        assert refused.reason == "UNAUTHENTICATED"
        known = stub.ServerReflectionInfo(iter([request]), metadata=(("x-api-key", SECRET),))
        assert [answer.list_services_response async for answer in known]


async def test_a_stream_that_is_not_read_ends_and_frees_what_it_held() -> None:
    async with served(client_timeouts=ClientTimeouts(write_s=0.05)) as running:
        running.engine.script = [TokenOutput((97,) * 100) for _ in range(5000)]
        running.engine.script.append(TokenOutput((97,), FinishReason.LENGTH))
        request = chat_service_pb2.StreamChatCompletionRequest(params=params())
        call = running.chat.StreamChatCompletion(request)
        await call.initial_metadata()
        await until(lambda: len(running.engine.requests) == 1)
        await until(lambda: running.engine.num_running == 0)
        drain = asyncio.ensure_future(running.lifecycle.drain(0, 60))
        await asyncio.wait_for(drain, 60)  # nobody counts as active
        refused = await rpc_error(call)  # whoever reads on after all reads how it ended
        assert refused.code == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_slow_reader_that_reads_gets_everything() -> None:
    async with served(client_timeouts=ClientTimeouts(write_s=60)) as running:
        running.engine.script = [TokenOutput((97,) * 100) for _ in range(3000)]
        running.engine.script.append(TokenOutput((97,), FinishReason.LENGTH))
        request = chat_service_pb2.StreamChatCompletionRequest(params=params())
        call = running.chat.StreamChatCompletion(request)
        await call.initial_metadata()
        await answers_models(running)
        assert sum([r.chunk.choices[0].num_tokens async for r in call if r.chunk.choices]) > 299_000


async def answers_models(running: Running) -> None:
    for _ in range(20):
        assert (await running.models.ListModels(model_service_pb2.ListModelsRequest())).models


async def test_metadata_is_bounded(running: Running) -> None:
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


async def test_streams_opened_in_a_flood_and_never_asked_on() -> None:
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
            await answers(running)
            await until(lambda: ended._value.get() == 1000)
        assert len(running.engine.requests) == 1


async def test_a_health_watch_that_is_not_read_holds_up_nobody(running: Running) -> None:
    """Its client may well leave no window for the five bytes of a status."""
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


async def test_rapid_reset() -> None:
    """CVE-2023-44487."""
    async with served() as running, RawH2(running.port) as client:
        try:
            for stream in range(1, 6001, 2):
                await client.open(stream, CREATE)
                await client.reset(stream)
        except ConnectionError:
            pass  # core may well have enough of it
        await answers(running)


async def test_pings_in_a_flood_end_their_connection_and_no_other() -> None:
    async with served() as running:
        async with RawH2(running.port) as client, asyncio.timeout(60):
            with suppress(ConnectionError):  # it may be over before all is sent, or read
                for i in range(10):
                    await client.send(PING, 0, 0, i.to_bytes(8))
                assert b"too_many_pings" in await client.until(GOAWAY)
        async with RawH2(running.port) as patient, asyncio.timeout(60):
            await patient.send(PING, 0, 0, bytes(8))
            assert await patient.until(PING) == bytes(8)
        await answers(running)
