"""Attention over the paged KV cache in torch, on any device."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from service.engine.kv_store import KVStore
from service.engine.layout import Layout, SequenceRows

# Sequences that are computed together are padded to the longest of them. It has at most this many
# times as many rows and positions as the others. Fewer than `_SHORT` positions count as `_SHORT`.
_MAX_PADDING = 2
_SHORT = 256


class PagedAttention(Protocol):
    """Attention over a paged KV cache. Call `plan` and `begin_step` before each forward pass."""

    def block_tensors(self) -> list[Tensor]:
        """Return the KV cache as tensors, each with the blocks as its first dimension."""
        ...

    def plan(self, layout: Layout) -> list[NDArray[Any]]:
        """Plan the next step. Return the arrays that `begin_step` needs on the device."""
        ...

    def begin_step(self, arrays: Sequence[Tensor]) -> None:
        """Begin the planned step.

        Args:
            arrays: The arrays of `plan`, on the device.
        """
        ...

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
        """Write one layer's keys and values to the cache, and attend over it.

        Args:
            query: [num_heads, T, key_dim].
            key: [num_kv_heads, T, key_dim].
            value: [num_kv_heads, T, value_dim].
            scale: Factor of the scores.
            window: Number of positions that a token attends to, itself included; None for all.
            softcap: Scores become softcap * tanh(scores / softcap); None for no change.

        Returns:
            [T, num_heads, value_dim]
        """
        ...


@dataclass(frozen=True, slots=True)
class _Group:
    """B sequences that are computed together, padded to N rows and L positions each.

    Attributes:
        num_rows: N. Padding repeats the last row of a sequence.
        context_len: L.
        is_padded: True if a sequence has fewer than N rows.
        is_adjacent: True if there is no padding, and the group's rows are adjacent in the step.
    """

    sequences: list[SequenceRows]
    num_rows: int
    context_len: int
    is_padded: bool
    is_adjacent: bool

    @classmethod
    def of(cls, sequences: list[SequenceRows]) -> "_Group":
        num_rows = max(s.num_rows for s in sequences)
        total = sum(s.num_rows for s in sequences)
        is_padded = total < num_rows * len(sequences)
        return cls(
            sequences,
            num_rows,
            max(s.context_len for s in sequences),
            is_padded,
            not is_padded and sequences[-1].end - sequences[0].start == total,
        )

    def arrays(self, block_size: int) -> list[NDArray[np.int64]]:
        """Return the arrays of the group's `_GroupTensors`."""
        rows, kept = [], []
        if not self.is_adjacent:
            rows = self._padded(range(s.start, s.end) for s in self.sequences)
        if self.is_padded:
            kept = [
                index * self.num_rows + n
                for index, s in enumerate(self.sequences)
                for n in range(s.num_rows)
            ]
        positions = self._padded(s.positions for s in self.sequences)
        return [
            block_table(self.sequences, block_size, np.int64),
            np.array(positions, dtype=np.int64).reshape(len(self.sequences), self.num_rows),
            np.array(rows, dtype=np.int64),
            np.array(kept, dtype=np.int64),
        ]

    def _padded(self, numbers: Iterable[range]) -> list[int]:
        """Return the numbers of the rows of each sequence, as B * N numbers."""
        return [n for line in numbers for n in (*line, *[line[-1]] * (self.num_rows - len(line)))]


@dataclass(frozen=True, slots=True)
class _GroupTensors:
    """A group of sequences on the device.

    Attributes:
        block_table: [B, M], padded with any valid block.
        positions: The positions of the rows in their sequences, [B, N].
        rows: The rows of the step, [B * N]; empty if they are adjacent.
        kept: The indices of rows that are not padding; empty if there is no padding.
        masks: The results of `mask` by window.
    """

    group: _Group
    block_table: Tensor
    positions: Tensor
    rows: Tensor
    kept: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def select(self, query: Tensor) -> Tensor:
        """Return the group's rows [H, B * N, dim] of `query` [H, T, dim]."""
        if self.group.is_adjacent:
            return query[:, self.group.sequences[0].start : self.group.sequences[-1].end]
        return query.index_select(1, self.rows)

    def mask(self, length: int, window: int | None) -> Tensor:
        """Return a mask of the positions that each row attends to: its own and earlier ones.

        Args:
            length: Number of positions, the same in each call.

        Returns:
            [B, N, length], bool.
        """
        if (mask := self.masks.get(window)) is None:
            own = self.positions[..., None]
            positions = torch.arange(length, device=own.device)
            mask = positions <= own
            if window is not None:
                mask &= positions > own - window
            self.masks[window] = mask
        return mask


