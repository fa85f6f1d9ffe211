"""A weight in small integers with a scale, and perhaps a minimum, for each group of inputs.

GGUF's types Q4_0 to Q8_0, AWQ, GPTQ and compressed-tensors' W4A16 all have this form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class GroupedWeight:
    """A weight [N, K] in integers of 4 or 8 bits.

    With a minimum,

        weight[n, k] = scale[n, g] * value[n, k] - minimum[n, g],    g = k // group_size.

    Without a minimum, the minimum of 4-bit weights is 8 * scale, and that of 8-bit weights is 0.

    Args:
        values: For 4 bits uint8 [N, K / 2], values from 0 to 15. The lower four bits of a byte are
            the value of an even k, the upper four bits that of k + 1. For 8 bits int8 [N, K].
        scale: float32 [N, K / group_size].
        minimum: As `scale`, or None.
        bits: Size of a value.
        group_size: Number of adjacent inputs that share a scale. It divides K.

    Raises:
        ValueError: A tensor has another type or shape.
    """

    values: Tensor
    scale: Tensor
    minimum: Tensor | None
    bits: Literal[4, 8]
    group_size: int

    def __post_init__(self) -> None:
        stored = torch.uint8 if self.bits == 4 else torch.int8
        if self.values.dim() != 2 or self.values.dtype != stored:
            raise ValueError(
                f"values of {self.bits} bits are {self.values.dtype} {list(self.values.shape)}, "
                f"not {stored} in two dimensions"
            )
        if self.in_features % self.group_size:
            raise ValueError(f"{self.in_features} inputs are no multiple of {self.group_size}")
        groups = (self.out_features, self.in_features // self.group_size)
        for name, tensor in (("scale", self.scale), ("minimum", self.minimum)):
            if tensor is not None and (tensor.shape != groups or tensor.dtype != torch.float32):
                raise ValueError(
                    f"the {name} is {tensor.dtype} {list(tensor.shape)}, not torch.float32 "
                    f"{list(groups)}"
                )

    @property
    def out_features(self) -> int:
        """N."""
        return self.values.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.values.shape[1] * (8 // self.bits)

    @property
    def shape(self) -> torch.Size:
        """[N, K], as of a float weight."""
        return torch.Size((self.out_features, self.in_features))

    def rows(self, start: int, stop: int) -> Self:
        """Return the weight of the output channels from `start` up to `stop`. It shares memory."""
        part = slice(start, stop)
        minimum = None if self.minimum is None else self.minimum[part]
        return type(self)(self.values[part], self.scale[part], minimum, self.bits, self.group_size)

    def select(self, index: Tensor) -> Self:
        """Return the weight of the output channels `index` [n]."""
        minimum = None if self.minimum is None else self.minimum[index]
        values, scale = self.values[index], self.scale[index]
        return type(self)(values, scale, minimum, self.bits, self.group_size)

    def unpacked(self) -> Tensor:
        """Return the values [N, K] as uint8 for 4 bits, as int8 for 8 bits."""
        if self.bits == 8:
            return self.values
        return unpack_nibbles(self.values)

    def dequantized(self) -> Tensor:
        """Return the weight [N, K] in float32."""
        values = self.unpacked().float().view(*self.scale.shape, self.group_size)
        if self.minimum is None:
            if self.bits == 4:
                values -= 8
            values *= self.scale[..., None]
        else:
            # Two roundings, as in the definition.
            values *= self.scale[..., None]
            values -= self.minimum[..., None]
        return values.view(self.shape)


def pack_nibbles(values: Tensor) -> Tensor:
    """Pack integers from 0 to 15 [N, K] two in a byte, as in `GroupedWeight.values`."""
    values = values.to(torch.uint8)
    return values[:, ::2] | values[:, 1::2] << 4


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Return the integers [N, K] in uint8 that `pack_nibbles` has packed."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def concatenate(weights: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """Return one weight with the output channels of all `weights`, in order.

    None if they differ in their bits, their groups or whether they have a minimum.
    """
    kinds = {(w.bits, w.group_size, w.minimum is None) for w in weights}
    if len(kinds) != 1:
        return None
    minimums = [w.minimum for w in weights if w.minimum is not None]
    return GroupedWeight(
        torch.cat([w.values for w in weights]),
        torch.cat([w.scale for w in weights]),
        torch.cat(minimums) if minimums else None,
        weights[0].bits,
        weights[0].group_size,
    )
