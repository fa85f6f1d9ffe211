"""Weighted shares of slots, blocks and step budget for concurrent callers. No torch."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from service.engine.sequence import Sequence


@dataclass(slots=True)
class CallerUsage:
    """The running sequences of one caller and the blocks they hold.

    Attributes:
        weight: The caller's share of any capacity is `weight / total_weight`.
        total_weight: Sum of the weights of all callers.
        running: The caller's running sequences, in the order of `Sequence.rank`.
    """

    weight: int
    total_weight: int = 0
    running: list[Sequence] = field(default_factory=list)

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_blocks(self) -> int:
        return sum(len(sequence.block_ids) for sequence in self.running)

    def is_within_share(self, amount: int, capacity: int) -> bool:
        """Return True if `amount` of `capacity` is at most the caller's share."""
        return amount * self.total_weight <= self.weight * capacity


def usage_by_caller(
    running: Iterable[Sequence], waiting: Mapping[str, int]
) -> dict[str, CallerUsage]:
    """Return the usage of each caller that has a sequence, by the caller's name.

    Args:
        running: Running sequences in the order of `Sequence.rank`.
        waiting: Weights, by name, of the callers that have a waiting sequence.
    """
    uses = {name: CallerUsage(weight) for name, weight in waiting.items()}
    for sequence in running:
        caller = sequence.request.caller
        uses.setdefault(caller.name, CallerUsage(caller.weight)).running.append(sequence)
    total = sum(use.weight for use in uses.values())
    for use in uses.values():
        use.total_weight = total
    return uses


def victim_when_full(uses: dict[str, CallerUsage]) -> Sequence:
    """Return the running sequence to preempt when the cache is full.

    It is the last sequence of the caller that holds the most blocks in proportion to its weight,
    among the callers with several running sequences. So the first sequence of each caller
    continues. If each caller runs one sequence, it is the one that arrived last.
    """
    several = [use for use in uses.values() if use.num_running > 1]
    if several:
        return max(several, key=lambda use: use.num_blocks / use.weight).running[-1]
    only = [use.running[0] for use in uses.values() if use.running]
    return max(only, key=lambda sequence: sequence.arrival)


def victim_above_share(
    uses: dict[str, CallerUsage], amount: Callable[[CallerUsage], int], capacity: int
) -> Sequence | None:
    """Return the sequence to preempt for a caller below its share.

    It is the last sequence of the caller that uses the most in proportion to its weight, among the
    callers that use more than their share and run several sequences. The result is None if there is
    no such caller.

    Args:
        amount: Returns how much of `capacity` a caller uses.
    """
    above = [
        use
        for use in uses.values()
        if use.num_running > 1 and not use.is_within_share(amount(use), capacity)
    ]
    return max(above, key=lambda use: amount(use) / use.weight).running[-1] if above else None


def split_budget(budget: int, demands: Items[int], weights: Items[int]) -> list[int]:
    """Divide a budget by weighted max-min fairness (Bertsekas and Gallager, Data Networks, 6.5.2).

    Returns:
        One grant for each demand, at most the demand. A share that is not needed is divided among
        the other demands.
    """
    grants = [0] * len(demands)
    unmet = list(range(len(demands)))
    while unmet:
        total = sum(weights[i] for i in unmet)
        met = [i for i in unmet if demands[i] * total <= budget * weights[i]]
        for i in met or unmet:
            grants[i] = demands[i] if met else budget * weights[i] // total
        if not met:
            for i in unmet[: budget - sum(grants[i] for i in unmet)]:  # left by rounding down
                grants[i] += 1
            break
        budget -= sum(grants[i] for i in met)
        unmet = [i for i in unmet if i not in met]
    return grants
