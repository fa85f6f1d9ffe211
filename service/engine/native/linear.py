"""Linear layers in int8, with what comes before and after them in the same call.

y[r, n] = s_row[r] * s_w[n] * sum_k q_x[r, k] * q_w[n, k] + bias[n] + residual[r, n]

Weights are symmetric int8 per output channel, activations symmetric int8 per row. Both go through
the same orthonormal Hadamard transform of every 64 inputs first, the weights when they are loaded:
the product stays what it was and an activation's outliers are spread over 64 values, as in QuaRot
(https://arxiv.org/abs/2404.00456). Measured on SmolLM2-135M: 3.5 % of perplexity lost without,
0.07 % with it.

The weight of an RMS norm is applied to the activations. Folded into the weight matrix, it would be
quantized with it, and where a few of its values are far larger than the rest, they take the int8
steps of all other inputs: Gemma 3 270M had a perplexity of 430 instead of 19.

Each row is computed by itself and integer sums are exact: a row's bits do not depend on the batch.
"""

import ctypes
import mmap
import platform
import warnings
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # inputs that are mixed with each other; K is padded with zeros to a multiple of it
_PANEL = 32  # output channels that lie together in a packed weight
_CHUNK = 1 << 20  # weights quantized at once: what there is in float at a time
_ARENA_BYTES = 32 << 20
_SMALLEST = 1e-30  # a row below it counts as zeros: 2^17 over it is still a float32


class PrologueKind(IntEnum):
    """What happens to a row before it is quantized. The numbers are the kernel's."""

    NONE = 0
    RMS_NORM = 1  # x / sqrt(mean(x^2) + eps) * norm, the norm's weight [K] that the layer holds
    SILU_GATE = 2  # x is [gate | up]: silu(gate) * up
    GELU_TANH_GATE = 3

    @property
    def is_gated(self) -> bool:
        return self >= PrologueKind.SILU_GATE


