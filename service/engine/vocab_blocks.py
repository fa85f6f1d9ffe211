"""Two-level search in a vocabulary: first among blocks of tokens, then within a block.

Sums or maxima of blocks are cheap. The slow operations (running sums, sorting, `argmax`) then run
on hundreds of numbers instead of 49152.
"""

from torch import Tensor
from torch.nn import functional as F

BLOCK = 128


def as_blocks(rows: Tensor, padding: float) -> Tensor:
    """Return `rows` [B, vocab_size] as [B, blocks, BLOCK].

    If the last block is not full, the result is a padded copy.
    """
    rest = -rows.shape[-1] % BLOCK
    padded = F.pad(rows, (0, rest), value=padding) if rest else rows
    return padded.reshape(rows.shape[0], -1, BLOCK)


def gather_block(blocks: Tensor, index: Tensor) -> Tensor:
    """Return one block of each row, [B, BLOCK], by its `index` [B, 1]."""
    return blocks.gather(1, index.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)


def top(blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row and their token ids.

    Returns:
        The values [B, count] in descending order, and their token ids [B, count].
    """
    # The largest values are in at most `count` blocks: those with the largest maxima.
    if count >= blocks.shape[1]:
        values, token_ids = blocks.flatten(1).topk(count, dim=-1)
        return values, token_ids
    _, best = blocks.amax(-1).topk(count, dim=-1, sorted=False)
    candidates = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, BLOCK)).flatten(1)
    values, index = candidates.topk(count, dim=-1)
    return values, best.gather(-1, index // BLOCK) * BLOCK + index % BLOCK
