"""The division of a step's budgets of tokens and time among the prompts. No torch, no clock."""

from bisect import bisect

from service.engine.batch import ScheduledSequence
from service.engine.fairness import split_budget, usage_by_caller
from service.engine.sequence import Sequence
from service.engine.step_time import StepSize, StepTime

# The prompts of a step get at least this number of tokens. So prefill proceeds even if the other
# sequences take all the time.
_MIN_TOKENS = 16


class Prompts:
    """The running sequences that have more than one uncomputed token.

    Callers share a budget of tokens by weight. A caller's share goes to its prompts in order.

    Args:
        sequences: In the order of `Sequence.rank`.
    """

    def __init__(self, sequences: list[Sequence]) -> None:
        self._sequences = sequences
        uses = usage_by_caller(sequences, {})
        self._callers = list(uses)
        self._weights = [use.weight for use in uses.values()]
        self._demands = [sum(s.num_uncomputed_tokens for s in use.running) for use in uses.values()]

    def chunks(self, num_tokens: int) -> list[ScheduledSequence]:
        """Return the parts of a step in which the prompts have at most `num_tokens` tokens."""
        grants = split_budget(num_tokens, self._demands, self._weights)
        budgets = dict(zip(self._callers, grants, strict=True))
        chunks = []
        for sequence in self._sequences:
            caller, num_uncomputed = sequence.request.caller.name, sequence.num_uncomputed_tokens
            num_new = min(num_uncomputed, budgets[caller])
            if num_new:
                budgets[caller] -= num_new
                chunks.append(ScheduledSequence(sequence, num_new, num_new == num_uncomputed))
        return chunks

    def num_tokens_in_time(
        self, limit: int, max_step_s: float, step_time: StepTime, decode: StepSize
    ) -> int:
        """Return the largest number of tokens, up to `limit`, for a step of at most `max_step_s`.

        It is at least 16, if `limit` allows that.

        Args:
            max_step_s: Maximum predicted duration of the step, in seconds.
            decode: The size of the rest of the step.
        """

        def is_too_long(num_tokens: int) -> bool:
            sizes = (chunk.size for chunk in self.chunks(num_tokens))
            return step_time.predict(StepSize.total((decode, *sizes))) > max_step_s

        demand = min(limit, sum(self._demands))
        num_fitting = bisect(range(1, demand + 1), False, key=is_too_long)
        return max(num_fitting, min(_MIN_TOKENS, demand))