class Int8Linear(Protocol):
    """x [rows, K], or [rows, 2K] with a gate, to [rows, N]. Contiguous float32 throughout.

    `residual` [rows, N] is added at the end; `out` may be the same tensor. A row that holds NaN or
    infinity gives NaN and leaves the others alone. The weight of the RMS norm [K] is the layer's.
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
    values: Tensor  # int8 [N, K padded to whole blocks], rotated
    scale: Tensor  # float32 [N]
    in_features: int  # K


def _sylvester(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


_SIGNS = _sylvester(BLOCK)  # the Hadamard matrix times 8: symmetric, and its own inverse times 64


def quantize(weight: Tensor) -> QuantizedWeight:
    """A weight [N, K] of any float type, rotated and as int8."""
    out_features, in_features = weight.shape
    padded = -(-in_features // BLOCK) * BLOCK
    values = torch.empty(out_features, padded, dtype=torch.int8)
    scale = torch.empty(out_features)
    rows_at_once = max(1, _CHUNK // padded)
    for start in range(0, out_features, rows_at_once):
        rows = slice(start, start + rows_at_once)
        part = weight[rows].float()
        if padded != in_features:
            part = F.pad(part, (0, padded - in_features))
        rotated = (part.view(-1, BLOCK) @ (_SIGNS / 8)).view_as(part)
        amax = torch.linalg.vector_norm(rotated, torch.inf, dim=1, keepdim=True)
        scale[rows] = (amax / 127).squeeze(1)
        values[rows] = rotated.mul_(torch.where(amax > 0, 127 / amax, 0.0)).round_()
    return QuantizedWeight(values, scale, in_features)


class _Layer(ctypes.Structure):
    """`chatrpc_linear_layer` of linear.h."""

    _fields_ = (
        ("out_features", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("path", ctypes.c_int32),
    )


class NativeInt8Linear:
    """A `Int8Linear` on the native kernels, with its weight packed for them."""

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: Tensor | QuantizedWeight,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> None:
        if isinstance(weight, QuantizedWeight):
            self.out_features, self.in_features = len(weight.scale), weight.in_features
            self._weights = _pack(weight.values)
            self._scales = F.pad(weight.scale, (0, -self.out_features % _PANEL))
        else:
            self.out_features, self.in_features = weight.shape
            self._weights, self._scales = _quantize_packed(library, weight)
        self._bias = torch.zeros_like(self._scales)
        if bias is not None:
            self._bias[: self.out_features] = bias
        self._norm = _norm_weight(norm, self.in_features)
        self._layer = _Layer(
            self.out_features,
            self.in_features,
            self._weights.data_ptr(),
            self._scales.data_ptr(),
            self._bias.data_ptr(),
            self._norm.data_ptr(),
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


class _Arena:
    """Memory in huge pages, for what is read front to back at every step.

    Weights out of them reach the cores 10 to 15 % faster (measured). A layer alone is smaller than
    a few of them, so layers share; what is behind a tensor lives as long as one that lies there.
    """

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def allocate(self, num_bytes: int) -> Tensor:
        """Bytes from a 64-byte boundary on."""
        size = -(-num_bytes // 64) * 64
        if size > len(self._rest):
            memory = mmap.mmap(-1, max(size, _ARENA_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            self._rest = torch.frombuffer(memory, dtype=torch.uint8)
        taken, self._rest = self._rest[:num_bytes], self._rest[size:]
        return taken


_arena = _Arena()


def _norm_weight(norm: Tensor | None, in_features: int) -> Tensor:
    return torch.ones(in_features) if norm is None else norm.float().contiguous()


def _pack(values: Tensor) -> Tensor:
    """int8 [N, K] in the order of linear.h: panels, blocks, tiles, lines, channels, four inputs."""
    panels = F.pad(values, (0, 0, 0, -len(values) % _PANEL)).view(torch.int32)
    num_blocks = values.shape[1] // BLOCK
    lines = panels.view(-1, 2, 16, num_blocks, 16).permute(0, 3, 1, 4, 2)
    packed = _arena.allocate(4 * lines.numel()).view(torch.int32).view(lines.shape)
    # 128 added to every byte: exclusive or with 0x80808080, as a signed number.
    return torch.bitwise_xor(lines, -0x7F7F7F80, out=packed)


_PACKED_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the kernel's numbers


def _quantize_packed(library: ctypes.CDLL, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize` and `_pack` in one pass on all threads: packed values, scales of whole panels."""
    if weight.dtype not in _PACKED_TYPES:
        weight = weight.float()
    weight = weight.contiguous()
    out_features, in_features = weight.shape
    channels = -(-out_features // _PANEL) * _PANEL
    packed = _arena.allocate(channels * -(-in_features // BLOCK) * BLOCK)
    scales = torch.empty(channels)
    library.chatrpc_linear_pack(
        ctypes.c_void_p(weight.data_ptr()),
        ctypes.c_int32(_PACKED_TYPES[weight.dtype]),
        ctypes.c_int64(out_features),
        ctypes.c_int64(in_features),
        ctypes.c_void_p(packed.data_ptr()),
        ctypes.c_void_p(scales.data_ptr()),
    )
    return packed, scales


# Without VNNI, torch's x86 kernels add pairs of products in 16 bits, too few for activations of 8.
_LEVELS = 63 if platform.machine() == "x86_64" and not torch.cpu._is_vnni_supported() else 127


class TorchInt8Linear:
    """The same `Int8Linear` by torch's own operators, for machines without the native kernels.

    Activations are whole numbers of -`levels` to `levels`.
    """

    def __init__(
        self,
        weight: Tensor | QuantizedWeight,
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
        # Tensors of quantized types leave in some later torch; the one we pin has no other way in.
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        per_channel = torch._make_per_channel_quantized_tensor(
            weight.values, weight.scale.double(), zero_points, 0
        )
    packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(per_channel, None)
    return packed


def _prepared(x: Tensor, prologue: PrologueKind, eps: float, norm: Tensor) -> Tensor:
    """The row that is quantized, in floats, padded to whole blocks.

    The gates are padded first: a vector's bits may differ from those of a remainder, which would
    begin at another place in each row.
    """
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
    """The transform of whole blocks, as values in [-1, 1] and what each row is to be times.

    A matrix product sums in an order that depends on the number of rows. So x becomes whole numbers
    up to 2^17 first: every partial sum of 64 of them is exact in float32, in any order.
    """
    amax = x.abs().amax(-1, keepdim=True).clamp_min_(_SMALLEST)
    whole = (x * (2**17 / amax)).round_()
    rotated = (whole.view(-1, BLOCK) @ _SIGNS).view_as(whole)
    largest = rotated.abs().amax(-1, keepdim=True).clamp_min_(1.0)
    return rotated.div_(largest), largest * amax * (2.0**-17 / 8)
