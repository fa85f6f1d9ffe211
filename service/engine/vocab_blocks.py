"""Two-level search in a vocabulary: first among blocks of tokens, then within a block.

Sums or maxima of blocks are cheap. The slow operations (running sums, sorting, `argmax`) then run
on hundreds of numbers instead of 49152.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128


def as_blocks(rows: Tensor, padding: float) -> Tensor:
    """Return `rows` [B, vocab_size] as [B, blocks, BLOCK].

    If the last block is not full, the result is a padded copy.
    """
    rest = -rows.shape[-1] % BLOCK
    padded = F.pad(rows, (0, rest), value=padding) if rest else rows
    return padded.reshape(rows.shape[0], padded.shape[-1] // BLOCK, BLOCK)


def gather_block(blocks: Tensor, index: Tensor) -> Tensor:
    """Return one block of each row, [B, BLOCK], by its `index` [B, 1]."""
    return blocks.gather(1, index.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)


def top_in_order(blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row; of equal values those with the lowest ids.

    Args:
        blocks: [B, blocks, BLOCK], float32.

    Returns:
        The values [B, count] in descending order, equal ones in ascending order of id, and their
        token ids [B, count].
    """
    # `topk` chooses arbitrarily among equal values, so it runs on distinct integers. If blocks are
    # ordered by their maxima, equal ones by index, then the wanted tokens are in the first `count`.
    num_blocks = blocks.shape[1]
    best = _order_keys(blocks.amax(-1)).topk(min(count, num_blocks), sorted=False).indices
    candidates = blocks.gather(1, best[..., None].expand(-1, -1, BLOCK)).flatten(1)
    offsets = torch.arange(BLOCK, device=blocks.device)
    token_ids = (best[..., None] * BLOCK + offsets).flatten(1)
    index = _order_keys(candidates, token_ids).topk(count).indices
    return candidates.gather(-1, index), token_ids.gather(-1, index)


def _order_keys(values: Tensor, ids: Tensor | None = None) -> Tensor:
    """Return distinct int64 keys [B, n] in the order of `values` [B, n], float32.

    Of equal values the one with the lowest id has the largest key.

    Args:
        ids: [B, n]; None for the indices of the values.
    """
    if ids is None:
        ids = torch.arange(values.shape[-1], device=values.device)
    bits = values.view(torch.int32)
    # The bits of negative numbers are in descending order.
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ascending.long() << 32) - ids
