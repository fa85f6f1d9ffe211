import pytest
import torch
from torch import Tensor

from service.engine.decoder.linear import FloatLinear, RmsNorm
from service.engine.decoder.quantized import QuantizedLinear
from service.engine.grouped_weight import GroupedWeight, pack_nibbles


def in_groups(bits: int, group_size: int) -> GroupedWeight:
    scale = torch.rand(40, 128 // group_size)
    if bits == 4:
        values = pack_nibbles(torch.randint(0, 16, (40, 128)))
        return GroupedWeight(values, scale, None, 4, group_size)
    return GroupedWeight(
        torch.randint(-32, 32, (40, 128), dtype=torch.int8), scale, None, 8, group_size
    )


@pytest.mark.parametrize(
    ("bits", "weight", "most_error"),
    [
        (8, torch.randn(40, 128), 0.015),
        (4, torch.randn(40, 128), 0.1),
        (8, in_groups(4, 32), 0.02),
        (8, in_groups(4, 16), 0.02),
        (4, in_groups(8, 16), 0.02),
    ],
    ids=["int8", "int4", "4 bits in groups", "4 bits in small groups", "8 bits in groups"],
)
def test_weight_of_every_kind_has_the_product_of_its_values(
    bits: int, weight: Tensor | GroupedWeight, most_error: float
) -> None:
    exact = weight.dequantized() if isinstance(weight, GroupedWeight) else weight
    norm, bias = RmsNorm(1 + torch.rand(128), 1e-5), torch.randn(40)
    x, residual = torch.randn(5, 128), torch.randn(5, 40)
    layer = QuantizedLinear(None, weight, bias, norm, bits=4 if bits == 4 else 8)
    expected = FloatLinear(exact, bias, norm)(x, residual)
    error = (layer(x, residual) - expected).norm() / (expected - residual - bias).norm()
    assert error < most_error
