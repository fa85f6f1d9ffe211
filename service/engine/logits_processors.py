"""The rules for tokens, applied to logits: each row by its own, all rows at once."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.token_rules import RowRules, TokenIds


def apply_rules(logits: Tensor, rules: Mapping[int, RowRules]) -> set[int]:
    """Change the rows of `logits` [B, vocab_size], float32, that have rules, in place.

    In vLLM's order: masks, bias, then the penalties by repetition, frequency and presence. What
    cannot come has -inf. Each step is arithmetic on single numbers, so no row depends on another.

    Returns:
        The rows in which nothing is left to choose.
    """
    _mask(logits, rules)
    masked = [row for row, r in rules.items() if r.is_masked]
    dead = {row for row in masked if logits[row].amax().item() == -torch.inf}
    flat = logits.view(-1)
    _add_bias(flat, logits.shape[-1], rules)
    _penalize(flat, logits.shape[-1], rules)
    return dead


def _mask(logits: Tensor, rules: Mapping[int, RowRules]) -> None:
    for row, r in rules.items():
        for forbidden in r.forbidden:
            size = min(len(forbidden), logits.shape[-1])
            mask = torch.from_numpy(forbidden[:size]).to(logits.device)
            logits[row, :size].masked_fill_(mask, -torch.inf)
            logits[row, size:] = -torch.inf
    vocab_size = logits.shape[-1]
    flat = [
        row * vocab_size + token_id
        for row, r in rules.items()
        for token_id in r.banned_token_ids
        if token_id < vocab_size
    ]
    if flat:
        logits.view(-1)[torch.tensor(flat, device=logits.device)] = -torch.inf


def _add_bias(flat: Tensor, vocab_size: int, rules: Mapping[int, RowRules]) -> None:
    biased = {row: r for row, r in rules.items() if len(r.bias)}
    if not biased:
        return
    places = _places(((row, r.biased_token_ids) for row, r in biased.items()), vocab_size)
    bias = np.concatenate([r.bias for r in biased.values()])
    is_known = np.concatenate([r.biased_token_ids < vocab_size for r in biased.values()])
    index = torch.from_numpy(places[is_known]).to(flat.device)
    flat[index] += torch.from_numpy(bias[is_known]).to(flat.device)


def _penalize(flat: Tensor, vocab_size: int, rules: Mapping[int, RowRules]) -> None:
    """OpenAI's presence and frequency penalties, and the repetition penalty of arXiv 1909.05858."""
    counted = [(row, r.counted, r.params) for row, r in rules.items() if r.counted is not None]
    if not counted:
        return

    def each(values: Iterable[float]) -> Tensor:
        """One value a row, as one for each of its tokens."""
        column = np.fromiter(values, dtype=np.float32, count=len(counted))
        repeated = np.repeat(column, [len(c.token_ids) for _, c, _ in counted])
        return torch.from_numpy(repeated).to(flat.device)

    places = _places(((row, c.token_ids) for row, c, _ in counted), vocab_size)
    index = torch.from_numpy(places).to(flat.device)
    counts = torch.from_numpy(np.concatenate([c.counts for _, c, _ in counted])).to(flat.device)
    repetition = each(p.repetition_penalty for *_, p in counted)
    logits = flat[index]
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits -= each(p.frequency_penalty for *_, p in counted) * counts
    logits -= each(p.presence_penalty for *_, p in counted) * (counts > 0)
    flat[index] = logits


def _places(token_ids: Iterable[tuple[int, TokenIds]], vocab_size: int) -> NDArray[np.int64]:
    """Where the tokens of some rows stand in all rows, end to end."""
    return np.concatenate([row * vocab_size + ids for row, ids in token_ids])
