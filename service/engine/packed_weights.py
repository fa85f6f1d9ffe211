"""Weights of 4 or 8 bits that are packed in 32-bit integers, from the tensors of a layer.

The layouts are those of AWQ's GEMM kernels (https://github.com/casper-hansen/AutoAWQ,
`awq/utils/packing_utils.py`), of GPTQ (https://github.com/ModelCloud/GPTQModel) and of
compressed-tensors' format `pack-quantized`
(https://github.com/vllm-project/compressed-tensors).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from service.engine.grouped_weight import GroupedWeight, pack_nibbles, unpack_nibbles

Layout = Literal["awq", "gptq", "compressed-tensors"]

# For each layout, the last part of the name of a layer's packed weight, and of its other tensors.
PACKED: dict[Layout, str] = {
    "awq": "qweight",
    "gptq": "qweight",
    "compressed-tensors": "weight_packed",
}
AUXILIARY: dict[Layout, tuple[str, ...]] = {
    "awq": ("qzeros", "scales"),
    "gptq": ("qzeros", "scales", "g_idx"),
    "compressed-tensors": (
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
    ),
}

# The columns of the eight values in an integer of AWQ, from the lowest bits on: 0, 2, 4, 6, 1, 3,
# 5, 7. This is the inverse of that order.
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """The storage of a checkpoint's packed weights.

    Attributes:
        method: The quantization method's name, for messages and the log.
        bits: Size of a value.
        zero_offset: The number that is added to stored zero points of GPTQ: 1 in its first format.
        has_quantized_cache: True if the checkpoint has scales for a quantized KV cache too.
    """

    method: str
    layout: Layout
    bits: Literal[4, 8]
    zero_offset: int = 0
    has_quantized_cache: bool = False

    @property
    def has_groups(self) -> bool:
        """True: the weights are integers in groups."""
        return True


@dataclass(frozen=True, slots=True)
class UnpackedWeight:
    """A weight (values - zeros) * scale.

    Attributes:
        values: uint8 [N, K].
        zeros: float32 [N, groups].
        scale: float32 [N, groups].
        groups: The group of each input, [K]; None if groups are adjacent inputs of equal number.
    """

    values: Tensor
    zeros: Tensor
    scale: Tensor
    groups: Tensor | None

    def dequantized(self) -> Tensor:
        """Return the weight [N, K] in float32."""
        groups = self.groups
        if groups is None:
            groups = _adjacent_groups(self.values.shape[1], self.scale.shape[1])
        return (self.values.float() - self.zeros[:, groups]) * self.scale[:, groups]

    def grouped(self, bits: Literal[4, 8]) -> GroupedWeight | None:
        """Return the weight in groups of adjacent inputs; None if its groups are not adjacent."""
        if self.groups is not None:
            return None
        middle = 1 << (bits - 1)
        if bits == 4:
            values, zeros = pack_nibbles(self.values), self.zeros
            is_symmetric = bool((zeros == middle).all())
        else:
            values = (self.values.to(torch.int16) - middle).to(torch.int8)
            zeros = self.zeros - middle
            is_symmetric = not zeros.any()
        minimum = None if is_symmetric else (zeros * self.scale).contiguous()
        size = self.values.shape[1] // self.scale.shape[1]
        return GroupedWeight(values, self.scale.contiguous(), minimum, bits, size)


def unpack(storage: PackedWeights, tensors: Mapping[str, Tensor]) -> UnpackedWeight:
    """Return a layer's weight.

    Args:
        tensors: The layer's tensors by the last part of their names.

    Raises:
        ValueError: A tensor is missing, or has another type or shape. The message names it.
    """
    bits = storage.bits
    packed = _typed(tensors, PACKED[storage.layout], torch.int32)
    match storage.layout:
        case "awq":
            values = _awq(packed).T
            zeros = _awq(_typed(tensors, "qzeros", torch.int32)).T
            scale = _floats(tensors, "scales").T
            order = None
        case "gptq":
            values = _unpacked(packed.T, bits)
            zeros = _unpacked(_typed(tensors, "qzeros", torch.int32), bits).T
            scale = _floats(tensors, "scales").T
            order = tensors.get("g_idx")
        case "compressed-tensors":
            values = _unpacked(packed, bits)
            scale = _floats(tensors, "weight_scale")
            zeros = _zero_points(tensors.get("weight_zero_point"), scale, bits)
            order = tensors.get("weight_g_idx")
            shape = _typed(tensors, "weight_shape", torch.int64).tolist()
            if shape != list(values.shape):
                raise ValueError(f"weight_shape is {shape}, but the values are {[*values.shape]}")
    num_rows, num_columns = values.shape
    num_groups = scale.shape[-1]
    if scale.dim() != 2 or len(scale) != num_rows or num_columns % num_groups:
        raise ValueError(f"the scale has the shape {[*scale.shape]} for {[*values.shape]} values")
    zeros = zeros[:num_rows]
    if zeros.shape != scale.shape:
        raise ValueError(f"the zero points have the shape {[*zeros.shape]}, not {[*scale.shape]}")
    if not scale.isfinite().all():
        raise ValueError("the scale has values that are not finite")
    groups = _order(order, num_columns, num_groups)
    return UnpackedWeight(values, zeros.float() + storage.zero_offset, scale, groups)


def _required(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(f"there is no {name}")
    return tensor


def _typed(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    """Return a tensor, which must have the type `dtype`, and two dimensions if it is packed."""
    tensor = _required(tensors, name)
    if tensor.dtype != dtype or (dtype == torch.int32 and tensor.dim() != 2):
        raise ValueError(f"{name} is {tensor.dtype} {[*tensor.shape]}")
    return tensor


def _floats(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = _required(tensors, name)
    if not tensor.is_floating_point() or tensor.dim() != 2:
        raise ValueError(f"{name} is {tensor.dtype} {[*tensor.shape]}")
    return tensor.float()


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Return the values of integers [R, C] as uint8 [R, C * 32 / bits], from the lowest bits on."""
    stored = packed.contiguous().view(torch.uint8)  # in little-endian order
    return stored if bits == 8 else unpack_nibbles(stored)


