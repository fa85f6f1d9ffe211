"""Speculative decoding by prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding).

Outputs repeat themselves and quote their prompts. So the tokens that followed an earlier occurrence
of the last tokens are a draft of the next ones, without a second model. The model computes the
draft in the same step and samples a token after each draft token. Each accepted token saves a step.
Drafts do not change which tokens are sampled. No torch.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

# Minimum and maximum number of last tokens that are compared with an earlier occurrence. The
# longest match is chosen.
_MIN_MATCH = 2
_MAX_MATCH = 5

# Number of earlier occurrences that are compared, the latest first.
_MAX_CANDIDATES = 8

# Maximum number of tokens that one call adds to the index: 1 ms of work. A longer prompt is indexed
# over several steps, so that it does not delay the other sequences of the step.
_MAX_INDEXED = 4096

# Initial estimates of the share of accepted tokens, and the weight of each new token in them: of
# first tokens after a match, and of those after a right one. Half of the matches are found by
# chance, and end at once. The others are long: in outputs of a model of 135 million parameters,
# 82 % of the tokens after a right one were right, and 94 % where a text was repeated. The initial
# estimate of these counts as much as 2 measured tokens, so that it is corrected at once.
_INITIAL_FIRST, _FIRST_RATE = 0.5, 0.2
_INITIAL_FOLLOWING, _FOLLOWING_RATE = 0.85, 0.1
_NUM_INITIAL = 2

# Each match in a row whose first token was wrong doubles the number of steps without a search, up
# to this number.
_MAX_PAUSE = 15


class Acceptance(NamedTuple):
    """Estimated probabilities that the tokens of a draft are accepted.

    Attributes:
        first: That of the first token.
        following: That of each later token, if those before it are accepted.
    """

    first: float
    following: float


class PromptLookup:
    """Proposes drafts for one sequence, and estimates how many of their tokens are accepted.

    A match is followed from token to token, whether the model has computed its continuation as a
    draft or not. So the acceptance is measured also while no draft is computed.
    """

    __slots__ = (
        "_acceptance",
        "_is_match_right",
        "_latest",
        "_match",
        "_num_followed",
        "_num_following",
        "_num_misses",
        "_pause",
        "_previous",
    )

    def __init__(self) -> None:
        # Chains of the occurrences of each token pair, as in LZ77. `_latest` maps a pair to the
        # index after its latest occurrence. For the pair that starts at index i, `_previous[i]` is
        # the index after its previous occurrence.
        self._latest: dict[tuple[int, int], int] = {}
        self._previous: list[int | None] = []
        self._match = 0  # index after the earlier occurrence of the last tokens; 0 if none
        self._num_followed = 0  # number of tokens when the match was found or followed last
        self._is_match_right = False  # True after a right token of the match
        self._acceptance = Acceptance(_INITIAL_FIRST, _INITIAL_FOLLOWING)
        self._num_following = _NUM_INITIAL  # number of tokens in the estimate `following`
        self._num_misses = 0  # in a row, at the first token of a match
        self._pause = 0

    def acceptance(self, token_ids: list[int]) -> Acceptance | None:
        """Return the estimated acceptance of a draft to follow `token_ids`; None if there is none.

        `token_ids` must begin with the `token_ids` of the last call.
        """
        if self._match:
            self._follow(token_ids)
        if not self._match:
            if self._pause:
                self._pause -= 1
                return None
            self._match = self._find(token_ids)
            self._num_followed = len(token_ids)
        if not self._match:
            return None
        first, following = self._acceptance
        return Acceptance(following if self._is_match_right else first, following)

    def draft(self, token_ids: list[int], length: int) -> tuple[int, ...]:
        """Return a draft of `length` tokens to follow `token_ids`.

        The last call of `acceptance` had the same `token_ids`, and did not return None.
        """
        return _continuation(token_ids, self._match, length)

    def _follow(self, token_ids: list[int]) -> None:
        """Compare the new tokens with those after the match, up to the first that differs."""
        for i in range(self._num_followed, len(token_ids)):
            is_hit = token_ids[self._match] == token_ids[i]
            self._measure(is_hit)
            self._is_match_right = is_hit
            if not is_hit:
                self._match = 0
                self._num_misses += 1
                self._pause = min(2 ** (self._num_misses - 1) - 1, _MAX_PAUSE)
                return
            self._num_misses = 0
            self._match += 1
        self._num_followed = len(token_ids)

    def _measure(self, is_hit: bool) -> None:
        first, following = self._acceptance
        if self._is_match_right:
            self._num_following += 1
            rate = max(_FOLLOWING_RATE, 1 / self._num_following)
            following += rate * (is_hit - following)
        else:
            first += _FIRST_RATE * (is_hit - first)
        self._acceptance = Acceptance(first, following)

    def _find(self, token_ids: list[int]) -> int:
        """Return the index after the best earlier occurrence of the last tokens; 0 if none."""
        if len(token_ids) < _MIN_MATCH or not self._index(token_ids):
            return 0
        ends = islice(self._occurrences(token_ids), _MAX_CANDIDATES)
        return max(ends, key=lambda end: _match_size(token_ids, end), default=0)

    def _index(self, token_ids: list[int]) -> bool:
        """Add new pairs, except the last one, which no token follows yet.

        Returns:
            True if all pairs are in the index.
        """
        first = len(self._previous)
        last = min(len(token_ids) - 2, first + _MAX_INDEXED)
        for pair in zip(token_ids[first:last], token_ids[first + 1 : last + 1], strict=True):
            self._previous.append(self._latest.get(pair))
            self._latest[pair] = len(self._previous) + 1
        return last == len(token_ids) - 2

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
