"""One step of the engine: schedule, run, postprocess. Whoever calls it owns the model."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from service.domain.engine import EngineStats, EngineTimings, Request, TokenLogprobs, TokenOutput
from service.engine.scheduler import Batch, Scheduler
from service.engine.sequence import Sequence, SequenceStatus
from service.errors import ChatrpcError, ConstraintFailed, DeadlinePassed, StepFailed

# One step may fail because of a request in it. When as many in a row do, it is not the requests.
MAX_FAILED_STEPS = 3

log = structlog.get_logger(__name__)


class DeviceLost(Exception):
    """The device can compute nothing any more."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What a runner has made of one sequence's part of a batch.

    `token_ids` are sampled: one, and for as long as the last one is also the draft's, another
    behind it; each with the draw (`Sequence.draw`) of its own position in the answer. None where
    there is none that may come, or `error` has befallen this sequence alone. `logprobs` has one
    for each of them, `prompt_logprobs` the next of the prompt's; both where they are asked for.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: Exception | None = None


class Runner(Protocol):
    """Computes batches. `ModelRunner` is the one with a model in it."""

    def run(self, batch: Batch) -> list[Computed]:
        """Compute the batch: something for each of `batch.scheduled`, tokens if it `is_sampled`.

        Raises:
            DeviceLost: no other batch can be computed either.
            Exception: this one cannot.
        """
        ...


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What a step made of a request: new tokens of one of its sequences, or the error that ended
    it."""

    request_id: int
    output: TokenOutput | ChatrpcError


class EngineCore:
    """The sequences in the engine and the model that computes them.

    Args:
        max_failed_steps: after so many in a row nothing more is tried.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        max_model_len: int,
        max_failed_steps: int = MAX_FAILED_STEPS,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._max_model_len = max_model_len
        self._max_failed_steps = max_failed_steps
        self._sequences: dict[int, list[Sequence]] = {}  # of each request that is not finished
        self._timings: dict[int, EngineTimings] = {}  # of the same requests
        self._num_steps = 0
        self._num_failed_steps = 0
        self._num_failed_in_a_row = 0

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished

    @property
    def stats(self) -> EngineStats:
        pool = self._scheduler.pool
        return EngineStats(
            max_num_seqs=self._scheduler.max_num_seqs,
            num_running=len(self._scheduler.running),
            num_waiting=self._scheduler.num_waiting,
            num_kv_blocks=pool.num_blocks,
            kv_block_size=pool.block_size,
            num_free_kv_blocks=pool.num_free,
            num_preemptions=self._scheduler.num_preemptions,
            num_prefix_cache_queries=self._scheduler.num_prefix_cache_queries,
            num_prefix_cache_hits=self._scheduler.num_prefix_cache_hits,
            num_draft_tokens=self._scheduler.num_draft_tokens,
            num_accepted_tokens=self._scheduler.num_accepted_tokens,
            num_steps=self._num_steps,
            num_failed_steps=self._num_failed_steps,
        )

    def add(self, request_id: int, request: Request, queued_s: float | None = None) -> None:
        """Add a request. Requests of equal priority are served in the order of their ids.

        Args:
            queued_s: When the request was admitted, of `time.monotonic()`.
        """
        sequences = [
            Sequence(request_id, request, self._max_model_len, index) for index in range(request.n)
        ]
        self._sequences[request_id] = sequences
        self._timings[request_id] = EngineTimings(queued_s)
        self._scheduler.add(*sequences)

    def abort(self, request_id: int) -> None:
        """Free what a request holds. One that has finished already is left in peace."""
        self._timings.pop(request_id, None)
        for sequence in self._sequences.pop(request_id, ()):
            self._scheduler.finish(sequence)

    def finish(self, request_id: int, index: int) -> None:
        """Free what one sequence of a request holds; the others go on. One that has finished
        already is left in peace."""
        for sequence in self._sequences.get(request_id, ()):
            if sequence.index == index and sequence.status is not SequenceStatus.FINISHED:
                self._scheduler.finish(sequence)
        self._forget_if_finished(request_id)

    def step(
        self, report: Callable[[list[RequestOutput]], None] | None = None
    ) -> list[RequestOutput]:
        """Compute one batch; the outputs of every sequence that got a token or ended.

        Args:
            report: Called before the batch is computed, with an output without tokens for each
                request of which no sequence was scheduled before. Not called if there is none.

        Raises:
            What the runner raises, if nothing can be computed any more.
        """
        expired = self._expire_waiting(time.monotonic())
        batch = self._scheduler.schedule()
        if not batch.scheduled:
            return expired
        self._num_steps += 1
        started = self._note_scheduled(batch, time.monotonic())
        if started and report is not None:
            report(started)
        try:
            computed = self._runner.run(batch)
        except Exception as error:
            return expired + self._fail(batch, error)
        self._num_failed_in_a_row = 0
        return expired + self._take_in(batch, computed)

    def _take_in(self, batch: Batch, computed: list[Computed]) -> list[RequestOutput]:
        pairs = list(zip(batch.scheduled, computed, strict=True))
        for scheduled, c in pairs:
            if scheduled.sequence.prompt_logprobs is not None:
                scheduled.sequence.prompt_logprobs += c.prompt_logprobs
        sampled = [(s.sequence, c) for s, c in pairs if s.is_sampled]
        counts = self._scheduler.postprocess(batch, [c.token_ids for _, c in sampled])
        now_s = time.monotonic()
        for (sequence, _), num_new in zip(sampled, counts, strict=True):
            self._note_tokens(sequence.request_id, num_new, now_s)
        failed = self._end_failed(sampled)
        outputs = [
            self._output(sequence, c, num_new)
            for (sequence, c), num_new in zip(sampled, counts, strict=True)
            if sequence.request_id in self._sequences
        ]
        for request_id in {s.request_id for s, _ in sampled if s.finish_reason is not None}:
            self._forget_if_finished(request_id)
        return failed + outputs

    def _end_failed(self, sampled: list[tuple[Sequence, Computed]]) -> list[RequestOutput]:
        """End the requests of which a sequence has met with an error of its own."""
        errors = {s.request_id: c.error for s, c in sampled if c.error is not None}
        for error in errors.values():
            log.error("constraint_failed", exc_info=error)
        return self._end(errors, ConstraintFailed())

    def _output(self, sequence: Sequence, computed: Computed, num_new: int) -> RequestOutput:
        first = self._sequences[sequence.request_id][0]
        output = TokenOutput(
            computed.token_ids[:num_new],
            sequence.finish_reason,
            first.num_cached_tokens or 0,
            sequence.index,
            computed.logprobs[:num_new],
            tuple(sequence.prompt_logprobs or ()),
            self._timings[sequence.request_id],
        )
        sequence.prompt_logprobs = None  # they are told once
        return RequestOutput(sequence.request_id, output)

    def _forget_if_finished(self, request_id: int) -> None:
        siblings = self._sequences.get(request_id, ())
        if all(s.status is SequenceStatus.FINISHED for s in siblings):
            self._sequences.pop(request_id, None)
            self._timings.pop(request_id, None)

    def _fail(self, batch: Batch, error: Exception) -> list[RequestOutput]:
        """End the sequences of a batch that was not computed; raise if no other will be either.

        What they have written in it stands in blocks of their own, none of which is cached yet.
        """
        self._num_failed_steps += 1
        self._num_failed_in_a_row += 1
        if isinstance(error, DeviceLost) or self._num_failed_in_a_row >= self._max_failed_steps:
            raise error
        log.error("step_failed", exc_info=error, num_sequences=len(batch.scheduled))
        return self._end({s.sequence.request_id for s in batch.scheduled}, StepFailed())

    def _expire_waiting(self, now: float) -> list[RequestOutput]:
        late = {
            s.request_id
            for s in self._scheduler.waiting
            if s.request.deadline is not None and s.request.deadline <= now
        }
        return self._end(
            late, DeadlinePassed("The deadline passed while the request waited for its turn.")
        )

    def _end(self, request_ids: Iterable[int], error: ChatrpcError) -> list[RequestOutput]:
        """End requests by an error, each once, however many sequences it has."""
        ids = sorted(request_ids)
        for request_id in ids:
            self.abort(request_id)
        return [RequestOutput(request_id, error) for request_id in ids]

    def _note_scheduled(self, batch: Batch, now_s: float) -> list[RequestOutput]:
        """Set `scheduled_s` of the requests that are scheduled for the first time; return these."""
        started = []
        for request_id in dict.fromkeys(s.sequence.request_id for s in batch.scheduled):
            if self._timings[request_id].scheduled_s is None:
                timings = replace(self._timings[request_id], scheduled_s=now_s)
                self._timings[request_id] = timings
                started.append(RequestOutput(request_id, TokenOutput(timings=timings)))
        return started

    def _note_tokens(self, request_id: int, num_new: int, now_s: float) -> None:
        before = self._timings[request_id]
        first_s = now_s if before.first_token_s is None else before.first_token_s
        self._timings[request_id] = EngineTimings(
            before.queued_s, before.scheduled_s, first_s, now_s, before.num_tokens + num_new
        )
