"""Calls of one key while another key floods the service with work."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, chat_service_pb2, model_service_pb2
from service.generation.local_backend import locally_served
from tests.fakes.tokenizer import ByteTokenizer
from tests.fakes.wait import until
from tests.support.api_keys import OTHER, SECRET, key, write
from tests.support.grpc_server import Running, params, served
from tests.support.rpc_errors import rpc_error

FLOODER: Any = (("x-api-key", SECRET),)
HONEST: Any = (("x-api-key", OTHER),)


class SlowTokenizer(ByteTokenizer):
    """A tokenizer that waits for `gate` before it encodes a text that begins with "slow"."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.num_slow = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if text.startswith("slow"):
            self.num_slow += 1
            assert self.gate.wait(60)
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture
def tokenizer() -> Iterator[SlowTokenizer]:
    tokenizer = SlowTokenizer()
    yield tokenizer
    tokenizer.gate.set()


@pytest.fixture
async def shared(tmp_path: Path, tokenizer: SlowTokenizer) -> AsyncIterator[Running]:
    """Run a service with two keys."""
    keys = write(tmp_path / "keys.toml", key() + key(OTHER, name="two"))
    async with served(keys) as running:
        model = replace(running.model, tokenizer=tokenizer)
        await running.lifecycle.serve(locally_served(model))
        yield running


def chat() -> chat_service_pb2.CreateChatCompletionRequest:
    return chat_service_pb2.CreateChatCompletionRequest(params=params())


def flood(running: Running, num_calls: int, *, length: int = 1) -> list["asyncio.Task[Any]"]:
    """Begin calls that each occupy a tokenizer thread until the gate opens."""
    request = model_service_pb2.TokenizeRequest(model="fake", text="slow".ljust(length))
    calls = [running.models.Tokenize(request, metadata=FLOODER) for _ in range(num_calls)]
    return [asyncio.ensure_future(_ended(call)) for call in calls]


async def _ended(call: Any) -> Any:
    return await call


@pytest.mark.parametrize("length", [4, 4000], ids=["small", "large"])
async def test_tokenize_calls_of_one_key_do_not_delay_the_chat_of_another(
    shared: Running, tokenizer: SlowTokenizer, length: int
) -> None:
    calls = flood(shared, 60, length=length)
    await until(lambda: tokenizer.num_slow == 1)
    for _ in range(3):
        response = await shared.chat.CreateChatCompletion(chat(), metadata=HONEST)
        assert response.completion.choices
    assert tokenizer.num_slow == 1  # the others are queued
    tokenizer.gate.set()
    assert all(response.token_ids for response in await asyncio.gather(*calls))


async def test_text_of_a_cancelled_call_is_not_tokenized(
    shared: Running, tokenizer: SlowTokenizer
) -> None:
    calls = flood(shared, 40)
    await until(lambda: tokenizer.num_slow == 1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    # Once the calls have ended at the service, only the one that had begun still runs.
    await until(lambda: shared.server.num_jobs == 0)
    tokenizer.gate.set()
    await shared.models.Tokenize(
        model_service_pb2.TokenizeRequest(model="fake", text="x"), metadata=FLOODER
    )
    assert tokenizer.num_slow == 1


async def test_engine_request_has_the_caller_of_its_key(shared: Running) -> None:
    await shared.chat.CreateChatCompletion(chat(), metadata=HONEST)
    assert shared.engine.requests[-1].caller.name == "two"


async def test_request_beyond_the_capacity_is_rejected_without_a_retry_delay(
    shared: Running,
) -> None:
    shared.engine.max_request_sequences = 4
    request = chat()
    request.params.sampling.n = 5
    rejected = await rpc_error(shared.chat.CreateChatCompletion(request, metadata=HONEST))
    assert (rejected.reason, rejected.fields) == ("INVALID_FIELD", ["sampling.n"])
    assert rejected.retry_after_s is None


def of_many_elements() -> chat_service_pb2.CreateChatCompletionRequest:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="")] * 2_000_000
    )
    return chat_service_pb2.CreateChatCompletionRequest(params=params(messages=[message]))


async def test_compressed_message_of_many_elements_is_rejected_before_parsing(
    running: Running,
) -> None:
    running.engine.answer("ok")
    rejected = await rpc_error(
        running.chat.CreateChatCompletion(of_many_elements(), compression=grpc.Compression.Gzip)
    )
    assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT
    assert rejected.fields == ["messages.content"]
    assert (await running.chat.CreateChatCompletion(chat())).completion.choices


async def test_message_above_the_limit_is_rejected(running: Running) -> None:
    request = chat_service_pb2.CreateChatCompletionRequest(params=params("x" * (8 << 20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.chat.CreateChatCompletion(request, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
