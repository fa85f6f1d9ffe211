import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_pool import BlockPool
from service.engine.core import Computed, EngineCore
from service.engine.drafts import DraftCandidate, draft_lengths
from service.engine.scheduler import Scheduler
from service.engine.speculation import Acceptance, accept
from service.engine.step_time import StepSize, StepTime
from tests.fakes.timed_runner import COSTS, TimedRunner
from tests.service.engine.requests import make_request


def learned(costs: tuple[float, ...] = COSTS) -> StepTime:
    """Return the model of a machine on which steps of many sizes were measured."""
    times = StepTime()
    for _ in range(30):
        for n in (1, 2, 8, 16, 64):
            for size in (StepSize(n, n, n * 100), StepSize(n, 1, 0, n * 100)):
                times.record(size, sum(c * x for c, x in zip(costs, size.features, strict=True)))
    return times


TIMES = learned()


def lengths(
    candidates: list[DraftCandidate],
    num_decoding: int,
    times: StepTime = TIMES,
    max_step_s: float = math.inf,
    max_tokens: int = 64,
) -> list[int]:
    decode = StepSize(num_decoding, num_decoding, 100 * num_decoding)
    return draft_lengths(
        candidates, times, decode, decode, max_step_s=max_step_s, max_tokens=max_tokens
    )


def candidate(
    acceptance: float, max_length: int = 8, forced: tuple[int, ...] = ()
) -> DraftCandidate:
    return DraftCandidate(max_length, Acceptance(acceptance, acceptance), 100, forced)


def test_more_probable_tokens_make_longer_drafts() -> None:
    found = [lengths([candidate(p)], 1)[0] for p in (0.01, 0.3, 0.7, 0.95)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, 8)
    assert len(set(found)) == 4


def test_larger_batch_needs_more_probable_tokens() -> None:
    found = [sum(lengths([candidate(0.5)], num_decoding)) for num_decoding in (1, 4, 16)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] == 0


def test_most_probable_tokens_come_first() -> None:
    assert lengths([candidate(0.6), candidate(0.99)], 2, max_tokens=5) == [0, 5]


def test_equally_probable_drafts_share_the_tokens() -> None:
    assert lengths([candidate(0.9)] * 3, 3, max_tokens=6) == [2, 2, 2]


def test_forced_tokens_are_added_even_if_they_cost_more_than_they_gain() -> None:
    expensive = learned((0.001, *COSTS[1:]))
    assert lengths([candidate(0.99)], 32, expensive) == [0]
    assert lengths([candidate(1.0, 4, forced=(1, 2, 3, 4))], 32, expensive) == [4]


def test_time_budget_limits_drafts() -> None:
    without = TIMES.predict(StepSize(1, 1, 100))
    longer = [lengths([candidate(0.99)], 1, max_step_s=without * x)[0] for x in (1.0, 1.1, 2.0)]
    assert longer[0] == 0 < longer[1] < longer[2] == 8


def test_tokens_of_a_step_with_prompts_cost_what_they_do_in_a_large_step() -> None:
    decode = StepSize(1, 1, 100)
    step = StepSize.total([decode, StepSize(64, 0, 0, 64 * 32)])
    [beside_prompt] = draft_lengths(
        [candidate(0.6)], TIMES, step, decode, max_step_s=math.inf, max_tokens=64
    )
    assert beside_prompt < lengths([candidate(0.6)], 1)[0]


def test_draft_is_long_if_the_tokens_after_its_first_are_probable() -> None:
    drafts = [DraftCandidate(8, Acceptance(0.5, following), 100) for following in (0.3, 0.8, 0.99)]
    found = [lengths([draft], 1)[0] for draft in drafts]
    assert found == sorted(found)
    assert found[0] < found[-1] == 8


probabilities = st.floats(0.01, 0.999)
candidates = st.builds(
    DraftCandidate,
    st.integers(0, 8),
    st.builds(Acceptance, probabilities, probabilities),
    st.integers(1, 8000),
)


@given(
    st.lists(candidates, max_size=32),
    st.integers(0, 32),
    st.floats(0.0, 1.0),
    st.integers(0, 64),
)
def test_drafts_never_lower_the_expected_tokens_per_second(
    drafts: list[DraftCandidate], num_others: int, max_step_s: float, max_tokens: int
) -> None:
    parts = [StepSize(1, 1, c.num_tokens) for c in drafts] + [StepSize(1, 1, 100)] * num_others
    decode = StepSize.total(parts)
    found = draft_lengths(
        drafts, TIMES, decode, decode, max_step_s=max_step_s, max_tokens=max_tokens
    )
    assert len(found) == len(drafts)
    assert sum(found) <= max_tokens
    assert all(length <= c.max_length for length, c in zip(found, drafts, strict=True))
    if not sum(found):
        return
    rows = [
        StepSize(1, 1, c.num_tokens + i + 1)
        for length, c in zip(found, drafts, strict=True)
        for i in range(length)
    ]
    expected = decode.num_tokens + sum(
        sum(c.acceptance.first * c.acceptance.following**i for i in range(length))
        for length, c in zip(found, drafts, strict=True)
    )
    step_s = TIMES.predict(StepSize.total([decode, *rows]))
    assert step_s <= max_step_s + 1e-9
    assert expected / step_s > decode.num_tokens / TIMES.predict(decode)


class TextRunner(TimedRunner):
    """A simulated machine on which outputs are a text that does not repeat, or one that does.

    Args:
        period: Number of tokens after which the text repeats. If it is large, pairs of tokens
            repeat by chance, and the tokens after them differ.
    """

    def __init__(self, period: int) -> None:
        super().__init__(16, noise=0.05)
        self._period = period

    def compute(self, batch: Batch) -> list[Computed]:
        return [self._text(s) if s.is_sampled else Computed() for s in batch.scheduled]

    def _text(self, scheduled: ScheduledSequence) -> Computed:
        sequence, draft = scheduled.sequence, scheduled.draft_token_ids
        start = sequence.num_output_tokens
        token_ids = [
            zlib.crc32(f"{sequence.request_id} {i % self._period}".encode()) % 12
            for i in range(start, start + len(draft) + 1)
        ]
        return Computed(accept(token_ids, draft))


def simulated_s(num_clients: int, period: int, num_speculative_tokens: int) -> float:
    """Return the simulated time of three requests of each client, one after the other."""
    runner = TextRunner(period)
    pool = BlockPool(1000, 16, has_prefix_caching=False)
    scheduler = Scheduler(pool, num_clients, 512, num_speculative_tokens, 0.2)
    core = EngineCore(scheduler, runner, 400, clock=runner.clock)
    for request_id in range(3 * num_clients):
        core.add(request_id, make_request(tuple(range(100, 130)), 64))
    while core.has_unfinished:
        core.step()
    return runner.now_s


@pytest.mark.parametrize("num_clients", [1, 8, 32])
def test_text_that_does_not_repeat_is_not_slower_with_drafts(num_clients: int) -> None:
    without, with_drafts = (simulated_s(num_clients, 10**9, n) for n in (0, 8))
    assert with_drafts < 1.02 * without


@pytest.mark.parametrize(("num_clients", "factor"), [(1, 2.0), (8, 1.15)])
def test_text_that_repeats_is_faster_with_drafts(num_clients: int, factor: float) -> None:
    without, with_drafts = (simulated_s(num_clients, 10, n) for n in (0, 8))
    assert factor * with_drafts < without
