"""A `ChatBackend` without an engine, a tokenizer and token ids, like one for a remote server."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from service.domain.backend import (
    BackendLoad,
    CallContext,
    DecodedLogprob,
    GenerationRequest,
    ModelSpec,
    Prompt,
    TextDelta,
)
from service.domain.engine import Caller, FinishReason
from service.domain.sampling import SamplingParams


class RemoteBackend:
    """A backend whose completion is always "Hi!", in two deltas for each choice.

    Args:
        fields: Fields of its `ModelSpec` that differ from those of a plain remote model.
    """

    tokenizer = None

    def __init__(self, **fields: Any) -> None:
        self.spec = replace(ModelSpec(1000, 8, SamplingParams()), **fields)

    def load(self) -> BackendLoad:
        return BackendLoad(0, 1)

    @contextmanager
    def reserve(
        self,
        caller: Caller,  # there is no capacity to reserve
        num_sequences: int,
    ) -> Iterator[None]:
        yield

    async def prepare(
        self,
        request: GenerationRequest,
        call: CallContext,
    ) -> "RemoteGeneration":
        return RemoteGeneration(request)


class RemoteGeneration:
    def __init__(self, request: GenerationRequest) -> None:
        self._request = request

    @property
    def prompts(self) -> Sequence[Prompt]:
        return [Prompt()]

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        yield TextDelta()
        for index in range(self._request.n):
            logprobs: tuple[DecodedLogprob, ...] = ()
            if self._request.num_logprobs is not None:
                logprobs = (DecodedLogprob(b"Hi", -0.5),)
            yield TextDelta("Hi", 1, index=index, logprobs=logprobs)
            yield TextDelta("!", 1, FinishReason.STOP, index=index)
