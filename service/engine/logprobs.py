"""Log probabilities of tokens, by the model's own logits: before temperature, bias and masks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from service.domain.engine import TokenLogprobs
from service.engine.vocab_blocks import BLOCK, as_blocks, top

# Rows at once on a CPU, for the sake of its caches.
_ROWS = 8


def token_logprobs(logits: Tensor, wanted: Sequence[tuple[int, int, int]]) -> list[TokenLogprobs]:
    """The log probabilities of some tokens and of the likeliest beside them, each row by itself.

    Args:
        logits: [B, vocab_size], float32.
        wanted: a row, a token, and how many of the likeliest.
    """
    told: list[TokenLogprobs] = []
    for start in range(0, len(wanted), _ROWS):
        rows, token_ids, num_top = zip(*wanted[start : start + _ROWS], strict=True)
        logprobs = torch.log_softmax(logits[list(rows)], dim=-1)
        index = torch.tensor(token_ids, device=logits.device)[:, None]
        chosen: list[float] = logprobs.gather(-1, index).squeeze(-1).tolist()
        tops = _top(logprobs, num_top)
        told += map(TokenLogprobs, token_ids, map(_number, chosen), tops)
    return told


def _top(logprobs: Tensor, num_top: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest of each row, in falling order, the lower token id first among equals.

    torch's `topk` takes any of equals. So it says only how likely they must be, and of all that are
    the first are taken.
    """
    vocab_size = logprobs.shape[-1]
    most = min(max(num_top), vocab_size)
    if not most:
        return [()] * len(num_top)
    last = [min(max(n, 1), vocab_size) - 1 for n in num_top]
    blocks = as_blocks(logprobs, padding=-torch.inf)
    values, _ = top(blocks, most)
    least = values.gather(-1, torch.tensor(last, device=logprobs.device)[:, None])
    in_row, in_block = (blocks.amax(-1) >= least).nonzero(as_tuple=True)
    found = blocks[in_row, in_block]
    place, offset = (found >= least[in_row]).nonzero(as_tuple=True)
    candidates: list[list[tuple[int, float]]] = [[] for _ in num_top]
    for row, token_id, value in zip(
        in_row[place].tolist(),
        (in_block[place] * BLOCK + offset).tolist(),
        found[place, offset].tolist(),
        strict=True,
    ):
        candidates[row].append((token_id, value))
    # A stable sort: they come with rising ids.
    return [
        tuple(sorted(row, key=lambda pair: -pair[1])[:n])
        for row, n in zip(candidates, num_top, strict=True)
    ]


def _number(logprob: float) -> float:
    """A broken model's NaN is no probability at all."""
    return -math.inf if math.isnan(logprob) else logprob
