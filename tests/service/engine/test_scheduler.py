import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from service.domain.engine import Caller, FinishReason
from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_pool import BlockPool
from service.engine.scheduler import CROWDED_FACTOR, MANY_PROMPTS, Scheduler
from service.engine.sequence import Sequence, SequenceStatus
from service.engine.speculation import accept
from service.engine.step_time import StepSize
from tests.fakes.constraint import FakeConstraint
from tests.service.engine.requests import make_request

MAX_MODEL_LEN = 1000


def make_scheduler(
    *,
    num_blocks: int = 100,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 100,
    has_prefix_caching: bool = True,
    num_speculative_tokens: int = 0,
) -> Scheduler:
    pool = BlockPool(num_blocks, 4, has_prefix_caching=has_prefix_caching)
    return Scheduler(pool, max_num_seqs, max_num_batched_tokens, num_speculative_tokens)


def add(
    scheduler: Scheduler, *prompts: int | tuple[int, ...], max_tokens: int = 50
) -> list[Sequence]:
    sequences = [
        Sequence(i, make_request(prompt, max_tokens), MAX_MODEL_LEN)
        for i, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def step(scheduler: Scheduler) -> Batch:
    batch = scheduler.schedule()
    scheduler.postprocess(batch, [(1,)] * len(batch.sampled))
    return batch


def parts(batch: Batch) -> list[tuple[int, int, bool]]:
    return [(s.sequence.request_id, s.num_new_tokens, s.is_sampled) for s in batch.scheduled]


def test_budget_smaller_than_max_num_seqs_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least max_num_seqs"):
        make_scheduler(max_num_seqs=8, max_num_batched_tokens=7)


def test_no_sequences_no_batch() -> None:
    scheduler = make_scheduler()
    assert not scheduler.has_unfinished
    assert parts(scheduler.schedule()) == []


def test_prompts_are_batched_and_then_decoded() -> None:
    scheduler = make_scheduler()
    add(scheduler, 5, 7)
    assert parts(step(scheduler)) == [(0, 5, True), (1, 7, True)]
    assert parts(step(scheduler)) == [(0, 1, True), (1, 1, True)]


def test_long_prompt_is_computed_in_chunks_and_sampled_at_its_end() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    add(scheduler, 20)
    batches = [parts(step(scheduler)) for _ in range(4)]
    assert batches == [[(0, 8, False)], [(0, 8, False)], [(0, 4, True)], [(0, 1, True)]]


def test_long_prompt_gets_the_budget_that_streams_leave() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    add(scheduler, 3)
    step(scheduler)
    (long,) = add(scheduler, 20)
    long.request_id = 9
    assert parts(step(scheduler)) == [(0, 1, True), (9, 7, False)]


def test_one_token_of_a_chunk_stands_with_the_single_tokens() -> None:
    """The budget leaves one token of the second prompt, after a longer chunk."""
    scheduler = make_scheduler(max_num_batched_tokens=7)
    add(scheduler, 6, 5)
    assert parts(step(scheduler)) == [(1, 1, False), (0, 6, True)]


def test_no_more_run_than_may() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    sequences = add(scheduler, 3, 3, 3)
    step(scheduler)
    assert [s.status for s in sequences] == [
        SequenceStatus.RUNNING,
        SequenceStatus.RUNNING,
        SequenceStatus.WAITING,
    ]


def test_large_prompt_at_the_head_is_not_overtaken() -> None:
    scheduler = make_scheduler(num_blocks=6)
    sequences = add(scheduler, 12, 20, 1)
    step(scheduler)
    assert scheduler.running == sequences[:1]
    assert list(scheduler.waiting) == sequences[1:]


def test_admission_leaves_a_block_for_each_that_runs() -> None:
    scheduler = make_scheduler(num_blocks=5)
    sequences = add(scheduler, 4, 4, 5)
    step(scheduler)
    assert scheduler.running == sequences[:2]
    assert scheduler.pool.num_free == 3


def test_last_sequence_is_preempted_and_computed_again() -> None:
    scheduler = make_scheduler(num_blocks=4, has_prefix_caching=False)
    first, second = add(scheduler, 7, 4)
    while scheduler.num_preemptions == 0:
        step(scheduler)
    assert scheduler.running == [first]
    assert second.status is SequenceStatus.WAITING
    assert (second.block_ids, second.num_computed_tokens) == ([], 0)
    assert second.num_output_tokens > 1
    scheduler.finish(first)
    assert parts(step(scheduler)) == [(1, 4 + second.num_output_tokens - 1, True)]


def test_preempted_sequence_reuses_its_cached_blocks() -> None:
    scheduler = make_scheduler(num_blocks=5)
    first, second = add(scheduler, (5,) * 4, 9)
    assert step(scheduler).num_tokens == 13
    while scheduler.num_preemptions == 0:
        step(scheduler)
    step(scheduler)
    assert (first.num_tokens, second.num_tokens) == (10, 13)
    scheduler.finish(first)
    # It had three full blocks. The first sequence has taken the last of them.
    assert parts(step(scheduler)) == [(1, 13 - 8, True)]
    assert second.num_cached_tokens == 0, "that is of the first admission"
    assert scheduler.num_prefix_cache_queries == 13
    assert scheduler.num_prefix_cache_hits == 0


def test_repeated_prompt_is_not_computed_again() -> None:
    scheduler = make_scheduler()
    (first,) = add(scheduler, 10, max_tokens=3)
    while scheduler.has_unfinished:
        step(scheduler)
    again, longer, other = add(scheduler, 10, 11, 3)
    assert parts(step(scheduler)) == [(0, 2, True), (1, 3, True), (2, 3, True)]
    assert [s.num_cached_tokens for s in (first, again, longer, other)] == [0, 8, 8, 0]
    assert (scheduler.num_prefix_cache_queries, scheduler.num_prefix_cache_hits) == (34, 16)


def test_output_is_cached_for_the_next_turn() -> None:
    scheduler = make_scheduler()
    (first,) = add(scheduler, 6, max_tokens=8)
    while scheduler.has_unfinished:
        step(scheduler)
    second = Sequence(9, make_request((*first.token_ids, 5, 5)), MAX_MODEL_LEN)
    scheduler.add(second)
    step(scheduler)
    assert second.num_cached_tokens == 12  # of 14: the last token was never computed


def test_shared_blocks_leave_room_for_more_sequences() -> None:
    """Two prompts of 12 tokens share two of 6 blocks, of which one must stay free."""
    scheduler = make_scheduler(num_blocks=6)
    sequences = add(scheduler, 12, 12)
    step(scheduler)
    assert scheduler.running == sequences[:1]
    step(scheduler)
    assert scheduler.running == sequences
    assert scheduler.pool.num_free == 1


def drafts(batch: Batch) -> list[int]:
    return [len(s.draft_token_ids) for s in batch.scheduled]


def learn(scheduler: Scheduler, *, token_s: float) -> None:
    """Record steps of 1 s and the given time for each token after the first."""
    for _ in range(50):
        for n in (1, 2, 8, 64):
            scheduler.step_time.record(StepSize(n, n, n), 1.0 + (n - 1) * token_s)


def test_draft_is_computed_and_accepted_tokens_are_appended() -> None:
    scheduler = make_scheduler(num_speculative_tokens=4)
    learn(scheduler, token_s=0.0)
    (sequence,) = add(scheduler, (7,) * 6)
    batch = scheduler.schedule()
    assert batch.scheduled[0].token_ids == [7] * 10
    assert (batch.num_tokens, len(sequence.block_ids)) == (10, 3)
    assert scheduler.postprocess(batch, [(7, 7, 8)]) == [3]
    assert sequence.token_ids[6:] == [7, 7, 8]
    assert sequence.num_computed_tokens == 8
    batch = scheduler.schedule()
    assert batch.scheduled[0].token_ids == [8]
    assert (scheduler.num_draft_tokens, scheduler.num_accepted_tokens) == (4, 2)


def test_tokens_after_the_end_are_dropped() -> None:
    scheduler = make_scheduler(num_speculative_tokens=4)
    learn(scheduler, token_s=0.0)
    request = make_request((7,) * 6, max_tokens=20, stop_token_ids=frozenset({7}))
    sequence = Sequence(0, request, MAX_MODEL_LEN)
    scheduler.add(sequence)
    assert scheduler.postprocess(scheduler.schedule(), [(7, 7, 7, 7, 7)]) == [1]
    assert sequence.token_ids == [7] * 7
    assert sequence.status is SequenceStatus.FINISHED


def test_drafts_are_for_sequences_whose_tokens_repeat() -> None:
    scheduler = make_scheduler(num_speculative_tokens=4)
    learn(scheduler, token_s=0.0)
    add(scheduler, (1, 2, 3, 4), (7,) * 4)
    assert drafts(scheduler.schedule()) == [0, 4]


def test_expensive_tokens_get_no_drafts() -> None:
    scheduler = make_scheduler(num_speculative_tokens=8)
    learn(scheduler, token_s=0.6)
    add(scheduler, (7,) * 4)
    assert drafts(scheduler.schedule()) == [0]


def test_drafts_keep_the_budget() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=9, num_speculative_tokens=8)
    learn(scheduler, token_s=0.0)
    add(scheduler, (7,) * 3, (7,) * 3)
    assert drafts(scheduler.schedule()) == [2, 1]


