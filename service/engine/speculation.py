"""Speculative decoding by prompt lookup: guesses at the next tokens, which the model then checks.

Answers repeat themselves and quote their prompts, so what followed the last tokens before is a fair
guess at what follows them now, and one without a second model
(https://github.com/apoorvumang/prompt-lookup-decoding). A step reads the guesses behind the tokens
it has to read anyway and samples behind each; how long that stays what the guesses say, they have
saved a step each. What is sampled is the same with and without. Plain Python: no torch.
"""

from collections.abc import Iterator
from itertools import islice

# How many of the last tokens must have come up before, and how many more are compared: the longer
# the match, the better the guess.
_MIN_MATCH = 2
_MAX_MATCH = 5

# Of the places where they have come up, only so many of the latest are looked at.
_MAX_CANDIDATES = 8

# The most steps without a draft, however often drafts have failed.
_MAX_PAUSE = 31


class PromptLookup:
    """The drafts of one sequence.

    They follow their success, so that text which does not repeat costs next to nothing: a draft is
    at most one longer than twice what was accepted of the last, and each in a row of which nothing
    was accepted doubles the pause before the next.
    """

    __slots__ = ("_latest", "_max_length", "_num_misses", "_pause", "_previous")

    def __init__(self) -> None:
        # Pairs of tokens in chains, as LZ77 has them: where a pair's latest occurrence ends, and,
        # for the pair that begins at each token, where the occurrence before it ends.
        self._latest: dict[tuple[int, int], int] = {}
        self._previous: list[int | None] = []
        self._max_length: int | None = None  # None: there was no draft yet
        self._num_misses = 0
        self._pause = 0

    def propose(self, token_ids: list[int], limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that may follow `token_ids`: those that followed their end before.

        `token_ids` only ever grow from call to call.
        """
        if self._pause:
            self._pause -= 1
            return ()
        length = limit if self._max_length is None else min(limit, self._max_length)
        if length <= 0 or len(token_ids) < _MIN_MATCH:
            return ()
        self._index(token_ids)
        places = islice(self._places(token_ids), _MAX_CANDIDATES)
        end = max(places, key=lambda end: _match_size(token_ids, end), default=None)
        return () if end is None else _continuation(token_ids, end, length)

    def record(self, num_accepted: int) -> None:
        """Learn how much was accepted of the last draft."""
        self._max_length = 2 * num_accepted + 1
        self._num_misses = 0 if num_accepted else self._num_misses + 1
        self._pause = min(2**self._num_misses - 1, _MAX_PAUSE)

    def _index(self, token_ids: list[int]) -> None:
        """Enter the pairs up to the last token, behind which nothing has come yet."""
        first = len(self._previous)
        for pair in zip(token_ids[first:-2], token_ids[first + 1 : -1], strict=True):
            self._previous.append(self._latest.get(pair))
            self._latest[pair] = len(self._previous) + 1

    def _places(self, token_ids: list[int]) -> Iterator[int]:
        """Where the last two tokens have come up, the latest first: the position behind them."""
        end = self._latest.get((token_ids[-2], token_ids[-1]))
        while end is not None:
            yield end
            end = self._previous[end - 2]


def accept(token_ids: list[int], draft: tuple[int, ...]) -> tuple[int, ...]:
    """What holds of the tokens that a step has sampled for a sequence with a draft.

    `token_ids[i]` was sampled behind the first `i` tokens of the draft. They hold up to the first
    that is not the draft's, and that one too: only behind it has the model read what is not so.
    """
    for i, token_id in enumerate(draft):
        if token_ids[i] != token_id:
            return tuple(token_ids[: i + 1])
    return tuple(token_ids)


def _match_size(token_ids: list[int], end: int) -> int:
    """How many tokens before `end` are those at the end, the last two of which are."""
    size = _MIN_MATCH
    while size < min(_MAX_MATCH, end) and token_ids[end - 1 - size] == token_ids[-1 - size]:
        size += 1
    return size


def _continuation(token_ids: list[int], start: int, length: int) -> tuple[int, ...]:
    """`length` tokens from `start` on; what reaches the end goes on from `start`, as cycles do."""
    period = len(token_ids) - start
    return tuple(token_ids[start + i % period] for i in range(length))
