import ctypes
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.domain.sampling import SamplingParams
from service.engine.native.build import load_library
from service.engine.native.sampler import MAX_VOCAB_SIZE
from service.engine.sampler import NativeSamplerBatch, SamplerBatch, sampler_batch
from tests.support.native_kernels import loaded

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)
LARGEST_DRAW = 1 - 2**-53
KINDS = [
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(top_k=50),
    SamplingParams(top_p=0.9),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=0.7, top_k=200, top_p=0.8, min_p=0.001),
]


@pytest.fixture(scope="module")
def library(kernels: ctypes.CDLL | None) -> ctypes.CDLL:
    return loaded(kernels)


def by_kernels(
    library: ctypes.CDLL, logits: Tensor, params: list[SamplingParams], draws: list[float]
) -> list[int]:
    sampled: list[int] = NativeSamplerBatch(library, params, draws).sample(logits).tolist()
    return sampled


def by_torch(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> list[int]:
    batch = SamplerBatch(params, draws, CPU)
    sampled: list[int] = batch.sample(logits, [torch.from_numpy(a) for a in batch.arrays]).tolist()
    return sampled


@pytest.fixture(scope="module")
def one_library(kernels_dir: Path) -> ctypes.CDLL:
    return loaded(load_library(kernels_dir))


params_of_rows = st.lists(
    st.tuples(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 2.0]),
            top_k=st.sampled_from([0, 0, 1, 2, 7, 128, 5000]),
            top_p=st.sampled_from([1.0, 0.05, 0.5, 0.9, 0.999]),
            min_p=st.sampled_from([0.0, 0.0, 1e-5, 0.1, 1.0]),
        ),
        # Draws that are not simple fractions: none is at the edge of a token by intention.
        st.integers(0, 2**20).map(lambda n: (n * math.pi) % 1),
    ),
    min_size=1,
    max_size=6,
)


@given(
    params_of_rows,
    st.sampled_from([1, 2, 15, 128, 129, 700, 5000]),
    st.sampled_from([0.0, 0.5, 4.0, 30.0]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_kernels_choose_the_tokens_of_torch(
    one_library: ctypes.CDLL,
    rows: list[tuple[SamplingParams, float]],
    vocab_size: int,
    spread: float,
    seed: int,
    has_ties: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * spread
    if has_ties:
        logits = logits.round()
    params, draws = [p for p, _ in rows], [draw for _, draw in rows]
    expected = by_torch(logits, params, draws)
    assert by_kernels(one_library, logits, params, draws) == expected
    for i in range(len(rows)):
        alone = by_kernels(one_library, logits[i : i + 1], params[i : i + 1], draws[i : i + 1])
        assert alone == expected[i : i + 1]


@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_kernels_choose_the_tokens_of_torch_in_a_large_vocabulary(
    library: ctypes.CDLL, spread: float
) -> None:
    """The logits are rounded to bfloat16, so that many are equal."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(len(KINDS), 131_000, generator=generator) * spread).bfloat16().float()
    draws = torch.rand(len(KINDS), generator=generator, dtype=torch.float64).tolist()
    assert by_kernels(library, logits, KINDS, draws) == by_torch(logits, KINDS, draws)


@pytest.mark.parametrize("p", KINDS)
def test_extreme_draws_give_the_first_and_the_last_token_that_is_left(
    library: ctypes.CDLL, p: SamplingParams
) -> None:
    logits = torch.full((2, 300), -math.inf)
    logits[:, 7], logits[:, 290] = 1.0, 0.9
    if p.is_greedy:
        assert by_kernels(library, logits, [p, p], [0.0, LARGEST_DRAW]) == [7, 7]
    else:
        assert by_kernels(library, logits, [p, p], [0.0, LARGEST_DRAW]) == [7, 290]


@pytest.mark.parametrize("p", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_row_without_finite_logits_gives_a_token_and_affects_no_other(
    library: ctypes.CDLL, p: SamplingParams, bad: float
) -> None:
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    good = by_kernels(library, logits, [p] * 3, [0.6] * 3)
    logits[1] = bad
    got = by_kernels(library, logits, [p] * 3, [0.6] * 3)
    assert 0 <= got[1] < 200
    assert got[::2] == good[::2]
    logits[1] = 0.0
    logits[1, 150] = math.nan
    assert 0 <= by_kernels(library, logits, [p] * 3, [0.6] * 3)[1] < 200


def test_vocabulary_that_is_too_large_for_the_kernels_uses_torch(library: ctypes.CDLL) -> None:
    draws = [0.5]
    for size, expected in ((MAX_VOCAB_SIZE, NativeSamplerBatch), (2**20, SamplerBatch)):
        logits = torch.empty(1, size)
        assert isinstance(sampler_batch([GREEDY], draws, logits, library), expected)
    assert isinstance(sampler_batch([GREEDY], draws, torch.empty(1, 9), None), SamplerBatch)
