"""Malicious clients of the gRPC port do not stop the service of others."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import grpc
import pytest
from hyperframe.frame import Frame

from chatrpc.v1 import chat_service_pb2
from tests.fakes.wait import failsafe
from tests.faults import http2
from tests.faults.http2 import PREFACE, RawHttp2
from tests.support.programs import Client, Service, chat
from tests.support.rpc_errors import rpc_error

pytestmark = pytest.mark.slow

STREAM = "/chatrpc.v1.ChatService/StreamChatCompletion"
LONG = chat_service_pb2.StreamChatCompletionRequest(params=chat("hi", 50_000)).SerializeToString()
SHORT = chat_service_pb2.StreamChatCompletionRequest(params=chat("hi", 2)).SerializeToString()


@pytest.fixture(scope="module")
def launched() -> Iterator[Service]:
    service = Service("--max-num-seqs", "8", "--max-queue-size", "64")
    yield service
    service.close()


@pytest.fixture
async def service(launched: Service) -> AsyncIterator[Service]:
    """Yield an idle service. After the test it must be idle again."""
    await launched.ready()
    await launched.idle()
    num_fds = launched.num_fds
    yield launched
    async with Client(launched.target) as client:
        assert (await client.create()).completion.usage.completion_tokens == 3
    await launched.idle()
    await launched.has_fds(num_fds)


async def serves_others(
    service: Service, attack: Awaitable[None], *, fills_queue: bool = False
) -> None:
    """Check that a stream continues and calls succeed during an attack.

    Callers without a key share one queue. If an attack fills it, calls are rejected meanwhile.
    """
    async with Client(service.target) as client:
        stream = client.stream(num_tokens=50_000)
        await anext(aiter(stream))
        attacking = asyncio.ensure_future(attack)
        num_completed = 0
        while not attacking.done() or num_completed < 3:
            await anext(aiter(stream))
            try:
                response = await client.create()
            except grpc.aio.AioRpcError as error:
                if fills_queue and "queue is full" in (error.details() or ""):
                    continue
                raise
            assert response.completion.usage.completion_tokens == 3
            num_completed += 1
        await attacking


async def _garbage(connection: RawHttp2) -> None:
    for _ in range(50):
        await connection.send(os.urandom(1000))


async def _tls(connection: RawHttp2) -> None:
    await connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500))


async def _http1(connection: RawHttp2) -> None:
    await connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def _bad_preface(connection: RawHttp2) -> None:
    await connection.send(PREFACE[:-1] + b"\0" * 100)


async def _random_frames(connection: RawHttp2) -> None:
    """Send frames of all types, also unknown ones, with random content."""
    choose = random.Random(7)
    await connection.open()
    for _ in range(300):
        content = choose.randbytes(choose.randrange(64))
        head = len(content).to_bytes(3, "big") + bytes(
            [choose.randrange(12), choose.randrange(256)]
        )
        await connection.send(head + choose.randrange(9).to_bytes(4, "big") + content)


async def _huge_frame(connection: RawHttp2) -> None:
    await connection.open()
    await connection.send(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 100_000)


async def _endless_head(connection: RawHttp2) -> None:
    await connection.open()
    for _ in range(100):
        await connection.send_frames(connection.endless_headers(10))


@pytest.mark.parametrize(
    "attack",
    [_garbage, _tls, _http1, _bad_preface, _random_frames, _huge_frame, _endless_head],
)
async def test_bytes_that_are_not_grpc_end_only_their_connection(
    service: Service, attack: Callable[[RawHttp2], Awaitable[None]]
) -> None:
    async def attacked() -> None:
        async with RawHttp2(service.port) as connection:
            await attack(connection)
            await connection.ended()

    await serves_others(service, attacked())


@pytest.mark.parametrize("frames", [http2.settings, http2.pings, http2.window_updates])
async def test_flood_of_frames_does_not_delay_others(
    service: Service, frames: Callable[[int], list[Frame]]
) -> None:
    async def attacked() -> None:
        rss_bytes = service.rss_bytes
        for reads in (True, False):
            async with RawHttp2(service.port, reads=reads) as connection:
                await connection.open()
                with suppress(TimeoutError):  # neither side reads
                    async with asyncio.timeout(120 if reads else 0.5):
                        for _ in range(20):
                            await connection.send_frames(frames(1000))
        assert service.rss_bytes - rss_bytes < 32 << 20

    await serves_others(service, attacked())


@pytest.mark.parametrize("message", [None, SHORT], ids=["unfinished", "short"])
async def test_thousands_of_calls_on_one_connection_do_not_delay_others(
    service: Service, message: bytes | None
) -> None:
    async def attacked() -> None:
        async with RawHttp2(service.port) as connection:
            await connection.open()
            await flood(connection, 3000, message)

    await serves_others(service, attacked(), fills_queue=message is not None)


async def test_calls_that_fill_the_queue_end_no_running_stream(service: Service) -> None:
    async with Client(service.target) as client, RawHttp2(service.port) as connection:
        stream = client.stream(num_tokens=50_000)
        await anext(aiter(stream))
        await connection.open()
        await flood(connection, 2000, LONG)
        async with failsafe():
            while (await service.metrics())["chatrpc_sequences_waiting"] < 64:
                await asyncio.sleep(0.02)
        error = await rpc_error(client.create())
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")
        for _ in range(3):
            await anext(aiter(stream))


async def flood(connection: RawHttp2, number: int, message: bytes | None) -> None:
    for _ in range(number // 100):
        calls = [connection.call(STREAM, message) for _ in range(100)]
        await connection.send_frames(frame for call in calls for frame in call)


async def test_calls_cancelled_at_once_do_not_delay_others(service: Service) -> None:
    async def attacked() -> None:
        async with RawHttp2(service.port) as connection:
            await connection.open()
            for _ in range(30):
                calls = [connection.reset_call(STREAM, LONG) for _ in range(100)]
                await connection.send_frames(frame for call in calls for frame in call)

    await serves_others(service, attacked())


@pytest.mark.parametrize("size", [17_000, 100_000, 5_000_000])
async def test_too_large_metadata_is_rejected(service: Service, size: int) -> None:
    async with Client(service.target) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.create(metadata=(("x-large", "x" * size),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_too_large_message_is_rejected(
    service: Service, compression: grpc.Compression | None
) -> None:
    """A message that is small only while compressed is rejected too."""
    async with Client(service.target, ("grpc.max_send_message_length", -1)) as client:
        call = client.channel.unary_unary("/chatrpc.v1.ModelService/Tokenize")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\0" * (100 << 20), compression=compression)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert service.rss_bytes < 400 << 20
