"""Linear layers with weights in 4 bits and activations in int8.

Weights of a float checkpoint become w[n, k] = s[n] * t[n, g] * (q[n, k] - z[n, g]): integers q and
z from 0 to 15, a whole scale t from 1 to 16 for each group of 32 inputs, and a float scale s for
each output channel. The two levels of scales are those of QoQ (https://arxiv.org/abs/2405.04532).
t * (q - z) is an int8 weight. So products are exact, and many rows use the products of int8. A
weight takes 4.25 bits. Weights and activations are rotated as in int8. The parameters are those of
the least squared error, so no text is needed for calibration.

Weights that a file stores in groups (`GroupedWeight`) keep their 4 bits. Their scales are rounded
to int8 steps of each 128 inputs, for which activations have scales of their own (`int4.h`).
"""

import ctypes
from typing import Final

import torch
from torch import Tensor

from service.engine.grouped_weight import GroupedWeight
from service.engine.native.linear import (
    BLOCK,
    PANEL,
    NativeLinear,
    PackedWeight,
    QuantizedWeight,
    arena,
    pack_floats,
    rotated_rows,
)

GROUP: Final = 32  # inputs that share a whole scale, and the unit of the groups in files

_FORMAT, _GROUPS_FORMAT = 1, 2  # the numbers in int4.h
_BLOCK_BYTES = 1088  # a panel's 64 inputs in the first format
_GROUPS_BYTES = 2368  # a panel's 128 inputs in the second one
_LEVELS, _TOP_SCALE, _SPAN = 15, 15, 0.92  # of int4_pack.cpp
_CHUNK = 1 << 20  # weights that are quantized at once
_SMALLEST_SCALE = 3e-39  # its inverse is still a float32


class NativeInt4Linear(NativeLinear):
    """An `Int8Linear` by the native kernels, with a float weight [N, K] in 4 bits."""

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: Tensor,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> None:
        out_features, in_features = weight.shape
        num_panels, num_blocks = -(-out_features // PANEL), -(-in_features // BLOCK)
        values = arena.allocate(num_panels * num_blocks * _BLOCK_BYTES)
        scale = torch.empty(num_panels * PANEL)
        pack_floats(library.chatrpc_int4_pack, weight, values, scale)
        packed = PackedWeight(out_features, in_features, _FORMAT, values, scale)
        super().__init__(library, packed, bias, norm)


class NativeGroupedLinear(NativeLinear):
    """An `Int8Linear` by the native kernels, with a weight of 4 bits in groups.

    Args:
        weight: A weight that `can_pack` accepts.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: GroupedWeight,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> None:
        out_features, in_features = weight.shape
        num_panels, num_groups = -(-out_features // PANEL), -(-in_features // 128)
        packed = arena.allocate(num_panels * num_groups * _GROUPS_BYTES)
        values, scale = weight.values.contiguous(), weight.scale.contiguous()
        minimum = None if weight.minimum is None else weight.minimum.contiguous()
        library.chatrpc_groups_pack(
            ctypes.c_void_p(values.data_ptr()),
            ctypes.c_void_p(scale.data_ptr()),
            None if minimum is None else ctypes.c_void_p(minimum.data_ptr()),
            ctypes.c_int64(out_features),
            ctypes.c_int64(in_features),
            ctypes.c_int64(weight.group_size),
            ctypes.c_void_p(packed.data_ptr()),
        )
        no_scale = torch.zeros(num_panels * PANEL)
        super().__init__(
            library,
            PackedWeight(out_features, in_features, _GROUPS_FORMAT, packed, no_scale),
            bias,
            norm,
        )


def can_pack(weight: GroupedWeight) -> bool:
    """Return True if `NativeGroupedLinear` supports the weight's bits and groups."""
    return weight.bits == 4 and weight.group_size % GROUP == 0


def quantize_int4(weight: Tensor) -> QuantizedWeight:
    """Rotate and quantize a float weight [N, K] to 4 bits.

    Returns:
        The values t * (q - z) in int8, and the scales s.
    """
    out_features, in_features = weight.shape
    padded = -(-in_features // BLOCK) * BLOCK
    values = torch.empty(out_features, padded, dtype=torch.int8)
    scale = torch.empty(out_features)
    rows_at_once = max(1, _CHUNK // padded)
    for start in range(0, out_features, rows_at_once):
        stop = start + rows_at_once
        rotated = rotated_rows(weight, start, stop)
        values[start:stop], scale[start:stop] = _quantized(rotated)
    return QuantizedWeight(values, scale, in_features)


def _quantized(rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rotated rows as int4_pack.cpp does."""
    groups = rotated.view(len(rotated), -1, GROUP)
    low, high = groups.aminmax(dim=2, keepdim=True)
    channel = (high - low).amax(1, keepdim=True) * (_SPAN / (_LEVELS * _TOP_SCALE))
    is_finite = channel.isfinite()
    is_usable = is_finite & (channel > _SMALLEST_SCALE)
    scale = torch.where(is_usable, channel, 1.0)
    groups, low, high = (torch.where(is_usable, part, 0.0) for part in (groups, low, high))
    spread = high - low
    expected = spread / (_LEVELS * scale)
    first = (expected * 0.75).trunc_().clamp_(1, 16)
    last = (expected * 1.02).trunc_().add_(1).clamp_(1, 16)
    best = torch.zeros_like(groups)
    least_error = torch.full_like(low, torch.inf)
    for offset in range(int((last - first).max()) + 1):
        factor = torch.minimum(first + offset, last)
        step = factor * scale
        nearest = (7.5 - 0.5 * (low + high) / step).clamp_(1, 14).round_()
        for zero in (nearest - 1, nearest, nearest + 1):
            bottom = torch.maximum(-zero, -(128 / factor).trunc_())
            top = torch.minimum(_LEVELS - zero, (127 / factor).trunc_())
            q = (groups / step).round_().clamp_(bottom, top)
            error = (q * step - groups).square_().sum(2, keepdim=True)
            best = torch.where(error < least_error, q * factor, best)
            least_error = torch.minimum(error, least_error)
    # Channels that are not usable have zeros.
    known = torch.where(is_usable, channel, 0.0)
    scale = torch.where(is_finite, known, torch.nan).flatten()
    return best.view_as(rotated).to(torch.int8), scale
