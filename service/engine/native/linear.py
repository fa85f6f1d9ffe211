"""Linear layers with int8 activations, each with its norm or gate, bias and residual in one call.

y[r, n] = s_row[r] * s_w[n] * sum_k q_x[r, k] * q_w[n, k] + bias[n] + residual[r, n]

Weights are symmetric int8 per output channel, activations symmetric int8 per row. Both are rotated
first by the same orthonormal Hadamard transform of every 64 inputs; the weights are rotated at
load. The rotation does not change the product, and spreads outliers over 64 values, as in QuaRot
(https://arxiv.org/abs/2404.00456). On SmolLM2-135M int8 raises perplexity by 3.5 % without the
rotation and by 0.07 % with it.

The weight of an RMS norm is applied to the activations. If it were folded into the weight matrix,
a few large values of it would leave too few int8 steps for all other inputs: Gemma 3 270M had a
perplexity of 430 instead of 19.

Each row is computed by itself, and integer sums are exact. So a row's bits do not depend on the
batch.
"""

import ctypes
import mmap
import platform
import warnings
from enum import IntEnum
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.gguf_blocks import BlockWeight
from service.engine.weight import Weight

BLOCK = 64  # inputs that are rotated together; K is padded with zeros to a multiple of it
PANEL = 32  # output channels that are adjacent in a packed weight
_CHUNK = 1 << 20  # weights that are quantized, and in memory as floats, at once
_ARENA_BYTES = 32 << 20
_SMALLEST = 1e-30  # smaller rows count as zeros; 2^17 divided by it fits a float32

