"""The local backend over a scripted engine."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from service.domain.backend import CallContext, GenerationRequest, TextDelta
from service.domain.chat import ChatRequest, Message, PromptOptions
from service.domain.completion import CompletionRequest
from service.domain.engine import Caller, FinishReason, TokenOutput
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import MAX_LOGPROBS_ON_LOOP, LocalBackend
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.grpc_server import CARD

Result = TypeVar("Result")

CHAT = ChatRequest("fake", (Message("user", "hi"),), SamplingParams(), PromptOptions())
COMPLETION = CompletionRequest(
    prompts=("ab",),
    sampling=SamplingParams(),
    n=1,
    is_echoed=False,
    num_logprobs=None,
    num_prompt_logprobs=None,
    returns_token_ids=False,
    adds_special_tokens=False,
    truncate_prompt_tokens=None,
    cache_salt="",
    response_format=None,
)
MANY = MAX_LOGPROBS_ON_LOOP + 1


class ThreadWorkers:
    """Workers that run each job on a thread."""

    async def text(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.to_thread(function, *arguments)

    async def grammar(
        self,
        length: int,
        function: Callable[..., Result],
        *arguments: Any,
    ) -> Result:
        return await asyncio.to_thread(function, *arguments)


class WatchedTokenizer(ByteTokenizer):
    """A tokenizer that counts the `token_bytes()` calls on the event loop's thread."""

    def __init__(self) -> None:
        super().__init__()
        self.num_on_loop = 0
        self._loop_thread = threading.current_thread()

    def token_bytes(self, token_id: int) -> bytes:
        self.num_on_loop += threading.current_thread() is self._loop_thread
        return super().token_bytes(token_id)


async def deltas(
    request: GenerationRequest, script: list[TokenOutput], tokenizer: ByteTokenizer | None = None
) -> list[TextDelta]:
    """Return the deltas of a request that have tokens or a finish reason."""
    engine = FakeEngine()
    engine.script = list(script)
    model = LocalModel(
        CARD, tokenizer or ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257
    )
    call = CallContext(Caller(), time.monotonic() + 60, 0, ThreadWorkers())
    generation = await LocalBackend(model).prepare(request, call)
    async with aclosing(generation.deltas()) as found:
        assert await anext(found) == TextDelta()
        return [delta async for delta in found if delta.num_tokens or delta.finish_reason]


@pytest.mark.parametrize(
    "request_",
    [replace(CHAT, num_logprobs=0), replace(COMPLETION, num_logprobs=0)],
    ids=["chat", "completion"],
)
async def test_output_with_many_logprobs_is_converted_off_the_event_loop(
    request_: GenerationRequest,
) -> None:
    tokenizer = WatchedTokenizer()
    script = [TokenOutput((97,) * MANY, FinishReason.LENGTH)]
    [delta] = await deltas(request_, script, tokenizer)
    assert len(delta.logprobs) == MANY
    assert tokenizer.num_on_loop == 0


@pytest.mark.parametrize(
    "request_",
    [
        replace(CHAT, num_prompt_logprobs=19, messages=(Message("user", "x" * 100),)),
        replace(COMPLETION, num_prompt_logprobs=19, prompts=("x" * 100,)),
    ],
    ids=["chat", "completion"],
)
async def test_logprobs_of_a_long_prompt_are_converted_off_the_event_loop(
    request_: GenerationRequest,
) -> None:
    tokenizer = WatchedTokenizer()
    [delta] = await deltas(request_, [TokenOutput((97,), FinishReason.LENGTH)], tokenizer)
    assert len(delta.prompt_logprobs) >= 100
    assert tokenizer.num_on_loop <= 1  # one call, for the first token of the prompt


async def test_first_token_of_a_prompt_has_no_logprob() -> None:
    request = replace(COMPLETION, num_prompt_logprobs=0)
    [delta] = await deltas(request, [TokenOutput((97,), FinishReason.LENGTH)])
    assert [(each.token, each.logprob) for each in delta.prompt_logprobs] == [
        (b"a", None),
        (b"b", -0.5),
    ]


async def test_deltas_name_their_prompt() -> None:
    request = replace(COMPLETION, prompts=("a", "b"))
    found = await deltas(request, [TokenOutput((97,), FinishReason.LENGTH)])
    assert sorted(delta.prompt_index for delta in found) == [0, 1]


async def test_scored_prompt_generates_nothing() -> None:
    request = replace(COMPLETION, sampling=SamplingParams(max_tokens=0))
    [delta] = await deltas(request, [TokenOutput((97,), FinishReason.LENGTH)])
    assert (delta.text, delta.num_tokens) == ("", 0)
    assert delta.finish_reason is FinishReason.LENGTH
