import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.engine import FinishReason, Request, TokenOutput
from service.domain.sampling import SamplingParams
from service.engine.block_pool import BlockPool
from service.engine.core import DeviceLost, EngineCore
from service.engine.scheduler import Scheduler
from service.errors import DeadlinePassed, StepFailed
from tests.fakes.runner import FakeRunner, answer, make_core
from tests.service.engine.requests import make_request

BLOCK_SIZE = 4
LONG_AGO = 0.0


def core_of(
    *,
    num_blocks: int = 50,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 32,
    has_prefix_caching: bool = True,
    num_speculative_tokens: int = 0,
) -> EngineCore:
    pool = BlockPool(num_blocks, BLOCK_SIZE, has_prefix_caching=has_prefix_caching)
    scheduler = Scheduler(pool, max_num_seqs, max_num_batched_tokens, num_speculative_tokens)
    return make_core(FakeRunner(BLOCK_SIZE), scheduler)


def is_empty(core: EngineCore) -> bool:
    stats = core.stats
    return (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (
        0,
        0,
        stats.num_kv_blocks,
    )


def run(core: EngineCore) -> dict[int, list[TokenOutput]]:
    """Step until all sequences have finished, and return the outputs of each sequence."""
    outputs: dict[int, list[TokenOutput]] = {}
    while core.has_unfinished:
        step = core.step()
        ids = []
        for output in step:
            assert isinstance(output.output, TokenOutput)
            ids.append((output.request_id, output.output.index))
            outputs.setdefault(output.request_id, []).append(output.output)
        assert len(set(ids)) == len(ids)
    return outputs


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_one_request_is_answered_token_by_token() -> None:
    core, request = core_of(), make_request(5, max_tokens=3)
    core.add(3, request)
    outputs = run(core)
    assert tokens(outputs[3]) == answer(request, 200)
    assert [o.finish_reason for o in outputs[3]] == [None, None, FinishReason.LENGTH]
    assert [len(o.token_ids) for o in outputs[3]] == [1, 1, 1]
    assert is_empty(core)


def test_stop_token_ends_the_output_and_is_part_of_it() -> None:
    whole = answer(make_request(5, max_tokens=9), 200)
    end = max(whole.index(token) for token in whole)  # the token whose first occurrence is last
    assert end > 2
    core = core_of()
    core.add(0, make_request(5, max_tokens=9, stop_token_ids=frozenset({whole[end]})))
    outputs = run(core)[0]
    assert tokens(outputs) == whole[: end + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_output_without_limit_ends_with_the_context() -> None:
    core = core_of(num_blocks=3)
    core.add(0, make_request(5, max_tokens=None))
    outputs = run(core)[0]
    assert len(tokens(outputs)) == 3 * BLOCK_SIZE - 5
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_chunk_before_the_end_of_the_prompt_yields_no_token() -> None:
    core = core_of(max_num_batched_tokens=8)
    core.add(0, make_request(20))
    assert core.step() == []
    assert core.step() == []
    assert len(core.step()) == 1


def test_every_output_has_the_number_of_cached_tokens() -> None:
    core = core_of()
    core.add(0, make_request(9, max_tokens=2))
    run(core)
    core.add(1, make_request(9, max_tokens=2))
    assert [o.num_cached_tokens for o in run(core)[1]] == [8, 8]
    assert (core.stats.num_prefix_cache_queries, core.stats.num_prefix_cache_hits) == (18, 8)


def test_second_turn_reuses_the_cache_of_the_first() -> None:
    core, first = core_of(), make_request(9, max_tokens=8)
    core.add(0, first)
    said = tokens(run(core)[0])
    second = make_request((*first.prompt_token_ids, *said, 5, 5), max_tokens=3)
    core.add(1, second)
    outputs = run(core)[1]
    assert tokens(outputs) == answer(second, 200)
    assert outputs[0].num_cached_tokens == 16


def test_abort_during_prefill_keeps_computed_blocks_cached() -> None:
    core, request = core_of(max_num_batched_tokens=10), make_request(30, max_tokens=3)
    core.add(0, request)
    core.step()
    core.abort(0)
    core.add(1, request)
    outputs = run(core)[1]
    assert tokens(outputs) == answer(request, 200)
    assert outputs[0].num_cached_tokens == 8


def test_drafts_save_steps_and_change_no_token() -> None:
    request = make_request(5, max_tokens=100)
    plain, drafting = core_of(), core_of(num_speculative_tokens=8)
    for core in (plain, drafting):
        core.add(0, request)
        assert tokens(run(core)[0]) == answer(request, 200)
    assert plain.stats.num_draft_tokens == 0
    assert drafting.stats.num_draft_tokens > drafting.stats.num_accepted_tokens > 30
    assert drafting.stats.num_steps == 100 - drafting.stats.num_accepted_tokens
    assert is_empty(drafting)


@pytest.mark.parametrize("seed", range(5))
def test_drafts_change_no_draw(seed: int) -> None:
    sampling = SamplingParams(seed=seed, max_tokens=60)
    core, request = core_of(num_speculative_tokens=8), Request((1, 2, 3), sampling)
    core.add(0, request)
    assert tokens(run(core)[0]) == answer(request, 200)
    assert core.stats.num_accepted_tokens > 0


def test_stop_token_in_a_draft_ends_the_output() -> None:
    """Each token of the output is used as the stop token once."""
    whole = answer(make_request(5, max_tokens=60), 200)
    num_cut = 0
    for token in set(whole):
        core = core_of(num_speculative_tokens=8)
        core.add(0, make_request(5, max_tokens=60, stop_token_ids=frozenset({token})))
        outputs = run(core)[0]
        assert tokens(outputs) == whole[: whole.index(token) + 1]
        assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
        assert outputs[-1].finish_reason is FinishReason.STOP
        num_cut += len(outputs[-1].token_ids) > 1
        assert is_empty(core)
    assert num_cut > 0, "no stop token came inside a draft"


@pytest.mark.parametrize("max_tokens", range(1, 30))
def test_no_draft_goes_past_the_limit(max_tokens: int) -> None:
    core = core_of(num_speculative_tokens=8)
    core.add(0, make_request([7] * 9, max_tokens=max_tokens))
    outputs = run(core)[0]
    assert len(tokens(outputs)) == max_tokens
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_accepted_draft_tokens_are_cached() -> None:
    core, first = core_of(num_speculative_tokens=8), make_request(5, max_tokens=60)
    core.add(0, first)
    said = tokens(run(core)[0])
    assert core.stats.num_accepted_tokens > 0
    second = make_request((*first.prompt_token_ids, *said), max_tokens=3)
    core.add(1, second)
    outputs = run(core)[1]
    assert tokens(outputs) == answer(second, 200)
    assert outputs[0].num_cached_tokens == 64


def test_step_without_work_does_nothing() -> None:
    core = core_of()
    assert core.step() == []
    assert core.stats.num_steps == 0


@dataclass(frozen=True)
class Arrival:
    """A request, and the events before the next one."""

    text: int  # prompts with the same text share their beginning
    num_prompt_tokens: int
    max_tokens: int | None
    seed: int | None
    cache_salt: str
    n: int
    priority: int
    num_steps: int
    aborts: int | None  # the number of a request to abort, if it has arrived

    def request(self) -> Request:
        prompt = [20 * self.text + i * i % 7 for i in range(self.num_prompt_tokens)]
        request = make_request(
            prompt, self.max_tokens, cache_salt=self.cache_salt, n=self.n, priority=self.priority
        )
        if self.seed is None:
            return request
        return replace(request, sampling=SamplingParams(seed=self.seed, max_tokens=self.max_tokens))


arrivals = st.builds(
    Arrival,
    text=st.integers(0, 2),
    num_prompt_tokens=st.integers(1, 15),
    max_tokens=st.integers(1, 20) | st.none(),
    seed=st.integers(0, 3) | st.none(),
    cache_salt=st.sampled_from(["", "", "salt"]),
    n=st.sampled_from([1, 1, 1, 2, 5]),
    priority=st.sampled_from([0, 0, 0, -1, 7]),
    num_steps=st.integers(0, 4),
    aborts=st.none() | st.integers(0, 15),
)


@given(
    program=st.lists(arrivals, min_size=1, max_size=16),
    failing_runs=st.sets(st.integers(1, 60), max_size=8),
    num_blocks=st.integers(4, 12),
    max_num_seqs=st.integers(1, 6),
    spare_tokens=st.integers(0, 12),
    has_prefix_caching=st.booleans(),
    num_speculative_tokens=st.sampled_from([0, 1, 8]),
)
def test_random_schedules_give_each_request_its_own_tokens_or_error(
    program: list[Arrival],
    failing_runs: set[int],
    num_blocks: int,
    max_num_seqs: int,
    spare_tokens: int,
    has_prefix_caching: bool,
    num_speculative_tokens: int,
) -> None:
    """Batching, preemption, shared prefixes, drafts, aborts and failed steps, in a small cache."""
    pool = BlockPool(num_blocks, BLOCK_SIZE, has_prefix_caching=has_prefix_caching)
    scheduler = Scheduler(pool, max_num_seqs, max_num_seqs + spare_tokens, num_speculative_tokens)
    runner = FakeRunner(BLOCK_SIZE)
    runner.failing_runs = {n for n in failing_runs if not {n - 1, n - 2} <= failing_runs}
    core = make_core(runner, scheduler)
    got: dict[int, list[TokenOutput]] = {}
    ended: set[int] = set()

    def step() -> None:
        for output in core.step():
            assert output.request_id not in ended
            if isinstance(output.output, TokenOutput):
                got[output.request_id].append(output.output)
            else:
                assert isinstance(output.output, StepFailed)
                ended.add(output.request_id)

    for i, arrival in enumerate(program):
        core.add(i, arrival.request())
        got[i] = []
        for _ in range(arrival.num_steps):
            step()
        if arrival.aborts is not None and arrival.aborts <= i:
            core.abort(arrival.aborts)
            ended.add(arrival.aborts)
    while core.has_unfinished:
        step()
    for i, arrival in enumerate(program):
        said = by_index(got[i])
        for index in range(arrival.n):
            whole = answer(arrival.request(), num_blocks * BLOCK_SIZE, index)
            part = said.get(index, [])
            assert part == (whole[: len(part)] if i in ended else whole)
    assert is_empty(core)


def test_small_cache_causes_preemptions() -> None:
    """The random test above needs preemptions."""
    core = core_of(num_blocks=5)
    for i in range(4):
        core.add(i, make_request(4, max_tokens=12))
    run(core)
    assert core.stats.num_preemptions > 0


def test_request_waiting_past_its_deadline_fails_once() -> None:
    core = core_of(max_num_seqs=1)
    core.add(0, make_request(max_tokens=2))
    core.step()
    core.add(1, make_request(deadline=LONG_AGO))
    core.add(2, make_request(deadline=time.monotonic() + 1e6))
    outputs = core.step()
    assert [o.request_id for o in outputs] == [1, 0]
    assert isinstance(outputs[0].output, DeadlinePassed)
    assert set(run(core)) == {2}
    assert is_empty(core)


def test_expiry_is_reported_without_a_batch() -> None:
    core = core_of()
    core.add(0, make_request(deadline=LONG_AGO))
    (output,) = core.step()
    assert isinstance(output.output, DeadlinePassed)
    assert is_empty(core)
    assert core.stats.num_steps == 0


def test_running_sequence_is_not_dropped_at_its_deadline() -> None:
    """The layers above end it. The engine only checks deadlines of waiting requests."""
    core = core_of()
    request = make_request(deadline=time.monotonic() + 1e6)
    core.add(0, request)
    core.step()
    object.__setattr__(request, "deadline", LONG_AGO)
    assert set(run(core)) == {0}


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5])
def test_abort_frees_all_blocks_at_once(num_steps: int) -> None:
    """The abort comes while it waits, during its prefill, at its first token or later."""
    core = core_of(max_num_batched_tokens=8)
    core.add(0, make_request(20, max_tokens=20))
    for _ in range(num_steps):
        core.step()
    core.abort(0)
    assert is_empty(core)
    assert core.step() == []


