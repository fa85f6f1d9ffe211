"""Limits of the message reader, for each caller and for all callers together."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chatrpc.v1 import model_service_pb2
from service.domain.engine import Caller
from service.domain.timeouts import ClientTimeouts
from service.errors import InvalidField, PreparationFull
from service.rpc.calls.caller import acting_for, received_bytes
from service.rpc.calls.message_reader import MessageReader
from service.rpc.calls.rpcs import BY_PATH
from service.rpc.calls.work_pools import WorkPools

TOKENIZE = BY_PATH["/chatrpc.v1.ModelService/Tokenize"]


class Context:
    """A call whose message arrives when the test sets `arrived`."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self.arrived = asyncio.Event()
        self.is_read = False

    async def read(self) -> bytes:
        self.is_read = True
        await self.arrived.wait()
        return self._message


@pytest.fixture
def pools() -> Iterator[WorkPools]:
    pools = WorkPools()
    yield pools
    pools.close()


def request(num_bytes: int) -> Any:
    data = model_service_pb2.TokenizeRequest(text="x" * (num_bytes - 4)).SerializeToString()
    context = Context(data)
    context.arrived.set()
    return context


async def test_bytes_of_open_messages_are_bounded_and_released_at_the_end(
    pools: WorkPools,
) -> None:
    reader = MessageReader(pools, ClientTimeouts(), max_bytes=1000)
    async with reader.message(TOKENIZE, request(700)) as message:
        assert message.text
        assert received_bytes() > 690
        with pytest.raises(PreparationFull):
            async with reader.message(TOKENIZE, request(700)):
                pass
    async with reader.message(TOKENIZE, request(700)):
        pass


async def test_caller_with_many_messages_leaves_capacity_for_another(pools: WorkPools) -> None:
    reader = MessageReader(pools, ClientTimeouts(), max_bytes=1000)
    async with AsyncExitStack() as open_messages:
        with acting_for(Caller("a")), pytest.raises(PreparationFull):
            for _ in range(9):
                await open_messages.enter_async_context(reader.message(TOKENIZE, request(150)))
        with acting_for(Caller("b")):
            async with reader.message(TOKENIZE, request(150)):
                pass


async def test_large_message_is_parsed_on_a_thread(pools: WorkPools) -> None:
    reader = MessageReader(pools, ClientTimeouts())
    async with reader.message(TOKENIZE, request(500_000)) as message:
        assert len(message.text) == 500_000 - 4


async def test_message_that_cannot_be_parsed_is_rejected(pools: WorkPools) -> None:
    reader = MessageReader(pools, ClientTimeouts())
    context: Any = Context(b"\xff\xff")
    context.arrived.set()
    with pytest.raises(InvalidField):
        async with reader.message(TOKENIZE, context):
            pass


async def test_messages_of_one_caller_are_read_at_most_16_at_once(pools: WorkPools) -> None:
    reader = MessageReader(pools, ClientTimeouts())
    contexts: list[Any] = [Context(b"") for _ in range(40)]

    async def call(context: Any, name: str) -> None:
        with acting_for(Caller(name)):
            async with reader.message(TOKENIZE, context):
                pass

    calls = [asyncio.ensure_future(call(context, "a")) for context in contexts]
    other: Any = Context(b"")
    calls.append(asyncio.ensure_future(call(other, "b")))
    await asyncio.sleep(0)
    assert sum(context.is_read for context in contexts) == 16
    assert other.is_read
    for context in [*contexts, other]:
        context.arrived.set()
    await asyncio.gather(*calls)
