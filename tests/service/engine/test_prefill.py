"""The budgets of a step for prompts, on a simulated machine whose steps take known times."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.engine import Caller, Request, TokenOutput
from service.engine.block_pool import BlockPool
from service.engine.core import EngineCore
from service.engine.scheduler import Scheduler
from tests.fakes.runner import answer
from tests.fakes.timed_runner import COSTS, TimedRunner
from tests.service.engine.requests import make_request

BLOCK_SIZE = 16
MAX_STEP_S = 0.2
NUM_TOKENS = 512
MAX_MODEL_LEN = 3000


def make_core(
    runner: TimedRunner, max_step_s: float = MAX_STEP_S, num_blocks: int = 2000
) -> EngineCore:
    pool = BlockPool(num_blocks, BLOCK_SIZE, has_prefix_caching=False)
    scheduler = Scheduler(pool, 32, NUM_TOKENS, max_step_s=max_step_s)
    return EngineCore(scheduler, runner, MAX_MODEL_LEN, clock=runner.clock)


class Run:
    """The tokens of each request and the times at which its outputs arrived."""

    def __init__(self, runner: TimedRunner, core: EngineCore) -> None:
        self.runner = runner
        self.core = core
        self.tokens: dict[int, list[int]] = {}
        self.times: dict[int, list[float]] = {}

    def step(self) -> None:
        for output in self.core.step():
            assert isinstance(output.output, TokenOutput)
            self.tokens.setdefault(output.request_id, []).extend(output.output.token_ids)
            self.times.setdefault(output.request_id, []).append(self.runner.now_s)

    def finish(self) -> None:
        while self.core.has_unfinished:
            self.step()

    def stream(self, num_streams: int, max_tokens: int, prompt: int = 40) -> None:
        """Start streams, and compute their prompts."""
        for i in range(num_streams):
            self.core.add(i, make_request(prompt, max_tokens))
        while len(self.times) < num_streams:
            self.step()

    def worst_gap(self, request_id: int) -> float:
        times = self.times[request_id]
        return max(b - a for a, b in pairwise(times))


def long_prompt_beside_streams(
    runner: TimedRunner, num_streams: int = 4, max_step_s: float = MAX_STEP_S
) -> Run:
    run = Run(runner, make_core(runner, max_step_s))
    run.stream(num_streams, max_tokens=90)
    for _ in range(5):
        run.step()
    run.core.add(100, make_request(2000, 2))
    run.finish()
    return run


def largest_chunk(run: Run) -> int:
    return max(s.num_new_tokens for _, batch in run.runner.steps for s in batch.scheduled)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_running_streams_keep_their_pace_beside_a_long_prompt(scale: float) -> None:
    costs = tuple(scale * cost for cost in COSTS)
    run = long_prompt_beside_streams(TimedRunner(BLOCK_SIZE, costs, noise=0.05))
    assert max(run.worst_gap(i) for i in range(4)) < 1.3 * MAX_STEP_S


def test_time_budget_is_used() -> None:
    run = long_prompt_beside_streams(TimedRunner(BLOCK_SIZE))
    steps = [step_s for step_s, batch in run.runner.steps if batch.size.num_prefill_positions]
    full = sorted(steps[2:-2])  # the first are prompts of the streams
    assert full[len(full) // 2] > 0.9 * MAX_STEP_S


def test_fast_machine_has_only_the_token_budget() -> None:
    costs = tuple(cost / 100 for cost in COSTS)
    assert largest_chunk(long_prompt_beside_streams(TimedRunner(BLOCK_SIZE, costs))) > 500


def test_throughput_is_not_reduced_if_no_stream_runs() -> None:
    durations = []
    for max_step_s in (MAX_STEP_S, 1e9):
        runner = TimedRunner(BLOCK_SIZE)
        run = Run(runner, make_core(runner, max_step_s))
        for i in range(4):
            run.core.add(i, make_request(1500, 1))
        run.finish()
        durations.append(runner.now_s)
    assert durations[0] == durations[1]


def test_slow_decoding_leaves_the_minimum_to_prompts() -> None:
    costs = tuple(20 * cost for cost in COSTS)
    runner = TimedRunner(BLOCK_SIZE, costs)
    run = Run(runner, make_core(runner))
    run.stream(4, max_tokens=60)
    run.core.add(100, make_request(300, 1))
    num_steps = len(runner.steps)
    while 100 not in run.times:
        run.step()
    assert len(runner.steps) - num_steps <= 300 // 16 + 1
    chunks = [
        s.num_new_tokens
        for _, batch in runner.steps[num_steps:-1]
        for s in batch.scheduled
        if s.sequence.request_id == 100
    ]
    assert set(chunks) == {16}


@pytest.mark.parametrize(("num_prompts", "factor"), [(3, 1.0), (4, 1.5)])
def test_many_prompts_have_a_longer_time_budget(num_prompts: int, factor: float) -> None:
    runner = TimedRunner(BLOCK_SIZE)
    run = Run(runner, make_core(runner))
    run.stream(2, max_tokens=50)
    for i in range(num_prompts):
        run.core.add(10 + i, make_request(900, 1))
    run.step()
    run.step()
    step_s, batch = runner.steps[-1]
    assert batch.size.num_tokens > 2
    assert step_s == pytest.approx(factor * MAX_STEP_S, rel=0.15)


def test_callers_share_the_time_budget_by_weight() -> None:
    runner = TimedRunner(BLOCK_SIZE)
    run = Run(runner, make_core(runner))
    run.stream(2, max_tokens=50)
    run.core.add(10, make_request(900, 1, caller=Caller("a", weight=3)))
    run.core.add(11, make_request(900, 1, caller=Caller("b")))
    run.step()
    run.step()
    chunks = {s.sequence.request_id: s.num_tokens for s in runner.steps[-1][1].scheduled}
    assert chunks[10] > 20
    assert abs(chunks[10] - 3 * chunks[11]) <= 3


def test_stalled_step_does_not_shorten_later_chunks() -> None:
    runner = TimedRunner(BLOCK_SIZE)
    runner.stalls = frozenset({12})
    run = long_prompt_beside_streams(runner)
    undisturbed = long_prompt_beside_streams(TimedRunner(BLOCK_SIZE))
    assert len(run.runner.steps) <= len(undisturbed.runner.steps) + 3


def test_slower_machine_gets_shorter_chunks() -> None:
    runner = TimedRunner(BLOCK_SIZE)
    run = Run(runner, make_core(runner))
    run.stream(4, max_tokens=200)
    runner.speed = 2.0
    for _ in range(40):
        run.step()
    run.core.add(100, make_request(1000, 1))
    run.finish()
    mixed = [step_s for step_s, batch in runner.steps[44:] if batch.size.num_prefill_positions]
    assert max(mixed) < 1.15 * MAX_STEP_S


def test_statistics_have_measured_and_predicted_durations() -> None:
    run = long_prompt_beside_streams(TimedRunner(BLOCK_SIZE))
    stats = run.core.stats
    assert stats.step_s == pytest.approx(sum(step_s for step_s, _ in run.runner.steps))
    assert stats.predicted_step_s == pytest.approx(stats.step_s, rel=0.05)


requests = st.lists(
    st.tuples(
        st.builds(
            make_request,
            st.integers(1, 700),
            st.integers(1, 12),
            n=st.sampled_from([1, 1, 2]),
            priority=st.sampled_from([0, 0, -1]),
            caller=st.sampled_from([Caller(), Caller("a"), Caller("b", weight=4)]),
        ),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=30)
@given(
    requests,
    st.floats(1e-4, 1.0),
    st.floats(0.0, 0.5),
    st.integers(90, 200),
    st.frozensets(st.integers(0, 60), max_size=4),
)
def test_tokens_do_not_depend_on_the_speed_of_the_machine(
    arrivals: list[tuple[Request, int]],
    scale: float,
    noise: float,
    num_blocks: int,
    stalls: frozenset[int],
) -> None:
    """Every request finishes with its own tokens, with preemptions and any durations."""
    runner = TimedRunner(BLOCK_SIZE, tuple(scale * cost for cost in COSTS), noise)
    runner.stalls = stalls
    core = make_core(runner, num_blocks=num_blocks)
    outputs: dict[tuple[int, int], list[int]] = {}

    def step() -> None:
        for output in core.step():
            assert isinstance(output.output, TokenOutput)
            key = output.request_id, output.output.index
            outputs.setdefault(key, []).extend(output.output.token_ids)

    for request_id, (request, num_steps) in enumerate(arrivals):
        core.add(request_id, request)
        for _ in range(num_steps):
            step()
    while core.has_unfinished:
        step()
    for request_id, (request, _) in enumerate(arrivals):
        for index in range(request.n):
            assert outputs[request_id, index] == answer(request, MAX_MODEL_LEN, index)
    assert core.stats.num_free_kv_blocks == num_blocks
    assert all(batch.num_tokens <= NUM_TOKENS for _, batch in runner.steps)
