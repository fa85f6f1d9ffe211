"""How often each token has come up, kept as an answer grows. Plain numpy: no torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FIRST_CAPACITY = 64


class CountedTokens(NamedTuple):
    """Distinct tokens, and how often each stands in an answer: both [n]."""

    token_ids: NDArray[np.int64]
    counts: NDArray[np.float32]


class TokenCounts:
    """The distinct tokens of a prompt and its answer, and how often each stands in the answer.

    A token is added and taken back in constant time: nothing is counted anew at every step of a
    long answer.
    """

    __slots__ = ("_counts", "_num_in_prompt", "_places", "_token_ids")

    def __init__(self, prompt_token_ids: Sequence[int] = ()) -> None:
        distinct = list(dict.fromkeys(prompt_token_ids))
        self._num_in_prompt = len(distinct)
        self._places = {token_id: place for place, token_id in enumerate(distinct)}
        self._token_ids = np.zeros(len(distinct) + _FIRST_CAPACITY, dtype=np.int64)
        self._token_ids[: len(distinct)] = distinct
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[place] = token_id
        self._counts[place] += 1

    def take_back(self, token_id: int) -> None:
        """Undo an `add`. The tokens added last are taken back first."""
        place = self._places[token_id]
        self._counts[place] -= 1
        if place >= self._num_in_prompt and not self._counts[place]:
            del self._places[token_id]

    def copy(self) -> CountedTokens:
        """What they are now, whatever is added later."""
        end = len(self._places)
        return CountedTokens(self._token_ids[:end].copy(), self._counts[:end].copy())
