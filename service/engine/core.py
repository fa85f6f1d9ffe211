"""One step of the engine: schedule, run, postprocess. Whoever calls it owns the model."""

import time
from dataclasses import dataclass
from typing import Protocol

import structlog

from service.engine.scheduler import Batch, Scheduler
from service.engine.sequence import Sequence, SequenceStatus
from service.errors import ChatrpcError, DeadlinePassed, StepFailed
from service.types import EngineStats, Request, TokenOutput

# One step may fail because of a request in it. When as many in a row do, it is not the requests.
MAX_FAILED_STEPS = 3

log = structlog.get_logger(__name__)


class DeviceLost(Exception):
    """The device can compute nothing any more."""


class Runner(Protocol):
    """Computes batches. `ModelRunner` is the one with a model in it."""

    def run(self, batch: Batch) -> list[tuple[int, ...]]:
        """Compute the batch, and sample the next tokens of each of `batch.sampled`.

        One, and for as long as the last one sampled is also the draft's, another behind it; each
        with the draw (`Sequence.draw`) of its own position in the answer.

        Raises:
            DeviceLost: no other batch can be computed either.
            Exception: this one cannot.
        """
        ...


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What a step made of one sequence: new tokens, or the error that ended it."""

    sequence_id: int
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
        self._sequences: dict[int, Sequence] = {}
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
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_kv_blocks=pool.num_blocks,
            num_free_kv_blocks=pool.num_free,
            num_preemptions=self._scheduler.num_preemptions,
            num_prefix_cache_queries=self._scheduler.num_prefix_cache_queries,
            num_prefix_cache_hits=self._scheduler.num_prefix_cache_hits,
            num_draft_tokens=self._scheduler.num_draft_tokens,
            num_accepted_tokens=self._scheduler.num_accepted_tokens,
            num_steps=self._num_steps,
            num_failed_steps=self._num_failed_steps,
        )

    def add(self, sequence_id: int, request: Request) -> None:
        sequence = Sequence(sequence_id, request, self._max_model_len)
        self._sequences[sequence_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, sequence_id: int) -> None:
        """Free what a sequence holds. One that has finished already is left in peace."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is not None:
            self._scheduler.finish(sequence)

    def step(self) -> list[SequenceOutput]:
        """Compute one batch; the outputs of every sequence that got a token or ended.

        Raises:
            What the runner raises, if nothing can be computed any more.
        """
        expired = self._expire_waiting(time.monotonic())
        batch = self._scheduler.schedule()
        if not batch.scheduled:
            return expired
        self._num_steps += 1
        try:
            token_ids = self._runner.run(batch)
        except Exception as error:
            return expired + self._fail(batch, error)
        self._num_failed_in_a_row = 0
        return expired + self._take_in(batch, token_ids)

    def _take_in(self, batch: Batch, token_ids: list[tuple[int, ...]]) -> list[SequenceOutput]:
        counts = self._scheduler.postprocess(batch, token_ids)
        return [
            self._output(scheduled.sequence, num_new)
            for scheduled, num_new in zip(batch.sampled, counts, strict=True)
        ]

    def _output(self, sequence: Sequence, num_new: int) -> SequenceOutput:
        if sequence.status is SequenceStatus.FINISHED:
            del self._sequences[sequence.id]
        output = TokenOutput(
            tuple(sequence.token_ids[-num_new:]),
            sequence.finish_reason,
            sequence.num_cached_tokens or 0,
        )
        return SequenceOutput(sequence.id, output)

    def _fail(self, batch: Batch, error: Exception) -> list[SequenceOutput]:
        """End the sequences of a batch that was not computed; raise if no other will be either.

        What they have written in it stands in blocks of their own, none of which is cached yet.
        """
        self._num_failed_steps += 1
        self._num_failed_in_a_row += 1
        if isinstance(error, DeviceLost) or self._num_failed_in_a_row >= self._max_failed_steps:
            raise error
        log.error("step failed", exc_info=error, num_sequences=len(batch.scheduled))
        for scheduled in batch.scheduled:
            self.abort(scheduled.sequence.id)
        return [SequenceOutput(s.sequence.id, StepFailed()) for s in batch.scheduled]

    def _expire_waiting(self, now: float) -> list[SequenceOutput]:
        late = [
            s
            for s in self._scheduler.waiting
            if s.request.deadline is not None and s.request.deadline <= now
        ]
        for sequence in late:
            self.abort(sequence.id)
        error = DeadlinePassed("The deadline passed while the request waited for its turn.")
        return [SequenceOutput(sequence.id, error) for sequence in late]
