"""Applies masks, bias and penalties to logits, in all rows of a step at once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.domain.sampling import SamplingParams
from service.engine.token_counts import CountedTokens
from service.engine.token_rules import RowRules, TokenIds, TokenMask


class RuleBatch:
    """The rules of the rows of a step.

    Args:
        rules: The rules of each row, by the row's index, in ascending order.
        vocab_size: Number of logits in a row.
        device: The device of the logits.

    Attributes:
        checked_rows: The rows in which `apply` checks whether a token is allowed.
        arrays: The arrays that `apply` needs on the device.
    """

    def __init__(
        self, rules: Mapping[int, RowRules], vocab_size: int, device: torch.device
    ) -> None:
        self._masked_rows = {row for row, r in rules.items() if r.is_masked}
        # On a GPU one kernel for a range of rows takes less time than several for parts of it.
        is_whole = device.type != "cpu"
        masks = {row: r.masks for row, r in rules.items() if r.masks}
        self._mask_ranges = _ranges(list(masks), is_whole=is_whole)
        self._checked_ranges = _ranges(list(self._masked_rows), is_whole=is_whole)
        self.checked_rows = [row for rows in self._checked_ranges for row in rows]
        banned = _banned(rules, vocab_size)
        biased = {row: r for row, r in rules.items() if len(r.bias)}
        counted = [(row, r.counted, r.params) for row, r in rules.items() if r.counted is not None]
        self._has_banned, self._has_bias = bool(banned), bool(biased)
        self.arrays: list[NDArray[Any]] = []
        if masks:
            of_rows = [masks.get(row, ()) for rows in self._mask_ranges for row in rows]
            self.arrays.append(_forbidden_bits(of_rows, vocab_size))
        if banned:
            self.arrays.append(np.array(banned, dtype=np.int64))
        if biased:
            self.arrays += _bias(biased, vocab_size)
        if counted:
            self.arrays += _penalties(counted, vocab_size)

    def apply(self, logits: Tensor, arrays: Sequence[Tensor]) -> Tensor:
        """Apply the rules in place, in vLLM's order. Nothing waits for the device.

        The order is masks, bias, repetition penalty, frequency penalty, presence penalty. Tokens
        that are not allowed get -inf. The result of a row does not depend on other rows.

        Args:
            logits: [B, vocab_size], float32.
            arrays: `self.arrays` on the device of the logits.

        Returns:
            The largest logit of each of `checked_rows` after the masks: -inf if no token is
            allowed.
        """
        rest = iter(arrays)
        if self._mask_ranges:
            lengths = [len(rows) for rows in self._mask_ranges]
            for rows, bits in zip(self._mask_ranges, torch.split(next(rest), lengths), strict=True):
                is_forbidden = _unpacked(bits, logits.shape[-1])
                logits[rows.start : rows.stop].masked_fill_(is_forbidden, -torch.inf)
        flat = logits.view(-1)
        if self._has_banned:
            flat.index_fill_(0, next(rest), -torch.inf)
        largest = [logits[rows.start : rows.stop].amax(-1) for rows in self._checked_ranges]
        if self._has_bias:
            flat[next(rest)] += next(rest)
        if penalties := tuple(rest):
            index = penalties[0]
            flat[index] = _penalized(flat[index], *penalties[1:])
        return torch.cat(largest) if largest else logits.new_empty(0)

    def rows_without_token(self, largest: NDArray[np.float32]) -> list[int]:
        """Return the rows in which no token is allowed, from the result of `apply`."""
        if not self.checked_rows:
            return []
        found = zip(self.checked_rows, largest == -np.inf, strict=True)
        return [row for row, is_empty in found if is_empty and row in self._masked_rows]


def _ranges(rows: list[int], *, is_whole: bool) -> list[range]:
    """Return ranges that contain ascending `rows`: one, or one for each run of adjacent rows."""
    if not rows:
        return []
    if is_whole:
        return [range(rows[0], rows[-1] + 1)]
    found = [range(rows[0], rows[0] + 1)]
    for row in rows[1:]:
        if row == found[-1].stop:
            found[-1] = range(found[-1].start, row + 1)
        else:
            found.append(range(row, row + 1))
    return found


def _forbidden_bits(masks: Sequence[tuple[TokenMask, ...]], vocab_size: int) -> NDArray[np.uint8]:
    """Return a bit for each token: 1 if the masks of its row forbid it. The lowest bit is first.

    Args:
        masks: The masks of each of n rows.

    Returns:
        [n, bytes]
    """
    num_bytes = -(-vocab_size // 8)
    bits = np.zeros((len(masks), num_bytes), dtype=np.uint8)
    for row, of_row in zip(bits, masks, strict=True):
        for mask in of_row:
            size = min(len(mask), num_bytes)
            row[:size] |= ~mask[:size]
            row[size:] = 0xFF
    return bits


def _unpacked(bits: Tensor, size: int) -> Tensor:
    """Return the first `size` bits of each row of `bits` [n, bytes], as bool [n, size]."""
    if bits.device.type == "cpu":
        unpacked = np.unpackbits(bits.numpy(), axis=-1, count=size, bitorder="little")
        return torch.from_numpy(unpacked.view(np.bool_))
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[..., None] >> shifts & 1).flatten(1)[:, :size].bool()


def _banned(rules: Mapping[int, RowRules], vocab_size: int) -> list[int]:
    """Return indices in the flattened logits."""
    return [
        row * vocab_size + token_id
        for row, r in rules.items()
        for token_id in r.banned_token_ids
        if token_id < vocab_size
    ]


def _bias(rules: Mapping[int, RowRules], vocab_size: int) -> tuple[TokenIds, NDArray[np.float32]]:
    """Return indices in the flattened logits, and the bias of each."""
    indices = _flat_indices(((row, r.biased_token_ids) for row, r in rules.items()), vocab_size)
    bias = np.concatenate([r.bias for r in rules.values()])
    is_in_vocab = np.concatenate([r.biased_token_ids < vocab_size for r in rules.values()])
    return indices[is_in_vocab], bias[is_in_vocab]


def _penalties(
    counted: Sequence[tuple[int, CountedTokens, SamplingParams]], vocab_size: int
) -> tuple[NDArray[Any], ...]:
    """Return indices in the flattened logits, and for each of them the count of its token and the
    repetition, frequency and presence penalties of its row."""

    def each(values: Iterable[float]) -> NDArray[np.float32]:
        """Repeat each row's value for each of its counted tokens."""
        column = np.fromiter(values, dtype=np.float32, count=len(counted))
        return np.repeat(column, [len(c.token_ids) for _, c, _ in counted])

    return (
        _flat_indices(((row, c.token_ids) for row, c, _ in counted), vocab_size),
        np.concatenate([c.counts for _, c, _ in counted]),
        each(p.repetition_penalty for *_, p in counted),
        each(p.frequency_penalty for *_, p in counted),
        each(p.presence_penalty for *_, p in counted),
    )


def _penalized(
    logits: Tensor, counts: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> Tensor:
    """Apply OpenAI's presence and frequency penalties and the repetition penalty of
    arXiv 1909.05858."""
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits -= frequency * counts
    logits -= presence * (counts > 0)
    return logits


def _flat_indices(token_ids: Iterable[tuple[int, TokenIds]], vocab_size: int) -> TokenIds:
    """Return the indices of tokens in the flattened logits.

    Args:
        token_ids: Pairs of a row and token ids in it.
    """
    return np.concatenate([row * vocab_size + ids for row, ids in token_ids])
