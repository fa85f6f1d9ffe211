"""A small engine that computes each token by the definitions of the options."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from chatrpc_process.fairness.queue import FairQueue
from service.domain.engine import (
    Caller,
    EngineCapabilities,
    EngineStats,
    EngineTimings,
    FinishReason,
    Request,
    TokenOutput,
)
from service.domain.engine_settings import EngineModel, EngineSettings
from service.engine.admission import Admission
from service.engine.output_slot import OutputSlot
from service.errors import (
    ChatrpcError,
    ContextLengthExceeded,
    DeadlinePassed,
    EngineDead,
    ModelLoadError,
    StepFailed,
    first_line,
)
from tests.support.option_definitions import (
    allowed_tokens,
    logprobs_of,
    probabilities,
    processed_logit,
)

_NUM_KV_BLOCKS = 10_000
_MAX_OVERTAKES = 1000


class SmallModel(Protocol):
    """The model of a `SmallEngine`."""

    max_model_len: int
    vocab_size: int

    def logits(self, token_ids: Sequence[int]) -> list[list[float]]:
        """Return the logits after each token, [len(token_ids), vocab_size]."""
        ...


@dataclass(eq=False)
class _Sequence:
    """An unfinished sequence of a request."""

    generation: "_Generation"
    index: int
    arrival: int
    output: list[int] = field(default_factory=list)

    @property
    def request(self) -> Request:
        return self.generation.request

    @property
    def rank(self) -> tuple[int, int]:
        return self.request.priority, self.arrival


@dataclass(eq=False)
class _Generation:
    """A request in the engine."""

    request: Request
    timings: EngineTimings
    slot: OutputSlot = field(default_factory=OutputSlot)
    num_cached_tokens: int | None = None


class SmallEngine:
    """`service.domain.engine.Engine` that computes the running sequences one after another.

    The prefix cache stores no keys and values, only which blocks of tokens are in it.

    Args:
        load: Returns the model of a directory. Any of its exceptions is a `ModelLoadError`.

    Attributes:
        step_error: If it is set, the next step raises it: a StepFailed fails the requests of the
            step, and any other exception the engine.
    """

    capabilities = EngineCapabilities("small", is_batch_invariant=True)

    def __init__(self, settings: EngineSettings, load: Callable[[Path], SmallModel]) -> None:
        self._settings = settings
        self._load = load
        self._model: SmallModel
        self._admission = Admission(settings.max_num_seqs, settings.max_queue_size)
        self._arrivals = itertools.count()
        self._waiting: FairQueue[_Sequence] = FairQueue(_MAX_OVERTAKES)
        self._running: list[_Sequence] = []
        self._generations: set[_Generation] = set()
        self._cached: set[tuple[str, str, tuple[int, ...]]] = set()
        self._counts = EngineStats(max_num_seqs=settings.max_num_seqs)
        self._has_work = asyncio.Event()
        self._steps: asyncio.Task[None] | None = None
        self._is_closed = False
        self._dead = asyncio.Event()
        self.max_model_len = 0
        self.step_error: Exception | None = None

    async def start(self, model: EngineModel) -> None:
        try:
            self._model = await asyncio.to_thread(self._load, model.path)
        except Exception as error:
            raise ModelLoadError(f"The model cannot be loaded: {first_line(error)}") from error
        self.max_model_len = min(
            self._settings.max_model_len or self._model.max_model_len, self._model.max_model_len
        )
        self._steps = asyncio.create_task(self._run())

    @property
    def max_request_sequences(self) -> int:
        return self._admission.capacity

    @contextmanager
    def reserve(self, caller: Caller, num_sequences: int) -> Iterator[None]:
        if self._is_closed:
            raise EngineDead
        self._admission.enter(caller, num_sequences, time.monotonic())
        try:
            yield
        finally:
            self._admission.leave(caller, num_sequences)

    async def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        reservation = nullcontext() if is_reserved else self.reserve(request.caller, request.n)
        with reservation, self._added(request) as generation:
            yield TokenOutput(timings=generation.timings)
            unfinished = set(range(request.n))
            while unfinished:
                output = await generation.slot.take()
                if output.index not in unfinished:
                    continue
                if output.finish_reason is not None:
                    unfinished.remove(output.index)
                index_to_end = yield output
                if index_to_end in unfinished:
                    unfinished.remove(index_to_end)
                    self._end(s for s in self._sequences(generation) if s.index == index_to_end)

    def stats(self) -> EngineStats:
        size = self._settings.block_size
        lengths = (len(s.request.prompt_token_ids) + len(s.output) for s in self._running)
        return replace(
            self._counts,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_kv_blocks=_NUM_KV_BLOCKS,
            kv_block_size=size,
            num_free_kv_blocks=_NUM_KV_BLOCKS - sum(-(-length // size) for length in lengths),
        )

    async def wait_dead(self) -> None:
        await self._dead.wait()

    async def stop(self) -> bool:
        self._close()
        if self._steps is not None:
            self._steps.cancel()
        return not self._dead.is_set()

    @contextmanager
    def _added(self, request: Request) -> Iterator[_Generation]:
        """Add a request to the queue; end its sequences at the end of the context."""
        if self._is_closed:
            raise EngineDead
        num_tokens, now_s = len(request.prompt_token_ids), time.monotonic()
        if num_tokens >= self.max_model_len:
            raise ContextLengthExceeded(num_tokens, self.max_model_len)
        self._admission.check_deadline(request.caller, request.n, request.deadline, now_s)
        generation = _Generation(request, EngineTimings(now_s))
        self._generations.add(generation)
        for index in range(request.n):
            sequence = _Sequence(generation, index, next(self._arrivals))
            self._waiting.push(request.caller.name, request.caller.weight, sequence)
        self._has_work.set()
        try:
            yield generation
        finally:
            self._end(self._sequences(generation))
            self._generations.discard(generation)
            self._admission.note_end(request.n, time.monotonic())

    def _sequences(self, generation: _Generation) -> list[_Sequence]:
        return [s for s in (*self._running, *self._waiting) if s.generation is generation]

    def _end(self, sequences: Iterable[_Sequence]) -> None:
        for sequence in list(sequences):
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            else:
                self._running.remove(sequence)

    def _fail(self, generations: Iterable[_Generation], error: ChatrpcError) -> None:
        for generation in set(generations):
            self._end(self._sequences(generation))
            generation.slot.put(error)

    def _close(self) -> None:
        self._is_closed = True
        self._fail(self._generations, EngineDead())

    async def _run(self) -> None:
        try:
            while True:
                if not (self._running or len(self._waiting)):
                    self._has_work.clear()
                await self._has_work.wait()
                await self._step()
        except Exception:
            self._close()
            self._dead.set()

    async def _step(self) -> None:
        """Compute the next token of each running sequence."""
        now_s = time.monotonic()
        late = [
            s.generation
            for s in self._waiting
            if s.request.deadline is not None and s.request.deadline <= now_s
        ]
        self._fail(late, DeadlinePassed("The deadline passed while the request was waiting."))
        while len(self._waiting) and len(self._running) < self._settings.max_num_seqs:
            self._begin(self._waiting.pop())
        self._counts = replace(self._counts, num_steps=self._counts.num_steps + 1)
        error, self.step_error = self.step_error, None
        if isinstance(error, StepFailed):
            num_failed = self._counts.num_failed_steps + 1
            self._counts = replace(self._counts, num_failed_steps=num_failed)
            self._fail([s.generation for s in self._running], error)
        elif error is not None:
            raise error
        await asyncio.sleep(0)
        for sequence in list(self._running):
            context = (*sequence.request.prompt_token_ids, *sequence.output)
            logits = await asyncio.to_thread(self._model.logits, context)
            if sequence in self._running:  # it has not been ended meanwhile
                self._append(sequence, logits)

    def _begin(self, sequence: _Sequence) -> None:
        generation = sequence.generation
        if generation.num_cached_tokens is None:
            generation.num_cached_tokens = self._look_up(generation.request)
            timings = replace(generation.timings, scheduled_s=time.monotonic())
            generation.timings = timings
            generation.slot.put(TokenOutput(timings=timings))
        self._running.append(sequence)

    def _look_up(self, request: Request) -> int:
        """Return the number of cached tokens of the prompt, and add the prompt to the cache."""
        if request.num_prompt_logprobs is not None or not self._settings.prefix_caching:
            return 0
        prompt, size = request.prompt_token_ids, self._settings.block_size
        blocks = [
            (request.cache_salt, request.caller.cache_namespace, prompt[:end])
            for end in range(size, len(prompt), size)  # the last token is always computed
        ]
        num_hits = size * sum(block in self._cached for block in blocks)
        self._cached.update(blocks)
        self._counts = replace(
            self._counts,
            num_prefix_cache_queries=self._counts.num_prefix_cache_queries + len(prompt),
            num_prefix_cache_hits=self._counts.num_prefix_cache_hits + num_hits,
        )
        return num_hits

    def _append(self, sequence: _Sequence, rows: list[list[float]]) -> None:
        """Sample the next token of a sequence.

        Args:
            rows: The logits after each token of the prompt and the output.
        """
        request, generation, output = sequence.request, sequence.generation, sequence.output
        token_id = self._sample(sequence, rows[-1])
        if token_id is None:
            self._running.remove(sequence)
            generation.slot.put(self._output(sequence, (), FinishReason.STOP))
            return
        output.append(token_id)
        room = self.max_model_len - len(request.prompt_token_ids)
        finish_reason = None
        if token_id in request.stop_token_ids:
            finish_reason = FinishReason.STOP
        elif len(output) >= min(request.sampling.max_tokens or room, room):
            finish_reason = FinishReason.LENGTH
        if finish_reason is not None:
            self._running.remove(sequence)
        now_s, before = time.monotonic(), generation.timings
        first_s = now_s if before.first_token_s is None else before.first_token_s
        generation.timings = replace(
            before, first_token_s=first_s, last_token_s=now_s, num_tokens=before.num_tokens + 1
        )
        new = self._output(sequence, (token_id,), finish_reason)
        if request.num_logprobs is not None:
            new = replace(new, logprobs=(logprobs_of(rows[-1], token_id, request.num_logprobs),))
        if request.num_prompt_logprobs is not None and sequence.index == 0 and len(output) == 1:
            prompt, num_top = request.prompt_token_ids, request.num_prompt_logprobs
            entries = zip(rows, prompt[1:], strict=False)
            new = replace(
                new, prompt_logprobs=tuple(logprobs_of(row, t, num_top) for row, t in entries)
            )
        generation.slot.put(new)
        generation.slot.release(now_s, 0.0)

    def _sample(self, sequence: _Sequence, row: list[float]) -> int | None:
        """Return the next token; None if none is allowed."""
        request, output = sequence.request, sequence.output
        logits = {
            token_id: processed_logit(row[token_id], token_id, request, output)
            for token_id in allowed_tokens(request, output, self._model.vocab_size)
        }
        if not logits:
            return None
        chances = probabilities(logits, request.sampling)
        seed = request.sampling.seed
        draws = random.Random(None if seed is None else f"{seed} {sequence.index} {len(output)}")
        [token_id] = draws.choices(list(chances), list(chances.values()))
        return token_id

    def _output(
        self, sequence: _Sequence, token_ids: tuple[int, ...], finish_reason: FinishReason | None
    ) -> TokenOutput:
        generation = sequence.generation
        return TokenOutput(
            token_ids,
            finish_reason,
            generation.num_cached_tokens or 0,
            sequence.index,
            timings=generation.timings,
        )


def small_engine(settings: EngineSettings) -> SmallEngine:
    """Return an engine that computes with the transformers library; see `EngineFactory`."""
    from tests.support.reference_model import ReferenceModel  # noqa: PLC0415  # it imports torch

    return SmallEngine(settings, ReferenceModel)
