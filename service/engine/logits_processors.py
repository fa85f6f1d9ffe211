"""Applies masks, bias and penalties to logits, in all rows of a step at once."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.token_rules import RowRules, TokenIds


def apply_rules(logits: Tensor, rules: Mapping[int, RowRules]) -> set[int]:
    """Apply rules to rows of logits in place, in vLLM's order.

    The order is masks, bias, repetition penalty, frequency penalty, presence penalty. Forbidden
    tokens get -inf. The result of a row does not depend on other rows.

    Args:
        logits: [B, vocab_size], float32.
        rules: The rules of each row, by the row's index.

    Returns:
        The rows in which no token is allowed.
    """
    _mask(logits, rules)
    masked = [row for row, r in rules.items() if r.is_masked]
    rows_without_token = {row for row in masked if logits[row].amax().item() == -torch.inf}
    flat = logits.view(-1)
    _add_bias(flat, logits.shape[-1], rules)
    _penalize(flat, logits.shape[-1], rules)
    return rows_without_token


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
    indices = _flat_indices(((row, r.biased_token_ids) for row, r in biased.items()), vocab_size)
    bias = np.concatenate([r.bias for r in biased.values()])
    is_in_vocab = np.concatenate([r.biased_token_ids < vocab_size for r in biased.values()])
    index = torch.from_numpy(indices[is_in_vocab]).to(flat.device)
    flat[index] += torch.from_numpy(bias[is_in_vocab]).to(flat.device)


def _penalize(flat: Tensor, vocab_size: int, rules: Mapping[int, RowRules]) -> None:
    """Apply OpenAI's presence and frequency penalties and the repetition penalty of
    arXiv 1909.05858."""
    counted = [(row, r.counted, r.params) for row, r in rules.items() if r.counted is not None]
    if not counted:
        return

    def each(values: Iterable[float]) -> Tensor:
        """Repeat each row's value for each of its counted tokens."""
        column = np.fromiter(values, dtype=np.float32, count=len(counted))
        repeated = np.repeat(column, [len(c.token_ids) for _, c, _ in counted])
        return torch.from_numpy(repeated).to(flat.device)

    indices = _flat_indices(((row, c.token_ids) for row, c, _ in counted), vocab_size)
    index = torch.from_numpy(indices).to(flat.device)
    counts = torch.from_numpy(np.concatenate([c.counts for _, c, _ in counted])).to(flat.device)
    repetition = each(p.repetition_penalty for *_, p in counted)
    logits = flat[index]
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits -= each(p.frequency_penalty for *_, p in counted) * counts
    logits -= each(p.presence_penalty for *_, p in counted) * (counts > 0)
    flat[index] = logits


def _flat_indices(token_ids: Iterable[tuple[int, TokenIds]], vocab_size: int) -> NDArray[np.int64]:
    """Return the indices of tokens in the flattened logits.

    Args:
        token_ids: Pairs of a row and token ids in it.
    """
    return np.concatenate([row * vocab_size + ids for row, ids in token_ids])
