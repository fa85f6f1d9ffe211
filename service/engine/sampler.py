"""The next token of each sequence in a batch, each by its own parameters.

Every row is computed by itself, with one uniform draw from its own sequence's generator, so what a
sequence samples does not depend, to the last bit, on who else is in the batch. Everything here is
an operation on rows that torch computes alike for one row and for many; tests hold it to that.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from service.domain.sampling import SamplingParams
from service.engine.vocab_blocks import BLOCK, as_blocks, gather_block, top

# Rows at once on a CPU. 8 of 49152 numbers are 1.6 MB, which a cache holds and malloc keeps for the
# next; 32 at once take a softmax 17 ms instead of 4, most of it in page faults.
_ROWS = 8
# Candidates are found by `topk` in ever larger numbers: the nucleus of a confident model is a
# handful of tokens, and top-k is 50 where nobody thought about it. Rows grow by themselves: the
# order of equally likely tokens changes with the number asked for.
_FIRST_CANDIDATES = 64
_GROWTH = 8
_LARGEST_DRAW = 1 - 2**-53

Chooser = Callable[[Tensor, list[SamplingParams], list[float]], Tensor]


def sample(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> list[int]:
    """Sample one token a row.

    Args:
        logits: [B, vocab_size], float32.
        params: each row's parameters.
        draws: each row's uniform draw from [0, 1); greedy rows do not use theirs.

    Returns:
        [B] token ids. Among the most likely of a greedy row it is the lowest. A row with NaNs in it
        gives some token.
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
                chosen[row] = min(token_id, logits.shape[-1] - 1)  # NaNs can lead into the padding
    return chosen


def _chooser(p: SamplingParams) -> Chooser:
    if p.is_greedy:
        return _most_likely
    is_filtered = p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0
    return _sample_candidates if is_filtered else _sample_all


def _most_likely(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> Tensor:  # noqa: ARG001
    """[B] token ids. torch's `argmax` is no vector code; on the maxima of blocks it need not be."""
    blocks = as_blocks(logits, padding=-torch.inf)
    block = blocks.amax(-1).argmax(-1, keepdim=True)
    return (block * BLOCK + gather_block(blocks, block).argmax(-1, keepdim=True)).squeeze(-1)


def _sample_all(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> Tensor:
    """[B] token ids from the whole vocabulary: the block by its share, then the token in it."""
    blocks = as_blocks(_probabilities(logits, params), padding=0.0)
    block, rest = _invert(blocks.sum(-1), _column(draws, torch.float64, logits))
    token, _ = _invert(gather_block(blocks, block), rest)
    return (block * BLOCK + token).squeeze(-1)


def _sample_candidates(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> Tensor:
    """[B] token ids from the candidates that top-k, top-p and min-p leave, in that order."""
    blocks = as_blocks(_probabilities(logits, params), padding=0.0)
    size = blocks.shape[1] * BLOCK
    top_k = _column([min(p.top_k or size, size) for p in params], torch.long, logits)
    top_p = _column([p.top_p for p in params], torch.float32, logits)
    min_p = _column([p.min_p for p in params], torch.float32, logits)
    uniform = _column(draws, torch.float64, logits)
    chosen = torch.empty(len(params), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(params), device=logits.device)  # those without a choice so far
    num_candidates = min(_FIRST_CANDIDATES, size)
    while True:
        best, token_ids = top(blocks, num_candidates)
        rank = torch.arange(num_candidates, device=logits.device)
        # top-p is a share of what top-k leaves: the sum of the first k, or 1 where there is no k.
        cumulative = best.cumsum(-1)
        mass = cumulative.gather(-1, top_k.clamp(max=num_candidates) - 1)
        mass = torch.where(top_k < size, mass, 1.0)
        is_nucleus = cumulative - best < top_p * mass
        kept = (rank < top_k) & is_nucleus & (best >= min_p * best[:, :1]) | (rank == 0)
        # A row whose last candidate is dropped has no more to find: each filter drops a tail. But
        # a nucleus is a share of all k.
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
    """These rows, in rising order; not copied where they lie side by side."""
    first, last = rows[0], rows[-1]
    if last - first + 1 == len(rows):
        return logits[first : last + 1]
    return logits[rows]


def _probabilities(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    temperature = _column([p.temperature for p in params], torch.float32, logits)
    return torch.softmax(logits / temperature, dim=-1)


def _invert(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling: the indices where the running sum passes the draws [B, 1].

    The second result is where inside its weight each draw fell, from [0, 1): as good a draw, for a
    choice within what was chosen. In float64, or small weights at the end of a long sum were lost.
    The last index if there are NaNs.
    """
    weights = weights.double()
    cumulative = weights.cumsum(-1)
    # Below the total, so never past the last weight that counts: a draw is at most 1 - 2**-53, and
    # times that much every float64 rounds to less than itself.
    targets = draws * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True).clamp(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, index)
    inside = (targets - (cumulative.gather(-1, index) - weight)) / weight
    return index, inside.clamp(0.0, _LARGEST_DRAW)


def _column(values: list[float] | list[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]
