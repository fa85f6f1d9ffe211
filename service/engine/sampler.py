"""Samples the next token of each sequence in a batch by the sequence's own parameters.

Each row is sampled with one uniform draw of its own sequence. On a CPU, torch computes each of the
operations identically for one row and for many. So a sequence's tokens do not depend on the rest of
the batch, to the last bit. Tests check this.

Probabilities are added up as integers. So the sums are exact, and do not depend on their order. The
native kernels (`native/sampler.cpp`) compute the same without sorting, and choose the same tokens
unless a draw is within the rounding of a probability.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.domain.sampling import SamplingParams
from service.engine.native.sampler import MAX_VOCAB_SIZE, SamplingColumns
from service.engine.native.sampler import sample as sample_by_kernels
from service.engine.vocab_blocks import BLOCK, as_blocks, gather_block, top_in_order

# Number of rows computed at once on a CPU. 8 rows of 49152 numbers are 1.6 MB: they fit into a
# cache, and malloc reuses the memory. With 32 rows a softmax takes 17 ms instead of 4 ms, mostly in
# page faults.
_ROWS = 8
# Number of candidates that `topk` finds first on a CPU, and the factor by which that number grows.
# The nucleus of a confident model has few tokens, and top-k is often 50.
_FIRST_CANDIDATES = 64
_GROWTH = 8
# Number of candidates on a GPU for rows whose top-k is at most this. Other filtered rows sort the
# whole vocabulary: to find out how many candidates they need would wait for the device.
_MOST_CANDIDATES = 128
_NO_TOP_K = 2**62  # the value of `_Columns.top_k` in a row without top-k
# The weight of a token is its probability in this unit, rounded down.
_WEIGHT_UNIT = 2.0**-60


class _Columns(NamedTuple):
    """The parameters of n rows. Each is [n, 1]."""

    temperature: Tensor
    draw: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


_Chooser = Callable[[Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are sampled together.

    Attributes:
        rows: The rows of the logits, in ascending order.
        start: The place of the first of them in the arrays of the batch.
    """

    choose: _Chooser
    rows: list[int]
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.rows)

    @property
    def is_adjacent(self) -> bool:
        return self.rows[-1] - self.rows[0] + 1 == len(self.rows)


class SamplerBatch:
    """The sampling parameters of the rows of a step.

    Args:
        params: The sampling parameters of each row.
        draws: A uniform draw from [0, 1) for each row. Greedy rows do not use it.
        device: The device of the logits.

    Attributes:
        arrays: The arrays that `sample` needs on the device.
    """

    def __init__(
        self, params: Sequence[SamplingParams], draws: Sequence[float], device: torch.device
    ) -> None:
        is_cpu = device.type == "cpu"
        rows_of: dict[_Chooser, list[int]] = defaultdict(list)
        for row, p in enumerate(params):
            rows_of[_chooser(p, is_cpu=is_cpu)].append(row)
        at_once = _ROWS if is_cpu else len(params)
        order: list[int] = []
        self._groups: list[_Group] = []
        for choose, all_rows in rows_of.items():
            for first in range(0, len(all_rows), at_once):
                rows = all_rows[first : first + at_once]
                self._groups.append(_Group(choose, rows, len(order)))
                order += rows
        self._is_ordered = order == list(range(len(params)))
        self.arrays: list[NDArray[Any]] = []
        if not self._is_ordered:
            self.arrays.append(np.array(order, dtype=np.int64))
        if any(choose is not _most_likely for choose in rows_of):
            ordered = [params[row] for row in order]
            self.arrays += [
                np.array([p.temperature for p in ordered], dtype=np.float32)[:, None],
                np.array([draws[row] for row in order], dtype=np.float64)[:, None],
                np.array([p.top_k or _NO_TOP_K for p in ordered], dtype=np.int64)[:, None],
                np.array([p.top_p for p in ordered], dtype=np.float32)[:, None],
                np.array([p.min_p for p in ordered], dtype=np.float32)[:, None],
            ]

    def sample(self, logits: Tensor, arrays: Sequence[Tensor]) -> Tensor:
        """Sample one token for each row. Nothing waits for the device.

        Args:
            logits: [B, vocab_size], float32.
            arrays: `self.arrays` on the device of the logits.

        Returns:
            Token ids [B]. A greedy row gives the lowest id of its most likely tokens. A row with
            NaNs gives any token id of the vocabulary.
        """
        order, columns = (None, arrays) if self._is_ordered else (arrays[0], arrays[1:])
        parts = [
            group.choose(_rows(logits, group, order), [c[group.start : group.end] for c in columns])
            for group in self._groups
        ]
        chosen = parts[0] if len(parts) == 1 else torch.cat(parts)
        if order is not None:
            chosen = torch.empty_like(chosen).index_copy_(0, order, chosen)
        return chosen.clamp_(max=logits.shape[-1] - 1)  # with NaNs the index can be in the padding


