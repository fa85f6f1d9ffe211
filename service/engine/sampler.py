"""Samples the next token of each sequence in a batch by the sequence's own parameters.

Each row is sampled with one uniform draw of its own sequence, and with operations that torch
computes identically for one row and for many. So a sequence's tokens do not depend on the rest of
the batch, to the last bit. Tests check this.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from service.domain.sampling import SamplingParams
from service.engine.vocab_blocks import BLOCK, as_blocks, gather_block, top

# Number of rows computed at once on a CPU. 8 rows of 49152 numbers are 1.6 MB: they fit into a
# cache, and malloc reuses the memory. With 32 rows a softmax takes 17 ms instead of 4 ms, mostly in
# page faults.
_ROWS = 8
# Number of candidates that `topk` finds first, and the factor by which that number grows. The
# nucleus of a confident model has few tokens, and top-k is often 50. The number grows for each row
# separately, because the order of equally likely tokens depends on it.
_FIRST_CANDIDATES = 64
_GROWTH = 8
_LARGEST_DRAW = 1 - 2**-53

Chooser = Callable[[Tensor, list[SamplingParams], list[float]], Tensor]


def sample(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> list[int]:
    """Sample one token for each row.

    Args:
        logits: [B, vocab_size], float32.
        params: The sampling parameters of each row.
        draws: A uniform draw from [0, 1) for each row. Greedy rows do not use it.

    Returns:
        B token ids. A greedy row gives the lowest id of its most likely tokens. A row with NaNs
        gives any token id of the vocabulary.
    """
    rows_of: dict[Chooser, list[int]] = defaultdict(list)
    for row, p in enumerate(params):
        rows_of[_chooser(p)].append(row)
    at_once = _ROWS if logits.device.type == "cpu" else len(params)
    chosen = [0] * len(params)
    for choose, all_rows in rows_of.items():
        for start in range(0, len(all_rows), at_once):
            rows = all_rows[start : start + at_once]
            token_ids = choose(
                _rows(logits, rows), [params[row] for row in rows], [draws[row] for row in rows]
            )
            for row, token_id in zip(rows, cast("list[int]", token_ids.tolist()), strict=True):
                # If there are NaNs, the index can be in the padding.
                chosen[row] = min(token_id, logits.shape[-1] - 1)
    return chosen


def _chooser(p: SamplingParams) -> Chooser:
    if p.is_greedy:
        return _most_likely
    is_filtered = p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0
    return _sample_candidates if is_filtered else _sample_all


def _most_likely(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> Tensor:  # noqa: ARG001
    """Return the most likely token of each row, [B]."""
    # torch's `argmax` is not vectorized, so it runs on the maxima of blocks.
    blocks = as_blocks(logits, padding=-torch.inf)
    block = blocks.amax(-1).argmax(-1, keepdim=True)
    return (block * BLOCK + gather_block(blocks, block).argmax(-1, keepdim=True)).squeeze(-1)


def _sample_all(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> Tensor:
    """Return token ids [B], sampled from the whole vocabulary: first a block, then its token."""
    blocks = as_blocks(_probabilities(logits, params), padding=0.0)
    block, rest = _invert(blocks.sum(-1), _column(draws, torch.float64, logits))
    token, _ = _invert(gather_block(blocks, block), rest)
    return (block * BLOCK + token).squeeze(-1)


def _sample_candidates(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> Tensor:
    """Return token ids [B], sampled after top-k, top-p and min-p are applied in this order."""
    blocks = as_blocks(_probabilities(logits, params), padding=0.0)
    size = blocks.shape[1] * BLOCK
    top_k = _column([min(p.top_k or size, size) for p in params], torch.long, logits)
    top_p = _column([p.top_p for p in params], torch.float32, logits)
    min_p = _column([p.min_p for p in params], torch.float32, logits)
    uniform = _column(draws, torch.float64, logits)
    chosen = torch.empty(len(params), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(params), device=logits.device)  # rows that are not sampled yet
    num_candidates = min(_FIRST_CANDIDATES, size)
    while True:
        best, token_ids = top(blocks, num_candidates)
        rank = torch.arange(num_candidates, device=logits.device)
        # top-p is a share of the probability that top-k leaves. That is the sum of the first k
        # probabilities, or 1 without top-k.
        cumulative = best.cumsum(-1)
        mass = cumulative.gather(-1, top_k.clamp(max=num_candidates) - 1)
        mass = torch.where(top_k < size, mass, 1.0)
        is_nucleus = cumulative - best < top_p * mass
        kept = (rank < top_k) & is_nucleus & (best >= min_p * best[:, :1]) | (rank == 0)
        # Each filter drops the least likely tokens. So a row needs no more candidates if its last
        # candidate is dropped. But top-p needs the sum of all k probabilities.
        is_whole = ((top_k <= num_candidates) | (top_k == size)).squeeze(-1)
        is_final = ~kept[:, -1] & is_whole | (num_candidates == size)
        index, _ = _invert(best * kept, uniform)
        chosen[rows[is_final]] = token_ids.gather(-1, index).squeeze(-1)[is_final]
        if bool(is_final.all()):
            return chosen
        rows, blocks, uniform, top_k, top_p, min_p = (
            tensor[~is_final] for tensor in (rows, blocks, uniform, top_k, top_p, min_p)
        )
        num_candidates = min(num_candidates * _GROWTH, size)


def _rows(logits: Tensor, rows: list[int]) -> Tensor:
    """Return the given rows, which are in ascending order, without a copy if they are adjacent."""
    first, last = rows[0], rows[-1]
    if last - first + 1 == len(rows):
        return logits[first : last + 1]
    return logits[rows]


def _probabilities(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    temperature = _column([p.temperature for p in params], torch.float32, logits)
    return torch.softmax(logits / temperature, dim=-1)


def _invert(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Sample indices by inverse transform sampling.

    Args:
        weights: [B, n], not necessarily normalized.
        draws: [B, 1], uniform in [0, 1).

    Returns:
        The indices [B, 1] at which the running sums exceed the draws; the last index if there are
        NaNs. Also new uniform draws [B, 1]: the positions of the draws within the chosen weights.
    """
    weights = weights.double()  # in float32, small weights at the end of a long sum would be lost
    cumulative = weights.cumsum(-1)
    # Each target is less than the total: a draw is at most 1 - 2**-53, and a float64 times that
    # rounds to less than itself. So a weight of zero at the end is never selected.
    targets = draws * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True).clamp(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, index)
    inside = (targets - (cumulative.gather(-1, index) - weight)) / weight
    return index, inside.clamp(0.0, _LARGEST_DRAW)


def _column(values: list[float] | list[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]