def test_preempted_request_can_be_aborted() -> None:
    core = core_of(num_blocks=5)
    for i in range(2):
        core.add(i, make_request(4, max_tokens=14))
    while core.stats.num_preemptions == 0:
        core.step()
    core.abort(1)
    assert set(run(core)) == {0}
    assert is_empty(core)


def test_aborting_what_has_ended_or_never_was_is_nothing() -> None:
    core = core_of()
    core.add(0, make_request(max_tokens=1))
    run(core)
    core.abort(0)
    core.abort(5)
    assert is_empty(core)


def test_aborted_neighbour_changes_no_token() -> None:
    core, kept = core_of(num_blocks=8), make_request(3, max_tokens=12)
    core.add(0, make_request(9, max_tokens=20))
    core.add(1, kept)
    outputs = [o.output for _ in range(3) for o in core.step() if o.request_id == 1]
    core.abort(0)
    core.add(2, make_request(11, max_tokens=9))
    while core.has_unfinished:
        outputs += [o.output for o in core.step() if o.request_id == 1]
    assert [o.token_ids[0] for o in outputs if isinstance(o, TokenOutput)] == answer(kept, 32)


def test_stats_count_steps_and_blocks() -> None:
    core = core_of(max_num_seqs=1)
    core.add(0, make_request(5, max_tokens=4))
    core.add(1, make_request(5, max_tokens=4))
    core.step()
    stats = core.stats
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (1, 1, 1)
    assert (stats.num_kv_blocks, stats.num_free_kv_blocks) == (50, 48)