def test_drafts_leave_a_block_for_each_that_runs() -> None:
    scheduler = make_scheduler(num_blocks=3, num_speculative_tokens=5)
    learn(scheduler, token_s=0.0)
    add(scheduler, (7,) * 4)
    assert drafts(scheduler.schedule()) == [0]  # five more tokens would need both free blocks
    scheduler.num_speculative_tokens = 4
    assert drafts(scheduler.schedule()) == [4]


def test_preempted_sequences_wait_before_those_that_never_ran() -> None:
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=3)
    sequences = add(scheduler, 4, 4, 4, 4)
    while scheduler.num_preemptions < 2:
        step(scheduler)
    assert [*scheduler.running, *scheduler.waiting] == sequences


def with_priorities(scheduler: Scheduler, *priorities: int, prompt: int = 4) -> list[Sequence]:
    sequences = [
        Sequence(i, make_request(prompt, 50, priority=priority), MAX_MODEL_LEN)
        for i, priority in enumerate(priorities)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def test_lower_priority_value_is_admitted_first_then_arrival_order() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    normal, late, urgent, normal_too, urgent_too = with_priorities(scheduler, 0, 9, -1, 0, -1)
    step(scheduler)
    assert scheduler.running == [urgent, urgent_too]
    assert list(scheduler.waiting) == [normal, normal_too, late]


def test_running_sequence_is_not_preempted_for_a_new_one() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    (first,) = with_priorities(scheduler, 5)
    step(scheduler)
    urgent = Sequence(7, make_request(4, 50, priority=-5), MAX_MODEL_LEN)
    scheduler.add(urgent)
    step(scheduler)
    assert scheduler.running == [first]
    assert scheduler.num_preemptions == 0


def test_highest_priority_value_is_preempted_first_then_the_latest() -> None:
    scheduler = make_scheduler(num_blocks=6, max_num_seqs=3)
    patient, first, second = with_priorities(scheduler, 3, 0, 0)
    while scheduler.num_preemptions < 1:
        step(scheduler)
    assert (scheduler.running, list(scheduler.waiting)) == ([first, second], [patient])
    while scheduler.num_preemptions < 2:
        step(scheduler)
    assert (scheduler.running, list(scheduler.waiting)) == ([first], [second, patient])


def test_followers_join_the_queue_in_their_request_s_place() -> None:
    scheduler = make_scheduler(max_num_seqs=1, max_num_batched_tokens=4)
    request = make_request(6, 3, n=3)
    first, *followers = [Sequence(0, request, MAX_MODEL_LEN, i) for i in range(3)]
    scheduler.add(first, *followers)
    (other,) = add(scheduler, 3)
    other.request_id = 1
    step(scheduler)
    assert (scheduler.running, list(scheduler.waiting)) == ([first], [other])
    assert scheduler.num_waiting == 3
    step(scheduler)
    assert list(scheduler.waiting) == [*followers, other]
    assert scheduler.num_waiting == 3


def test_sequence_without_tokens_finishes() -> None:
    scheduler = make_scheduler()
    (sequence,) = add(scheduler, 3)
    assert scheduler.postprocess(scheduler.schedule(), [()]) == [0]
    assert sequence.finish_reason is FinishReason.STOP
    assert (sequence.status, sequence.num_output_tokens) == (SequenceStatus.FINISHED, 0)
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def test_forced_tokens_are_a_draft_at_any_cost() -> None:
    scheduler = make_scheduler(num_speculative_tokens=3)
    constraint = FakeConstraint(((5, 6, 7, 8, 9),), end=0)
    request = replace(make_request((7,) * 6, 50), constraint=constraint)
    scheduler.add(Sequence(0, request, MAX_MODEL_LEN))
    batch = scheduler.schedule()
    assert batch.scheduled[0].draft_token_ids == (5, 6, 7)
    scheduler.postprocess(batch, [(5, 6, 7, 8)])
    batch = scheduler.schedule()
    assert batch.scheduled[0].draft_token_ids == (9, 0)


def test_finished_sequence_leaves_in_the_step_that_ends_it() -> None:
    scheduler = make_scheduler()
    (sequence,) = add(scheduler, 3, max_tokens=1)
    step(scheduler)
    assert sequence.status is SequenceStatus.FINISHED
    assert sequence.finish_reason is FinishReason.LENGTH
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert not scheduler.has_unfinished


def test_aborting_is_finishing_wherever_it_stands() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    running, waiting = add(scheduler, 3, 3)
    step(scheduler)
    scheduler.finish(waiting)
    scheduler.finish(running)
    scheduler.finish(running)
    assert not scheduler.has_unfinished
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def by_caller(sequences: Iterable[Sequence]) -> dict[str, list[Sequence]]:
    lines: dict[str, list[Sequence]] = {}
    for sequence in sequences:
        lines.setdefault(sequence.request.caller.name, []).append(sequence)
    return lines


A, B, C = Caller("a"), Caller("b"), Caller("c")


def add_for(
    scheduler: Scheduler, caller: Caller, *priorities: int, prompt: int = 4, first_id: int = 0
) -> list[Sequence]:
    sequences = [
        Sequence(i, make_request(prompt, 50, priority=priority, caller=caller), MAX_MODEL_LEN)
        for i, priority in enumerate(priorities, first_id)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def test_callers_take_turns_at_free_slots() -> None:
    scheduler = make_scheduler(max_num_seqs=4)
    many = add_for(scheduler, A, *[0] * 10)
    (one,) = add_for(scheduler, B, 0, first_id=10)
    step(scheduler)
    assert scheduler.running == [*many[:3], one]


def test_caller_below_its_share_takes_a_slot_of_one_above_its_own() -> None:
    scheduler = make_scheduler(max_num_seqs=4)
    many = add_for(scheduler, A, *[0] * 10)
    step(scheduler)
    assert scheduler.running == many[:4]
    late = add_for(scheduler, B, 0, 0, 0, first_id=10)
    step(scheduler)
    assert scheduler.running == [*many[:2], *late[:2]]
    step(scheduler)  # both callers have their shares
    assert scheduler.running == [*many[:2], *late[:2]]
    assert scheduler.num_preemptions == 2


def test_priority_counts_for_nothing_among_different_callers() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    urgent = add_for(scheduler, A, *[-1000] * 6)
    (modest,) = add_for(scheduler, B, 1000, first_id=6)
    step(scheduler)
    assert scheduler.running == [urgent[0], modest]


def test_share_of_slots_follows_the_weights() -> None:
    scheduler = make_scheduler(max_num_seqs=8)
    light = add_for(scheduler, A, *[0] * 8)
    step(scheduler)
    heavy = add_for(scheduler, Caller("b", weight=3), *[0] * 8, first_id=8)
    step(scheduler)
    assert scheduler.running == [*light[:2], *heavy[:6]]


def test_callers_without_a_whole_slot_as_their_share_wait_for_a_turn() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    (first,) = add_for(scheduler, A, 0)
    step(scheduler)
    (second,) = add_for(scheduler, B, 0, first_id=1)
    step(scheduler)
    assert (scheduler.running, scheduler.num_preemptions) == ([first], 0)
    scheduler.finish(first)
    step(scheduler)
    assert scheduler.running == [second]


def test_caller_below_its_share_of_the_cache_takes_blocks_of_one_above_its_own() -> None:
    scheduler = make_scheduler(num_blocks=20, has_prefix_caching=False, max_num_seqs=8)
    large = add_for(scheduler, A, 0, 0, 0, prompt=20)  # each needs 6 blocks, with its first token
    step(scheduler)
    assert scheduler.running == large
    (small,) = add_for(scheduler, B, 0, prompt=16, first_id=3)
    step(scheduler)
    assert scheduler.running == [*large[:2], small]


def test_only_running_sequence_of_a_caller_is_not_preempted_for_another() -> None:
    scheduler = make_scheduler(num_blocks=20, has_prefix_caching=False, max_num_seqs=8)
    (large,) = add_for(scheduler, A, 0, prompt=72)
    step(scheduler)
    add_for(scheduler, B, 0, prompt=16, first_id=1)
    step(scheduler)
    assert scheduler.running == [large]


def test_full_cache_preempts_the_caller_that_holds_most_of_it() -> None:
    scheduler = make_scheduler(num_blocks=13, has_prefix_caching=False, max_num_seqs=8)
    (small,) = add_for(scheduler, B, 0, prompt=4)
    large = add_for(scheduler, A, 0, 0, prompt=14, first_id=1)
    while scheduler.num_preemptions == 0:
        step(scheduler)
    assert scheduler.running == [small, large[0]]


def test_budget_for_prompts_is_divided_among_callers() -> None:
    scheduler = make_scheduler(max_num_seqs=8, max_num_batched_tokens=90)
    add_for(scheduler, A, 0, 0, 0, prompt=100)
    add_for(scheduler, B, 0, prompt=20, first_id=3)
    add_for(scheduler, C, 0, prompt=60, first_id=4)
    assert parts(step(scheduler)) == [(0, 35, False), (3, 20, True), (4, 35, False)]


def test_more_urgent_sequences_of_a_caller_overtake_another_so_many_times_only() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    (patient,) = add_for(scheduler, A, 7)
    for i in range(1, 100):
        add_for(scheduler, A, -7, first_id=i)
    served = 0
    while patient.status is SequenceStatus.WAITING:
        step(scheduler)
        for sequence in list(scheduler.running):
            scheduler.finish(sequence)
            served += 1
    assert served == 17


class Schedules(RuleBasedStateMachine):
    """Random arrivals, aborts and steps with a small cache, and the invariants of the scheduler."""

    @initialize(
        num_blocks=st.integers(1, 12),
        block_size=st.integers(1, 5),
        max_num_seqs=st.integers(1, 6),
        spare_tokens=st.integers(0, 20),
        has_prefix_caching=st.booleans(),
        num_speculative_tokens=st.sampled_from([0, 1, 8]),
        max_step_s=st.sampled_from([math.inf, 1.0, 0.01]),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        spare_tokens: int,
        has_prefix_caching: bool,
        num_speculative_tokens: int,
        max_step_s: float,
    ) -> None:
        self.pool = BlockPool(num_blocks, block_size, has_prefix_caching=has_prefix_caching)
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs,
            max_num_seqs + spare_tokens,
            num_speculative_tokens,
            max_step_s,
        )
        self.unfinished: list[Sequence] = []  # in the order of their arrival
        self.num_added = 0

    @precondition(lambda self: self.pool.num_tokens > 1)
    @rule(
        prompt=st.integers(1, 40),
        max_tokens=st.integers(1, 30),
        n=st.sampled_from([1, 1, 1, 3]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        caller=st.sampled_from([Caller(), Caller(), Caller("a"), Caller("b", weight=3)]),
    )
    def add(self, prompt: int, max_tokens: int, n: int, priority: int, caller: Caller) -> None:
        longest = self.pool.num_tokens
        request = make_request(
            min(prompt, longest - 1), max_tokens, n=n, priority=priority, caller=caller
        )
        sequences = [Sequence(self.num_added, request, longest, index) for index in range(n)]
        self.num_added += 1
        self.unfinished += sequences
        self.scheduler.add(*sequences)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.unfinished), label="aborted")
        self.finish_request(sequence)

    def finish_request(self, sequence: Sequence) -> None:
        for sibling in [s for s in self.unfinished if s.request is sequence.request]:
            self.unfinished.remove(sibling)
            self.scheduler.finish(sibling)
            assert sibling.block_ids == []

    @rule(times=st.integers(1, 8), step_s=st.floats(1e-4, 10.0))
    def run(self, times: int, step_s: float) -> None:
        for _ in range(times):
            self.step(step_s)

    @rule()
    def fail(self) -> None:
        """Run a step whose batch cannot be computed, so its sequences are ended."""
        for scheduled in self.scheduler.schedule().scheduled:
            self.finish_request(scheduled.sequence)

    def step(self, step_s: float = 0.1) -> None:
        scheduler = self.scheduler
        before = list(scheduler.running)
        batch = scheduler.schedule()
        self.blocks_are_free_or_held()
        assert bool(batch.scheduled) == bool(self.unfinished)
        if before:
            firsts = [line[0] for line in by_caller(before).values()]
            oldest = min(firsts, key=lambda s: s.arrival)
            if oldest not in scheduler.running:
                first = by_caller(scheduler.running)[oldest.request.caller.name][0]
                is_more_urgent = first.request.priority < oldest.request.priority
                assert is_more_urgent, "the oldest of the first ones was preempted"
        if batch.scheduled:
            assert scheduler.running[0] in [s.sequence for s in batch.scheduled]
        self.check(batch)
        if batch.scheduled:
            scheduler.step_time.record(batch.size, step_s)
        scheduler.postprocess(batch, [self.sample(s) for s in batch.sampled])
        for sequence in (s.sequence for s in batch.sampled):
            assert sequence.num_uncomputed_tokens == 1 or sequence.finish_reason is not None
            if sequence.finish_reason is not None:
                assert sequence.status is SequenceStatus.FINISHED
                self.unfinished.remove(sequence)

    def sample(self, scheduled: ScheduledSequence) -> tuple[int, ...]:
        """Return the tokens 0, 1, 0, 1, ... with some 5s, which no draft contains."""
        start, draft = scheduled.sequence.num_tokens, scheduled.draft_token_ids
        end = start + len(draft) + 1
        return accept([5 if i % 11 == 0 else i % 2 for i in range(start, end)], draft)

    def check(self, batch: Batch) -> None:
        assert batch.num_tokens <= self.scheduler.max_num_batched_tokens
        counts = [s.num_tokens for s in batch.scheduled]
        assert all(counts)
        assert [n > 1 for n in counts] == sorted(n > 1 for n in counts), "singles come first"
        members = [s.sequence for s in batch.scheduled]
        assert len(set(members)) == len(members)
        for scheduled in batch.scheduled:
            sequence = scheduled.sequence
            end = sequence.num_computed_tokens + scheduled.num_new_tokens
            assert scheduled.is_sampled == (end == sequence.num_tokens)
            assert sequence.status is SequenceStatus.RUNNING
            assert len(scheduled.token_ids) == scheduled.num_tokens
            assert scheduled.is_sampled or not scheduled.draft_token_ids
            num_tokens = sequence.num_tokens + len(scheduled.draft_token_ids)
            assert len(sequence.block_ids) * self.pool.block_size >= num_tokens
            written = sequence.block_ids[sequence.num_computed_tokens // self.pool.block_size :]
            assert all(self.num_holders()[block] == 1 for block in written), "shared and written"
        missed = set(self.scheduler.running) - set(members)
        assert all(s.num_uncomputed_tokens > 1 for s in missed), "a stream was stalled"
        self.check_time(batch)

    def check_time(self, batch: Batch) -> None:
        scheduler, times = self.scheduler, self.scheduler.step_time
        decoding = [s for s in batch.scheduled if s.sequence.num_uncomputed_tokens == 1]
        if not decoding or not times.is_known:
            return
        singles = StepSize.total(replace(s, draft_token_ids=()).size for s in decoding)
        num_prompts = sum(
            s.num_uncomputed_tokens > 1 and not s.is_loading for s in scheduler.running
        )
        factor = CROWDED_FACTOR if num_prompts >= MANY_PROMPTS else 1.0
        budget_s = max(factor * scheduler.max_step_s, 1.25 * times.predict(singles)) * (1 + 1e-9)
        num_prefill = sum(s.num_new_tokens for s in batch.scheduled if s not in decoding)
        num_drafted = sum(len(s.draft_token_ids) for s in batch.scheduled)
        is_in_time = times.predict(batch.size) <= budget_s
        assert is_in_time or (num_prefill <= 16 and not num_drafted), "streams were delayed"

    def num_holders(self) -> Counter[int]:
        return Counter(block for s in self.scheduler.running for block in s.block_ids)

    @invariant()
    def blocks_are_free_or_held(self) -> None:
        if not hasattr(self, "pool"):
            return
        for sequence in self.scheduler.running:
            assert len(set(sequence.block_ids)) == len(sequence.block_ids)
        held = self.num_holders()
        assert set(held) <= set(range(self.pool.num_blocks))
        assert len(held) + self.pool.num_free == self.pool.num_blocks
        assert all(not s.block_ids for s in self.scheduler.waiting)

    @invariant()
    def everyone_has_a_place_by_rank(self) -> None:
        if not hasattr(self, "pool"):
            return
        scheduler = self.scheduler
        for queue in (scheduler.running, *by_caller(scheduler.waiting).values()):
            assert queue == sorted(queue, key=lambda s: s.rank)
        members = [*scheduler.running, *scheduler.waiting]
        members += [follower for s in members for follower in s.followers]
        assert sorted(s.rank for s in members) == sorted(s.rank for s in self.unfinished)
        assert scheduler.num_waiting == len(members) - len(scheduler.running)
        assert len(scheduler.running) <= scheduler.max_num_seqs
        # A sequence overtakes followers that have not joined yet, and less urgent ones.
        for line in by_caller(members).values():
            if all(s.request.priority == 0 and s.request.n == 1 for s in line):
                assert line == sorted(line, key=lambda s: s.rank), "first come, first served"

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        while self.unfinished:  # this ends, since each step advances the first of them
            self.step()
        assert not self.scheduler.has_unfinished
        assert self.pool.num_free == self.pool.num_blocks


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(stateful_step_count=40)
