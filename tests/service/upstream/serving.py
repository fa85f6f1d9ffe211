"""Runs the backend over fake upstreams, without a gRPC server."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from service.config import ServiceSettings
from service.domain.backend import (
    CallContext,
    Generation,
    GenerationRequest,
    ServedModel,
    TextDelta,
)
from service.domain.chat import ChatRequest, Message, PromptOptions
from service.domain.completion import CompletionRequest
from service.domain.engine import Caller
from service.domain.sampling import SamplingParams
from service.upstream.runtime import UpstreamRuntime
from tests.fakes.wait import FAILSAFE_S
from tests.fakes.workers import InlineWorkers


def call(deadline: float | None = None, **fields: Any) -> CallContext:
    """Return a call. `deadline` is in seconds of `time.monotonic()`."""
    given: dict[str, Any] = {"caller": Caller(), "priority": 0, **fields}
    deadline = time.monotonic() + FAILSAFE_S if deadline is None else deadline
    return CallContext(deadline=deadline, workers=InlineWorkers(), **given)


def chat(text: str = "hi", **fields: Any) -> ChatRequest:
    given: dict[str, Any] = {
        "messages": (Message("user", text),),
        "sampling": SamplingParams(),
        "prompt": PromptOptions(),
        **fields,
    }
    return ChatRequest("m", **given)


def completion(*prompts: str | tuple[int, ...], **fields: Any) -> CompletionRequest:
    given: dict[str, Any] = {
        "sampling": SamplingParams(),
        "n": 1,
        "is_echoed": False,
        "num_logprobs": None,
        "num_prompt_logprobs": None,
        "returns_token_ids": False,
        "adds_special_tokens": True,
        "truncate_prompt_tokens": None,
        "cache_salt": "",
        "response_format": None,
        **fields,
    }
    return CompletionRequest(prompts or ("Say",), **given)


def sampling(**given: Any) -> SamplingParams:
    """Return the sampling parameters of a request that sets `given`."""
    return SamplingParams(**given, given=frozenset(given))


@dataclass(frozen=True)
class Serving:
    """A loaded runtime and its model."""

    runtime: UpstreamRuntime
    model: ServedModel

    async def prepare(self, request: GenerationRequest, context: CallContext) -> Generation:
        """Prepare a request without running it."""
        assert self.model.chat is not None
        return await self.model.chat.prepare(request, context)

    async def deltas(
        self, request: GenerationRequest | None = None, context: CallContext | None = None
    ) -> list[TextDelta]:
        """Return the deltas of a request, without the first, which is empty."""
        generation = await self.prepare(request or chat(), context or call())
        async with aclosing(generation.deltas()) as deltas:
            first, *rest = [delta async for delta in deltas]
        assert first == TextDelta()
        return rest

    async def text(self, request: GenerationRequest | None = None) -> str:
        return joined(await self.deltas(request))


def joined(deltas: Sequence[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def settings(*urls: str, **options: Any) -> ServiceSettings:
    return ServiceSettings(engine="openai", upstream_url=list(urls), **options)


@asynccontextmanager
async def serving(
    *urls: str, probe_interval_s: float = 1000.0, **options: Any
) -> AsyncIterator[Serving]:
    """Load the model of the upstreams at `urls`."""
    runtime = UpstreamRuntime(settings(*urls, **options), probe_interval_s)
    try:
        yield Serving(runtime, await runtime.load())
    finally:
        assert await runtime.stop()
