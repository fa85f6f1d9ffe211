"""Who runs in the next step, and with how many tokens. Plain Python: no torch, no clock."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from service.engine.block_pool import BlockPool
from service.engine.sequence import Sequence, SequenceStatus


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part of a batch: its next `num_new_tokens` uncomputed tokens.

    `is_sampled` says that they are all it has, so that the step can sample the token after them.
    """

    sequence: Sequence
    num_new_tokens: int
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of the model computes: single tokens first, then chunks of prompts."""

    scheduled: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(s.num_new_tokens for s in self.scheduled)

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences that get a token from this step, in batch order."""
        return [s.sequence for s in self.scheduled if s.is_sampled]


class Scheduler:
    """Continuous batching: sequences join and leave the running set at every step.

    Running sequences come before waiting ones and single tokens before chunks of prompts, so a long
    prompt takes what the token budget leaves and never stalls a stream. Waiting ones are admitted
    first come, first served. When the cache is full the sequence admitted last is preempted: it
    gives its blocks back and waits at the head of the queue to be computed anew, but for what is
    still cached of it by then. The one admitted first is never preempted for another, so some
    sequence always gets on, and every one finishes as long as none is longer than the whole cache.

    Args:
        max_num_seqs: the most sequences that run at once.
        max_num_batched_tokens: the token budget of one step; at least `max_num_seqs`.
    """

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of their admission
        self.num_preemptions = 0
        self.num_prefix_cache_queries = 0  # tokens of prompts
        self.num_prefix_cache_hits = 0  # those of them that were in the cache

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Batch:
        """Choose the next batch. Empty only if nothing is unfinished."""
        num_preemptions = self.num_preemptions
        self._grow_running()
        if self.num_preemptions == num_preemptions:
            self._admit_waiting()
        # Sorted again: what the budget leaves of the last prompt may be a single token.
        return Batch(tuple(sorted(self._share_budget(), key=lambda s: s.num_new_tokens > 1)))

    def postprocess(self, batch: Batch, token_ids: list[int]) -> None:
        """Take in what the model computed: `token_ids` are the next tokens of `batch.sampled`."""
        for sequence, token_id in zip(batch.sampled, token_ids, strict=True):
            sequence.append(token_id)
        for scheduled in batch.scheduled:
            self.pool.advance(scheduled.sequence, scheduled.num_new_tokens)
            if scheduled.sequence.finish_reason is not None:
                self.finish(scheduled.sequence)

    def finish(self, sequence: Sequence) -> None:
        """Let go of a sequence, finished or aborted, wherever it stands."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        self.pool.free(sequence)
        sequence.status = SequenceStatus.FINISHED

    def _grow_running(self) -> None:
        """Make room for each running sequence's next tokens, preempting the last where needed."""
        for sequence in list(self.running):
            while sequence.status is SequenceStatus.RUNNING and not self.pool.allocate(sequence):
                self._preempt(self.running[-1])

    def _admit_waiting(self) -> None:
        """Admit while there is room for a prompt and one more block for each that runs already."""
        while (
            self.waiting
            and len(self.running) < self.max_num_seqs
            and self.pool.allocate(self.waiting[0], num_spared=len(self.running))
        ):
            sequence = self.waiting.popleft()
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed_tokens
                self.num_prefix_cache_queries += sequence.num_prompt_tokens
                self.num_prefix_cache_hits += sequence.num_cached_tokens

    def _share_budget(self) -> Iterator[ScheduledSequence]:
        budget = self.max_num_batched_tokens
        for sequence in sorted(self.running, key=lambda s: s.num_uncomputed_tokens > 1):
            num_uncomputed = sequence.num_uncomputed_tokens
            num_new_tokens = min(num_uncomputed, budget)
            if num_new_tokens:
                budget -= num_new_tokens
                yield ScheduledSequence(sequence, num_new_tokens, num_new_tokens == num_uncomputed)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
