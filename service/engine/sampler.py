"""The next token of each sequence in a batch, each by its own parameters.

Every row is computed by itself, with one uniform draw from its own sequence's generator, so what a
sequence samples does not depend on who else is in the batch.
"""

import torch
from torch import Tensor

from service.types import SamplingParams

# Candidates are found by `topk` in ever larger numbers: the nucleus of a confident model is a
# handful of tokens, and a full sort of a 49152-token vocabulary costs a CPU some 3 ms a row. Rows
# grow by themselves: the order of equally likely tokens changes with the number asked for.
_FIRST_CANDIDATES = 128
_GROWTH = 16


def sample(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> list[int]:
    """Sample one token a row.

    Args:
        logits: [B, vocab_size], float32.
        params: each row's parameters.
        draws: each row's uniform draw from [0, 1); greedy rows do not use theirs.

    Returns:
        [B] token ids.
    """
    token_ids = logits.argmax(-1)
    for choose, is_mine in ((_sample_all, _is_unfiltered), (_sample_filtered, _is_filtered)):
        rows = [i for i, p in enumerate(params) if is_mine(p)]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            mine = [params[i] for i in rows]
            temperature = _column([p.temperature for p in mine], logits)
            probs = torch.softmax(logits[index] / temperature, dim=-1)
            uniform = _column([draws[i] for i in rows], probs.double())
            token_ids[index] = choose(probs, mine, uniform).squeeze(-1)
    return token_ids.tolist()


def _is_filtered(p: SamplingParams) -> bool:
    return not p.is_greedy and (p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0)


def _is_unfiltered(p: SamplingParams) -> bool:
    return not p.is_greedy and not _is_filtered(p)


def _sample_all(probs: Tensor, params: list[SamplingParams], draws: Tensor) -> Tensor:  # noqa: ARG001
    """[B, 1] token ids from the whole vocabulary."""
    return _invert(probs, draws)


def _sample_filtered(probs: Tensor, params: list[SamplingParams], draws: Tensor) -> Tensor:
    """[B, 1] token ids from the candidates that top-k, top-p and min-p leave, in that order."""
    vocab_size = probs.shape[-1]
    top_k = _column([min(p.top_k or vocab_size, vocab_size) for p in params], probs)
    top_p = _column([p.top_p for p in params], probs)
    min_p = _column([p.min_p for p in params], probs)
    chosen = torch.empty_like(draws, dtype=torch.long)
    rows = torch.arange(len(params), device=probs.device)  # those without a choice so far
    num_candidates = min(_FIRST_CANDIDATES, vocab_size)
    while True:
        top, token_ids = probs.topk(num_candidates, dim=-1)
        rank = torch.arange(num_candidates, device=probs.device)
        # top-p is a share of what top-k leaves: the sum of the first k, or 1 where there is no k.
        cumulative = top.cumsum(-1)
        mass = cumulative.gather(-1, top_k.long().clamp(max=num_candidates) - 1)
        mass = torch.where(top_k < vocab_size, mass, 1.0)
        is_nucleus = cumulative - top < top_p * mass
        kept = (rank < top_k) & is_nucleus & (top >= min_p * top[:, :1]) | (rank == 0)
        # A row whose last candidate is dropped has no more to find: each filter drops a tail. But
        # a nucleus is a share of all k.
        is_whole = ((top_k <= num_candidates) | (top_k == vocab_size)).squeeze(-1)
        is_final = ~kept[:, -1] & is_whole | (num_candidates == vocab_size)
        choices = token_ids.gather(-1, _invert(top * kept, draws))
        chosen[rows[is_final]] = choices[is_final]
        if bool(is_final.all()):
            return chosen
        rows, probs, draws, top_k, top_p, min_p = (
            tensor[~is_final] for tensor in (rows, probs, draws, top_k, top_p, min_p)
        )
        num_candidates = min(num_candidates * _GROWTH, vocab_size)


def _invert(probs: Tensor, draws: Tensor) -> Tensor:
    """[B, 1] indices by inverse transform sampling: where the running sum passes the draw [B, 1].

    In float64, since the sum has as many terms as the vocabulary. The last index if there are NaNs.
    """
    cumulative = probs.double().cumsum(-1)
    # Below the total, so never past the last token that counts: a draw is at most 1 - 2**-53, and
    # times that much every float64 rounds to less than itself.
    targets = draws * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).clamp(max=probs.shape[-1] - 1)


def _column(values: list[float] | list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
