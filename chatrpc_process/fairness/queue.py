"""A queue in which callers take turns, so that one caller's backlog does not delay other callers.

This is weighted round robin over the callers (Katevenis et al., 1991). A caller joins the rotation
at its end. In its turn, as many of its items are taken as its weight, and it goes to the end again.
With N other callers of weight 1, a caller's first item waits for at most N items. The number of
queued items does not matter.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar


class Queued(Protocol):
    """An item of a queue."""

    @property
    def rank(self) -> Any:
        """The order among the items of one caller, lowest first. Ranks of two items differ."""
        ...

    @property
    def arrival(self) -> Any:
        """The order of arrival. Values of two items differ."""
        ...


Item = TypeVar("Item", bound=Queued)

_rank, _arrival = attrgetter("rank"), attrgetter("arrival")


class FairQueue(Generic[Item]):
    """A queue of the items of several callers.

    Among the items of one caller, the lowest rank comes first. But the oldest item is overtaken at
    most `max_overtakes` times.

    Args:
        max_overtakes: Maximum number of items of a caller that overtake its oldest one.
    """

    def __init__(self, max_overtakes: int) -> None:
        self._max_overtakes = max_overtakes
        self._lines: dict[str, _Line[Item]] = {}
        self._rotation: deque[str] = deque()
        self._num_taken = 0  # items taken in the turn of the caller at the head of the rotation

    def __len__(self) -> int:
        return sum(len(line.by_rank) for line in self._lines.values())

    def __iter__(self) -> Iterator[Item]:
        """Yield all items: callers in the order of their turns, items of one caller by rank."""
        for caller in self._rotation:
            yield from self._lines[caller].by_rank

    def __contains__(self, item: Item) -> bool:
        return any(item in line for line in self._lines.values())

    @property
    def weights(self) -> dict[str, int]:
        """The weights of the callers with an item in the queue, in the order of their turns."""
        return {caller: self._lines[caller].weight for caller in self._rotation}

    def push(self, caller: str, weight: int, item: Item) -> None:
        """Add an item of `caller`. The caller's latest `weight` applies to all of its items."""
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = _Line()
            self._rotation.append(caller)
        line.weight = weight
        line.add(item)

    def first(self, caller: str | None = None) -> Item | None:
        """Return the item that `pop` would return, or None if there is none."""
        if caller is None and self._rotation:
            caller = self._rotation[0]
        line = None if caller is None else self._lines.get(caller)
        return None if line is None else line.first(self._max_overtakes)

    def pop(self, caller: str | None = None) -> Item:
        """Remove and return the next item.

        Args:
            caller: The caller whose item is taken; it goes to the end of the rotation. None means
                the caller whose turn it is.

        Raises:
            IndexError: The queue is empty.
        """
        turn = self._rotation[0]
        caller = turn if caller is None else caller
        line = self._lines[caller]
        item = line.first(self._max_overtakes)
        line.num_overtakes = 0 if item is line.by_arrival[0] else line.num_overtakes + 1
        self._num_taken += caller == turn
        is_over = caller != turn or self._num_taken >= line.weight
        self._remove(caller, item)
        if is_over and caller in self._lines:
            self._rotation.remove(caller)
            self._rotation.append(caller)
            self._num_taken = 0 if caller == turn else self._num_taken
        return item

    def remove(self, item: Item) -> None:
        """Remove an item from any position.

        Raises:
            ValueError: The item is not in the queue.
        """
        for caller, line in self._lines.items():
            if item in line:
                self._remove(caller, item)
                return
        raise ValueError("The item is not in the queue.")

    def _remove(self, caller: str, item: Item) -> None:
        line = self._lines[caller]
        line.discard(item)
        if not line.by_rank:
            if self._rotation[0] == caller:
                self._num_taken = 0
            self._rotation.remove(caller)
            del self._lines[caller]


@dataclass(slots=True)
class _Line(Generic[Item]):
    """The items of one caller."""

    weight: int = 1
    num_overtakes: int = 0  # how often the oldest item has been overtaken
    by_rank: list[Item] = field(default_factory=list)
    by_arrival: list[Item] = field(default_factory=list)

    def __contains__(self, item: Item) -> bool:
        at = bisect_left(self.by_rank, item.rank, key=_rank)
        return at < len(self.by_rank) and self.by_rank[at] is item

    def add(self, item: Item) -> None:
        insort(self.by_rank, item, key=_rank)
        insort(self.by_arrival, item, key=_arrival)

    def discard(self, item: Item) -> None:
        if item is self.by_arrival[0]:
            self.num_overtakes = 0
        del self.by_rank[bisect_left(self.by_rank, item.rank, key=_rank)]
        del self.by_arrival[bisect_left(self.by_arrival, item.arrival, key=_arrival)]

    def first(self, max_overtakes: int) -> Item:
        oldest = self.by_arrival[0]
        return oldest if self.num_overtakes >= max_overtakes else self.by_rank[0]