class NativeSamplerBatch:
    """A `SamplerBatch` of logits on a CPU, by the native kernels.

    Args:
        library: The native kernels.
        params: The sampling parameters of each row.
        draws: A uniform draw from [0, 1) for each row. Greedy rows do not use it.

    Attributes:
        arrays: Nothing, because there is no device to copy the parameters to.
    """

    arrays: Sequence[NDArray[Any]] = ()

    def __init__(
        self, library: ctypes.CDLL, params: Sequence[SamplingParams], draws: Sequence[float]
    ) -> None:
        self._library = library
        self._columns = SamplingColumns(
            np.array([1.0 if p.is_greedy else p.temperature for p in params], dtype=np.float32),
            np.array(draws, dtype=np.float64),
            np.array([1 if p.is_greedy else p.top_k or _NO_TOP_K for p in params], dtype=np.int64),
            np.array([p.top_p for p in params], dtype=np.float32),
            np.array([p.min_p for p in params], dtype=np.float32),
        )

    def sample(self, logits: Tensor, arrays: Sequence[Tensor] = ()) -> Tensor:  # noqa: ARG002
        """Sample one token for each row. See `SamplerBatch.sample`.

        Args:
            logits: [B, vocab_size], float32, contiguous.
            arrays: Not used.
        """
        return sample_by_kernels(self._library, self._columns, logits)


def sampler_batch(
    params: Sequence[SamplingParams],
    draws: Sequence[float],
    logits: Tensor,
    library: ctypes.CDLL | None,
) -> SamplerBatch | NativeSamplerBatch:
    """Return the sampler of the rows of a step.

    Args:
        params: The sampling parameters of each row.
        draws: A uniform draw from [0, 1) for each row.
        logits: The tensor that is sampled from later, for its shape and its device.
        library: The native kernels, for logits on a CPU; None to use torch.
    """
    if library is None or logits.shape[-1] > MAX_VOCAB_SIZE:
        return SamplerBatch(params, draws, logits.device)
    return NativeSamplerBatch(library, params, draws)


def _chooser(p: SamplingParams, *, is_cpu: bool) -> _Chooser:
    if p.is_greedy:
        return _most_likely
    if p.top_k == 0 and p.top_p >= 1.0 and p.min_p <= 0.0:
        return _sample_all
    if is_cpu:
        return _sample_filtered
    return _sample_top_k if 0 < p.top_k <= _MOST_CANDIDATES else _sample_sorted


def _rows(logits: Tensor, group: _Group, order: Tensor | None) -> Tensor:
    """Return the rows of a group, without a copy if they are adjacent."""
    if order is None or group.is_adjacent:
        return logits[group.rows[0] : group.rows[-1] + 1]
    return logits.index_select(0, order[group.start : group.end])


def _most_likely(logits: Tensor, columns: Sequence[Tensor]) -> Tensor:  # noqa: ARG001
    """Return the most likely token of each row, [B]."""
    # torch's `argmax` is not vectorized, so it runs on the maxima of blocks.
    blocks = as_blocks(logits, padding=-torch.inf)
    block = blocks.amax(-1).argmax(-1, keepdim=True)
    return (block * BLOCK + gather_block(blocks, block).argmax(-1, keepdim=True)).squeeze(-1)


