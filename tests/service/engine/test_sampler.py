import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.domain.sampling import SamplingParams
from tests.support.sampling import sample

GREEDY = SamplingParams(temperature=0.0)
LARGEST_DRAW = 1 - 2**-53
_TIE = 1e-4  # closer to an edge than this, float32 and float64 may differ


def naive(logits: NDArray[np.float64], p: SamplingParams, draw: float) -> int | None:
    """Return the token by the definitions, or None if rounding could change the result."""
    scaled = logits / p.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    if not (p.top_k or p.top_p < 1 or p.min_p):
        return invert(list(enumerate(probs)), draw)
    ranked = sorted(enumerate(probs), key=lambda pair: -pair[1])
    floor = p.min_p * ranked[0][1]
    if any(abs(prob - floor) < _TIE * floor for _, prob in ranked[1:]):
        return None
    ranked = [pair for pair in ranked if pair[1] >= floor]
    if p.top_k:
        ranked = ranked[: p.top_k]
    mass = sum(prob for _, prob in ranked)
    nucleus: list[tuple[int, float]] = []
    before = 0.0
    for token_id, prob in ranked:
        if p.top_p < 1 and abs(before / mass - p.top_p) < _TIE:
            return None
        if not nucleus or before < p.top_p * mass:
            nucleus.append((token_id, prob))
        before += prob
    return invert(nucleus, draw)


def invert(kept: list[tuple[int, float]], draw: float) -> int | None:
    target, cumulative = draw * sum(prob for _, prob in kept), 0.0
    for token_id, prob in kept:
        if abs(cumulative + prob - target) < _TIE:
            return None
        cumulative += prob
        if cumulative > target:
            return token_id
    return kept[-1][0]


sampling_params = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 3.0),
    top_k=st.sampled_from([0, 0, 1, 2, 7, 127, 128, 129, 200, 5000]),
    top_p=st.just(1.0) | st.floats(0.01, 1.0),
    min_p=st.just(0.0) | st.floats(0.0, 1.0),
)
vocab_sizes = st.sampled_from([1, 2, 50, 128, 129, 700, 2500])
draws = st.floats(0.0, LARGEST_DRAW)


def distinct_logits(vocab_size: int, spread: float, seed: int) -> NDArray[np.float64]:
    """Return logits without ties. The gaps between them are wide enough for float32."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.5, 1.5, vocab_size).cumsum() * spread / vocab_size
    return rng.permutation(steps).astype(np.float32).astype(np.float64)


@given(sampling_params, vocab_sizes, st.floats(0.5, 40.0), st.integers(0, 2**32), draws)
def test_every_token_is_the_one_that_the_definitions_give(
    p: SamplingParams, vocab_size: int, spread: float, seed: int, draw: float
) -> None:
    logits = distinct_logits(vocab_size, spread, seed)
    expected = int(logits.argmax()) if p.is_greedy else naive(logits, p, draw)
    assume(expected is not None)
    assert sample(torch.tensor(logits[None]).float(), [p], [draw]) == [expected]


@given(
    st.lists(st.tuples(sampling_params | st.just(GREEDY), draws), min_size=1, max_size=12),
    vocab_sizes,
    st.floats(0.0, 20.0),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_row_gives_the_same_token_by_itself_and_in_a_batch(
    rows: list[tuple[SamplingParams, float]],
    vocab_size: int,
    spread: float,
    seed: int,
    has_ties: bool,
) -> None:
    """Some tokens are equally likely, as are many of a model in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * spread
    if has_ties:
        logits = logits.round()
    params, draws = [p for p, _ in rows], [draw for _, draw in rows]
    together = sample(logits, params, draws)
    separate = [sample(logits[i : i + 1], [params[i]], [draws[i]])[0] for i in range(len(rows))]
    assert together == separate


