"""The values of GGUF's tensor types, from the bytes of their blocks.

The types are those of ggml: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. A row
of a tensor is a sequence of blocks. Blocks of the types with a name in `_K` have 256 values, all
others here have 32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from service.engine.grouped_weight import GroupedWeight

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


_EXPONENT = 0x7C00  # of a float16; all bits are set in NaN and infinity
_CHUNK_BYTES = 2**19  # bytes of blocks that are decoded or checked at once


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeight:
    """A weight [N, K] in the blocks of a type.

    Args:
        kind: The name of the type, one of `GROUPED`.
        parts: uint8 [N_i, bytes of a row] each, with the output channels in order.
    """

    kind: str
    parts: tuple[Tensor, ...]

    @property
    def blocks(self) -> Tensor:
        """The blocks of all parts, uint8 [N, bytes of a row]; a copy if there are several."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)

    @property
    def shape(self) -> torch.Size:
        """[N, K], as of a float weight."""
        layout = _LAYOUTS[self.kind]
        num_blocks = self.parts[0].shape[1] // layout.num_bytes
        return torch.Size((sum(map(len, self.parts)), num_blocks * layout.num_values))

    def rows(self, start: int, stop: int) -> Self:
        """Return the weight of the output channels from `start` up to `stop`. It shares memory."""
        parts, first = [], 0
        for part in self.parts:
            parts.append(part[max(0, start - first) : max(0, stop - first)])
            first += len(part)
        return type(self)(self.kind, tuple(parts))

    def select(self, index: Tensor) -> Self:
        """Return the weight of the output channels `index` [n]."""
        return type(self)(self.kind, (self.blocks[index],))

    def clone(self) -> Self:
        """Return the same weight in memory of its own."""
        return type(self)(self.kind, (self.blocks.clone(),))

    def is_finite(self) -> bool:
        """Return True if no value is NaN or infinite."""
        layout = _LAYOUTS[self.kind]
        # In chunks, because the numbers of a block are in one line of the cache.
        for chunk in (chunk for part in self.parts for chunk in _chunks(part)):
            words = chunk.view(torch.int16).view(len(chunk), -1, layout.num_bytes // 2)
            for start in layout.halves:
                exponents = words[..., start // 2] & _EXPONENT
                if bool((exponents == _EXPONENT).any()):
                    return False
        return True

    def grouped(self) -> GroupedWeight:
        """Return the weight in groups, with exactly the same values."""
        layout = _LAYOUTS[self.kind]
        blocks = self.blocks.view(self.shape[0], -1, layout.num_bytes)
        values, scale, minimum, bits, group_size = layout.read(blocks)
        minimum = None if minimum is None else minimum.flatten(1)
        return GroupedWeight(values.flatten(1), scale.flatten(1), minimum, bits, group_size)

    def dequantized(self) -> Tensor:
        """Return the weight [N, K] in float32."""
        return dequantized(self.kind, self.blocks)


def concatenate(weights: Sequence[BlockWeight]) -> BlockWeight | None:
    """Return one weight with the output channels of all `weights`, in order. It shares memory.

    None if their types differ.
    """
    kinds = {weight.kind for weight in weights}
    if len(kinds) != 1:
        return None
    return BlockWeight(kinds.pop(), tuple(part for weight in weights for part in weight.parts))


def dequantized(kind: str, rows: Tensor) -> Tensor:
    """Return the values [N, K], in float32, of rows of bytes.

    Args:
        kind: The name of the tensor's type. It must be quantized.
        rows: uint8 [N, bytes of a row].

    Raises:
        NotImplementedError: The type is not supported.
    """
    chunks = _chunks(rows)
    first = _dequantized(kind, chunks[0])
    if len(chunks) == 1:
        return first
    values, start = torch.empty(len(rows), first.shape[1]), 0
    for chunk in chunks:
        values[start : start + len(chunk)] = _dequantized(kind, chunk)
        start += len(chunk)
    return values


def _chunks(rows: Tensor) -> Sequence[Tensor]:
    return torch.split(rows, max(1, _CHUNK_BYTES // rows.shape[1]))


def _dequantized(kind: str, rows: Tensor) -> Tensor:
    if kind in GROUPED:
        return BlockWeight(kind, (rows,)).grouped().dequantized()
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  # takes 0.4 s, rarely needed

    with np.errstate(all="ignore"):  # damaged scales may overflow; the caller checks the values
        # The values are passed as one row, because gguf loops over rows in Python. Quantized blocks
        # do not cross rows, so the result is the same.
        values = quants.dequantize(rows.reshape(1, -1).numpy(), GGMLQuantizationType[kind])
    return torch.from_numpy(values).view(len(rows), -1)


_Grouped = tuple[Tensor, Tensor, Tensor | None, Literal[4, 8], int]


def _half(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 at byte `start` of each block, in float32."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).float()


def _halves(nibbles: Tensor) -> Tensor:
    """Return the low half of all bytes [..., n], then their high half: [..., 2, n]."""
    return torch.stack((nibbles & 15, nibbles >> 4), dim=-2)


def _packed_halves(nibbles: Tensor) -> Tensor:
    """Return the low half of all bytes [..., n] packed two in a byte, then their high half:
    [..., 2, n / 2]."""
    pairs = nibbles.contiguous().view(torch.int16)
    low, high = pairs & 0x0F0F, (pairs >> 4) & 0x0F0F
    both = torch.stack((low, high), dim=-2)
    return (both | both >> 4).to(torch.uint8)


def _bit(blocks: Tensor, start: int) -> Tensor:
    """Return the fifth bits of 32 values, which are 4 bytes from `start` on: 16 or 0."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    return ((blocks[..., start : start + 4, None] >> shifts & 1) << 4).flatten(-2)


def _q4_0(blocks: Tensor) -> _Grouped:
    return _packed_halves(blocks[..., 2:]), _half(blocks, 0), None, 4, 32


def _q4_1(blocks: Tensor) -> _Grouped:
    return _packed_halves(blocks[..., 4:]), _half(blocks, 0), -_half(blocks, 2), 4, 32


def _q5_0(blocks: Tensor) -> _Grouped:
    values = _halves(blocks[..., 6:]).flatten(-2) | _bit(blocks, 2)
    return values.view(torch.int8) - 16, _half(blocks, 0), None, 8, 32


def _q5_1(blocks: Tensor) -> _Grouped:
    values = _halves(blocks[..., 8:]).flatten(-2) | _bit(blocks, 4)
    return values.view(torch.int8), _half(blocks, 0), -_half(blocks, 2), 8, 32


def _q8_0(blocks: Tensor) -> _Grouped:
    return blocks[..., 2:].contiguous().view(torch.int8), _half(blocks, 0), None, 8, 32


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 8 scales and the 8 minimums, each of 6 bits, in 12 bytes."""
    first, second, last = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((first & 63, last & 15 | (first >> 6) << 4), dim=-1)
    minimums = torch.cat((second & 63, last >> 4 | (second >> 6) << 4), dim=-1)
    return scales, minimums


def _scales_of_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and the minimum of each group of 32 values, for Q4_K and Q5_K."""
    scales, minimums = _six_bits(blocks[..., 4:16])
    return _half(blocks, 0) * scales, _half(blocks, 2) * minimums


def _q4_k(blocks: Tensor) -> _Grouped:
    values = _packed_halves(torch.unflatten(blocks[..., 16:], -1, (4, 32)))
    return values, *_scales_of_k(blocks), 4, 32


def _q5_k(blocks: Tensor) -> _Grouped:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[..., None, 16:48] >> shifts & 1) << 4  # [..., 8, 32]
    low = _halves(torch.unflatten(blocks[..., 48:], -1, (4, 32))).flatten(-3, -2)
    return (low | high).view(torch.int8), *_scales_of_k(blocks), 8, 32


def _q6_k(blocks: Tensor) -> _Grouped:
    # Each half of a block has 128 values, whose low 4 bits are in 64 bytes: those of the values 0
    # to 63, then those of the values 64 to 127. Their high 2 bits are in 32 bytes.
    low = torch.unflatten(_halves(torch.unflatten(blocks[..., :128], -1, (2, 64))), -1, (2, 32))
    shifts = torch.tensor([[0, 2], [4, 6]], dtype=torch.uint8, device=blocks.device)[..., None]
    high = torch.unflatten(blocks[..., 128:192], -1, (2, 1, 1, 32)) >> shifts & 3
    values = (low | high << 4).view(torch.int8) - 32
    scale = _half(blocks, 208) * blocks[..., 192:208].contiguous().view(torch.int8)
    return values, scale, None, 8, 16


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of a type's blocks.

    Attributes:
        read: Reads blocks.
        num_bytes: Bytes in a block.
        num_values: Values in a block.
        halves: The positions of a block's float16 numbers. If they are finite, so are the values.
    """

    read: Callable[[Tensor], _Grouped]
    num_bytes: int
    num_values: int
    halves: tuple[int, ...]


_LAYOUTS = {
    "Q4_0": _Layout(_q4_0, 18, 32, (0,)),
    "Q4_1": _Layout(_q4_1, 20, 32, (0, 2)),
    "Q5_0": _Layout(_q5_0, 22, 32, (0,)),
    "Q5_1": _Layout(_q5_1, 24, 32, (0, 2)),
    "Q8_0": _Layout(_q8_0, 34, 32, (0,)),
    "Q4_K": _Layout(_q4_k, 144, 256, (0, 2)),
    "Q5_K": _Layout(_q5_k, 176, 256, (0, 2)),
    "Q6_K": _Layout(_q6_k, 210, 256, (208,)),
}
GROUPED = frozenset(_LAYOUTS)
