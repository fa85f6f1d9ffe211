"""Who runs in the next step, and with how many tokens. Plain Python: no torch, no clock."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from service.engine.block_pool import BlockPool
from service.engine.sequence import Sequence, SequenceStatus

# Drafts fill a step up to so many tokens and no further. A step reads all the weights, however few
# its tokens, so the first few more hardly cost anything; from some number on each costs its share.
_MAX_TOKENS_WITH_DRAFTS = 32


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part of a batch: its next `num_new_tokens` uncomputed tokens.

    `is_sampled` says that they are all it has, so that the step can sample the token after them,
    and more tokens behind a draft of them as long as that proves right.
    """

    sequence: Sequence
    num_new_tokens: int
    is_sampled: bool
    draft_token_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.num_new_tokens + len(self.draft_token_ids)

    @property
    def token_ids(self) -> list[int]:
        """What the model reads: `num_tokens`, the first of them at `num_computed_tokens`."""
        start = self.sequence.num_computed_tokens
        new = self.sequence.token_ids[start : start + self.num_new_tokens]
        return [*new, *self.draft_token_ids]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of the model computes: single tokens first, then drafts and prompts."""

    scheduled: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.scheduled)

    @property
    def sampled(self) -> list[ScheduledSequence]:
        """Those that get tokens from this step, in batch order."""
        return [s for s in self.scheduled if s.is_sampled]


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
        num_speculative_tokens: the longest draft of a sequence; 0 for none.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_speculative_tokens: int = 0,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_speculative_tokens = num_speculative_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of their admission
        self.num_preemptions = 0
        self.num_prefix_cache_queries = 0  # tokens of prompts
        self.num_prefix_cache_hits = 0  # those of them that were in the cache
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

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
        scheduled = self._add_drafts(list(self._share_budget()))
        # Sorted again: what the budget leaves of the last prompt may be a single token.
        return Batch(tuple(sorted(scheduled, key=lambda s: s.num_tokens > 1)))

    def postprocess(self, batch: Batch, token_ids: list[tuple[int, ...]]) -> list[int]:
        """Take in what the model computed: `token_ids` are the next tokens of `batch.sampled`.

        Returns how many of them each took: none behind its end.
        """
        for scheduled in batch.scheduled:
            self.pool.advance(scheduled.sequence, scheduled.num_new_tokens)
        return [
            self._extend(scheduled, taken)
            for scheduled, taken in zip(batch.sampled, token_ids, strict=True)
        ]

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

    def _add_drafts(self, scheduled: list[ScheduledSequence]) -> Iterator[ScheduledSequence]:
        """Let those that are sampled share what a small step leaves; a share not used passes on."""
        limit = min(_MAX_TOKENS_WITH_DRAFTS, self.max_num_batched_tokens)
        num_spare = limit - sum(s.num_tokens for s in scheduled)
        num_sharing = sum(s.is_sampled for s in scheduled)
        for s in scheduled:
            draft = self._draft(s.sequence, num_spare // num_sharing) if s.is_sampled else ()
            num_spare -= len(draft)
            num_sharing -= s.is_sampled
            yield replace(s, draft_token_ids=draft) if draft else s

    def _draft(self, sequence: Sequence, limit: int) -> tuple[int, ...]:
        """At most `limit` tokens. They preempt nobody and leave a block for each that runs."""
        num_useful = sequence.max_tokens - sequence.num_output_tokens - 1  # one is sampled anyway
        limit = min(limit, num_useful, self.num_speculative_tokens)
        draft = sequence.lookup.propose(sequence.token_ids, limit)
        has_room = self.pool.allocate(
            sequence, num_draft_tokens=len(draft), num_spared=len(self.running)
        )
        return draft if has_room else ()

    def _extend(self, scheduled: ScheduledSequence, token_ids: tuple[int, ...]) -> int:
        """Append what was sampled. All but the last were in the draft, and so are computed."""
        sequence, num_accepted = scheduled.sequence, len(token_ids) - 1
        if scheduled.draft_token_ids:
            sequence.lookup.record(num_accepted)
            self.num_draft_tokens += len(scheduled.draft_token_ids)
            self.num_accepted_tokens += num_accepted
        num_taken = sequence.extend(token_ids)
        self.pool.advance(sequence, num_taken - 1)
        if sequence.finish_reason is not None:
            self.finish(sequence)
        return num_taken

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