BLOCK_TYPES = {
    kind: number
    for number, kind in enumerate(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"))
}  # the numbers in blocks.h


class PrologueKind(IntEnum):
    """The operation on a row before it is quantized. The numbers are those of quantize.h."""

    NONE = 0
    RMS_NORM = 1  # x / sqrt(mean(x^2) + eps) * norm, where `norm` [K] belongs to the layer
    SILU_GATE = 2  # x is [gate | up]: silu(gate) * up
    GELU_TANH_GATE = 3

    @property
    def is_gated(self) -> bool:
        return self >= PrologueKind.SILU_GATE


class Int8Linear(Protocol):
    """A linear layer with activations in int8. All tensors are contiguous float32.

    `__call__` takes x [rows, K], or [rows, 2 K] with a gate, and returns [rows, N]. `residual`
    [rows, N] is added at the end, and `out` may be the same tensor. A row that contains NaN or
    infinity gives NaN and does not affect other rows.
    """

    in_features: int
    out_features: int

    def __call__(
        self,
        x: Tensor,
        *,
        prologue: PrologueKind = PrologueKind.NONE,
        eps: float = 0.0,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor: ...


class QuantizedWeight(NamedTuple):
    """A weight [N, K] in int8 with one scale per output channel."""

    values: Tensor  # int8 [N, K padded to whole blocks], rotated
    scale: Tensor  # float32 [N]
    in_features: int  # K


def _sylvester(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


_SIGNS = _sylvester(BLOCK)  # the Hadamard matrix times 8: symmetric, and its own inverse times 64


def _rotated_rows(weight: Weight, start: int, stop: int) -> Tensor:
    """Return rows of a weight [N, K], padded to whole blocks and rotated, in float32."""
    if isinstance(weight, Tensor):
        part = weight[start:stop].float()
    else:
        part = weight.rows(start, stop).dequantized()
    part = F.pad(part, (0, -part.shape[1] % BLOCK))
    return (part.view(-1, BLOCK) @ (_SIGNS / 8)).view_as(part)


def quantize(weight: Weight) -> QuantizedWeight:
    """Rotate and quantize a weight [N, K]: of any float type, or in groups."""
    out_features, in_features = weight.shape
    padded = -(-in_features // BLOCK) * BLOCK
    values = torch.empty(out_features, padded, dtype=torch.int8)
    scale = torch.empty(out_features)
    rows_at_once = max(1, _CHUNK // padded)
    for start in range(0, out_features, rows_at_once):
        rows = slice(start, start + rows_at_once)
        rotated = _rotated_rows(weight, start, start + rows_at_once)
        amax = torch.linalg.vector_norm(rotated, torch.inf, dim=1, keepdim=True)
        scale[rows] = (amax / 127).squeeze(1)
        values[rows] = rotated.mul_(torch.where(amax > 0, 127 / amax, 0.0)).round_()
    return QuantizedWeight(values, scale, in_features)


class _Layer(ctypes.Structure):
    """The struct `chatrpc_linear_layer` of linear.h."""

    _fields_ = (
        ("out_features", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("format", ctypes.c_int32),
        ("path", ctypes.c_int32),
    )


class PackedWeight(NamedTuple):
    """A weight in a form that the kernels read."""

    out_features: int
    in_features: int
    format: int  # the number in linear.h
    values: Tensor  # uint8, aligned to 64 bytes
    scale: Tensor  # float32 [N padded to whole panels]


class NativeLinear:
    """A `Int8Linear` by the native kernels."""

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: PackedWeight,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> None:
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.weight = weight
        self._bias = torch.zeros_like(weight.scale)
        if bias is not None:
            self._bias[: self.out_features] = bias
        self._norm = _norm_weight(norm, self.in_features)
        self._layer = _Layer(
            self.out_features,
            self.in_features,
            weight.values.data_ptr(),
            weight.scale.data_ptr(),
            self._bias.data_ptr(),
            self._norm.data_ptr(),
            weight.format,
            0,
        )
        self._address = ctypes.addressof(self._layer)
        self._run = library.chatrpc_linear
        self._run.restype = None
        self._run.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int32,
            ctypes.c_float,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )

    def __call__(
        self,
        x: Tensor,
        *,
        prologue: PrologueKind = PrologueKind.NONE,
        eps: float = 0.0,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        rows = x.shape[0]
        if out is None:
            out = x.new_empty(rows, self.out_features)
        self._run(
            self._address,
            x.data_ptr(),
            rows,
            prologue,
            eps,
            None if residual is None else residual.data_ptr(),
            out.data_ptr(),
        )
        return out


def pack_int8(library: ctypes.CDLL, weight: Weight | QuantizedWeight) -> PackedWeight:
    """Pack a weight [N, K] in int8 with one scale per output channel.

    A weight that is not in int8 is rotated and quantized on all threads.
    """
    if isinstance(weight, QuantizedWeight):
        out_features = len(weight.scale)
        scale = F.pad(weight.scale, (0, -out_features % PANEL))
        return PackedWeight(out_features, weight.in_features, 0, _pack(weight.values), scale)
    out_features, in_features = weight.shape
    channels = -(-out_features // PANEL) * PANEL
    row_bytes = -(-in_features // BLOCK) * BLOCK
    values = arena.allocate(channels * row_bytes)
    scale = torch.empty(channels)

    def pack(function: Any, source: Tensor, number: int, start: int, stop: int) -> None:
        function(
            ctypes.c_void_p(source.data_ptr()),
            ctypes.c_int32(number),
            ctypes.c_int64(stop - start),
            ctypes.c_int64(in_features),
            ctypes.c_void_p(values[start * row_bytes :].data_ptr()),
            ctypes.c_void_p(scale[start:].data_ptr()),
        )

    if isinstance(weight, BlockWeight):
        number = BLOCK_TYPES[weight.kind]
        for start, blocks in parts_of_panels(weight):
            pack(library.chatrpc_linear_pack_blocks, blocks, number, start, start + len(blocks))
    elif isinstance(weight, Tensor):
        pack(library.chatrpc_linear_pack, *float_arguments(weight), 0, out_features)
    else:
        rows_at_once = max(1, _CHUNK // row_bytes // PANEL) * PANEL
        for start in range(0, out_features, rows_at_once):
            stop = min(start + rows_at_once, out_features)
            part = weight.rows(start, stop).dequantized()
            pack(library.chatrpc_linear_pack, *float_arguments(part), start, stop)
    return PackedWeight(out_features, in_features, 0, values, scale)


def parts_of_panels(weight: BlockWeight) -> list[tuple[int, Tensor]]:
    """Return a weight's blocks in contiguous parts, each with the output channel that it begins at.

    All parts begin with a panel.
    """
    starts = [0, *accumulate(len(part) for part in weight.parts[:-1])]
    if any(start % PANEL for start in starts):
        return [(0, weight.blocks.contiguous())]
    return [(n, part.contiguous()) for n, part in zip(starts, weight.parts, strict=True)]


class NativeInt8Linear(NativeLinear):
    """An `Int8Linear` by the native kernels, with weights in int8."""

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: Weight | QuantizedWeight,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> None:
        super().__init__(library, pack_int8(library, weight), bias, norm)


class _Arena:
    """An allocator of memory in huge pages, for weights.

    Reading weights from huge pages is 10 to 15 % faster (measured). One layer's weights are smaller
    than a few pages, so layers share an allocation. It is freed with its last tensor.
    """

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def allocate(self, num_bytes: int) -> Tensor:
        """Return `num_bytes` bytes, aligned to 64 bytes, as uint8."""
        size = -(-num_bytes // 64) * 64
        if size > len(self._rest):
            memory = mmap.mmap(-1, max(size, _ARENA_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            self._rest = torch.frombuffer(memory, dtype=torch.uint8)
        taken, self._rest = self._rest[:num_bytes], self._rest[size:]
        return taken


arena = _Arena()


def _norm_weight(norm: Tensor | None, in_features: int) -> Tensor:
    return torch.ones(in_features) if norm is None else norm.float().contiguous()


def _pack(values: Tensor) -> Tensor:
    """Pack int8 [N, K] in the order of linear.h: panel, block, tile, line, channel, four inputs."""
    panels = F.pad(values, (0, 0, 0, -len(values) % PANEL)).view(torch.int32)
    num_blocks = values.shape[1] // BLOCK
    lines = panels.view(-1, 2, 16, num_blocks, 16).permute(0, 3, 1, 4, 2)
    packed = arena.allocate(4 * lines.numel()).view(torch.int32).view(lines.shape)
    # This adds 128 to every byte. The constant is 0x80808080 as a signed number.
    return torch.bitwise_xor(lines, -0x7F7F7F80, out=packed)


_PACKED_TYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
}  # the numbers in pack.cpp


def float_arguments(weight: Tensor) -> tuple[Tensor, int]:
    """Return a float weight [N, K] as the functions of linear.h read it, and its type's number."""
    if weight.dtype not in _PACKED_TYPES:
        weight = weight.float()
    return weight.contiguous(), _PACKED_TYPES[weight.dtype]


# Without VNNI, torch's x86 kernels add pairs of products in 16 bits. With 8-bit activations that
# would overflow, so they get fewer levels.
_LEVELS = 63 if platform.machine() == "x86_64" and not torch.cpu._is_vnni_supported() else 127


class TorchInt8Linear:
    """A `Int8Linear` by torch's operators, for machines without the native kernels.

    Activations are quantized to integers from -`levels` to `levels`.
    """

    def __init__(
        self,
        weight: Weight | QuantizedWeight,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
        *,
        levels: int = _LEVELS,
    ) -> None:
        quantized = weight if isinstance(weight, QuantizedWeight) else quantize(weight)
        self.out_features = len(quantized.scale)
        self.in_features = quantized.in_features
        self._bias = bias
        self._norm = _norm_weight(norm, self.in_features)
        self._levels = levels
        self._packed = _prepack(quantized)

    def __call__(
        self,
        x: Tensor,
        *,
        prologue: PrologueKind = PrologueKind.NONE,
        eps: float = 0.0,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        rotated, scale = _rotate(_prepared(x, prologue, eps, self._norm))
        y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rotated, 1 / self._levels, self._levels + 1, self._packed
        )
        y.mul_(scale)
        if self._bias is not None:
            y += self._bias
        if residual is not None:
            y += residual
        return y if out is None else out.copy_(y)


def _prepack(weight: QuantizedWeight) -> torch.ScriptObject:
    zero_points = torch.zeros(len(weight.scale), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch will remove quantized tensor types; the pinned version has no replacement here.
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        per_channel = torch._make_per_channel_quantized_tensor(
            weight.values, weight.scale.double(), zero_points, 0
        )
    packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(per_channel, None)
    return packed


def _prepared(x: Tensor, prologue: PrologueKind, eps: float, norm: Tensor) -> Tensor:
    """Return the rows before quantization: the prologue's output, padded to whole blocks."""
    # Gates are padded before the activation. Otherwise torch would compute the end of the tensor
    # without vector instructions, whose results may differ in the last bit.
    padding = -(x.shape[1] // (2 if prologue.is_gated else 1)) % BLOCK
    if prologue.is_gated:
        gate, up = (F.pad(part, (0, padding)) for part in x.chunk(2, dim=-1))
        gated = (
            F.silu(gate) if prologue is PrologueKind.SILU_GATE else F.gelu(gate, approximate="tanh")
        )
        return gated * up
    if prologue is PrologueKind.RMS_NORM:
        x = F.rms_norm(x, x.shape[-1:], eps=eps) * norm
    return F.pad(x, (0, padding))


def _rotate(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate whole blocks of rows.

    Returns:
        Values in [-1, 1], and the factor of each row.
    """
    # A matrix product sums in an order that depends on the number of rows. So x is rounded to
    # integers up to 2^17: every partial sum of 64 of them is exact in float32, in any order.
    amax = x.abs().amax(-1, keepdim=True).clamp_min_(_SMALLEST)
    whole = (x * (2**17 / amax)).round_()
    rotated = (whole.view(-1, BLOCK) @ _SIGNS).view_as(whole)
    largest = rotated.abs().amax(-1, keepdim=True).clamp_min_(1.0)
    return rotated.div_(largest), largest * amax * (2.0**-17 / 8)
