"""The engine's step: schedule, run, postprocess. All calls come from one thread."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from service.domain.engine import (
    DiskCacheStats,
    EngineStats,
    EngineTimings,
    Request,
    TokenLogprobs,
    TokenOutput,
)
from service.engine.batch import Batch
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence, SequenceStatus
from service.engine.step_time import StepSize
from service.errors import ChatrpcError, ConstraintFailed, DeadlinePassed, StepFailed

# A step may fail because of a request in it. If this number of steps fail in a row, the cause is
# probably not a request.
MAX_FAILED_STEPS = 3

log = structlog.get_logger(__name__)


class DeviceLost(Exception):
    """The device has failed, and every later batch will fail too."""


@dataclass(frozen=True, slots=True)
class Computed:
    """The result of a batch for one of its sequences.

    Attributes:
        token_ids: The sampled tokens: the accepted tokens of the draft and the one after them. Each
            is sampled with the draw (`Sequence.draw`) of its position. Empty if no token is
            allowed, if nothing was to be sampled, or if there is an `error`.
        logprobs: Log probabilities of `token_ids`, if the request asks for them.
        prompt_logprobs: The next part of the prompt's log probabilities, if the request asks for
            them.
        error: An error that concerns only this sequence.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: Exception | None = None


class Runner(Protocol):
    """Computes batches; implemented by `ModelRunner`."""

    def run(self, batch: Batch) -> list[Computed]:
        """Compute the batch.

        Returns:
            One result for each of `batch.scheduled`, with tokens if it `is_sampled`.

        Raises:
            DeviceLost: The device has failed; later batches will fail too.
            MemoryError: There is not enough memory for this batch.
            Exception: This batch cannot be computed.
        """
        ...


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """An output of one request: tokens of one of its sequences, or the error that ended it."""

    request_id: int
    output: TokenOutput | ChatrpcError


