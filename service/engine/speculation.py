"""Speculative decoding by prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding).

Outputs repeat themselves and quote their prompts. So the tokens that followed an earlier occurrence
of the last tokens are a draft of the next ones, without a second model. The model computes the
draft in the same step and samples a token after each draft token. Each accepted token saves a step.
Drafts do not change which tokens are sampled. No torch.
"""

from collections.abc import Iterator
from itertools import islice

# Minimum and maximum number of last tokens that are compared with an earlier occurrence. The
# longest match is chosen.
_MIN_MATCH = 2
_MAX_MATCH = 5

# Number of earlier occurrences that are compared, the latest first.
_MAX_CANDIDATES = 8

# If no token of the last drafts was accepted, no draft is proposed for at most this many steps.
_MAX_PAUSE = 31


class PromptLookup:
    """Proposes drafts for one sequence.

    Rejected drafts cost time, so the number of draft tokens depends on earlier success. A draft has
    at most 2 n + 1 tokens if n tokens of the last one were accepted. Each draft in a row of which
    no token was accepted doubles the number of steps without a draft.
    """

    __slots__ = ("_latest", "_max_length", "_num_misses", "_pause", "_previous")

    def __init__(self) -> None:
        # Chains of the occurrences of each token pair, as in LZ77. `_latest` maps a pair to the
        # index after its latest occurrence. For the pair that starts at index i, `_previous[i]` is
        # the index after its previous occurrence.
        self._latest: dict[tuple[int, int], int] = {}
        self._previous: list[int | None] = []
        self._max_length: int | None = None  # None before the first draft
        self._num_misses = 0
        self._pause = 0

    def propose(self, token_ids: list[int], limit: int) -> tuple[int, ...]:
        """Return a draft of at most `limit` tokens to follow `token_ids`; empty if there is none.

        `token_ids` must begin with the `token_ids` of the last call.
        """
        if self._pause:
            self._pause -= 1
            return ()
        length = limit if self._max_length is None else min(limit, self._max_length)
        if length <= 0 or len(token_ids) < _MIN_MATCH:
            return ()
        self._index(token_ids)
        ends = islice(self._occurrences(token_ids), _MAX_CANDIDATES)
        end = max(ends, key=lambda end: _match_size(token_ids, end), default=None)
        return () if end is None else _continuation(token_ids, end, length)

    def record(self, num_accepted: int) -> None:
        """Record the number of accepted tokens of the last draft."""
        self._max_length = 2 * num_accepted + 1
        self._num_misses = 0 if num_accepted else self._num_misses + 1
        self._pause = min(2**self._num_misses - 1, _MAX_PAUSE)

    def _index(self, token_ids: list[int]) -> None:
        """Add the new pairs, except the last one, which no token follows yet."""
        first = len(self._previous)
        for pair in zip(token_ids[first:-2], token_ids[first + 1 : -1], strict=True):
            self._previous.append(self._latest.get(pair))
            self._latest[pair] = len(self._previous) + 1

    def _occurrences(self, token_ids: list[int]) -> Iterator[int]:
        """Yield the index after each earlier occurrence of the last two tokens, latest first."""
        end = self._latest.get((token_ids[-2], token_ids[-1]))
        while end is not None:
            yield end
            end = self._previous[end - 2]


def accept(token_ids: list[int], draft: tuple[int, ...]) -> tuple[int, ...]:
    """Return the accepted tokens: the sampled ones up to the first that differs from the draft.

    This token is included, because all tokens before it are accepted.

    Args:
        token_ids: `token_ids[i]` was sampled after the first `i` draft tokens.
    """
    for i, token_id in enumerate(draft):
        if token_ids[i] != token_id:
            return tuple(token_ids[: i + 1])
    return tuple(token_ids)


def _match_size(token_ids: list[int], end: int) -> int:
    """Return the number of tokens before index `end` that equal the last ones, at least 2."""
    size = _MIN_MATCH
    while size < min(_MAX_MATCH, end) and token_ids[end - 1 - size] == token_ids[-1 - size]:
        size += 1
    return size


def _continuation(token_ids: list[int], start: int, length: int) -> tuple[int, ...]:
    """Return `length` tokens from index `start` on. After the last one, continue at `start`."""
    period = len(token_ids) - start
    return tuple(token_ids[start + i % period] for i in range(length))
