"""The choice of the sequences and tokens that the next step computes. No torch, no clock."""

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter

from chatrpc_process.fairness.queue import FairQueue
from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_pool import BlockPool
from service.engine.disk_cache import DiskCache
from service.engine.drafts import DraftCandidate, draft_lengths
from service.engine.fairness import usage_by_caller, victim_above_share, victim_when_full
from service.engine.prefill import Prompts
from service.engine.sequence import Sequence, SequenceStatus
from service.engine.step_time import StepSize, StepTime

# Maximum number of rows of logits in a step with drafts. It limits their memory: a row of a large
# vocabulary takes 1 MB.
_MAX_LOGITS_WITH_DRAFTS = 64

# A step with prompts or drafts may take at least this multiple of the time of the decoding
# sequences, even if that is more than the time budget.
_MIN_STEP_TIME = 1.25

# While at least this number of prompts are computed, the time budget is multiplied by this factor.
# In a simulation of an int8 model of 1 billion parameters, 32 clients with prompts of 151 tokens
# got 72.4 instead of 68.6 tokens per second, and the median time to the first token was 6.9 s
# instead of 12.9 s. Without a time budget: 76.0 tokens per second, with gaps of 1.7 s.
MANY_PROMPTS = 4
CROWDED_FACTOR = 1.5

# Number of more urgent sequences of the same caller that may overtake a waiting sequence.
_MAX_OVERTAKES = 16

_rank = attrgetter("rank")


