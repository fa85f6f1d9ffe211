"""Calls that end early free all their resources in the engine. All parts are real."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_service_pb2, chat_service_pb2_grpc
from service.config import ServiceSettings
from service.engine.async_engine import AsyncEngine
from service.engine.local import local_engine
from service.model import ModelLoader
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.wait import until
from tests.support.service_process import request
from tests.support.tiny_model import save_model

# The tokens of a call that is ended early. Each takes a step.
NUM_TOKENS = 4000


@dataclass
class Stack:
    """A running service that runs at most two sequences at once, and the stub of a client."""

    engine: AsyncEngine
    chat: Any
    target: str

    def num_inside(self) -> int:
        stats = self.engine.stats()
        return stats.num_running + stats.num_waiting

    async def inside(self, number: int) -> None:
        """Wait until this many sequences run or wait."""
        await until(lambda: self.num_inside() == number)

    async def empty(self) -> None:
        """Wait until no sequence runs or waits and the whole cache is free.

        Fails if the engine has generated all tokens of an ended call instead of aborting it.
        """

        def is_free() -> bool:
            stats = self.engine.stats()
            return stats.num_free_kv_blocks == stats.num_kv_blocks

        await until(lambda: self.num_inside() == 0 and is_free())
        assert self.engine.stats().num_steps < NUM_TOKENS


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    model = save_model(tmp_path / "tiny", vocab_size=300)
    options = ("--model", str(model), "--dtype", "float32")
    limits = ("--max-num-seqs", "2", "--max-queue-size", "8")
    settings = ServiceSettings.load([*options, *limits, "--speculation", "none"])
    loader = ModelLoader(settings)
    engine = local_engine(settings.engine_settings)
    await engine.start(loader.load())
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=3600)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(loader.served(engine))
    target = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        yield Stack(engine, chat_service_pb2_grpc.ChatServiceStub(channel), target)
    await server.stop()
    await engine.stop()


async def test_call_cancelled_while_streaming_frees_the_engine(stack: Stack) -> None:
    call = stack.chat.StreamChatCompletion(request(num_tokens=NUM_TOKENS))
    await call.read()
    call.cancel()
    await stack.empty()


async def test_call_cancelled_before_the_first_token_frees_the_engine(stack: Stack) -> None:
    call = stack.chat.StreamChatCompletion(request(num_tokens=NUM_TOKENS))
    await stack.inside(1)
    call.cancel()
    await stack.empty()


async def test_unary_call_cancelled_while_running_frees_the_engine(stack: Stack) -> None:
    unary = chat_service_pb2.CreateChatCompletionRequest(
        params=request(num_tokens=NUM_TOKENS).params
    )
    call = stack.chat.CreateChatCompletion(unary)
    await until(lambda: stack.engine.stats().num_running == 1)
    call.cancel()
    await stack.empty()


async def test_call_cancelled_while_queued_frees_the_engine(stack: Stack) -> None:
    calls = [stack.chat.StreamChatCompletion(request(num_tokens=NUM_TOKENS)) for _ in range(6)]
    await stack.inside(6)
    for call in reversed(calls):  # waiting calls first
        call.cancel()
    await stack.empty()


async def test_passed_deadline_frees_the_engine(stack: Stack) -> None:
    call = stack.chat.StreamChatCompletion(request(num_tokens=NUM_TOKENS), timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await stack.empty()


async def test_vanished_client_frees_the_engine(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.target) as channel:
        chat: Any = chat_service_pb2_grpc.ChatServiceStub(channel)
        calls = [chat.StreamChatCompletion(request(num_tokens=NUM_TOKENS)) for _ in range(4)]
        await stack.inside(4)
        assert len(calls) == 4  # this keeps a reference to the calls until here
    await stack.empty()


async def test_other_calls_finish_after_cancellations(stack: Stack) -> None:
    leaving = [stack.chat.StreamChatCompletion(request(num_tokens=NUM_TOKENS)) for _ in range(3)]
    await stack.inside(3)
    staying = [stack.chat.StreamChatCompletion(request(num_tokens=40)) for _ in range(3)]
    await stack.inside(6)
    for call in leaving:
        call.cancel()
    for call in staying:
        *_, last = [response async for response in call]
        assert last.chunk.usage.completion_tokens == 40
    await stack.empty()