class EngineCore:
    """The unfinished sequences, and the scheduler and runner that compute them.

    Args:
        max_model_len: Maximum length of a sequence in tokens, prompt and output together.
        max_failed_steps: Number of failed steps in a row after which `step` raises.
        is_batch_invariant: True if the output of a request does not depend on the others.
        quantization: The precision of the weights; see `EngineCapabilities`.
        clock: Returns a time in seconds, from which the durations of steps are computed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        max_model_len: int,
        max_failed_steps: int = MAX_FAILED_STEPS,
        *,
        is_batch_invariant: bool = False,
        quantization: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.is_batch_invariant = is_batch_invariant
        self.quantization = quantization
        self._scheduler = scheduler
        self._runner = runner
        self._max_model_len = max_model_len
        self._max_failed_steps = max_failed_steps
        self._clock = clock
        self._sequences: dict[int, list[Sequence]] = {}  # key: id of an unfinished request
        self._timings: dict[int, EngineTimings] = {}  # key: the same ids
        self._can_compute = True  # False after a step without a sequence to compute
        self._num_steps = 0
        self._num_failed_steps = 0
        self._num_failed_in_a_row = 0
        self._step_s = 0.0
        self._predicted_step_s = 0.0

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished

    @property
    def has_work(self) -> bool:
        """True if `step` has something to do at once. Sequences may still wait for a disk."""
        disk = self._scheduler.disk_cache
        return (self.has_unfinished and self._can_compute) or (disk is not None and disk.has_work)

    @property
    def is_loading(self) -> bool:
        """True while a sequence waits for a disk."""
        disk = self._scheduler.disk_cache
        return disk is not None and disk.is_loading

    def on_work(self, wake: Callable[[], None]) -> None:
        """Set a function that any thread calls when `has_work` may have become true."""
        if (disk := self._scheduler.disk_cache) is not None:
            disk.on_work(wake)

    def close(self) -> None:
        """End the threads of the prefix cache on disk. No method may be called after this."""
        if (disk := self._scheduler.disk_cache) is not None:
            disk.close()

    @property
    def stats(self) -> EngineStats:
        pool, disk = self._scheduler.pool, self._scheduler.disk_cache
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
            disk_cache=DiskCacheStats() if disk is None else disk.stats,
            num_draft_tokens=self._scheduler.num_draft_tokens,
            num_accepted_tokens=self._scheduler.num_accepted_tokens,
            num_steps=self._num_steps,
            num_failed_steps=self._num_failed_steps,
            step_s=self._step_s,
            predicted_step_s=self._predicted_step_s,
        )

    def add(self, request_id: int, request: Request, queued_s: float | None = None) -> None:
        """Add a request. Requests of equal priority are served in the order of their ids.

        Args:
            queued_s: Time of admission, in seconds of `time.monotonic()`.
        """
        sequences = [
            Sequence(request_id, request, self._max_model_len, index) for index in range(request.n)
        ]
        self._sequences[request_id] = sequences
        self._timings[request_id] = EngineTimings(queued_s)
        self._can_compute = True
        self._scheduler.add(*sequences)

    def abort(self, request_id: int) -> None:
        """End a request and free its blocks. Does nothing if it has already finished."""
        self._can_compute = True
        self._timings.pop(request_id, None)
        for sequence in self._sequences.pop(request_id, ()):
            self._scheduler.finish(sequence)

    def finish(self, request_id: int, index: int) -> None:
        """End one sequence of a request and free its blocks; the others continue.

        Does nothing if the sequence has already finished.
        """
        self._can_compute = True
        for sequence in self._sequences.get(request_id, ()):
            if sequence.index == index and sequence.status is not SequenceStatus.FINISHED:
                self._scheduler.finish(sequence)
        self._forget_if_finished(request_id)

    def step(
        self, report: Callable[[list[RequestOutput]], None] | None = None
    ) -> list[RequestOutput]:
        """Compute one batch.

        Args:
            report: Called before the batch is computed, with an output without tokens for each
                request that is scheduled for the first time. Not called if there is none.

        Returns:
            An output for each sequence that got a token or finished, and for each request that
            failed.

        Raises:
            Exception: The exception of the runner, if the device is lost or if `max_failed_steps`
                steps in a row have failed.
        """
        expired = self._expire_waiting(time.monotonic())
        self._scheduler.copy_blocks()
        start_s = self._clock()
        batch = self._scheduler.schedule()
        self._can_compute = bool(batch.scheduled)
        if not batch.scheduled:
            return expired
        size = batch.size
        self._num_steps += 1
        started = self._note_scheduled(batch, time.monotonic())
        if started and report is not None:
            report(started)
        try:
            computed = self._runner.run(batch)
        except Exception as error:
            return expired + self._fail(batch, error)
        self._num_failed_in_a_row = 0
        outputs = self._outputs(batch, computed)
        self._record(size, self._clock() - start_s)
        return expired + outputs

    def _record(self, size: StepSize, step_s: float) -> None:
        """Count the duration of a step, and learn from it how long steps take."""
        times = self._scheduler.step_time
        self._step_s += step_s
        self._predicted_step_s += times.predict(size) if times.is_known else step_s
        times.record(size, step_s)

    def _outputs(self, batch: Batch, computed: list[Computed]) -> list[RequestOutput]:
        """Append the results to the sequences, and return the outputs."""
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
        """End the requests with a sequence whose grammar has failed."""
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
        sequence.prompt_logprobs = None  # they are part of the first output only
        return RequestOutput(sequence.request_id, output)

    def _forget_if_finished(self, request_id: int) -> None:
        siblings = self._sequences.get(request_id, ())
        if all(s.status is SequenceStatus.FINISHED for s in siblings):
            self._sequences.pop(request_id, None)
            self._timings.pop(request_id, None)

    def _fail(self, batch: Batch, error: Exception) -> list[RequestOutput]:
        """End the requests of a batch that failed, or raise the error if the engine has failed."""
        # The failed batch has written only to blocks of its own sequences. These blocks are not yet
        # in the prefix cache.
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
            late, DeadlinePassed("The deadline passed while the request was waiting in the queue.")
        )

    def _end(self, request_ids: Iterable[int], error: ChatrpcError) -> list[RequestOutput]:
        """End requests with an error. Returns one output per request."""
        ids = sorted(request_ids)
        for request_id in ids:
            self.abort(request_id)
        return [RequestOutput(request_id, error) for request_id in ids]

    def _note_scheduled(self, batch: Batch, now_s: float) -> list[RequestOutput]:
        """Set `scheduled_s` of the requests that are scheduled for the first time.

        Returns:
            An output without tokens for each of these requests.
        """
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
