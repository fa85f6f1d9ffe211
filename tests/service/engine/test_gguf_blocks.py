"""The blocks of GGUF's types, compared with the readers of the package `gguf`."""

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from service.engine.gguf_blocks import GROUPED, dequantized, grouped

# Positions of the float16 numbers in a block.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ3_XXS": (0,),
}
BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4}


def random_rows(kind: str, num_rows: int, num_blocks: int, seed: int) -> torch.Tensor:
    """Return blocks of random bytes, except the float16 numbers, which are finite."""
    rng = np.random.default_rng(seed)
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = rng.integers(0, 256, (num_rows, num_blocks, block_bytes), dtype=np.uint8)
    for start in HALVES[kind]:
        numbers = rng.standard_normal((num_rows, num_blocks, 1)).astype(np.float16)
        blocks[..., start : start + 2] = numbers.view(np.uint8)
    return torch.from_numpy(blocks.reshape(num_rows, -1))


def values_by_gguf(kind: str, rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", sorted(HALVES))
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_values_are_those_of_the_package_gguf(
    kind: str, num_rows: int, num_blocks: int, seed: int
) -> None:
    rows = random_rows(kind, num_rows, num_blocks, seed)
    assert torch.equal(dequantized(kind, rows), values_by_gguf(kind, rows))


@pytest.mark.parametrize("kind", sorted(GROUPED))
def test_weight_in_groups_has_the_values_of_the_file(kind: str) -> None:
    rows = random_rows(kind, 3, 2, seed=1)
    weight = grouped(kind, rows)
    assert weight.bits == BITS.get(kind, 8)
    assert weight.group_size == (16 if kind == "Q6_K" else 32)
    assert torch.equal(weight.dequantized(), values_by_gguf(kind, rows))


def test_type_without_a_reader_is_rejected() -> None:
    with pytest.raises(NotImplementedError):
        dequantized("Q8_1", torch.zeros(1, 36, dtype=torch.uint8))