@pytest.mark.parametrize("vocab_size", [49152, 50257])
def test_row_of_a_real_vocabulary_has_the_same_bits_in_any_batch(
    vocab_size: int,
) -> None:
    """At these sizes torch splits the work differently for one row, for some and for many."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(24, vocab_size, generator=generator) * 4).to(torch.bfloat16).float()
    kinds = [GREEDY, SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=50)]
    params = [kinds[row % 4] for row in range(24)]
    for draw in torch.rand(20, dtype=torch.float64, generator=generator).tolist():
        together = sample(logits, params, [draw] * 24)
        assert sample(logits[5:19], params[5:19], [draw] * 14) == together[5:19]
        row = int(draw * 24)
        assert sample(logits[row : row + 1], [params[row]], [draw]) == [together[row]]


@pytest.mark.parametrize("vocab_size", [49152, 50257])
def test_torch_computes_a_row_to_the_same_bits_in_any_batch(vocab_size: int) -> None:
    """The sampler relies on this."""
    logits = torch.randn(32, vocab_size, generator=torch.Generator().manual_seed(1)) * 4
    probs = torch.softmax(logits / 0.7, dim=-1)
    blocks = torch.nn.functional.pad(probs, (0, -vocab_size % 128)).reshape(32, -1, 128)
    sums = blocks.sum(-1)
    for row in range(32):
        separate = torch.softmax(logits[row : row + 1] / 0.7, dim=-1)
        assert torch.equal(separate[0], probs[row])
        assert torch.equal(blocks[row : row + 1].clone().sum(-1)[0], sums[row])


@pytest.mark.parametrize("vocab_size", [1, 127, 128, 129, 1000])
def test_greedy_row_takes_the_lowest_of_equal_tokens(vocab_size: int) -> None:
    for most_likely in {0, vocab_size // 2, vocab_size - 1}:
        logits = torch.full((1, vocab_size), -1.0)
        logits[0, most_likely:] = 2.0
        assert sample(logits, [GREEDY], [0.0]) == [most_likely]


def test_greedy_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert sample(logits, [GREEDY, GREEDY], [0.0, 0.0]) == [1, 0]


@pytest.mark.parametrize(
    "p", [SamplingParams(temperature=1e-6), SamplingParams(top_k=1), SamplingParams(top_p=0.0)]
)
def test_parameters_that_leave_one_token_are_greedy(p: SamplingParams) -> None:
    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), [p], [0.999]) == [1]


@pytest.mark.parametrize(
    "p",
    [
        SamplingParams(),
        SamplingParams(top_k=40),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.999),
        SamplingParams(min_p=0.05),
        SamplingParams(temperature=0.5, top_k=200, top_p=0.8, min_p=0.001),
    ],
)
def test_many_draws_have_the_distribution(p: SamplingParams) -> None:
    """With evenly spaced draws, each token is drawn in proportion to its share, up to one."""
    logits, count = distinct_logits(300, spread=6.0, seed=1), 4000
    rows = torch.tensor(logits).float().expand(count, -1)
    got = Counter(sample(rows, [p] * count, [(i + 0.5) / count for i in range(count)]))
    probs = np.exp(logits / p.temperature)
    order = np.argsort(-probs)
    allowed = order[: p.top_k or None]
    share = probs[allowed] / probs[allowed].sum()
    allowed = allowed[share.cumsum() - share < p.top_p]
    allowed = allowed[probs[allowed] >= p.min_p * probs[order[0]]]
    share = probs[allowed] / probs[allowed].sum()
    assert set(got) <= set(allowed.tolist())
    for token_id, expected in zip(allowed.tolist(), share * count, strict=True):
        assert abs(got[token_id] - expected) < 2


@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
def test_flat_distribution_needs_more_than_the_first_candidates(top_p: float) -> None:
    p, draws = SamplingParams(top_p=top_p, min_p=1e-9), [i / 100 for i in range(100)]
    got = sample(torch.zeros(100, 5000), [p] * 100, [*draws[1:], LARGEST_DRAW])
    assert len(set(got)) == 100  # the draws differ by a hundredth of the nucleus
    assert 0 <= min(got) < max(got) < 5000


@pytest.mark.parametrize(
    "p", [SamplingParams(), SamplingParams(top_p=0.99), SamplingParams(top_k=3)]
)
@pytest.mark.parametrize("draw", [0.0, LARGEST_DRAW])
def test_extreme_draws_never_choose_a_token_without_probability(
    p: SamplingParams, draw: float
) -> None:
    never = -math.inf
    logits = torch.tensor([[never, 1.0, never, 0.5, never], [never, never, never, 0.5, never]])
    first, second = sample(logits, [p, p], [draw, draw])
    assert first == (1 if draw == 0.0 else 3)
    assert second == 3


@pytest.mark.parametrize(
    "p", [GREEDY, SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=5, min_p=0.1)]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("draw", [0.0, 0.5, LARGEST_DRAW])
def test_row_of_nans_gives_a_token_and_affects_no_other(
    p: SamplingParams, bad: float, draw: float
) -> None:
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    good = sample(logits[::2], [p, p], [draw, draw])
    logits[1] = bad
    got = sample(logits, [p] * 3, [draw] * 3)
    assert 0 <= got[1] < 200
    assert got[::2] == good


def test_one_nan_in_a_row_still_gives_a_token() -> None:
    logits = torch.zeros(1, 200)
    logits[0, 150] = math.nan
    (token_id,) = sample(logits, [SamplingParams(top_p=0.9)], [0.7])
    assert 0 <= token_id < 200
