"""Log probabilities of tokens from the model's logits, before temperature, bias and masks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from service.domain.engine import TokenLogprobs
from service.engine.vocab_blocks import BLOCK, as_blocks, top

# Number of rows computed at once. This number of rows fits into a CPU's cache.
_ROWS = 8


def token_logprobs(logits: Tensor, tokens: Sequence[tuple[int, int, int]]) -> list[TokenLogprobs]:
    """Return the log probabilities of tokens and of the most likely tokens in the same rows.

    Args:
        logits: [B, vocab_size], float32.
        tokens: Triples of a row, a token id and the number of most likely tokens to return.

    Returns:
        One for each of `tokens`.
    """
    found: list[TokenLogprobs] = []
    for start in range(0, len(tokens), _ROWS):
        rows, token_ids, num_top = zip(*tokens[start : start + _ROWS], strict=True)
        logprobs = torch.log_softmax(logits[list(rows)], dim=-1)
        index = torch.tensor(token_ids, device=logits.device)[:, None]
        chosen: list[float] = logprobs.gather(-1, index).squeeze(-1).tolist()
        tops = _top(logprobs, num_top)
        found += map(TokenLogprobs, token_ids, map(_number, chosen), tops)
    return found


def _top(logprobs: Tensor, num_top: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """Return the most likely tokens of each row and their log probabilities.

    They are in descending order. Of equally likely tokens the lower id comes first.
    """
    # `topk` chooses arbitrarily among equal values. So only its smallest value is used, and the
    # tokens are chosen by id among all that are at least as likely.
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
    index, offset = (found >= least[in_row]).nonzero(as_tuple=True)
    candidates: list[list[tuple[int, float]]] = [[] for _ in num_top]
    for row, token_id, value in zip(
        in_row[index].tolist(),
        (in_block[index] * BLOCK + offset).tolist(),
        found[index, offset].tolist(),
        strict=True,
    ):
        candidates[row].append((token_id, value))
    # The sort is stable, and candidates are in ascending order of id.
    return [
        tuple(sorted(row, key=lambda pair: -pair[1])[:n])
        for row, n in zip(candidates, num_top, strict=True)
    ]


def _number(logprob: float) -> float:
    """Return the log probability, or -inf for the NaN of a broken model."""
    return -math.inf if math.isnan(logprob) else logprob
