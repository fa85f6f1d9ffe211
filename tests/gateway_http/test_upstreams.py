"""The gateway's side of a call, against a real gRPC server."""

import asyncio
from contextlib import aclosing

import grpc
import pytest

from chatrpc.v1 import chat_pb2
from gateway_http.upstreams import CallOptions, Upstream
from tests.fakes.chat_service import Admit, Fail, FakeService, Finish, Hold, Say

PARAMS = chat_pb2.ChatCompletionParams(model="m")
OPTIONS = CallOptions(timeout_s=30)


async def test_silence_is_told_and_ends_nothing(service: FakeService) -> None:
    service.script = [Admit(), Hold(), Say("Hello"), Finish()]
    upstream = Upstream(service.target)
    async with aclosing(upstream.stream_chat(PARAMS, OPTIONS, idle_s=0.01)) as chunks:
        assert [await anext(chunks) for _ in range(3)] == [None] * 3
        service.release()
        texts = [c.choices[0].delta.content async for c in chunks if c is not None and c.choices]
    assert texts == ["Hello", ""]
    await upstream.close()


async def test_refusal_comes_before_the_first_item(service: FakeService) -> None:
    service.script = [Fail(grpc.StatusCode.INVALID_ARGUMENT)]
    upstream = Upstream(service.target)
    for _ in range(50):
        with pytest.raises(grpc.aio.AioRpcError):
            await anext(upstream.stream_chat(PARAMS, OPTIONS, idle_s=10))
    await upstream.close()


async def test_closing_the_generator_cancels_the_call(service: FakeService) -> None:
    service.script = [Say("Hello"), Hold()]
    upstream = Upstream(service.target)
    chunks = upstream.stream_chat(PARAMS, OPTIONS, idle_s=10)
    await anext(chunks)
    await chunks.aclose()
    await service.cancelled()
    await upstream.close()


async def test_service_that_comes_back_is_found() -> None:
    async with FakeService() as service:
        port = service.port
    upstream = Upstream(service.target)
    with pytest.raises(grpc.aio.AioRpcError):
        await upstream.is_ready(timeout_s=5)
    async with FakeService(port=port), asyncio.timeout(120):
        while True:
            try:
                assert await upstream.is_ready(timeout_s=1)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                break
    await upstream.close()