def _awq(packed: Tensor) -> Tensor:
    values: Tensor = torch.unflatten(_unpacked(packed, 4), 1, (-1, 8))
    return values[..., _AWQ_ORDER].flatten(1)


def _zero_points(stored: Tensor | None, scale: Tensor, bits: int) -> Tensor:
    """Return zero points as unsigned numbers. Those of symmetric weights are the middle."""
    middle = 1 << (bits - 1)
    if stored is None:
        return torch.full_like(scale, middle)
    if stored.dtype == torch.int32 and stored.dim() == 2:  # packed along the rows
        unpacked: Tensor = _unpacked(stored.T, bits).T
        return unpacked
    if stored.dtype == torch.int8:
        return stored.float() + middle
    raise ValueError(f"weight_zero_point is {stored.dtype} {[*stored.shape]}")


def _order(order: Tensor | None, num_columns: int, num_groups: int) -> Tensor | None:
    """Return the group of each input; None if groups are adjacent inputs."""
    if order is None:
        return None
    if order.shape != (num_columns,) or order.is_floating_point():
        raise ValueError(f"g_idx is {order.dtype} {[*order.shape]} for {num_columns} inputs")
    order = order.long()
    if order.min() < 0 or order.max() >= num_groups:
        raise ValueError(f"g_idx has a group outside the {num_groups} groups")
    return None if torch.equal(order, _adjacent_groups(num_columns, num_groups)) else order


def _adjacent_groups(num_columns: int, num_groups: int) -> Tensor:
    """Return the group of each input, if groups are adjacent inputs of equal number."""
    return torch.arange(num_columns) // (num_columns // num_groups)