class GatheredAttention:
    """`PagedAttention` over a `KVStore`, for any device, type and head size.

    The keys and values of each sequence are copied out of the cache for each layer.
    """

    def __init__(self, store: KVStore) -> None:
        self._store = store
        self._groups: list[_Group]
        self._tensors: list[_GroupTensors]
        self._slots: Tensor
        self._inverse: Tensor | None
        if store.device.type == "cuda":
            # cuDNN makes a plan for each new shape, which takes up to half a second.
            torch.backends.cuda.enable_cudnn_sdp(False)

    def block_tensors(self) -> list[Tensor]:
        """See `PagedAttention.block_tensors`."""
        return self._store.block_tensors()

    def plan(self, layout: Layout) -> list[NDArray[Any]]:
        """See `PagedAttention.plan`."""
        decodes = layout.sequences[: layout.num_decodes]
        chunks = layout.sequences[layout.num_decodes :]
        # On a CPU a chunk's padding takes more time than a call.
        groups = [[c] for c in chunks] if self._store.device.type == "cpu" else _similar(chunks)
        self._groups = [_Group.of(group) for group in (*_similar(decodes), *groups)]
        order = [row for g in self._groups for s in g.sequences for row in range(s.start, s.end)]
        is_ordered = order == list(range(len(order)))
        inverse = np.array([] if is_ordered else order, dtype=np.int64).argsort()
        return [
            np.array(layout.slots(self._store.block_size), dtype=np.int64),
            inverse,
            *chain.from_iterable(g.arrays(self._store.block_size) for g in self._groups),
        ]

    def begin_step(self, arrays: Sequence[Tensor]) -> None:
        """See `PagedAttention.begin_step`."""
        self._slots, inverse, *rest = arrays
        self._inverse = inverse if len(inverse) else None
        fields = (rest[i::4] for i in range(4))
        self._tensors = [_GroupTensors(*t) for t in zip(self._groups, *fields, strict=True)]

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
        """See `PagedAttention.attend`."""
        self._store.write(layer, self._slots, key, value)
        parts = [
            self._attend(layer, group, query, scale, window, softcap) for group in self._tensors
        ]
        attended = torch.cat(parts)
        return attended if self._inverse is None else attended.index_select(0, self._inverse)

    def _attend(
        self,
        layer: int,
        tensors: _GroupTensors,
        query: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Return the attention of a group's rows, [rows, num_heads, value_dim]."""
        group = tensors.group
        rows = tensors.select(query)
        keys, values = self._store.gather(layer, tensors.block_table)
        if group.num_rows == 1:
            mask = tensors.mask(keys.shape[2], window)
            return _decode(rows, keys, values, mask, scale, softcap)
        keys, values = keys[:, :, : group.context_len], values[:, :, : group.context_len]
        mask = tensors.mask(group.context_len, window)
        attended = _prefill(rows, keys, values, mask, scale, softcap)
        return attended.index_select(0, tensors.kept) if group.is_padded else attended


def block_table(
    sequences: Sequence[SequenceRows], block_size: int, dtype: type[np.integer[Any]]
) -> NDArray[Any]:
    """Return the ids of the blocks that contain each sequence's context.

    Returns:
        [len(sequences), M], padded with the first block of the sequence.
    """
    tables = [s.block_ids(block_size) for s in sequences]
    longest = max(map(len, tables))
    return np.array([table + table[:1] * (longest - len(table)) for table in tables], dtype=dtype)


def _similar(sequences: Sequence[SequenceRows]) -> Iterator[list[SequenceRows]]:
    """Yield groups of sequences of similar size. Each group has the order of `sequences`."""
    by_rows: dict[int, list[SequenceRows]] = defaultdict(list)
    for s in sequences:
        by_rows[(s.num_rows - 1).bit_length()].append(s)
    for group in by_rows.values():
        left = group
        while left:
            longest = max(s.context_len for s in left)
            is_long = [_MAX_PADDING * max(s.context_len, _SHORT) >= longest for s in left]
            yield list(compress(left, is_long))
            left = [s for s, is_in_group in zip(left, is_long, strict=True) if not is_in_group]


def _decode(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Attend with one token of each of B sequences.

    H is the number of query heads, KVH of key-value heads, L the longest context.

    Args:
        query: [H, B, dim].
        keys: [KVH, B, L, dim].
        values: [KVH, B, L, value_dim].
        mask: [B, 1, L].

    Returns:
        [B, H, value_dim]
    """
    # The query heads of a group are rows of one product. On a CPU this takes 0.6 ms where
    # `scaled_dot_product_attention` with a query length of 1 takes 8.5 ms.
    num_kv_heads, num_sequences, _, dim = keys.shape
    grouped = query.reshape(num_kv_heads, -1, num_sequences, dim).transpose(1, 2)
    scores = grouped @ keys.transpose(-1, -2) * scale
    weights = _softmax(scores, mask, softcap)
    return (weights @ values).transpose(0, 1).flatten(1, 2)


def _prefill(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Attend with N tokens of each of B sequences.

    H is the number of query heads, KVH of key-value heads, L the length of the context.

    Args:
        query: [H, B * N, dim].
        keys: [KVH, B, L, dim].
        values: [KVH, B, L, value_dim].
        mask: [B, N, L].

    Returns:
        [B * N, H, value_dim]
    """
    num_kv_heads, num_sequences, *_ = keys.shape
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    num_heads, _, dim = query.shape
    query = query.reshape(num_heads, num_sequences, -1, dim).transpose(0, 1)  # [B, H, N, dim]
    if softcap is None:
        is_cpu = query.device.type == "cpu"
        if not is_cpu:
            # CUDA's kernels that take a mask have no grouped heads. torch would compute all scores
            # in memory instead: gigabytes for a long prompt.
            group = num_heads // num_kv_heads
            keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask[:, None], scale=scale, enable_gqa=is_cpu
        )
    else:
        # [B, KVH, group, N, dim]
        grouped = query.reshape(num_sequences, num_kv_heads, -1, *query.shape[2:])
        scores = grouped @ keys[:, :, None].transpose(-1, -2) * scale
        weights = _softmax(scores, mask[:, None, None], softcap)
        attended = (weights @ values[:, :, None]).flatten(1, 2)
    return attended.transpose(1, 2).flatten(0, 1)


def _softmax(scores: Tensor, mask: Tensor, softcap: float | None) -> Tensor:
    """Return the attention weights for raw scores, computed in float32 as in transformers."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    masked = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(masked, dim=-1, dtype=torch.float32).to(scores.dtype)
