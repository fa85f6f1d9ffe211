"""Incremental counts of the tokens of one sequence, for penalties. No torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FIRST_CAPACITY = 64


class CountedTokens(NamedTuple):
    """The ids of n distinct tokens, and how often each occurs in an output: two arrays [n]."""

    token_ids: NDArray[np.int64]
    counts: NDArray[np.float32]


class TokenCounts:
    """The distinct tokens of a prompt and its output, and their occurrences in the output.

    Adding and removing a token takes constant time.
    """

    __slots__ = ("_counts", "_indices", "_num_in_prompt", "_token_ids")

    def __init__(self, prompt_token_ids: Sequence[int] = ()) -> None:
        distinct = list(dict.fromkeys(prompt_token_ids))
        self._num_in_prompt = len(distinct)
        self._indices = {token_id: index for index, token_id in enumerate(distinct)}
        self._token_ids = np.zeros(len(distinct) + _FIRST_CAPACITY, dtype=np.int64)
        self._token_ids[: len(distinct)] = distinct
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)

    def add(self, token_id: int) -> None:
        """Count one more occurrence of a token."""
        index = self._indices.setdefault(token_id, len(self._indices))
        if index == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[index] = token_id
        self._counts[index] += 1

    def remove(self, token_id: int) -> None:
        """Undo an `add`. Tokens are removed in the reverse order of their addition."""
        index = self._indices[token_id]
        self._counts[index] -= 1
        if index >= self._num_in_prompt and not self._counts[index]:
            del self._indices[token_id]

    def copy(self) -> CountedTokens:
        """Return a copy of the current counts."""
        end = len(self._indices)
        return CountedTokens(self._token_ids[:end].copy(), self._counts[:end].copy())
