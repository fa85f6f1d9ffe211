"""An engine whose outputs are a script."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from service.domain.engine import (
    Caller,
    EngineCapabilities,
    EngineStats,
    EngineTimings,
    FinishReason,
    Request,
    TokenLogprobs,
    TokenOutput,
)
from service.domain.engine_settings import EngineModel, EngineSettings
from service.errors import ChatrpcError


class FakeEngine:
    """An `Engine` whose outputs are `script`.

    If the outputs of the script have indices, each belongs to the sequence of its index. Otherwise
    each sequence gets all of them. A step of the script is an output, an error to raise or an event
    to wait for. Requested log probabilities that the script lacks are those of `logprobs_of`.

    Attributes:
        requests: All requests so far.
        num_running: The number of requests in progress.
        reserved: The reservations in use: the caller and the number of sequences of each.
        reserve_error: If it is set, `reserve` raises it.
        generate_error: If it is set, `generate` raises it.
        capabilities: See `service.domain.engine.Engine`.
    """

    max_model_len = 1000
    max_request_sequences = 300

    def __init__(self) -> None:
        self.script: list[TokenOutput | Exception | asyncio.Event] = []
        self.capabilities = EngineCapabilities("fake")
        self.generate_error: ChatrpcError | None = None
        self.requests: list[Request] = []
        self.num_running = 0
        self.reserve_error: ChatrpcError | None = None
        self.reserved: list[tuple[Caller, int]] = []
        self.num_reservations = 0
        self.num_waited = 0  # the number of reached events of scripts

    def answer(self, text: str, *, finish_reason: FinishReason = FinishReason.LENGTH) -> None:
        """Set the script: the bytes of `text`, one token a step."""
        *head, last = text.encode()
        self.script = [TokenOutput((byte,)) for byte in head]
        self.script.append(TokenOutput((last,), finish_reason))

    @contextmanager
    def reserve(self, caller: Caller, num_sequences: int) -> Iterator[None]:
        self.num_reservations += 1
        if self.reserve_error is not None:
            raise self.reserve_error
        reservation = caller, num_sequences
        self.reserved.append(reservation)
        try:
            yield
        finally:
            self.reserved.remove(reservation)

    async def start(self, model: EngineModel) -> None: ...

    async def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        if self.generate_error is not None:
            raise self.generate_error
        self.requests.append(request)
        timings = EngineTimings(queued_s=time.monotonic())
        script = self.script  # later changes affect later requests only
        outputs = [step for step in script if isinstance(step, TokenOutput)]
        has_indices = any(output.index for output in outputs)
        ended: set[int | None] = set()
        with self._running():
            yield TokenOutput(timings=timings)
            timings = replace(timings, scheduled_s=time.monotonic())
            yield TokenOutput(timings=timings)
            for step in script:
                if isinstance(step, asyncio.Event):
                    self.num_waited += 1
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    now_s = time.monotonic()
                    timings = replace(
                        timings, first_token_s=timings.first_token_s or now_s, last_token_s=now_s
                    )
                    for index in [step.index] if has_indices else range(request.n):
                        if index not in ended:
                            num_tokens = timings.num_tokens + len(step.token_ids)
                            timings = replace(timings, num_tokens=num_tokens)
                            output = _output(step, index, request, is_first=step is outputs[0])
                            ended.add((yield replace(output, timings=timings)))

    def stats(self) -> EngineStats:
        return EngineStats(num_running=self.num_running)

    async def wait_dead(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> bool:
        return True

    @contextmanager
    def _running(self):  # type: ignore[no-untyped-def]  # yields nothing
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1


def scripted_engine(_settings: EngineSettings) -> FakeEngine:
    """Return an engine that generates two tokens for each sequence; see `EngineFactory`."""
    engine = FakeEngine()
    engine.script = [TokenOutput((72,)), TokenOutput((73,), FinishReason.LENGTH)]
    return engine


def _output(step: TokenOutput, index: int, request: Request, *, is_first: bool) -> TokenOutput:
    """Return a step of the script for one sequence, with the requested log probabilities."""
    output = replace(step, index=index)
    if request.num_logprobs is not None and not step.logprobs:
        output = replace(output, logprobs=logprobs_of(step.token_ids, request.num_logprobs))
    needs_prompt = request.num_prompt_logprobs is not None and not step.prompt_logprobs
    if is_first and index == 0 and needs_prompt:
        prompt = logprobs_of(request.prompt_token_ids[1:], request.num_prompt_logprobs or 0)
        output = replace(output, prompt_logprobs=prompt)
    return output


def logprobs_of(token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprobs, ...]:
    """Return made-up log probabilities: -0.5 for each token, and 1 less for each id after it."""
    return tuple(
        TokenLogprobs(t, -0.5, tuple((t + i, -0.5 - i) for i in range(num_top))) for t in token_ids
    )
