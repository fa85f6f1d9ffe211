import pytest
import torch
import torch.nn.functional as F

from service.engine.decoder.linear import FloatLinear, Gate, JoinedLinear, RmsNorm, make_joined
from service.engine.grouped_weight import GroupedWeight


def test_bias_and_residual_are_added_to_the_product() -> None:
    x, weight, bias, residual = (torch.randn(s) for s in ((5, 3), (4, 3), (4,), (5, 4)))
    expected = x @ weight.T + bias
    torch.testing.assert_close(FloatLinear(weight, bias, None)(x), expected)
    torch.testing.assert_close(FloatLinear(weight, bias, None)(x, residual), expected + residual)


def test_norm_is_applied_before_the_product() -> None:
    x, weight, scale = torch.randn(5, 3), torch.randn(4, 3), torch.randn(3)
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    linear = FloatLinear(weight, None, RmsNorm(scale, 1e-5))
    torch.testing.assert_close(linear(x), normed @ weight.T)


def test_gate_is_applied_before_the_product() -> None:
    x, weight = torch.randn(5, 6), torch.randn(4, 3)
    gate, up = x[:, :3], x[:, 3:]
    silu = FloatLinear(weight, None, Gate("silu"))
    torch.testing.assert_close(silu(x), (F.silu(gate) * up) @ weight.T)
    gelu = FloatLinear(weight, None, Gate("gelu_tanh"))
    torch.testing.assert_close(gelu(x), (F.gelu(gate, approximate="tanh") * up) @ weight.T)


def grouped(rows: int, group_size: int) -> GroupedWeight:
    values = torch.randint(-128, 128, (rows, 32), dtype=torch.int8)
    return GroupedWeight(values, torch.rand(rows, 32 // group_size), None, 8, group_size)


@pytest.mark.parametrize("group_sizes", [(32, 32, 32), (32, 16, 32), (32, 0, 0), (0, 0, 0)])
def test_joined_layers_give_their_outputs_side_by_side(group_sizes: tuple[int, ...]) -> None:
    weights = [
        grouped(n, size) if size else torch.randn(n, 32) for n, size in enumerate(group_sizes, 2)
    ]
    bias, x, residual = torch.randn(9), torch.randn(3, 32), torch.randn(3, 9)
    linear = make_joined(FloatLinear, weights, bias, None)
    assert isinstance(linear, JoinedLinear) == (len(set(group_sizes)) > 1)
    floats = [w.dequantized() if isinstance(w, GroupedWeight) else w for w in weights]
    expected = x @ torch.cat(floats).T + bias
    torch.testing.assert_close(linear(x), expected)
    torch.testing.assert_close(linear(x, residual), expected + residual)
