"""Shares of the engine for callers that use it at the same time. Plain arithmetic: no torch."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from service.engine.sequence import Sequence


@dataclass(slots=True)
class Use:
    """The running sequences of one caller in the order of their ranks, and their blocks.

    Its share of everything is `weight` over `total_weight`, which is that of all callers.
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
        """Whether `amount` of `capacity` is no more than the caller's share."""
        return amount * self.total_weight <= self.weight * capacity


def use_by_caller(running: Iterable[Sequence], waiting: Mapping[str, int]) -> dict[str, Use]:
    """The use of each caller that has a sequence, by the caller's name.

    Args:
        running: By rank.
        waiting: The weights of the callers that have a sequence waiting.
    """
    uses = {name: Use(weight) for name, weight in waiting.items()}
    for sequence in running:
        caller = sequence.request.caller
        uses.setdefault(caller.name, Use(caller.weight)).running.append(sequence)
    total = sum(use.weight for use in uses.values())
    for use in uses.values():
        use.total_weight = total
    return uses


def last_to_keep(uses: dict[str, Use]) -> Sequence:
    """The running sequence to preempt when the cache is full.

    It is the last of the caller that holds most blocks for its weight. A caller's only running
    sequence is spared as long as another caller runs several; if each runs one, the sequence that
    arrived last is chosen. So the first of each caller gets on, or at least the oldest of these.
    """
    several = [use for use in uses.values() if use.num_running > 1]
    if several:
        return max(several, key=lambda use: use.num_blocks / use.weight).running[-1]
    only = [use.running[0] for use in uses.values() if use.running]
    return max(only, key=lambda sequence: sequence.arrival)


def furthest_above_share(
    uses: dict[str, Use], amount: Callable[[Use], int], capacity: int
) -> Sequence | None:
    """The sequence to preempt for a caller below its share; None if nobody is above.

    It is the last of the caller that uses most for its weight. A caller's only running sequence is
    spared.

    Args:
        amount: What a caller uses of the `capacity`.
    """
    above = [
        use
        for use in uses.values()
        if use.num_running > 1 and not use.is_within_share(amount(use), capacity)
    ]
    return max(above, key=lambda use: amount(use) / use.weight).running[-1] if above else None


def split(budget: int, demands: Items[int], weights: Items[int]) -> list[int]:
    """Divide a budget by weighted max-min fairness; the grants, in the order of the demands.

    Nobody gets more than it demands, and what one does not need goes to the others
    (Bertsekas and Gallager, Data Networks, 6.5.2).
    """
    grants = [0] * len(demands)
    unmet = list(range(len(demands)))
    while unmet:
        total = sum(weights[i] for i in unmet)
        met = [i for i in unmet if demands[i] * total <= budget * weights[i]]
        for i in met or unmet:
            grants[i] = demands[i] if met else budget * weights[i] // total
        if not met:
            for i in unmet[: budget - sum(grants[i] for i in unmet)]:  # what rounding leaves
                grants[i] += 1
            break
        budget -= sum(grants[i] for i in met)
        unmet = [i for i in unmet if i not in met]
    return grants