def by_index(outputs: list[TokenOutput]) -> dict[int, list[int]]:
    return {i: tokens([o for o in outputs if o.index == i]) for i in {o.index for o in outputs}}


def num_computed(core: EngineCore) -> int:
    runner = core._runner
    assert isinstance(runner, FakeRunner)
    return sum(s.num_new_tokens for batch in runner.batches for s in batch.scheduled)


@pytest.mark.parametrize("has_prefix_caching", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 6])
@pytest.mark.parametrize("max_num_seqs", [2, 16])
def test_sequences_of_a_request_share_one_prefill(
    has_prefix_caching: bool, max_tokens: int, max_num_seqs: int
) -> None:
    """Full blocks contain 16 of the 18 tokens. There are more sequences than running slots."""
    core = core_of(has_prefix_caching=has_prefix_caching, max_num_seqs=max_num_seqs)
    sampling = SamplingParams(seed=3, max_tokens=max_tokens)
    request = Request(tuple(range(18)), sampling, n=5)
    core.add(0, request)
    outputs = run(core)[0]
    assert by_index(outputs) == {i: answer(request, 200, i) for i in range(5)}
    assert len({tuple(said) for said in by_index(outputs).values()}) > 1
    assert num_computed(core) == 18 + 4 * (18 - 16) + 5 * (max_tokens - 1)
    assert {o.num_cached_tokens for o in outputs} == {0}
    assert [o.finish_reason for o in outputs].count(FinishReason.LENGTH) == 5
    assert core.stats.num_prefix_cache_queries == 18
    assert is_empty(core)


