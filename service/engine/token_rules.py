"""A request's masks, bias and penalties for each row of logits. No torch.

`service.engine.logits_processors` applies them.
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

# A bit for each token id, the lowest bit of a byte first; 1 means allowed. Token ids beyond the end
# of a mask are not allowed. This is what llguidance computes, and the smallest form to copy.
TokenMask = NDArray[np.uint8]
TokenIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowRules:
    """The rules for one row of logits, applied in this order: masks, bias, penalties.

    Attributes:
        masks: A token is allowed if all of them allow it.
        banned_token_ids: Tokens that are not allowed, in addition to the masks.
        biased_token_ids: The tokens that `bias` is added to.
        counted: Occurrences of tokens, for the penalties; None if there are none. Prompt tokens are
            included only if there is a repetition penalty.
        params: The penalties.
    """

    masks: tuple[TokenMask, ...]
    banned_token_ids: Sequence[int]
    biased_token_ids: TokenIds
    bias: NDArray[np.float32]
    counted: CountedTokens | None
    params: SamplingParams

    @property
    def is_masked(self) -> bool:
        return bool(self.masks or self.banned_token_ids)


class TokenRules:
    """The rules for one sequence, which depend on its output so far.

    The row after a draft token has the rules that it would have if the draft up to that token were
    part of the output. So drafts do not change what is sampled.
    """

    __slots__ = (
        "_banned_after",
        "_bias",
        "_biased_token_ids",
        "_counts",
        "_masks",
        "_output",
        "_request",
        "_stop_token_ids",
    )

    def __init__(self, request: Request) -> None:
        params = request.sampling
        self._request = request
        self._output: list[int] = []
        self._counts: TokenCounts | None = None
        if params.repetition_penalty != 1.0:
            self._counts = TokenCounts(request.prompt_token_ids)
        elif params.presence_penalty or params.frequency_penalty:
            self._counts = TokenCounts()
        self._biased_token_ids = np.array(list(params.logit_bias), dtype=np.int64)
        self._bias = np.array(list(params.logit_bias.values()), dtype=np.float32)
        self._masks: tuple[TokenMask, ...] = ()
        if params.allowed_token_ids is not None:
            self._masks = (_mask_of(params.allowed_token_ids),)
        self._stop_token_ids = sorted(request.stop_token_ids)
        # The bad sequences, keyed by their last token but one. Each is a pair: the tokens before
        # the last one, and the last one.
        self._banned_after: dict[int | None, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
        for *before, banned in request.bad_token_sequences:
            self._banned_after[before[-1] if before else None].append((tuple(before), banned))

    @classmethod
    def of(cls, request: Request) -> "TokenRules | None":
        """Return the rules of a request; None if it has none, like most requests."""
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
        """Append a generated token."""
        self._output.append(token_id)
        if self._counts is not None:
            self._counts.add(token_id)

    def rows(
        self, draft: Sequence[int], masks: Sequence[TokenMask] | None = None
    ) -> list[RowRules]:
        """Return the rules for the next token and for the token after each draft token.

        Args:
            draft: Token ids.
            masks: The grammar's masks for the first of these rows; later rows are omitted, as their
                tokens are never accepted. None if there is no grammar.
        """
        num_rows = len(draft) + 1 if masks is None else len(masks)
        rows = []
        for i in range(num_rows):
            if i:
                self.append(draft[i - 1])
            rows.append(self._row(() if masks is None else (masks[i],)))
        for token_id in reversed(draft[: num_rows - 1]):
            self._remove(token_id)
        return rows

    def _row(self, masks: tuple[TokenMask, ...]) -> RowRules:
        return RowRules(
            (*self._masks, *masks),
            list(self._banned()),
            self._biased_token_ids,
            self._bias,
            None if self._counts is None else self._counts.copy(),
            self._request.sampling,
        )

    def _banned(self) -> Iterator[int]:
        """Yield the tokens that `min_tokens` and bad sequences forbid next."""
        if len(self._output) < self._request.sampling.min_tokens:
            yield from self._stop_token_ids
        for last in {None, *self._output[-1:]}:
            for before, banned in self._banned_after.get(last, ()):
                if tuple(self._output[len(self._output) - len(before) :]) == before:
                    yield banned

    def _remove(self, token_id: int) -> None:
        self._output.pop()
        if self._counts is not None:
            self._counts.remove(token_id)


@lru_cache(maxsize=64)
def _mask_of(token_ids: frozenset[int]) -> TokenMask:
    is_allowed = np.zeros(max(token_ids, default=-1) + 1, dtype=np.bool_)
    is_allowed[list(token_ids)] = True
    return np.packbits(is_allowed, bitorder="little")
