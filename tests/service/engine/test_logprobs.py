import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sampling import logprobs_of


@given(
    st.integers(1, 700),
    st.integers(0, 2**32),
    st.floats(0.0, 20.0),
    st.integers(0, 30),
    st.booleans(),
)
def test_values_are_those_of_the_definition(
    vocab_size: int, seed: int, spread: float, num_top: int, has_ties: bool
) -> None:
    """Values are compared with float64, also if many logits are equal."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(vocab_size) * spread).astype(np.float32)
    if has_ties:
        logits = np.rint(logits)
    token_id = int(rng.integers(vocab_size))
    [told] = logprobs_of(torch.from_numpy(logits)[None], [(0, token_id, num_top)])
    exact = logits.astype(np.float64)
    exact -= exact.max()
    exact -= math.log(np.exp(exact).sum())
    assert told.token_id == token_id
    assert told.logprob == pytest.approx(exact[token_id], abs=1e-4)
    assert [p for _, p in told.top] == pytest.approx(np.sort(exact)[::-1][:num_top], abs=1e-4)
    assert len({t for t, _ in told.top}) == min(num_top, vocab_size)
    assert list(told.top) == sorted(told.top, key=lambda pair: (-pair[1], pair[0]))
    assert all(p == pytest.approx(exact[t], abs=1e-4) for t, p in told.top)


def test_lowest_ids_are_chosen_among_equal_values() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 7::10] = 2.0
    [told] = logprobs_of(logits, [(0, 3, 5)])
    assert [t for t, _ in told.top] == [7, 17, 27, 37, 47]


def test_each_row_returns_the_requested_number_of_tokens() -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    told = logprobs_of(logits, [(0, 5, 0), (2, 6, 7), (1, 7, 1), (1, 8, 3)])
    assert [len(t.top) for t in told] == [0, 7, 1, 3]
    assert [t.token_id for t in told] == [5, 6, 7, 8]


@pytest.mark.parametrize("vocab_size", [49152, 50257])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_row_has_the_same_bits_by_itself_and_in_a_batch(vocab_size: int, num_threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, vocab_size, generator=generator) * 4).to(torch.bfloat16).float()
    wanted = [(row, row * 7, row % 6) for row in range(40)]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    together = logprobs_of(logits, wanted)
    separate = [logprobs_of(logits[r : r + 1].clone(), [(0, t, n)])[0] for r, t, n in wanted]
    others = logprobs_of(logits[5:30], [(r, t, n) for r, (_, t, n) in enumerate(wanted[5:30])])
    torch.set_num_threads(before)
    assert together == separate
    assert others == together[5:30]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_row_of_nans_has_no_probability_and_affects_no_other(bad: float) -> None:
    logits = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
    [good] = logprobs_of(logits[1:].clone(), [(0, 4, 3)])
    logits[0] = bad
    broken, still_good = logprobs_of(logits, [(0, 4, 3), (1, 4, 3)])
    assert broken.logprob == -math.inf
    assert not any(math.isnan(p) for _, p in broken.top)
    assert still_good == good
