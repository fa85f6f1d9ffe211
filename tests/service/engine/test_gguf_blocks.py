"""The blocks of GGUF's types, compared with the readers of the package `gguf`."""

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from service.engine.gguf_blocks import GROUPED, BlockWeight, concatenate, dequantized
from tests.support.gguf_blocks import HALVES, random_rows

BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4}


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
def test_weight_in_blocks_has_the_values_of_the_file(kind: str) -> None:
    rows = random_rows(kind, 3, 2, seed=1)
    weight, values = BlockWeight(kind, (rows,)), values_by_gguf(kind, rows)
    assert weight.shape == values.shape
    assert torch.equal(weight.dequantized(), values)
    index = torch.tensor([2, 0, 2])
    assert torch.equal(weight.select(index).dequantized(), values[index])
    assert torch.equal(weight.rows(1, 3).dequantized(), values[1:])
    groups = weight.grouped()
    assert groups.bits == BITS.get(kind, 8)
    assert groups.group_size == (16 if kind == "Q6_K" else 32)
    assert torch.equal(groups.dequantized(), values)


@pytest.mark.parametrize("kind", sorted(GROUPED))
@pytest.mark.parametrize("number", [b"\x00\x7c", b"\x00\xfc", b"\x01\x7e"])
def test_blocks_with_a_number_that_is_not_finite_are_found(kind: str, number: bytes) -> None:
    for start in HALVES[kind]:
        rows = random_rows(kind, 3, 2, seed=1)
        assert BlockWeight(kind, (rows,)).is_finite()
        last_block = rows.shape[1] // 2
        rows[1, last_block + start : last_block + start + 2] = torch.tensor(list(number))
        assert not BlockWeight(kind, (rows,)).is_finite()


def test_weights_of_one_type_are_concatenated() -> None:
    first, second, other = (
        BlockWeight(kind, (random_rows(kind, n, 2, seed=n),))
        for n, kind in enumerate(("Q4_K", "Q4_K", "Q6_K"), 1)
    )
    whole = concatenate([first, second])
    assert whole is not None
    assert torch.equal(whole.rows(1, 3).dequantized(), second.dequantized())
    assert concatenate([first, other]) is None


def test_type_without_a_reader_is_rejected() -> None:
    with pytest.raises(NotImplementedError):
        dequantized("Q8_1", torch.zeros(1, 36, dtype=torch.uint8))