class Scheduler:
    """Continuous batching: sequences join and leave the running set at every step.

    Token budget: running sequences come before waiting ones, and single tokens before chunks of
    prompts. So a long prompt uses the rest of the budget.

    Time budget: while sequences decode, chunks of prompts are so short that the predicted duration
    of a step is at most `max_step_s`. So a long prompt does not delay streams. Each step has a
    fixed cost, so longer chunks compute more tokens per second. Therefore the budget is half as
    long again while many prompts are computed. If no sequence decodes, there is no time budget.

    Admission: callers take turns (`FairQueue`) and share the budget for prompts by weight. Within a
    caller the sequence with the lowest `priority` comes first, then the one that arrived first. A
    sequence is overtaken at most `_MAX_OVERTAKES` times. If all slots or blocks are taken and the
    caller whose turn it is has less than its share of them, the last sequence of a caller above its
    share is preempted.

    Preemption: if the cache is full, `victim_when_full` chooses a sequence. Its blocks are freed,
    and it waits. Later its tokens are computed again, except those that are still in the prefix
    cache. The first sequence of each caller, or at least the oldest of these, is preempted only for
    a more urgent one of the same caller. So every sequence finishes if none is longer than the
    cache.

    Prefixes on disk: a sequence is admitted as usual, and is not scheduled until the blocks of its
    prefix are loaded.

    Several sequences of a request: the others are queued when the first has computed the prompt,
    and find it in the prefix cache.

    Args:
        pool: The blocks of the KV cache.
        max_num_seqs: Maximum number of sequences that run at once.
        max_num_batched_tokens: Token budget of one step; at least `max_num_seqs`.
        num_speculative_tokens: Maximum number of draft tokens of a sequence; 0 disables drafts.
        max_step_s: Time budget of one step in seconds, while few prompts are computed.
        disk_cache: The prefix cache on disk; None if there is none.

    Attributes:
        step_time: Predicts the durations of steps. The engine core records the measured ones.

    Raises:
        ValueError: `max_num_batched_tokens` is less than `max_num_seqs`.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_speculative_tokens: int = 0,
        max_step_s: float = math.inf,
        disk_cache: DiskCache | None = None,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_speculative_tokens = num_speculative_tokens
        self.disk_cache = disk_cache
        self.max_step_s = max_step_s
        self.step_time = StepTime()
        self.waiting: FairQueue[Sequence] = FairQueue(_MAX_OVERTAKES)
        self.running: list[Sequence] = []  # sorted by rank
        # Number of other callers' sequences that have overtaken the sequence whose turn it is.
        self._num_overtakes = 0
        self.num_preemptions = 0
        self.num_prefix_cache_queries = 0  # prompt tokens looked up in the prefix cache
        self.num_prefix_cache_hits = 0  # the number of these tokens that were found
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(len(self.waiting) or self.running)

    @property
    def num_waiting(self) -> int:
        """Number of sequences that wait for a slot or for the first sequence of their request."""
        return len(self.waiting) + sum(len(s.followers) for s in (*self.waiting, *self.running))

    def add(self, sequence: Sequence, *followers: Sequence) -> None:
        """Add the sequences of one request, in the order of their indices."""
        sequence.followers = list(followers)
        self._enqueue(sequence)

    def copy_blocks(self) -> None:
        """Copy a few blocks from and to the prefix cache on disk, if there is one.

        This is separate from `schedule`, so that the copies do not count as a part of a step, whose
        duration `step_time` learns.
        """
        if self.disk_cache is not None:
            for sequence in self.disk_cache.work():
                self._count_cached(sequence)

    def schedule(self) -> Batch:
        """Return the next batch. It is empty only if every sequence has finished or is loading."""
        num_preemptions = self.num_preemptions
        self._grow_running()
        if self.num_preemptions == num_preemptions:
            self._admit_waiting()
        running = [s for s in self.running if not s.is_loading]
        decoding = [s for s in running if s.num_uncomputed_tokens == 1]
        prefilling = [s for s in running if s.num_uncomputed_tokens > 1]
        max_step_s = self._time_budget(decoding, len(prefilling))
        scheduled = self._add_chunks(decoding, prefilling, max_step_s)
        scheduled = self._add_drafts(scheduled, max_step_s)
        # This moves single tokens to the front: a chunk of a prompt may be a single token too.
        return Batch(tuple(sorted(scheduled, key=lambda s: s.num_tokens > 1)))

    def postprocess(self, batch: Batch, token_ids: list[tuple[int, ...]]) -> list[int]:
        """Append the accepted tokens, register full blocks in the prefix cache, and finish and free
        sequences.

        Args:
            token_ids: The accepted tokens of each of `batch.sampled`. An empty tuple finishes the
                sequence.

        Returns:
            The number of tokens that each of `batch.sampled` appended. Tokens after a stop are
            dropped.
        """
        for scheduled in batch.scheduled:
            self.pool.advance(scheduled.sequence, scheduled.num_new_tokens)
        return [
            self._extend(scheduled, accepted)
            for scheduled, accepted in zip(batch.sampled, token_ids, strict=True)
        ]

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence that has finished or is aborted, and free its blocks."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence in self.waiting:  # a follower may not be queued yet
            self.waiting.remove(sequence)
        self.pool.free(sequence)
        sequence.status = SequenceStatus.FINISHED

    def _enqueue(self, sequence: Sequence) -> None:
        caller = sequence.request.caller
        self.waiting.push(caller.name, caller.weight, sequence)

    def _grow_running(self) -> None:
        """Allocate blocks for each running sequence's next tokens, preempting others if needed."""
        for sequence in list(self.running):
            while sequence.status is SequenceStatus.RUNNING and not self.pool.allocate(sequence):
                self._preempt(victim_when_full(usage_by_caller(self.running, {})))

    def _admit_waiting(self) -> None:
        """Admit sequences while there are blocks for their tokens and one more block for each
        running sequence.

        If there are not enough blocks for the sequence whose turn it is, sequences of callers above
        their share are preempted for callers below theirs.
        """
        while (sequence := self.waiting.first()) is not None:
            if self._allocate(sequence):
                self._num_overtakes = 0
                self._start(self.waiting.pop())
            elif (caller := self._claimant()) is not None:
                self._num_overtakes += 1
                self._start(self.waiting.pop(caller))
            else:
                return

    def _start(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.RUNNING
        insort(self.running, sequence, key=_rank)
        if self.disk_cache is not None:
            self.disk_cache.begin(sequence)
        if not sequence.is_loading:
            self._count_cached(sequence)

    def _allocate(self, sequence: Sequence) -> bool:
        """Allocate the blocks of a waiting sequence if a slot is free. Return True on success."""
        has_slot = len(self.running) < self.max_num_seqs
        return has_slot and self.pool.allocate(sequence, num_spared=len(self.running))

    def _claimant(self) -> str | None:
        """Return the caller whose next sequence got its blocks by the caller's share, if any.

        Waiting callers are tried in the order of their turns. Other callers overtake the sequence
        whose turn it is at most `_MAX_OVERTAKES` times.
        """
        if self._num_overtakes >= _MAX_OVERTAKES:
            return None
        for caller in self.waiting.weights:
            sequence = self.waiting.first(caller)
            if sequence is not None and self._claim(sequence):
                return caller
        return None

    def _claim(self, sequence: Sequence) -> bool:
        """Allocate the blocks of a waiting sequence, if that is within its caller's share.

        Preempts sequences of callers above their share if that is needed.

        Returns:
            True if the blocks are allocated.
        """
        num_slots, num_blocks = self.max_num_seqs, self.pool.num_blocks
        num_needed = -(-sequence.num_tokens // self.pool.block_size)
        uses = usage_by_caller(self.running, self.waiting.weights)
        own = uses[sequence.request.caller.name]
        if not (
            len(uses) > 1
            and own.is_within_share(own.num_running + 1, num_slots)
            and own.is_within_share(own.num_blocks + num_needed, num_blocks)
        ):
            return False
        while not self._allocate(sequence):
            if len(self.running) < num_slots:
                victim = victim_above_share(uses, lambda use: use.num_blocks, num_blocks)
            else:
                victim = victim_above_share(uses, lambda use: use.num_running, num_slots)
            if victim is None:
                return False
            self._preempt(victim)
            uses = usage_by_caller(self.running, self.waiting.weights)
        return True

    def _count_cached(self, sequence: Sequence) -> None:
        """Count the prefix cache hits of a sequence, if it is admitted for the first time."""
        if sequence.num_cached_tokens is not None:
            return
        sequence.num_cached_tokens = sequence.num_computed_tokens
        # Only the first sequence of a request is counted: the others find the blocks of the first.
        # A prompt with log probabilities is not looked up.
        if sequence.index == 0 and not sequence.positions_without_logprobs:
            self.num_prefix_cache_queries += sequence.num_prompt_tokens
            self.num_prefix_cache_hits += sequence.num_cached_tokens

    def _time_budget(self, decoding: list[Sequence], num_prompts: int) -> float:
        """Return the maximum predicted duration of the next step in seconds. It is infinite if no
        sequence decodes, and before the first step is measured."""
        if not decoding or not self.step_time.is_known:
            return math.inf
        factor = CROWDED_FACTOR if num_prompts >= MANY_PROMPTS else 1.0
        decode_s = self.step_time.predict(_decode_size(decoding))
        return max(factor * self.max_step_s, _MIN_STEP_TIME * decode_s)

    def _add_chunks(
        self, decoding: list[Sequence], prefilling: list[Sequence], max_step_s: float
    ) -> list[ScheduledSequence]:
        """Schedule one token for each decoding sequence, and chunks of prompts in the rest of the
        budgets."""
        scheduled = [ScheduledSequence(s, 1, is_sampled=True) for s in decoding]
        num_left = self.max_num_batched_tokens - len(decoding)
        if not prefilling or not num_left:
            return scheduled
        prompts = Prompts(prefilling)
        if max_step_s < math.inf:
            num_left = prompts.num_tokens_in_time(
                num_left, max_step_s, self.step_time, _decode_size(decoding)
            )
        return scheduled + prompts.chunks(num_left)

    def _add_drafts(
        self, scheduled: list[ScheduledSequence], max_step_s: float
    ) -> list[ScheduledSequence]:
        """Add drafts to sampled sequences, as far as they are expected to save time."""
        sampled = [s.sequence for s in scheduled if s.is_sampled]
        num_left = self.max_num_batched_tokens - sum(s.num_tokens for s in scheduled)
        max_tokens = min(num_left, _MAX_LOGITS_WITH_DRAFTS - len(sampled))
        if not self.num_speculative_tokens or max_tokens <= 0:
            return scheduled
        candidates = {
            s: c for s in sampled if (c := DraftCandidate.of(s, self.num_speculative_tokens))
        }
        if not candidates:
            return scheduled
        singles = [s.sequence for s in scheduled if s.num_tokens == 1]
        chunks = [s.size for s in scheduled if s.num_tokens > 1]
        lengths = draft_lengths(
            list(candidates.values()),
            self.step_time,
            StepSize.total([_decode_size(singles), *chunks]),
            _decode_size(sampled),
            max_step_s=max_step_s,
            max_tokens=max_tokens,
        )
        drafts = {
            sequence: candidate.forced[:length] or sequence.lookup.draft(sequence.token_ids, length)
            for (sequence, candidate), length in zip(candidates.items(), lengths, strict=True)
            if length
        }
        return [self._with_draft(s, drafts.get(s.sequence, ())) for s in scheduled]

    def _with_draft(
        self, scheduled: ScheduledSequence, draft: tuple[int, ...]
    ) -> ScheduledSequence:
        """Add a draft if there are blocks for it. It preempts no sequence, and leaves one free
        block for each running sequence."""
        if draft and self.pool.allocate(
            scheduled.sequence, num_draft_tokens=len(draft), num_spared=len(self.running)
        ):
            return replace(scheduled, draft_token_ids=draft)
        return scheduled

    def _extend(self, scheduled: ScheduledSequence, token_ids: tuple[int, ...]) -> int:
        """Append the accepted tokens. All but the last are draft tokens, so they are computed.

        Returns:
            The number of tokens appended.
        """
        sequence, num_accepted = scheduled.sequence, max(0, len(token_ids) - 1)
        if scheduled.draft_token_ids:
            self.num_draft_tokens += len(scheduled.draft_token_ids)
            self.num_accepted_tokens += num_accepted
        num_appended = sequence.extend(token_ids)
        self.pool.advance(sequence, max(0, num_appended - 1))
        if not token_ids:
            sequence.end()
        self._release_followers(sequence)
        if sequence.finish_reason is not None:
            self.finish(sequence)
        return num_appended

    def _release_followers(self, sequence: Sequence) -> None:
        """Queue the other sequences of the request, after this one has computed the prompt."""
        for follower in sequence.followers:
            self._enqueue(follower)
        sequence.followers = []

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence)
        sequence.status = SequenceStatus.WAITING
        self._enqueue(sequence)
        self.num_preemptions += 1


def _decode_size(sequences: Iterable[Sequence]) -> StepSize:
    """Return the size of a step that computes the last token of each sequence."""
    num_positions = [sequence.num_tokens for sequence in sequences]
    return StepSize(len(num_positions), len(num_positions), sum(num_positions))
