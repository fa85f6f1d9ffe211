"""The probabilities of texts as the beginning of a model's response, computed on their tokens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from service.domain.decisions import ScoredOption

# A sequence of tokens after the prompt.
Path = tuple[int, ...]


class OptionTree:
    """The tokens of all options of a question, as a tree: options share their common beginnings.

    An option has one or more forms, which are sequences of tokens. The tree's edges are the tokens
    to score: an edge is the sequence of tokens up to and including it. If `p(t | s)` is the model's
    probability of the token `t` after the prompt and the tokens `s`, then `P(w)`, the product of
    `p` over the edges of a form `w`, is the probability that the response begins with `w`.

    One form can be the beginning of another one. So the probability of a form is that the response
    begins with it and with no longer form::

        Q(w) = P(w) - sum of P(v) over the nearest longer forms v that begin with w

    These events exclude each other. An option's probability is the sum of `Q` over its forms,
    divided by the sum over all options.
    """

    def __init__(self, options: Sequence[Sequence[Path]]) -> None:
        """Build the tree of the forms of each option.

        Raises:
            EqualOptions: Two options have a form in common.
        """
        self._options: dict[Path, int] = {}  # the option of each form
        for index, forms in enumerate(options):
            for form in forms:
                if self._options.setdefault(form, index) != index:
                    raise EqualOptions(self._options[form], index)
        self._num_options = len(options)
        edges: dict[Path, None] = {}
        for form in self._options:
            for edge in accumulate((token,) for token in form):
                edges[edge] = None
        self.edges: Sequence[Path] = tuple(edges)

    def scored(self, logprobs: Mapping[Path, float]) -> list[ScoredOption]:
        """Return the probability of each option.

        Args:
            logprobs: The natural logarithm of `p` for each edge.
        """
        totals = {
            form: sum(logprobs[form[:length]] for length in range(1, len(form) + 1))
            for form in self._options
        }
        by_option: list[list[float]] = [[] for _ in range(self._num_options)]
        for form, own in self._own(totals):
            by_option[self._options[form]].append(own)
        options = [_log_sum(each) for each in by_option]
        whole = _log_sum(options)
        if whole == -math.inf:  # the model gives no option any probability
            return [ScoredOption(1 / len(options), logprob) for logprob in options]
        return [ScoredOption(math.exp(logprob - whole), logprob) for logprob in options]

    def _own(self, totals: Mapping[Path, float]) -> Iterator[tuple[Path, float]]:
        """Yield each form with the logarithm of `Q`."""
        longer: dict[Path, list[float]] = {}
        for form, total in totals.items():
            shorter = next(
                (form[:n] for n in range(len(form) - 1, 0, -1) if form[:n] in totals), ()
            )
            longer.setdefault(shorter, []).append(total)
        for form, total in totals.items():
            yield form, _log_difference(total, _log_sum(longer.get(form, [])))


class EqualOptions(Exception):
    """The options `first` and `second` have equal tokens."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second)
        self.first, self.second = first, second


def _log_sum(logs: Sequence[float]) -> float:
    """Return log(sum(exp(x))); minus infinity for no numbers."""
    most = max(logs, default=-math.inf)
    if most == -math.inf:
        return most
    return most + math.log(math.fsum(math.exp(x - most) for x in logs))


def _log_difference(minuend: float, subtrahend: float) -> float:
    """Return log(exp(minuend) - exp(subtrahend)).

    The difference is at least 0 but for rounding errors: a negative one counts as 0.
    """
    if subtrahend >= minuend:
        return -math.inf
    return minuend + math.log1p(-math.exp(subtrahend - minuend))
