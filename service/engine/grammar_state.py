"""An answer's way through the grammar that it must follow. Plain numpy: no torch."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from service.domain.engine import Request
from service.domain.grammar import Matcher
from service.engine.token_rules import Forbidden


class GrammarState:
    """What may come next in one answer, by its request's constraint.

    The matcher hears of the answer's tokens when it is next asked for something: for what is
    forced, between two steps, or for masks, during a step and on another thread; never for both at
    once. What it raises is raised by `masks`, then and ever after.
    """

    __slots__ = ("_error", "_matcher", "_request", "_unheard")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._matcher: Matcher | None = None
        self._unheard: list[int] = []  # of the answer, by the matcher
        self._error: Exception | None = None

    def append(self, token_id: int) -> None:
        """The answer has grown by a token."""
        self._unheard.append(token_id)

    def forced_tokens(self) -> tuple[int, ...]:
        """What must come next, as far as there is no choice."""
        try:
            return self._catch_up().forced_tokens()
        except Exception as error:  # somebody else's code; `masks` tells what it has come to
            self._error = error
            return ()

    def masks(self, draft: Sequence[int]) -> list[Forbidden]:
        """What cannot come next, and what cannot behind each token of a draft.

        There are none behind the first token of the draft that cannot come itself or that ends the
        answer, nor where the matcher gives up: a draft is a guess, and must not end an answer.

        Raises:
            Exception: the matcher has failed.
        """
        if self._error is not None:
            raise self._error
        matcher = self._catch_up()
        masks = [_forbidden(matcher)]
        with suppress(Exception):
            masks += self._masks_ahead(matcher.fork(), draft, masks[0])
        return masks

    def _masks_ahead(
        self, matcher: Matcher, draft: Sequence[int], mask: Forbidden
    ) -> Iterator[Forbidden]:
        for token_id in draft:
            if token_id in self._request.stop_token_ids or not _allows(mask, token_id):
                return
            matcher.advance(token_id)
            mask = _forbidden(matcher)
            yield mask

    def _catch_up(self) -> Matcher:
        if self._matcher is None:
            assert self._request.constraint is not None  # noqa: S101  # else there is no grammar
            self._matcher = self._request.constraint.matcher()
        for token_id in self._unheard:
            self._matcher.advance(token_id)
        self._unheard.clear()
        return self._matcher


def _forbidden(matcher: Matcher) -> Forbidden:
    allowed = np.frombuffer(matcher.allowed_tokens(), dtype=np.uint8)
    return np.unpackbits(~allowed, bitorder="little").view(np.bool_)


def _allows(forbidden: Forbidden, token_id: int) -> bool:
    return token_id < len(forbidden) and not forbidden[token_id]
