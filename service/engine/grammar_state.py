"""The grammar state of one sequence: which tokens its constraint allows next. No torch."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from service.domain.engine import Request
from service.domain.grammar import Matcher
from service.engine.token_rules import TokenMask


class GrammarState:
    """The matcher of one sequence's constraint, and the tokens it has not consumed yet.

    `forced_tokens` is called between steps. `masks` is called during a step, on another thread. The
    two never run at the same time. If the matcher raises, this and each later call of `masks`
    raises its error.
    """

    __slots__ = ("_error", "_matcher", "_pending_token_ids", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._matcher: Matcher | None = None
        self._pending_token_ids: list[int] = []  # generated, and not consumed by the matcher yet
        self._error: Exception | None = None

    def append(self, token_id: int) -> None:
        """Append a generated token."""
        self._pending_token_ids.append(token_id)

    def forced_tokens(self) -> tuple[int, ...]:
        """Return the tokens that must come next; empty if the grammar leaves a choice."""
        try:
            return self._catch_up().forced_tokens()
        except Exception as error:  # from a library; `masks` raises it
            self._error = error
            return ()

    def masks(self, draft: Sequence[int]) -> list[TokenMask]:
        """Return the masks for the next token and for the token after each draft token.

        The list is shorter if the grammar forbids a draft token, if a draft token is a stop token,
        or if a grammar limit is exceeded within the draft: a draft never ends a sequence.

        Args:
            draft: Token ids.

        Returns:
            At least one mask and at most `len(draft) + 1`.

        Raises:
            Exception: The matcher has failed.
        """
        if self._error is not None:
            raise self._error
        matcher = self._catch_up()
        masks = [_mask(matcher)]
        with suppress(Exception):
            masks += self._draft_masks(matcher.fork(), draft, masks[0])
        return masks

    def _draft_masks(
        self, matcher: Matcher, draft: Sequence[int], mask: TokenMask
    ) -> Iterator[TokenMask]:
        for token_id in draft:
            if token_id in self._request.stop_token_ids or not _allows(mask, token_id):
                return
            matcher.advance(token_id)
            mask = _mask(matcher)
            yield mask

    def _catch_up(self) -> Matcher:
        if self._matcher is None:
            assert self._request.constraint is not None  # noqa: S101  # see Sequence.grammar
            self._matcher = self._request.constraint.matcher()
        for token_id in self._pending_token_ids:
            self._matcher.advance(token_id)
        self._pending_token_ids.clear()
        return self._matcher


def _mask(matcher: Matcher) -> TokenMask:
    return np.frombuffer(matcher.allowed_tokens(), dtype=np.uint8)


def _allows(mask: TokenMask, token_id: int) -> bool:
    byte, bit = divmod(token_id, 8)
    return byte < len(mask) and bool(mask[byte] >> bit & 1)
