"""Linear layers with weights in 4 bits and activations in int8.

Each 32 weights of an output channel are q * scale - minimum, with q from 0 to 15. The scales and
minimums are rounded to steps of 128 inputs, for which activations have scales of their own
(`int4.h`). A weight takes 4.625 bits.

Weights that a file stores in such groups (`GroupedWeight`, `BlockWeight`) keep their 4 bits. Those
of a float checkpoint are quantized: among several clippings of the range of 32 weights, the one
with the least squared error is chosen, with the scale and the minimum of a linear regression. No
text is needed for calibration.

Inputs are not rotated, unlike in int8: the values of a file would be lost.
"""

import ctypes
from typing import Final

import torch
from torch import Tensor

from service.engine.gguf_blocks import BlockWeight
from service.engine.grouped_weight import GroupedWeight
from service.engine.native.linear import (
    BLOCK_TYPES,
    PANEL,
    NativeLinear,
    PackedWeight,
    arena,
    float_arguments,
    parts_of_panels,
)
from service.engine.weight import IntegerWeight, Weight

GROUP: Final = 32  # inputs that share a scale and a minimum

_FORMAT = 1  # the number in int4.h
_STEP_INPUTS, _STEP_BYTES = 128, 2368  # a panel's inputs that share a step, and their bytes
_BLOCK_TYPES = frozenset({"Q4_0", "Q4_1", "Q4_K"})


class NativeInt4Linear(NativeLinear):
    """An `Int8Linear` by the native kernels, with weights in 4 bits.

    Args:
        weight: A float weight [N, K], or a weight in groups that `can_pack` accepts.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: Weight,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> None:
        super().__init__(library, pack_int4(library, weight), bias, norm)


def can_pack(weight: IntegerWeight) -> bool:
    """Return True if `NativeInt4Linear` keeps the weight's values."""
    if isinstance(weight, BlockWeight):
        return weight.kind in _BLOCK_TYPES
    return weight.bits == 4 and weight.group_size % GROUP == 0


def pack_int4(library: ctypes.CDLL, weight: Weight) -> PackedWeight:
    """Pack a weight [N, K] in 4 bits, on all threads; see `NativeInt4Linear`."""
    out_features, in_features = weight.shape
    num_panels, num_steps = -(-out_features // PANEL), -(-in_features // _STEP_INPUTS)
    packed = arena.allocate(num_panels * num_steps * _STEP_BYTES)
    sizes = ctypes.c_int64(out_features), ctypes.c_int64(in_features)
    target = ctypes.c_void_p(packed.data_ptr())
    if isinstance(weight, BlockWeight):
        for start, blocks in parts_of_panels(weight):
            library.chatrpc_int4_pack_blocks(
                ctypes.c_void_p(blocks.data_ptr()),
                ctypes.c_int32(BLOCK_TYPES[weight.kind]),
                ctypes.c_int64(len(blocks)),
                ctypes.c_int64(in_features),
                ctypes.c_void_p(packed[start // PANEL * num_steps * _STEP_BYTES :].data_ptr()),
            )
    elif isinstance(weight, GroupedWeight):
        values, scale = weight.values.contiguous(), weight.scale.contiguous()
        minimum = None if weight.minimum is None else weight.minimum.contiguous()
        library.chatrpc_int4_pack_groups(
            ctypes.c_void_p(values.data_ptr()),
            ctypes.c_void_p(scale.data_ptr()),
            None if minimum is None else ctypes.c_void_p(minimum.data_ptr()),
            *sizes,
            ctypes.c_int64(weight.group_size),
            target,
        )
    else:
        weight, number = float_arguments(weight)
        library.chatrpc_int4_pack(
            ctypes.c_void_p(weight.data_ptr()), ctypes.c_int32(number), *sizes, target
        )
    no_scale = torch.zeros(num_panels * PANEL)
    return PackedWeight(out_features, in_features, _FORMAT, packed, no_scale)
