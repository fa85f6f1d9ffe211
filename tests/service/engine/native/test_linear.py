import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.engine.native.build import load_library
from service.engine.native.linear import (
    BLOCK,
    Int8Linear,
    NativeInt8Linear,
    PrologueKind,
    QuantizedWeight,
    TorchInt8Linear,
    pack_int8,
    quantize,
)
from tests.support.native_kernels import LEVELS_TO_TEST, are_kernels_required, loaded

EPS = 1e-5
VNNI, AMX = 1, 2
BATCHES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 70)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def library(kernels: ctypes.CDLL | None) -> ctypes.CDLL:
    return loaded(kernels)


@pytest.fixture(params=[*LEVELS_TO_TEST, "torch"])
def make(request: pytest.FixtureRequest, level_kernels_dir: Path) -> Callable[..., Int8Linear]:
    if request.param == "torch":
        return TorchInt8Linear
    library = loaded(load_library(level_kernels_dir, request.param))
    return lambda *arguments: NativeInt8Linear(library, *arguments)


def paths(library: ctypes.CDLL) -> list[int]:
    return [VNNI, AMX] if library.chatrpc_linear_has_amx() else [VNNI]


def forced(layer: NativeInt8Linear, path: int) -> NativeInt8Linear:
    layer._layer.path = path
    return layer


def width(in_features: int, prologue: PrologueKind) -> int:
    return in_features * (2 if prologue.is_gated else 1)


def prepared(x: Tensor, prologue: PrologueKind, norm: Tensor | None = None) -> Tensor:
    """Return the rows after the prologue in float64. `norm` is the weight of the RMS norm."""
    x = x.double()
    gate, up = x.chunk(2, -1) if prologue.is_gated else (x, x)
    match prologue:
        case PrologueKind.RMS_NORM:
            normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
            return normed if norm is None else normed * norm.double()
        case PrologueKind.SILU_GATE:
            return F.silu(gate) * up
        case PrologueKind.GELU_TANH_GATE:
            return F.gelu(gate, approximate="tanh") * up
        case _:
            return x


def hadamard(x: Tensor) -> Tensor:
    """Return the orthonormal Hadamard transform of each 64 columns, by its definition."""
    index = torch.arange(BLOCK)
    bits = sum(((index[:, None] & index[None]) >> bit) & 1 for bit in range(6))
    matrix = (-1.0) ** torch.as_tensor(bits).double() / 8
    padded = F.pad(x.double(), (0, -x.shape[1] % BLOCK))
    return (padded.view(-1, BLOCK) @ matrix).view_as(padded)