def test_first_of_several_sequences_equals_a_single_one() -> None:
    several = Request((1, 2, 3), SamplingParams(seed=8, max_tokens=9), n=3)
    single = replace(several, n=1)
    assert answer(several, 200, 0) == answer(single, 200)
    core = core_of()
    core.add(0, several)
    core.add(1, single)
    outputs = run(core)
    assert by_index(outputs[0])[0] == tokens(outputs[1])


def test_without_prefix_caching_requests_share_nothing() -> None:
    core = core_of(has_prefix_caching=False)
    for i in range(2):
        core.add(i, make_request(18, max_tokens=1, n=2))
        run(core)
    assert num_computed(core) == 2 * (18 + 2)


def test_other_sequences_wait_while_the_prompt_is_computed() -> None:
    core = core_of(max_num_batched_tokens=8)
    core.add(0, make_request(20, n=3))
    core.add(1, make_request(1))
    core.step()
    assert (core.stats.num_running, core.stats.num_waiting) == (2, 2)
    run(core)
    assert is_empty(core)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5])
def test_abort_frees_all_sequences_of_a_request(num_steps: int) -> None:
    core = core_of(max_num_batched_tokens=8, max_num_seqs=2)
    core.add(0, make_request(14, max_tokens=20, n=4))
    for _ in range(num_steps):
        core.step()
    core.abort(0)
    assert is_empty(core)
    assert not core.has_unfinished