def _sample_all(logits: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """Return token ids [B], sampled from the whole vocabulary: first a block, then its token."""
    c = _Columns(*columns)
    blocks = as_blocks(_weights(_probabilities(logits, c)), padding=0)
    sums = blocks.sum(-1)
    block, rest = _invert(sums, _targets(c.draw, sums.sum(-1, keepdim=True)))
    token, _ = _invert(gather_block(blocks, block), rest)
    return (block * BLOCK + token).squeeze(-1)


def _sample_filtered(
    logits: Tensor, columns: Sequence[Tensor], num_candidates: int | None = None
) -> Tensor:
    """Return token ids [B], sampled after min-p, top-k and top-p are applied in this order.

    Of equally likely tokens, those with the lowest ids are kept.

    Args:
        num_candidates: Number of most likely tokens of which the filters leave some. If it is None,
            each row has as few candidates as its parameters need, and this waits for the device.
    """
    c = _Columns(*columns)
    blocks = as_blocks(_probabilities(logits, c), padding=0.0)
    draw, top_k, top_p, min_p = c.draw, c.top_k, c.top_p, c.min_p
    total = _weights(blocks).sum((1, 2)).unsqueeze(-1)
    size = blocks.shape[1] * BLOCK
    is_fixed = num_candidates is not None
    num_candidates = min(num_candidates or _FIRST_CANDIDATES, size)
    chosen = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)  # rows that are not sampled yet
    while True:
        best, token_ids = top_in_order(blocks, num_candidates)
        rank = torch.arange(num_candidates, device=logits.device)
        # top-p is a share of the probability that min-p and top-k leave.
        is_likely = best >= min_p * best[:, :1]
        weights = _weights(best) * is_likely
        cumulative = weights.cumsum(-1)
        mass = cumulative.gather(-1, top_k.clamp(max=num_candidates) - 1)
        is_unlimited = (top_k >= size) & (min_p <= 0.0)
        mass = torch.where(is_unlimited, total, mass)
        is_nucleus = (cumulative - weights).double() < top_p.double() * mass.double()
        kept = (rank < top_k) & is_nucleus & is_likely | (rank == 0)
        weights = weights * kept
        index, _ = _invert(weights, _targets(draw, weights.sum(-1, keepdim=True)))
        found = token_ids.gather(-1, index).squeeze(-1)
        if is_fixed:
            return found
        # Each filter drops the least likely tokens. So a row needs no more candidates if its last
        # candidate is dropped. But top-p needs the sum of all that min-p and top-k leave.
        is_whole = (top_k <= num_candidates) | ~is_likely[:, -1:] | is_unlimited
        is_final = ~kept[:, -1] & is_whole.squeeze(-1) | (num_candidates == size)
        chosen[rows[is_final]] = found[is_final]
        if bool(is_final.all()):
            return chosen
        rows, blocks, draw, total, top_k, top_p, min_p = (
            tensor[~is_final] for tensor in (rows, blocks, draw, total, top_k, top_p, min_p)
        )
        num_candidates = min(num_candidates * _GROWTH, size)


def _sample_top_k(logits: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """Call `_sample_filtered` for rows with a top-k of at most `_MOST_CANDIDATES`."""
    return _sample_filtered(logits, columns, _MOST_CANDIDATES)


def _sample_sorted(logits: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """Call `_sample_filtered` with the whole vocabulary as candidates."""
    return _sample_filtered(logits, columns, logits.shape[-1] + BLOCK)


def _probabilities(logits: Tensor, c: _Columns) -> Tensor:
    return torch.softmax(logits / c.temperature, dim=-1)


def _weights(probabilities: Tensor) -> Tensor:
    return (probabilities / _WEIGHT_UNIT).long()


def _targets(draws: Tensor, totals: Tensor) -> Tensor:
    """Return the integers at the positions `draws`, in [0, 1), of [0, `totals`)."""
    return (draws * totals.double()).long().minimum(totals - 1)


def _invert(weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sample indices by inverse transform sampling.

    Args:
        weights: [B, n], int64.
        targets: [B, 1], int64, less than the sum of the weights.

    Returns:
        The indices [B, 1] at which the running sums exceed the targets; the last index if there are
        NaNs. Also the targets minus the weights before these indices, [B, 1].
    """
    cumulative = weights.cumsum(-1)
    index = torch.searchsorted(cumulative, targets, right=True).clamp(max=weights.shape[-1] - 1)
    return index, targets - (cumulative.gather(-1, index) - weights.gather(-1, index))
