"""The KV cache's tensors. Which block is whose is `BlockPool`'s affair."""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class KVShape:
    """One layer's keys and values, per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class KVStore:
    """Keys and values of every layer, in blocks.

    A layer's keys are one tensor [num_kv_heads, num_blocks, block_size, key_dim], its values
    likewise. Heads come first so that the blocks gathered for a batch are, without another copy,
    the batched matrices that attention multiplies.
    """

    def __init__(
        self,
        shapes: list[KVShape],
        num_blocks: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.device = device
        blocks = (num_blocks, block_size)
        self._keys = [_zeros((s.num_kv_heads, *blocks, s.key_dim), s.dtype, device) for s in shapes]
        self._values = [
            _zeros((s.num_kv_heads, *blocks, s.value_dim), s.dtype, device) for s in shapes
        ]

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Store `key` [num_kv_heads, T, key_dim] and `value` likewise.

        `slots` [T] says where: block * block_size + offset.
        """
        self._keys[layer].flatten(1, 2).index_copy_(1, slots, key)
        self._values[layer].flatten(1, 2).index_copy_(1, slots, value)

    def gather(self, layer: int, block_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the blocks in `block_table` [B, M].

        Returns:
            Two of [num_kv_heads, B, M * block_size, dim].
        """
        return (
            _gather(self._keys[layer], block_table),
            _gather(self._values[layer], block_table),
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, not garbage: masked positions enter a product with weight 0, where NaN would stay.

    On a CPU they come from numpy, which leaves it to the kernel to commit a page when it is first
    written; torch would write them all, and the cache take its whole budget from the start.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    storage = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(storage).view(dtype).view(shape)


def _gather(cache: torch.Tensor, block_table: torch.Tensor) -> torch.Tensor:
    num_sequences, num_blocks = block_table.shape
    num_heads, _, block_size, dim = cache.shape
    blocks = cache.index_select(1, block_table.flatten())
    return blocks.view(num_heads, num_sequences, num_blocks * block_size, dim)
