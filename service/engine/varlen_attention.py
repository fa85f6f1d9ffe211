"""Attention over the paged KV cache on CUDA: torch's FlashAttention of sequences of any lengths.

See `torch.nn.attention.varlen`. A call computes all rows of a step and reads the cache in place.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from service.engine.attention import block_table
from service.engine.kv_store import KVShape
from service.engine.layout import Layout

# What the kernel supports: `mha_varlen_fwd` in PyTorch's
# aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp.
_PAGE = 256  # the block size is a multiple of this
_HEAD_STEP = 8  # the head size is a multiple of this
_MAX_HEAD = 256


class VarlenKVStore:
    """Keys and values of every layer, in blocks.

    A layer's keys are one tensor [num_blocks, block_size, num_kv_heads, head_dim], and so are its
    values.
    """

    dtypes: ClassVar = frozenset({torch.bfloat16, torch.float16})

    def __init__(
        self, shapes: list[KVShape], num_blocks: int, block_size: int, device: torch.device
    ) -> None:
        """Allocate the cache.

        Raises:
            ValueError: The kernel does not support the block size, a head size or a type.
        """
        if block_size % _PAGE:
            raise ValueError(f"block_size {block_size} is not a multiple of {_PAGE}")
        for shape in shapes:
            if shape.dtype not in self.dtypes:
                raise ValueError(f"dtype {shape.dtype} is neither bfloat16 nor float16")
            if shape.key_dim != shape.value_dim:
                raise ValueError(f"keys have {shape.key_dim} dimensions, values {shape.value_dim}")
            if shape.key_dim % _HEAD_STEP or shape.key_dim > _MAX_HEAD:
                raise ValueError(
                    f"the head size {shape.key_dim} is not a multiple of {_HEAD_STEP} up to "
                    f"{_MAX_HEAD}"
                )
        self.block_size = block_size
        self._keys = [_zeros(s, num_blocks, block_size, device) for s in shapes]
        self._values = [_zeros(s, num_blocks, block_size, device) for s in shapes]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store the keys and values of T tokens.

        Args:
            slots: [T], the slot of each token: block * block_size + offset.
            key: [T, num_kv_heads, head_dim].
            value: [T, num_kv_heads, head_dim].
        """
        self._keys[layer].flatten(0, 1).index_copy_(0, slots, key)
        self._values[layer].flatten(0, 1).index_copy_(0, slots, value)

    def block_tensors(self) -> list[Tensor]:
        """Return the whole cache as tensors, each with the blocks as its first dimension."""
        return [*self._keys, *self._values]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of a layer."""
        return self._keys[layer], self._values[layer]


class VarlenAttention:
    """`PagedAttention` over a `VarlenKVStore`."""

    def __init__(self, store: VarlenKVStore) -> None:
        self._store = store
        self._max_rows = 0
        self._max_context = 0
        self._slots: Tensor
        self._row_starts: Tensor  # [B + 1]
        self._context_lens: Tensor  # [B]
        self._block_table: Tensor  # [B, M]

    def block_tensors(self) -> list[Tensor]:
        """See `PagedAttention.block_tensors`."""
        return self._store.block_tensors()

    def plan(self, layout: Layout) -> list[NDArray[Any]]:
        """See `PagedAttention.plan`."""
        sequences = layout.sequences
        block_size = self._store.block_size
        self._max_rows = max(s.num_rows for s in sequences)
        self._max_context = max(s.context_len for s in sequences)
        return [
            np.array(layout.slots(block_size), dtype=np.int64),
            np.array([*(s.start for s in sequences), sequences[-1].end], dtype=np.int32),
            np.array([s.context_len for s in sequences], dtype=np.int32),
            block_table(sequences, block_size, np.int32),
        ]

    def begin_step(self, arrays: Sequence[Tensor]) -> None:
        """See `PagedAttention.begin_step`."""
        self._slots, self._row_starts, self._context_lens, self._block_table = arrays

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `PagedAttention.attend`.

        Raises:
            ValueError: There is a softcap.
        """
        if softcap is not None:
            raise ValueError("torch's FlashAttention has no softcap")
        self._store.write(layer, self._slots, key.transpose(0, 1), value.transpose(0, 1))
        keys, values = self._store.layer(layer)
        is_grouped = len(query) != keys.shape[2]
        is_decode = self._max_rows == 1
        # A single row attends to all positions, so it needs no mask. Only without one does the
        # kernel read the keys once for all heads of a group.
        last = -1 if is_decode and window is None else 0
        # A long context is divided among several thread blocks only in that case. In others torch
        # 2.13 puts the parts together wrongly (https://github.com/pytorch/pytorch/issues/194167).
        has_splits = is_decode and is_grouped and window is None
        attended = varlen_attn(
            query.transpose(0, 1),
            keys,
            values,
            self._row_starts,
            None,
            self._max_rows,
            self._max_context,
            scale=scale,
            window_size=(-1 if window is None else window - 1, last),
            enable_gqa=is_grouped,
            seqused_k=self._context_lens,
            block_table=self._block_table,
            num_splits=None if has_splits else 1,
        )
        assert isinstance(attended, Tensor)  # noqa: S101  # a pair only with `return_aux`
        return attended


def _zeros(shape: KVShape, num_blocks: int, block_size: int, device: torch.device) -> Tensor:
    size = (num_blocks, block_size, shape.num_kv_heads, shape.key_dim)
    return torch.zeros(size, dtype=shape.dtype, device=device)
