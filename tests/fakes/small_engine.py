"""A small engine that computes each token by the definitions of the options."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
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
from service.errors import (
    ChatrpcError,
    DeadlinePassed,
    ModelLoadError,
    StepFailed,
    first_line,
)
from service.streams.request_streams import RequestStreams
from tests.support.option_definitions import (
    allowed_tokens,
    logprobs_of,
    probabilities,
    processed_logit,
)

# Bytes of a token in a KV cache of this size. The engine has no cache, but counts its blocks.
_BYTES_PER_TOKEN = 512
_DEFAULT_CACHE_BYTES = 2**26
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

    work: "_Work"
    index: int
    arrival: int
    output: list[int] = field(default_factory=list)

    @property
    def request(self) -> Request:
        return self.work.request

    @property
    def rank(self) -> tuple[int, int]:
        return self.request.priority, self.arrival


@dataclass(eq=False)
class _Work:
    """A request in the engine."""

    request_id: int
    request: Request
    timings: EngineTimings
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
        self._streams = RequestStreams(self, settings.max_queue_size)
        self._arrivals = itertools.count()
        self._waiting: FairQueue[_Sequence] = FairQueue(_MAX_OVERTAKES)
        self._running: list[_Sequence] = []
        self._block_size = settings.block_size or 16
        self._cached: set[tuple[str, str, tuple[int, ...]]] = set()
        num_tokens = (settings.kv_cache_memory_bytes or _DEFAULT_CACHE_BYTES) // _BYTES_PER_TOKEN
        self._counts = EngineStats(
            max_num_seqs=settings.max_num_seqs or 8,
            num_kv_blocks=num_tokens // self._block_size,
            kv_block_size=self._block_size,
        )
        self._has_work = asyncio.Event()
        self._steps: asyncio.Task[None] | None = None
        self._dead = asyncio.Event()
        self.step_error: Exception | None = None

    async def start(self, model: EngineModel) -> None:
        try:
            self._model = await asyncio.to_thread(self._load, model.path)
        except Exception as error:
            raise ModelLoadError(f"The model cannot be loaded: {first_line(error)}") from error
        most = self._model.max_model_len
        max_model_len = min(self._settings.max_model_len or most, most)
        self._streams.open(self._counts.max_num_seqs, max_model_len)
        self._steps = asyncio.create_task(self._run())

    @property
    def max_model_len(self) -> int:
        return self._streams.max_model_len

    @property
    def max_request_sequences(self) -> int:
        return self._streams.max_request_sequences

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        return self._streams.reserve(caller, num_sequences)

    def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        return self._streams.generate(request, is_reserved=is_reserved)

    def stats(self) -> EngineStats:
        return replace(
            self._counts,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_free_kv_blocks=max(0, self._num_free_blocks),
        )

    async def wait_dead(self) -> None:
        await self._dead.wait()

    async def stop(self) -> bool:
        self._streams.close()
        if self._steps is not None:
            self._steps.cancel()
        return not self._dead.is_set()

    def add(self, request_id: int, request: Request, queued_s: float) -> None:
        """See `service.streams.request_streams.EngineWork`."""
        work = _Work(request_id, request, EngineTimings(queued_s))
        for index in range(request.n):
            self._enqueue(_Sequence(work, index, next(self._arrivals)))
        self._has_work.set()

    def finish(self, request_id: int, index: int) -> None:
        """See `service.streams.request_streams.EngineWork`."""
        self._end(lambda s: s.work.request_id == request_id and s.index == index)

    def abort(self, request_id: int) -> None:
        """See `service.streams.request_streams.EngineWork`."""
        self._end(lambda s: s.work.request_id == request_id)

    def _end(self, is_ended: Callable[[_Sequence], bool]) -> None:
        for sequence in filter(is_ended, list(self._waiting)):
            self._waiting.remove(sequence)
        self._running = [s for s in self._running if not is_ended(s)]

    def _fail(self, request_ids: Iterable[int], error: ChatrpcError) -> None:
        for request_id in set(request_ids):
            self.abort(request_id)
            self._streams.put(request_id, error)

    async def _run(self) -> None:
        try:
            while True:
                if not (self._running or len(self._waiting)):
                    self._has_work.clear()
                await self._has_work.wait()
                await self._step()
        except Exception:
            self._streams.close()
            self._dead.set()

    async def _step(self) -> None:
        """Compute the next token of each running sequence."""
        now_s = time.monotonic()
        late = [
            s.work.request_id
            for s in self._waiting
            if s.request.deadline is not None and s.request.deadline <= now_s
        ]
        self._fail(late, DeadlinePassed("The deadline passed while the request was waiting."))
        while self._num_free_blocks < 0:
            self._preempt()
        while (first := self._waiting.first()) is not None and self._has_room(first):
            self._begin(self._waiting.pop())
        self._counts = replace(self._counts, num_steps=self._counts.num_steps + 1)
        error, self.step_error = self.step_error, None
        if isinstance(error, StepFailed):
            num_failed = self._counts.num_failed_steps + 1
            self._counts = replace(self._counts, num_failed_steps=num_failed)
            self._fail([s.work.request_id for s in self._running], error)
        elif error is not None:
            raise error
        await asyncio.sleep(0)
        for sequence in list(self._running):
            context = (*sequence.request.prompt_token_ids, *sequence.output)
            logits = await asyncio.to_thread(self._model.logits, context)
            if sequence in self._running:  # it has not been ended meanwhile
                self._append(sequence, logits)
        self._streams.release(0)

    @property
    def _num_free_blocks(self) -> int:
        return self._counts.num_kv_blocks - sum(map(self._num_blocks, self._running))

    def _num_blocks(self, sequence: _Sequence) -> int:
        """Return the number of blocks of a sequence with its next token."""
        num_tokens = len(sequence.request.prompt_token_ids) + len(sequence.output) + 1
        return -(-num_tokens // self._block_size)

    def _has_room(self, sequence: _Sequence) -> bool:
        """Return True if the sequence may run, and each running one may get another block."""
        num_needed = self._num_blocks(sequence) + len(self._running)
        has_slot = len(self._running) < self._counts.max_num_seqs
        return has_slot and num_needed <= self._num_free_blocks

    def _preempt(self) -> None:
        """Return the least urgent sequence to the queue. It keeps its output."""
        sequence = max(self._running, key=lambda s: s.rank)
        self._running.remove(sequence)
        self._enqueue(sequence)
        self._counts = replace(self._counts, num_preemptions=self._counts.num_preemptions + 1)

    def _enqueue(self, sequence: _Sequence) -> None:
        caller = sequence.request.caller
        self._waiting.push(caller.name, caller.weight, sequence)

    def _begin(self, sequence: _Sequence) -> None:
        work = sequence.work
        if work.num_cached_tokens is None:
            work.num_cached_tokens = self._look_up(work.request)
            timings = replace(work.timings, scheduled_s=time.monotonic())
            work.timings = timings
            self._streams.put(work.request_id, TokenOutput(timings=timings))
        self._running.append(sequence)

    def _look_up(self, request: Request) -> int:
        """Return the number of cached tokens of the prompt, and add the prompt to the cache."""
        if request.num_prompt_logprobs is not None or not self._settings.prefix_caching:
            return 0
        prompt, size = request.prompt_token_ids, self._block_size
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
        request, work, output = sequence.request, sequence.work, sequence.output
        token_id = self._sample(sequence, rows[-1])
        if token_id is None:
            self._running.remove(sequence)
            self._streams.put(work.request_id, self._output(sequence, (), FinishReason.STOP))
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
        now_s, before = time.monotonic(), work.timings
        first_s = now_s if before.first_token_s is None else before.first_token_s
        work.timings = replace(
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
        self._streams.put(work.request_id, new)

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
        work = sequence.work
        return TokenOutput(
            token_ids,
            finish_reason,
            work.num_cached_tokens or 0,
            sequence.index,
            timings=work.timings,
        )


def small_engine(settings: EngineSettings) -> SmallEngine:
    """Return an engine that computes with the transformers library; see `EngineFactory`."""
    from tests.support.reference_model import ReferenceModel  # noqa: PLC0415  # it imports torch

    return SmallEngine(settings, ReferenceModel)
