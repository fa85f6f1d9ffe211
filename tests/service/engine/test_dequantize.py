import pytest
import torch

from service.engine.dequantize import dequantize

STORED = torch.tensor([[1, 2, 3], [-4, 5, -6]], dtype=torch.int8)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_multiplies_everything(shape: tuple[int, ...]) -> None:
    scale = torch.tensor(0.5).reshape(shape)
    assert dequantize(STORED, scale).tolist() == [[0.5, 1, 1.5], [-2, 2.5, -3]]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_scale_for_each_row_is_applied(shape: tuple[int, ...]) -> None:
    scale = torch.tensor([10.0, 100.0]).reshape(shape)
    assert dequantize(STORED, scale).tolist() == [[10, 20, 30], [-400, 500, -600]]


def test_zero_point_is_subtracted_before_scaling() -> None:
    zero_point = torch.tensor([[1], [-128]], dtype=torch.int8)
    scale = torch.tensor([[2.0], [1.0]])
    assert dequantize(STORED, scale, zero_point).tolist() == [[0, 2, 4], [124, 133, 122]]


def test_blocks_at_the_edges_are_smaller() -> None:
    scale = torch.tensor([[10.0, 1000.0]])
    expected = [[10, 20, 3000], [-40, 50, -6000]]
    assert dequantize(STORED, scale, block=(2, 2)).tolist() == expected
    assert dequantize(STORED, scale[:, None, :, None], block=(128, 2)).tolist() == expected


def test_groups_are_blocks_of_one_row() -> None:
    scale = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    assert dequantize(STORED, scale, block=(None, 2)).tolist() == [[1, 2, 30], [-400, 500, -6000]]


@pytest.mark.parametrize("shape", [(3,), (1, 2), (3, 1), (2, 3)])
def test_scale_of_another_shape_is_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit a weight"):
        dequantize(STORED, torch.ones(shape))
