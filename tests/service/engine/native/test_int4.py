import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.engine.decoder.quantized import QuantizedLinear
from service.engine.gguf_blocks import GROUPED, BlockWeight
from service.engine.grouped_weight import GroupedWeight, pack_nibbles
from service.engine.native.int4 import NativeInt4Linear, can_pack, pack_int4
from service.engine.native.linear import (
    NativeInt8Linear,
    NativeLinear,
    PrologueKind,
    pack_int8,
    quantize,
)
from tests.support.gguf_blocks import random_rows
from tests.support.native_kernels import loaded

EPS = 1e-5
VNNI, AMX = 1, 2
BATCHES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 70, 130)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def library(kernels: ctypes.CDLL | None) -> ctypes.CDLL:
    return loaded(kernels)


@pytest.fixture(params=["floats", "groups", "groups with minimums"])
def make(
    request: pytest.FixtureRequest, library: ctypes.CDLL
) -> Callable[[int, int], NativeLinear]:
    """Return a function that makes a layer with random weights [N, K]."""
    if request.param == "floats":
        return lambda n, k: NativeInt4Linear(library, torch.randn(n, k))
    has_minimum = request.param == "groups with minimums"
    return lambda n, k: NativeInt4Linear(library, grouped(n, k, 32, has_minimum=has_minimum))


def grouped(n: int, k: int, group_size: int = 32, *, has_minimum: bool = False) -> GroupedWeight:
    """Return random weights in groups whose ranges differ. Some scales are negative."""
    scale = torch.randn(n, k // group_size) * 0.1
    minimum = 8 * scale + 0.2 * torch.randn_like(scale) if has_minimum else None
    values = torch.randint(0, 16, (n, k))
    return GroupedWeight(pack_nibbles(values), scale, minimum, 4, group_size)


def relative_error(y: Tensor, exact: Tensor) -> float:
    return float((y - exact).norm() / exact.norm())


def stored_weight(layer: NativeLinear) -> Tensor:
    """Return the weight [N, K] that a layer multiplies by."""
    # An input of one 127 and zeros is exact in int8, so the product is a weight as it is stored.
    return layer(127 * torch.eye(layer.in_features)).T / 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 65), (70, 576)])
