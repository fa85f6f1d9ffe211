"""The tensors of the KV cache. `BlockPool` assigns their blocks to sequences."""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class KVShape:
    """The shape of one layer's keys and values for one token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        num_bytes = (self.key_dim + self.value_dim) * self.dtype.itemsize
        if self.dtype is torch.int8:
            num_bytes += 2 * torch.float32.itemsize  # the scales of the key and of the value
        return self.num_kv_heads * num_bytes


class KVStore:
    """Keys and values of every layer, in blocks.

    A layer's keys are one tensor [num_kv_heads, num_blocks, block_size, key_dim], its values one
    tensor [num_kv_heads, num_blocks, block_size, value_dim].
    """

    # Heads come first, so that the blocks gathered for a batch are the matrices that attention
    # multiplies, without another copy.

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
        """Store the keys and values of T tokens.

        Args:
            slots: [T], the slot of each token: block * block_size + offset.
            key: [num_kv_heads, T, key_dim].
            value: [num_kv_heads, T, value_dim].
        """
        self._keys[layer].flatten(1, 2).index_copy_(1, slots, key)
        self._values[layer].flatten(1, 2).index_copy_(1, slots, value)

    def block_tensors(self) -> list[torch.Tensor]:
        """Return views of the whole cache, each with the blocks as its first dimension."""
        return [tensor.transpose(0, 1) for tensor in (*self._keys, *self._values)]

    def gather(self, layer: int, block_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of the blocks in `block_table` [B, M].

        Returns:
            The keys [num_kv_heads, B, M * block_size, key_dim], and the values
            [num_kv_heads, B, M * block_size, value_dim].
        """
        return (
            _gather(self._keys[layer], block_table),
            _gather(self._values[layer], block_table),
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of zeros. On a CPU its pages are committed when they are first written."""
    # Zeros, because masked positions are multiplied by 0, and 0 * NaN is NaN.
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy does not write to the pages, so the kernel commits a page when it is first used. torch
    # would write to all of them, and the cache would use its whole budget from the start.
    storage = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(storage).view(dtype).view(shape)


def _gather(cache: torch.Tensor, block_table: torch.Tensor) -> torch.Tensor:
    num_sequences, num_blocks = block_table.shape
    num_heads, _, block_size, dim = cache.shape
    blocks = cache.index_select(1, block_table.flatten())
    return blocks.view(num_heads, num_sequences, num_blocks * block_size, dim)