def test_error_of_one_sequence_ends_its_request_once() -> None:
    core, runner = failing()
    runner.failing_runs = {3}
    core.add(0, make_request(5, max_tokens=9, n=5))
    core.step()
    core.step()
    ends = core.step()
    assert [(o.request_id, type(o.output)) for o in ends] == [(0, StepFailed)]
    assert is_empty(core)


def test_sequence_waiting_past_the_deadline_ends_its_request_once() -> None:
    core = core_of(max_num_seqs=1)
    request = make_request(5, max_tokens=9, n=4, deadline=time.monotonic() + 1e6)
    core.add(0, request)
    core.step()
    object.__setattr__(request, "deadline", LONG_AGO)
    ends = core.step()
    assert [(o.request_id, type(o.output)) for o in ends] == [(0, DeadlinePassed)]
    assert is_empty(core)


def failing(max_num_batched_tokens: int = 32) -> tuple[EngineCore, FakeRunner]:
    runner = FakeRunner(BLOCK_SIZE)
    return make_core(
        runner, Scheduler(BlockPool(50, BLOCK_SIZE), 2, max_num_batched_tokens)
    ), runner


def test_failed_step_fails_only_its_own_requests() -> None:
    core, runner = failing()
    runner.failing_runs = {2}
    waiting = make_request(4, max_tokens=5)
    for i in range(2):
        core.add(i, make_request(5, max_tokens=5))
    core.add(2, waiting)
    core.step()
    ends = core.step()
    assert [(o.request_id, type(o.output)) for o in ends] == [(0, StepFailed), (1, StepFailed)]
    assert (core.stats.num_running, core.stats.num_waiting) == (0, 1)
    assert (core.stats.num_steps, core.stats.num_failed_steps) == (2, 1)
    outputs = run(core)
    assert set(outputs) == {2}
    assert tokens(outputs[2]) == answer(waiting, 200)
    assert is_empty(core)


def test_failed_step_keeps_requests_outside_its_budget() -> None:
    core, runner = failing(max_num_batched_tokens=5)
    runner.failing_runs = {1}
    spared = make_request(4, max_tokens=5)
    core.add(0, make_request(5))
    core.add(1, spared)
    assert [o.request_id for o in core.step()] == [0]
    assert tokens(run(core)[1]) == answer(spared, 200)


def test_failed_step_caches_nothing_and_keeps_earlier_blocks() -> None:
    core, runner = failing(max_num_batched_tokens=10)
    runner.failing_runs = {2}
    request = make_request(30, max_tokens=5)
    core.add(0, request)
    assert core.step() == []
    assert isinstance(core.step()[0].output, StepFailed)
    assert is_empty(core)
    core.add(1, request)
    outputs = run(core)[1]
    assert tokens(outputs) == answer(request, 200)
    assert outputs[0].num_cached_tokens == 8


def test_three_failed_steps_in_a_row_are_the_end() -> None:
    core, runner = failing()
    runner.failing_runs = {1, 2, 4, 5, 6}
    request = make_request(5, max_tokens=1)
    for i in range(5):
        core.add(i, request)
        (output,) = core.step()
        assert isinstance(output.output, TokenOutput if i == 2 else StepFailed)
        assert is_empty(core)
    core.add(5, request)
    with pytest.raises(RuntimeError, match="run 6 fails"):
        core.step()


@pytest.mark.parametrize("error", [DeviceLost("gone"), KeyboardInterrupt()])
def test_sequence_without_allowed_token_finishes_at_once(error: BaseException) -> None:
    core, runner = failing()
    runner.error = error
    core.add(0, make_request())
    with pytest.raises(type(error)):
        core.step()


def test_longest_sequence_fills_the_cache_and_finishes() -> None:
    """The sequence runs by itself, after a cached prefix, and with drafts."""
    core = core_of(num_blocks=5, num_speculative_tokens=8)
    for i in range(3):
        request = make_request([7] * 19, max_tokens=None)
        core.add(i, request)
        core.add(10 + i, make_request([8] * 3, max_tokens=None))
        outputs = run(core)
        assert tokens(outputs[i]) == answer(request, 20)
        assert len(tokens(outputs[10 + i])) == 17
    assert is_empty(core)