def test_float_weight_is_stored_to_the_error_of_four_bits(
    library: ctypes.CDLL, n: int, k: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(n, k).to(dtype)
    stored = stored_weight(NativeInt4Linear(library, weight))
    assert relative_error(stored, weight.float()) < 0.08


def test_error_of_int4_is_below_that_of_plain_groups_of_32(library: ctypes.CDLL) -> None:
    weight = torch.randn(64, 1024)
    groups = weight.view(64, -1, 32)
    least, most = groups.aminmax(dim=2)
    scale = (most - least) / 15
    values = ((groups - least[..., None]) / scale[..., None]).round()
    plain = GroupedWeight(pack_nibbles(values.flatten(1)), scale, -least, 4, 32)
    error = relative_error(stored_weight(NativeInt4Linear(library, weight)), weight)
    assert error < 0.96 * relative_error(plain.dequantized(), weight)


def test_weights_that_fit_into_groups_are_quantized_to_themselves(library: ctypes.CDLL) -> None:
    weight = grouped(48, 256, has_minimum=True)
    weight.values[:, ::16] = 0xF0  # a group has the values 0 and 15
    packed = pack_int4(library, weight.dequantized())
    kept = pack_int4(library, weight)
    found, expected = (stored_weight(NativeLinear(library, each)) for each in (packed, kept))
    assert relative_error(found, expected) < 0.003


@pytest.mark.parametrize("value", [0.0, 1e-42, 0.25, -3.0, 1e30])
def test_equal_weights_are_exact(library: ctypes.CDLL, value: float) -> None:
    stored = stored_weight(NativeInt4Linear(library, torch.full((3, 96), value)))
    expected = value if abs(value) > 1e-38 else 0.0
    torch.testing.assert_close(stored, torch.full((3, 96), expected), rtol=0.005, atol=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_weight_gives_nan_and_leaves_the_other_channels(
    library: ctypes.CDLL, value: float
) -> None:
    weight, x = torch.randn(40, 100), torch.randn(3, 100)
    clean = NativeInt4Linear(library, weight)(x)
    weight[7, 99] = value
    y = NativeInt4Linear(library, weight)(x)
    assert y[:, 7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(y[:, others], clean[:, others])


@pytest.mark.parametrize("kind", sorted(GROUPED))
def test_blocks_of_a_file_are_packed_as_their_values(library: ctypes.CDLL, kind: str) -> None:
    weight = BlockWeight(kind, (random_rows(kind, 41, 3, seed=0),))
    ours, twin = pack_int8(library, weight), pack_int8(library, weight.dequantized())
    assert torch.equal(ours.values, twin.values)
    assert torch.equal(ours.scale, twin.scale)
    assert can_pack(weight) == (weight.grouped().bits == 4)
    if can_pack(weight):
        ours, twin = pack_int4(library, weight), pack_int4(library, weight.grouped())
        assert torch.equal(ours.values, twin.values)


@pytest.mark.parametrize("group_size", [32, 64, 96, 128, 384])
@pytest.mark.parametrize("has_minimum", [False, True])
def test_grouped_weight_keeps_its_values(
    library: ctypes.CDLL, group_size: int, has_minimum: bool
) -> None:
    weight = grouped(70, 384, group_size, has_minimum=has_minimum)
    assert can_pack(weight)
    y = stored_weight(NativeInt4Linear(library, weight))
    exact = weight.dequantized()
    step = exact.view(70, -1, 128).abs().amax(2, keepdim=True) / 126
    error = (y - exact).view(70, -1, 128).abs() / step
    assert error.max() < 1.8
    assert error.square().mean().sqrt() < 0.5


def test_grouped_product_is_right_to_the_error_of_int8(library: ctypes.CDLL) -> None:
    weight, x = grouped(48, 608, has_minimum=True), torch.randn(40, 608)
    exact = x @ weight.dequantized().T
    assert relative_error(NativeInt4Linear(library, weight)(x), exact) < 0.015


def test_groups_of_zeros_and_of_tiny_weights_are_exact(library: ctypes.CDLL) -> None:
    weight = grouped(33, 256)
    weight.scale[3] = 0
    weight.scale[4] = 1e-42
    y = NativeInt4Linear(library, weight)(torch.randn(2, 256))
    assert not y[:, 3:5].any()
    assert y.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_scale_gives_nan_and_leaves_the_others(
    library: ctypes.CDLL, value: float
) -> None:
    weight, x = grouped(40, 256), torch.randn(3, 256)
    clean = NativeInt4Linear(library, weight)(x)
    weight.scale[7, 3] = value
    y = NativeInt4Linear(library, weight)(x)
    assert y[:, 7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(y[:, others], clean[:, others])


def test_other_groups_are_not_packed() -> None:
    values = torch.zeros(4, 64, dtype=torch.int8)
    assert not can_pack(GroupedWeight(values, torch.ones(4, 2), None, 8, 32))
    assert not can_pack(GroupedWeight(values.byte(), torch.ones(4, 8), None, 4, 16))


@pytest.mark.parametrize("is_native", [True, False])
def test_grouped_weight_in_int8_is_its_dequantized_one(
    library: ctypes.CDLL, is_native: bool
) -> None:
    values = torch.randint(-32, 32, (3000, 480), dtype=torch.int8)
    weight = GroupedWeight(values, torch.rand(3000, 30), None, 8, 16)
    whole = weight.dequantized()
    if is_native:
        ours, twin = pack_int8(library, weight), pack_int8(library, whole)
        assert torch.equal(ours.values, twin.values)
        assert torch.equal(ours.scale, twin.scale)
    else:
        assert torch.equal(quantize(weight).values, quantize(whole).values)


@pytest.mark.parametrize("prologue", PrologueKind)
def test_rows_have_the_same_bits_in_every_batch(
    make: Callable[[int, int], NativeLinear], library: ctypes.CDLL, prologue: PrologueKind
) -> None:
    layer = make(70, 608)
    x = torch.randn(max(BATCHES), 608 * (2 if prologue.is_gated else 1))
    paths = [VNNI, AMX] if library.chatrpc_linear_has_amx() else [VNNI]
    alone = torch.cat([layer(row[None], prologue=prologue, eps=EPS) for row in x])
    for path in (0, *paths):
        layer._layer.path = path
        for rows in BATCHES:
            y = layer(x[:rows], prologue=prologue, eps=EPS)
            assert torch.equal(y, alone[:rows])


@given(
    n=st.integers(1, 100), groups=st.integers(1, 40), rows=st.integers(1, 40), seed=st.integers(0)
)
def test_any_shape_has_the_same_bits_in_every_batch(
    kernels: ctypes.CDLL | None, n: int, groups: int, rows: int, seed: int
) -> None:
    library, k = loaded(kernels), 32 * groups
    torch.manual_seed(seed % 2**32)
    x, bias, residual = torch.randn(rows, k), torch.randn(n), torch.randn(rows, n)
    weight = grouped(n, k, has_minimum=True)
    layers: list[tuple[NativeLinear, Tensor, float]] = [
        (NativeInt4Linear(library, weight, bias), weight.dequantized(), 0.03),
        (NativeInt4Linear(library, weight.dequantized(), bias), weight.dequantized(), 0.03),
    ]
    for layer, exact, tolerance in layers:
        y = layer(x, residual=residual)
        error = (y - (x @ exact.T + bias + residual)).norm()
        assert error <= tolerance * x.norm() * exact.norm() + 1e-4
        row = seed % rows
        assert torch.equal(y[row], layer(x[row : row + 1], residual=residual[row : row + 1])[0])
        in_place = residual.clone()
        layer(x, residual=in_place, out=in_place)
        assert torch.equal(in_place, y)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_row_gives_nan_and_leaves_the_others(
    make: Callable[[int, int], NativeLinear], value: float
) -> None:
    layer, x = make(40, 256), torch.randn(9, 256)
    clean = layer(x)
    x[4, 201] = value
    y = layer(x)
    assert y[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e30])
def test_rows_of_extreme_size_keep_their_precision(
    make: Callable[[int, int], NativeLinear], value: float
) -> None:
    layer, x = make(40, 256), torch.randn(3, 256)
    expected = layer(x) * value
    y = layer(x * value)
    assert y.isfinite().all()
    assert torch.allclose(y, expected, rtol=1e-3, atol=1e-3 * value if value > 1 else 1e-30)


def test_grouped_rows_have_no_precision_below_the_one_of_int8(library: ctypes.CDLL) -> None:
    """A group with much smaller values than the row's largest keeps its own precision."""
    weight, x = grouped(32, 256), torch.randn(4, 256)
    x[:, 128:] *= 1e-4
    x[:, :128] = 0
    exact = x @ weight.dequantized().T
    assert relative_error(NativeInt4Linear(library, weight)(x), exact) < 0.015
    assert relative_error(NativeInt8Linear(library, weight)(x), exact) < 0.05


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_of_the_decoder_keep_four_bits(library: ctypes.CDLL, bits: int) -> None:
    def num_bytes(weight: Tensor | GroupedWeight) -> int:
        layer = QuantizedLinear(library, weight, None, None, bits=4 if bits == 4 else 8)
        product = layer._product
        assert isinstance(product, NativeLinear)
        return product.weight.values.numel()

    float_bytes = num_bytes(torch.randn(64, 256))
    assert float_bytes == 64 * 256 * (4.625 / 8 if bits == 4 else 1)
    assert num_bytes(grouped(64, 256)) == 64 * 256 * 4.625 / 8
    eight = torch.zeros(64, 256, dtype=torch.int8)
    assert num_bytes(GroupedWeight(eight, torch.ones(64, 16), None, 8, 16)) == 64 * 256
