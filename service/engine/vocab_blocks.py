"""A vocabulary looked through in two levels, blocks first.

The sums or maxima of blocks are cheap, and all that is slow (running sums, sorting, `argmax`) then
sees hundreds of numbers, not 49152.
"""

from torch import Tensor
from torch.nn import functional as F

BLOCK = 128


def as_blocks(rows: Tensor, padding: float) -> Tensor:
    """[B, vocab_size] as [B, blocks, BLOCK]; copied only where there is a rest to be padded."""
    rest = -rows.shape[-1] % BLOCK
    padded = F.pad(rows, (0, rest), value=padding) if rest else rows
    return padded.reshape(rows.shape[0], -1, BLOCK)


def gather_block(blocks: Tensor, index: Tensor) -> Tensor:
    """[B, BLOCK]: of each row the block that `index` [B, 1] names."""
    return blocks.gather(1, index.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)


def top(blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest and their token ids, [B, count] both, largest first.

    No more than `count` blocks hold them: those whose largest are the largest.
    """
    if count >= blocks.shape[1]:
        values, token_ids = blocks.flatten(1).topk(count, dim=-1)
        return values, token_ids
    _, best = blocks.amax(-1).topk(count, dim=-1, sorted=False)
    candidates = blocks.gather(1, best.unsqueeze(-1).expand(-1, -1, BLOCK)).flatten(1)
    values, place = candidates.topk(count, dim=-1)
    return values, best.gather(-1, place // BLOCK) * BLOCK + place % BLOCK
