import pytest
import torch

from service.engine.grouped_weight import GroupedWeight, concatenate, pack_nibbles

VALUES = torch.tensor([[0, 1, 2, 15], [8, 9, 10, 7]])
SCALE = torch.tensor([[1.0, 10.0], [0.5, 2.0]])


def four_bits(minimum: torch.Tensor | None = None) -> GroupedWeight:
    return GroupedWeight(pack_nibbles(VALUES), SCALE, minimum, 4, 2)


def test_even_inputs_are_in_the_lower_bits() -> None:
    assert pack_nibbles(VALUES).tolist() == [[0x10, 0xF2], [0x98, 0x7A]]
    assert four_bits().unpacked().tolist() == VALUES.tolist()
    assert four_bits().shape == (2, 4)


def test_four_bits_without_minimum_are_symmetric() -> None:
    expected = [[-8, -7, -60, 70], [0, 0.5, 4, -2]]
    assert four_bits().dequantized().tolist() == expected


def test_minimum_is_subtracted_after_scaling() -> None:
    minimum = torch.tensor([[1.0, 5.0], [0.0, -1.0]])
    assert four_bits(minimum).dequantized().tolist() == [[-1, 0, 15, 145], [4, 4.5, 21, 15]]


@pytest.mark.parametrize("minimum", [None, torch.tensor([[1.0, 5.0], [0.0, -1.0]])])
def test_eight_bits_are_signed(minimum: torch.Tensor | None) -> None:
    values = torch.tensor([[-128, 127, 1, 0], [3, -3, 2, 1]], dtype=torch.int8)
    weight = GroupedWeight(values, SCALE, minimum, 8, 2)
    expected = values.float() * SCALE.repeat_interleave(2, 1)
    if minimum is not None:
        expected -= minimum.repeat_interleave(2, 1)
    assert torch.equal(weight.dequantized(), expected)


def test_rows_are_those_of_the_whole_weight() -> None:
    weight = four_bits(SCALE)
    assert torch.equal(weight.rows(1, 2).dequantized(), weight.dequantized()[1:])


def test_concatenation_has_the_channels_of_all() -> None:
    weight = four_bits(SCALE)
    both = concatenate([weight, weight.rows(0, 1)])
    assert both is not None
    assert torch.equal(
        both.dequantized(), torch.cat([weight.dequantized(), weight.dequantized()[:1]])
    )


def test_different_kinds_are_not_concatenated() -> None:
    assert concatenate([four_bits(), four_bits(SCALE)]) is None


@pytest.mark.parametrize(
    ("scale", "group_size", "message"),
    [
        (SCALE, 4, "the scale is"),
        (SCALE.half(), 2, "the scale is"),
        (SCALE, 3, "no multiple of 3"),
    ],
)
def test_wrong_shapes_are_rejected(scale: torch.Tensor, group_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupedWeight(pack_nibbles(VALUES), scale, None, 4, group_size)


def test_wrong_type_of_values_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"values of 4 bits are torch\.int64"):
        GroupedWeight(VALUES, SCALE, None, 4, 2)
