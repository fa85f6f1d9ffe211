"""Who runs in the next step, and with how many tokens. Plain Python: no torch, no clock."""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter

from chatrpc_process.fairness.queue import FairQueue
from service.engine.block_pool import BlockPool
from service.engine.fairness import furthest_above_share, last_to_keep, split, use_by_caller
from service.engine.sequence import Sequence, SequenceStatus

# Drafts fill a step up to so many tokens and no further. A step reads all the weights, however few
# its tokens, so the first few more hardly cost anything; from some number on each costs its share.
_MAX_TOKENS_WITH_DRAFTS = 32

# A sequence waits for no more than so many of its caller's that came later and are more urgent.
_MAX_OVERTAKES = 16

_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part of a batch: its next `num_new_tokens` uncomputed tokens.

    `is_sampled` says that they are all it has, so that the step can sample the token after them,
    and more tokens behind a draft of them as long as that proves right. `is_draft_forced` says that
    the draft is no guess, but what the sequence's grammar leaves.
    """

    sequence: Sequence
    num_new_tokens: int
    is_sampled: bool
    draft_token_ids: tuple[int, ...] = ()
    is_draft_forced: bool = False

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
    prompt takes what the token budget leaves and never stalls a stream.

    Callers take turns at joining the running set (`FairQueue`), and share the budget for prompts
    equally. Within a caller the sequence of the lowest `priority` comes first, among equals the one
    that arrived first; it is overtaken `_MAX_OVERTAKES` times at most. When all slots or blocks are
    taken and a caller whose turn it is has less than its share of them, the last sequence of a
    caller that has more than its own is preempted. A caller that is alone has everything.

    When the cache is full the last sequence of the caller that holds most of it is preempted: it
    frees its blocks and waits, to be computed anew but for what is still cached of it by then. The
    first sequence of each caller, or at least the oldest of these, is preempted for a more urgent
    one of its caller alone, so some sequence always gets on, and every one finishes as long as none
    is longer than the whole cache.

    The sequences of one request share the computation of their prompt: while the first computes it
    the others do not join the queue, and then they find it in the cache.

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
        self.waiting: FairQueue[Sequence] = FairQueue(_MAX_OVERTAKES)
        self.running: list[Sequence] = []  # by rank
        self._num_passed = 0  # sequences that were admitted before the one whose turn it is
        self.num_preemptions = 0
        self.num_prefix_cache_queries = 0  # tokens of prompts
        self.num_prefix_cache_hits = 0  # those of them that were in the cache
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(len(self.waiting) or self.running)

    @property
    def num_waiting(self) -> int:
        """The number of sequences that wait, for a slot or for the first of their request."""
        return len(self.waiting) + sum(len(s.followers) for s in (*self.waiting, *self.running))

    def add(self, sequence: Sequence, *followers: Sequence) -> None:
        """Add the sequences of one request."""
        sequence.followers = list(followers)
        self._enqueue(sequence)

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

        A sequence that gets none has come to its end. Returns how many each took: none behind its
        end.
        """
        for scheduled in batch.scheduled:
            self.pool.advance(scheduled.sequence, scheduled.num_new_tokens)
        return [
            self._extend(scheduled, taken)
            for scheduled, taken in zip(batch.sampled, token_ids, strict=True)
        ]

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence, finished or aborted, wherever it stands."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence in self.waiting:  # a follower may not have joined it yet
            self.waiting.remove(sequence)
        self.pool.free(sequence)
        sequence.status = SequenceStatus.FINISHED

    def _enqueue(self, sequence: Sequence) -> None:
        caller = sequence.request.caller
        self.waiting.push(caller.name, caller.weight, sequence)

    def _grow_running(self) -> None:
        """Make room for each running sequence's next tokens, preempting others where needed."""
        for sequence in list(self.running):
            while sequence.status is SequenceStatus.RUNNING and not self.pool.allocate(sequence):
                self._preempt(last_to_keep(use_by_caller(self.running, {})))

    def _admit_waiting(self) -> None:
        """Admit while there is room for a prompt and one more block for each that runs already.

        Once there is none for the sequence whose turn it is, callers below their share take what
        they lack from those above their own.
        """
        while (sequence := self.waiting.first()) is not None:
            if self._allocate(sequence):
                self._num_passed = 0
                self._start(self.waiting.pop())
            elif (caller := self._claimant()) is not None:
                self._num_passed += 1
                self._start(self.waiting.pop(caller))
            else:
                return

    def _start(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.RUNNING
        insort(self.running, sequence, key=_rank)
        if sequence.num_cached_tokens is None:
            self._count_cached(sequence)

    def _allocate(self, sequence: Sequence) -> bool:
        """Allocate the blocks of a sequence that waits, if there is a slot for it too."""
        has_slot = len(self.running) < self.max_num_seqs
        return has_slot and self.pool.allocate(sequence, num_spared=len(self.running))

    def _claimant(self) -> str | None:
        """The caller whose next sequence got its blocks by the caller's share; None if none did.

        The callers that wait are tried in the order of their turns. The sequence whose turn it is
        lets others pass `_MAX_OVERTAKES` times.
        """
        if self._num_passed >= _MAX_OVERTAKES:
            return None
        for caller in self.waiting.weights:
            sequence = self.waiting.first(caller)
            if sequence is not None and self._claim(sequence):
                return caller
        return None

    def _claim(self, sequence: Sequence) -> bool:
        """Allocate the blocks of a sequence that waits, if that is within its caller's share.

        Preempts sequences of callers above theirs as far as it takes.
        """
        num_slots, num_blocks = self.max_num_seqs, self.pool.num_blocks
        num_wanted = -(-sequence.num_tokens // self.pool.block_size)
        uses = use_by_caller(self.running, self.waiting.weights)
        own = uses[sequence.request.caller.name]
        if not (
            len(uses) > 1
            and own.is_within_share(own.num_running + 1, num_slots)
            and own.is_within_share(own.num_blocks + num_wanted, num_blocks)
        ):
            return False
        while not self._allocate(sequence):
            if len(self.running) < num_slots:
                victim = furthest_above_share(uses, lambda use: use.num_blocks, num_blocks)
            else:
                victim = furthest_above_share(uses, lambda use: use.num_running, num_slots)
            if victim is None:
                return False
            self._preempt(victim)
            uses = use_by_caller(self.running, self.waiting.weights)
        return True

    def _count_cached(self, sequence: Sequence) -> None:
        """Note what a sequence that is first admitted was saved. Its request's own does not count,
        and one that has to compute its prompt has not looked for it."""
        sequence.num_cached_tokens = sequence.num_computed_tokens
        if sequence.index == 0 and not sequence.positions_without_logprobs:
            self.num_prefix_cache_queries += sequence.num_prompt_tokens
            self.num_prefix_cache_hits += sequence.num_cached_tokens

    def _share_budget(self) -> Iterator[ScheduledSequence]:
        """Give each sequence that decodes its token, and divide the rest among prompts by caller.

        Of a caller's prompts the first gets all that it can use before the next gets any.
        """
        decoding = [s for s in self.running if s.num_uncomputed_tokens == 1]
        yield from (ScheduledSequence(s, 1, is_sampled=True) for s in decoding)
        prefilling = [s for s in self.running if s.num_uncomputed_tokens > 1]
        uses = use_by_caller(prefilling, {})
        grants = split(
            self.max_num_batched_tokens - len(decoding),
            [sum(s.num_uncomputed_tokens for s in use.running) for use in uses.values()],
            [use.weight for use in uses.values()],
        )
        budgets = dict(zip(uses, grants, strict=True))
        for sequence in prefilling:
            caller, num_uncomputed = sequence.request.caller.name, sequence.num_uncomputed_tokens
            num_new_tokens = min(num_uncomputed, budgets[caller])
            if num_new_tokens:
                budgets[caller] -= num_new_tokens
                yield ScheduledSequence(sequence, num_new_tokens, num_new_tokens == num_uncomputed)

    def _add_drafts(self, scheduled: list[ScheduledSequence]) -> Iterator[ScheduledSequence]:
        """Let those that are sampled share what a small step leaves; a share not used passes on."""
        limit = min(_MAX_TOKENS_WITH_DRAFTS, self.max_num_batched_tokens)
        num_spare = limit - sum(s.num_tokens for s in scheduled)
        num_sharing = sum(s.is_sampled for s in scheduled)
        for s in scheduled:
            drafted = self._draft(s, num_spare // num_sharing) if s.is_sampled else s
            num_spare -= len(drafted.draft_token_ids)
            num_sharing -= s.is_sampled
            yield drafted

    def _draft(self, scheduled: ScheduledSequence, limit: int) -> ScheduledSequence:
        """At most `limit` tokens. They preempt nobody and leave a block for each that runs."""
        sequence = scheduled.sequence
        num_useful = sequence.max_tokens - sequence.num_output_tokens - 1  # one is sampled anyway
        limit = max(0, min(limit, num_useful, self.num_speculative_tokens))
        grammar = sequence.grammar
        forced = grammar.forced_tokens()[:limit] if grammar is not None and limit else ()
        draft = forced or sequence.lookup.propose(sequence.token_ids, limit)
        if draft and self.pool.allocate(
            sequence, num_draft_tokens=len(draft), num_spared=len(self.running)
        ):
            return replace(scheduled, draft_token_ids=draft, is_draft_forced=bool(forced))
        return scheduled

    def _extend(self, scheduled: ScheduledSequence, token_ids: tuple[int, ...]) -> int:
        """Append what was sampled. All but the last were in the draft, and so are computed."""
        sequence, num_accepted = scheduled.sequence, max(0, len(token_ids) - 1)
        if scheduled.draft_token_ids:
            self.num_draft_tokens += len(scheduled.draft_token_ids)
            self.num_accepted_tokens += num_accepted
            if not scheduled.is_draft_forced:
                sequence.lookup.record(num_accepted)
        num_taken = sequence.extend(token_ids)
        self.pool.advance(sequence, max(0, num_taken - 1))
        if not token_ids:
            sequence.end()
        self._release_followers(sequence)
        if sequence.finish_reason is not None:
            self.finish(sequence)
        return num_taken

    def _release_followers(self, sequence: Sequence) -> None:
        """Its prompt has been computed."""
        for follower in sequence.followers:
            self._enqueue(follower)
        sequence.followers = []

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence)
        sequence.status = SequenceStatus.WAITING
        self._enqueue(sequence)
        self.num_preemptions += 1
