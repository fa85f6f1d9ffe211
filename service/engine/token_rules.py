"""What a request says about the tokens of its answer, whichever way they are drawn.

For each row of logits: which tokens cannot come, and whose logits are changed. Plain numpy: the
logits are elsewhere (`service.engine.logits_processors`).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.token_counts import CountedTokens, TokenCounts

# By token id: whether it cannot come. None can that a mask is too short for.
Forbidden = NDArray[np.bool_]
TokenIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowRules:
    """What is done to one row of logits, in this order: masks, bias, penalties.

    `counted` is None where nothing is penalised. It holds the tokens of the prompt only where they
    are, by the repetition penalty.
    """

    forbidden: tuple[Forbidden, ...]
    banned_token_ids: Sequence[int]
    biased_token_ids: TokenIds
    bias: NDArray[np.float32]
    counted: CountedTokens | None
    params: SamplingParams

    @property
    def is_masked(self) -> bool:
        return bool(self.forbidden or self.banned_token_ids)


class TokenRules:
    """The rules for one answer, which change as it grows.

    A draft's row has the rules that it would have if the draft before it stood in the answer.
    """

    __slots__ = (
        "_answer",
        "_banned_behind",
        "_bias",
        "_biased_token_ids",
        "_counts",
        "_forbidden",
        "_request",
        "_stop_token_ids",
    )

    def __init__(self, request: Request) -> None:
        params = request.sampling
        self._request = request
        self._answer: list[int] = []
        self._counts: TokenCounts | None = None
        if params.repetition_penalty != 1.0:
            self._counts = TokenCounts(request.prompt_token_ids)
        elif params.presence_penalty or params.frequency_penalty:
            self._counts = TokenCounts()
        self._biased_token_ids = np.array(list(params.logit_bias), dtype=np.int64)
        self._bias = np.array(list(params.logit_bias.values()), dtype=np.float32)
        self._forbidden: tuple[Forbidden, ...] = ()
        if params.allowed_token_ids is not None:
            self._forbidden = (_all_but(params.allowed_token_ids),)
        self._stop_token_ids = sorted(request.stop_token_ids)
        # What must not come behind a token: what comes before that too, and the banned one.
        self._banned_behind: dict[int | None, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
        for *before, banned in request.bad_token_sequences:
            self._banned_behind[before[-1] if before else None].append((tuple(before), banned))

    @classmethod
    def of(cls, request: Request) -> "TokenRules | None":
        """None if the request has nothing to say, as most have not."""
        p = request.sampling
        is_needed = (
            p.presence_penalty
            or p.frequency_penalty
            or p.repetition_penalty != 1.0
            or p.logit_bias
            or p.min_tokens
            or p.allowed_token_ids is not None
            or request.bad_token_sequences
            or request.constraint is not None
        )
        return cls(request) if is_needed else None

    def append(self, token_id: int) -> None:
        """The answer has grown by a token."""
        self._answer.append(token_id)
        if self._counts is not None:
            self._counts.add(token_id)

    def rows(
        self, draft: Sequence[int], masks: Sequence[Forbidden] | None = None
    ) -> list[RowRules]:
        """The rules for the next token, and for those behind each token of a draft.

        Args:
            masks: by a grammar, for the first of these rows; the others come to nothing and are
                left out. None: there is no grammar.
        """
        num_rows = len(draft) + 1 if masks is None else len(masks)
        rows = []
        for i in range(num_rows):
            if i:
                self.append(draft[i - 1])
            rows.append(self._row(() if masks is None else (masks[i],)))
        for token_id in reversed(draft[: num_rows - 1]):
            self._take_back(token_id)
        return rows

    def _row(self, masks: tuple[Forbidden, ...]) -> RowRules:
        return RowRules(
            (*self._forbidden, *masks),
            list(self._banned()),
            self._biased_token_ids,
            self._bias,
            None if self._counts is None else self._counts.copy(),
            self._request.sampling,
        )

    def _banned(self) -> Iterator[int]:
        """The tokens that cannot come next, here where the answer is."""
        if len(self._answer) < self._request.sampling.min_tokens:
            yield from self._stop_token_ids
        for last in {None, *self._answer[-1:]}:
            for before, banned in self._banned_behind.get(last, ()):
                if tuple(self._answer[len(self._answer) - len(before) :]) == before:
                    yield banned

    def _take_back(self, token_id: int) -> None:
        self._answer.pop()
        if self._counts is not None:
            self._counts.take_back(token_id)


@lru_cache(maxsize=64)
def _all_but(token_ids: frozenset[int]) -> Forbidden:
    forbidden = np.ones(max(token_ids, default=-1) + 1, dtype=np.bool_)
    forbidden[list(token_ids)] = False
    return forbidden
