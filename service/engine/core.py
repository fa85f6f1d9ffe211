"""One step of the engine: schedule, run, postprocess. Whoever calls it owns the model."""

import time
from dataclasses import dataclass
from typing import Protocol

from service.engine.scheduler import Batch, Scheduler
from service.engine.sequence import Sequence, SequenceStatus
from service.errors import ChatrpcError, DeadlinePassed
from service.types import EngineStats, Request, TokenOutput


class Runner(Protocol):
    """Computes batches. `ModelRunner` is the one with a model in it."""

    def run(self, batch: Batch) -> list[tuple[int, ...]]:
        """Compute the batch, and sample the next tokens of each of `batch.sampled`.

        One, and for as long as the last one sampled is also the draft's, another behind it; each
        with the draw (`Sequence.draw`) of its own position in the answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What a step made of one sequence: new tokens, or the error that ended it."""

    sequence_id: int
    output: TokenOutput | ChatrpcError


class EngineCore:
    """The sequences in the engine and the model that computes them."""

    def __init__(self, scheduler: Scheduler, runner: Runner, max_model_len: int) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._max_model_len = max_model_len
        self._sequences: dict[int, Sequence] = {}
        self._num_steps = 0

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
        """Compute one batch; the outputs of every sequence that got a token or ended."""
        expired = self._expire_waiting(time.monotonic())
        batch = self._scheduler.schedule()
        if not batch.scheduled:
            return expired
        counts = self._scheduler.postprocess(batch, self._runner.run(batch))
        self._num_steps += 1
        return expired + [
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