def quantized_rows(
    library: ctypes.CDLL, x: Tensor, in_features: int, prologue: PrologueKind, norm: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the int8 rows and the scales that the kernel computes."""
    q = torch.empty(len(x), -(-in_features // BLOCK) * BLOCK, dtype=torch.int8)
    scale = torch.empty(len(x))
    library.chatrpc_linear_quantize(
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(norm.data_ptr()),
        ctypes.c_int64(len(x)),
        ctypes.c_int64(in_features),
        ctypes.c_int32(prologue),
        ctypes.c_float(EPS),
        ctypes.c_void_p(q.data_ptr()),
        ctypes.c_void_p(scale.data_ptr()),
    )
    return q, scale


def test_quantized_weight_is_the_rotated_one_to_half_a_step() -> None:
    weight = torch.randn(50, 100)
    values, scale, in_features = quantize(weight)
    assert (values.shape, values.dtype, in_features) == ((50, 128), torch.int8, 100)
    assert (values.int().abs().amax(1) == 127).all()
    error = (values.double() * scale[:, None] - hadamard(weight)).abs()
    assert (error <= scale[:, None] * 0.5001).all()


def test_large_weight_is_quantized_in_parts_like_a_small_one() -> None:
    weight = torch.randn(40_000, 64, dtype=torch.bfloat16)
    whole, part = quantize(weight), quantize(weight[20_000:20_010])
    assert torch.equal(whole.values[20_000:20_010], part.values)
    assert torch.equal(whole.scale[20_000:20_010], part.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (33, 65), (70, 576)])
def test_weight_packed_by_the_kernel_is_the_quantized_one(
    library: ctypes.CDLL, out_features: int, in_features: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(out_features, in_features).to(dtype)
    weight[0] *= 0 if out_features > 1 else 1
    quantized = quantize(weight)
    ours, twin = pack_int8(library, weight), pack_int8(library, quantized)
    assert torch.allclose(ours.scale, twin.scale, rtol=1e-6)
    steps = (ours.values.view(-1).int() - twin.values.view(torch.uint8).view(-1).int()).abs()
    assert steps.max() <= 1  # a tie may be rounded to either side
    assert (steps > 0).float().mean() < 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_channel_gives_nan_and_leaves_the_others(
    library: ctypes.CDLL, value: float
) -> None:
    weight = torch.randn(40, 100)
    clean = NativeInt8Linear(library, weight)(x := torch.randn(3, 100))
    weight[7, 99] = value
    y = NativeInt8Linear(library, weight)(x)
    assert y[:, 7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(y[:, others], clean[:, others])


def test_channel_of_zeros_gives_zeros() -> None:
    weight = torch.randn(3, 64)
    weight[1] = 0
    values, scale, _ = quantize(weight)
    assert not values[1].any()
    assert scale[1] == 0


@pytest.mark.parametrize("prologue", PrologueKind)
@pytest.mark.parametrize(
    ("out_features", "in_features"), [(1, 1), (17, 65), (48, 100), (192, 576), (33, 1536)]
)
def test_product_is_right_to_the_error_of_int8(
    make: Callable[..., Int8Linear], out_features: int, in_features: int, prologue: PrologueKind
) -> None:
    weight = torch.randn(out_features, in_features) / math.sqrt(in_features)
    bias, x = torch.randn(out_features), torch.randn(41, width(in_features, prologue))
    residual, norm = torch.randn(41, out_features), 0.1 + torch.rand(in_features)
    layer = make(weight, bias, norm)
    assert (layer.in_features, layer.out_features) == (in_features, out_features)

    y = layer(x, prologue=prologue, eps=EPS, residual=residual)

    product = prepared(x, prologue, norm) @ weight.double().T
    assert (y - bias - residual - product).norm() < 0.02 * product.norm()


@pytest.mark.parametrize("prologue", PrologueKind)
@pytest.mark.parametrize("in_features", [1, 65, 576])
def test_rows_are_quantized_as_specified(
    library: ctypes.CDLL, in_features: int, prologue: PrologueKind
) -> None:
    x, norm = torch.randn(9, width(in_features, prologue)), 5 * torch.randn(in_features)
    q, scale = quantized_rows(library, x, in_features, prologue, norm)
    exact = hadamard(prepared(x, prologue, norm))
    assert torch.allclose(scale.double(), exact.abs().amax(1) / 127, rtol=1e-5)
    # The error is half a step, plus the rounding of the prologue in float32.
    assert (q - exact / scale[:, None]).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("prologue", PrologueKind)
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (17, 65), (160, 576)])
def test_every_path_gives_the_bits_of_the_integer_sums(
    library: ctypes.CDLL, out_features: int, in_features: int, prologue: PrologueKind
) -> None:
    weight = quantize(torch.randn(out_features, in_features))
    x, norm = torch.randn(70, width(in_features, prologue)), torch.randn(in_features)
    q, scale = quantized_rows(library, x, in_features, prologue, norm)
    sums = (q.long() @ weight.values.long().T).float()
    expected = sums * (scale[:, None] * weight.scale)
    layer = NativeInt8Linear(library, weight, norm=norm)
    for path in paths(library):
        for rows in BATCHES:
            y = forced(layer, path)(x[:rows], prologue=prologue, eps=EPS)
            assert torch.equal(y, expected[:rows]), (path, rows)


@given(data=st.data())
def test_row_has_the_same_bits_in_any_batch(
    kernels: ctypes.CDLL | None, data: st.DataObject
) -> None:
    out_features = data.draw(st.sampled_from([1, 17, 64, 97]))
    in_features = data.draw(st.sampled_from([1, 65, 100, 576, 1000]))
    prologue = data.draw(st.sampled_from(PrologueKind))
    total = data.draw(st.sampled_from([3, 70, 512, 700]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    weight = quantize(torch.randn(out_features, in_features, generator=generator))
    bias = torch.randn(out_features, generator=generator)
    norm = torch.randn(in_features, generator=generator)
    x = torch.randn(total, width(in_features, prologue), generator=generator)
    residual = torch.randn(total, out_features, generator=generator)
    layers: list[Int8Linear] = [TorchInt8Linear(weight, bias, norm)]
    assert kernels is not None or not are_kernels_required()
    if kernels is not None:
        layers.append(NativeInt8Linear(kernels, weight, bias, norm))
    for layer in layers:
        whole = layer(x, prologue=prologue, eps=EPS, residual=residual)
        for _ in range(5):
            size = data.draw(st.integers(1, min(70, total)))
            start = data.draw(st.integers(0, total - size))
            rows = slice(start, start + size)
            part = layer(x[rows].clone(), prologue=prologue, eps=EPS, residual=residual[rows])
            assert torch.equal(part, whole[rows])


def test_bias_residual_and_out_do_not_change_the_product(make: Callable[..., Int8Linear]) -> None:
    weight, bias = quantize(torch.randn(70, 128)), torch.randn(70)
    x, residual = torch.randn(5, 128), torch.randn(5, 70)
    plain, biased = make(weight), make(weight, bias)
    assert torch.allclose(biased(x), plain(x) + bias, atol=1e-5)
    added = biased(x, residual=residual)
    assert torch.allclose(added, plain(x) + bias + residual, atol=1e-5)

    out = torch.full((5, 70), math.nan)
    assert biased(x, out=out) is out
    assert torch.equal(out, biased(x))
    in_place = residual.clone()
    assert biased(x, residual=in_place, out=in_place) is in_place
    assert torch.equal(in_place, added)


def test_memory_around_the_output_is_not_written(library: ctypes.CDLL) -> None:
    for rows in (1, 5, 16, 33):
        for path in paths(library):
            space = torch.zeros(rows + 2, 37)
            layer = forced(NativeInt8Linear(library, torch.randn(37, 100)), path)
            layer(torch.randn(rows, 100), out=space[1:-1])
            assert space[1:-1].all()
            assert not space[0].any()
            assert not space[-1].any()


def test_no_rows_give_no_rows(make: Callable[..., Int8Linear]) -> None:
    assert make(torch.randn(8, 64))(torch.empty(0, 64)).shape == (0, 8)


@pytest.mark.parametrize("prologue", PrologueKind)
@pytest.mark.parametrize("rows", [1, 4, 20])
def test_row_of_zeros_gives_the_bias(
    make: Callable[..., Int8Linear], prologue: PrologueKind, rows: int
) -> None:
    bias = torch.randn(20)
    x = torch.zeros(rows, width(64, prologue))
    y = make(torch.randn(20, 64), bias)(x, prologue=prologue, eps=EPS)
    assert torch.equal(y, bias.expand(rows, 20))


@pytest.mark.parametrize("value", [1e-38, 1e-30, 1e-20, 1e20])
def test_very_small_and_large_rows_stay_finite(
    make: Callable[..., Int8Linear], value: float
) -> None:
    weight = torch.randn(20, 64)
    y = make(weight)(torch.full((2, 64), value))
    exact = value * weight.double().sum(1)
    assert torch.allclose(y.double(), exact.expand(2, 20), rtol=0.2, atol=max(value, 1e-30))


@pytest.mark.parametrize("prologue", PrologueKind)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rows", [1, 6, 20])
def test_non_finite_row_gives_nan_and_leaves_the_others(
    make: Callable[..., Int8Linear], prologue: PrologueKind, value: float, rows: int
) -> None:
    layer = make(torch.randn(40, 100))
    x = torch.randn(rows, width(100, prologue))
    clean = layer(x, prologue=prologue, eps=EPS)
    x[rows // 2, 77] = value
    y = layer(x, prologue=prologue, eps=EPS)
    assert y[rows // 2].isnan().all()
    others = torch.arange(rows) != rows // 2
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("prologue", [PrologueKind.SILU_GATE, PrologueKind.GELU_TANH_GATE])
def test_gates_are_right_over_their_whole_range(
    library: ctypes.CDLL, prologue: PrologueKind
) -> None:
    gate = torch.cat([torch.linspace(-120, 120, 4001), torch.linspace(-6, 6, 4001)])
    x = torch.stack([gate, torch.ones_like(gate)], 1)
    q, scale = quantized_rows(library, x, 1, prologue, torch.ones(1))
    # The row has one value. The transform makes 64 equal values of it, each 127 steps of its scale.
    value = q[:, 0] * scale * 8
    exact = prepared(x, prologue)[:, 0]
    near = (value.double() - exact).abs() <= 3e-6 * exact.abs() + 1e-9
    assert near.all()


def test_outliers_cost_little(make: Callable[..., Int8Linear]) -> None:
    """Without the transform, one value 100 times the others would need all bits of an int8 row."""
    weight, x = torch.randn(64, 576), torch.randn(20, 576)
    x[:, 5] *= 100
    exact = x.double() @ weight.double().T
    plain = (x / x.abs().amax(1, keepdim=True) * 127).round() * x.abs().amax(1, keepdim=True) / 127
    without = (plain.double() @ weight.double().T - exact).norm()
    assert (make(weight)(x) - exact).norm() < 0.6 * without


def test_norm_with_large_weights_does_not_affect_other_inputs(
    make: Callable[..., Int8Linear],
) -> None:
    """If the norm were part of the weight matrix, its large weights would set the int8 scales."""
    weight, x = torch.randn(64, 576) / 24, torch.randn(20, 576)
    norm = torch.ones(576)
    norm[::64] = 500
    x[:, ::64] /= 500  # so that all inputs contribute to the product equally
    exact = prepared(x, PrologueKind.RMS_NORM, norm) @ weight.double().T

    y = make(weight, None, norm)(x, prologue=PrologueKind.RMS_NORM, eps=EPS)
    folded = make(weight * norm)(x, prologue=PrologueKind.RMS_NORM, eps=EPS)

    assert (y - exact).norm() < 0.02 * exact.norm()
    assert (folded - exact).norm() > 0.2 * exact.norm()


def test_native_and_torch_layers_agree(library: ctypes.CDLL) -> None:
    weight = QuantizedWeight(
        torch.randint(-127, 128, (96, 192), dtype=torch.int8), torch.rand(96) + 0.1, 180
    )
    norm = torch.randn(180)
    for prologue in PrologueKind:
        x = torch.randn(20, width(180, prologue))
        native = NativeInt8Linear(library, weight, norm=norm)(x, prologue=prologue, eps=EPS)
        twin = TorchInt8Linear(weight, norm=norm, levels=127)(x, prologue=prologue, eps=EPS)
        assert (native - twin).norm() < 2e-3 * twin.norm()  # ties may be rounded differently


def test_torchs_layer_with_seven_bits_is_right_to_its_error() -> None:
    weight, x = torch.randn(40, 576), torch.randn(20, 576)
    exact = x.double() @ weight.double().T
    y = TorchInt8Linear(weight, levels=63)(x)
    assert (y - exact).norm() < 0.03 * exact.norm()


def test_any_number_of_threads_gives_the_same_bits(library: ctypes.CDLL) -> None:
    weight = torch.randn(1000, 576)
    x = {rows: torch.randn(rows, 576) for rows in (1, 5, 40)}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        layer = NativeInt8Linear(library, weight)
        expected = {rows: layer(part) for rows, part in x.items()}
        for num_threads in (2, 3, 5):
            torch.set_num_threads(num_threads)
            again = NativeInt8Linear(library, weight)
            for _ in range(20):
                assert all(torch.equal(again(x[rows]), y) for rows, y in expected.items())
    finally:
        torch.set_num_threads(before)


def test_calls_from_several_threads_at_once_give_the_same_bits(library: ctypes.CDLL) -> None:
    layer, x = NativeInt8Linear(library, torch.randn(1000, 576)), torch.randn(9, 576)
    expected = layer(x)

    def is_right(_: int) -> bool:
        torch.set_num_threads(3)
        return all(torch.equal(layer(x), expected) for _ in range(20))

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(4) as callers:
            assert all(callers.map(is_right, range(4)))
    finally:
        torch.set_num_threads(before)


def test_packed_weights_share_memory_but_no_byte(library: ctypes.CDLL) -> None:
    x = torch.randn(3, 65)
    layers, answers = [], []
    for _ in range(20):
        layers.append(NativeInt8Linear(library, torch.randn(33, 65)))
        answers.append(layers[-1](x))
    for layer, answer in zip(layers, answers, strict=True):
        assert torch.equal(layer(x), answer)
