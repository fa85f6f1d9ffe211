"""An automaton for the items of an array with `contains`."""

from collections.abc import Iterator
from typing import TypeAlias

from service.text.schema.assertions import Contains
from service.text.schema.shapes import ArrayShape, Node, Shape

# The index of the next item, and the number of items so far that match `contains`. Both stop at
# the value from which on a larger one makes no difference.
State: TypeAlias = tuple[int, int]


class ContainsAutomaton:
    """The states of an array with `contains`, and the items that lead from one to the next."""

    def __init__(
        self, shape: ArrayShape, contains: Contains, shapes: dict[Node, tuple[Shape, ...]]
    ) -> None:
        """Find the states from which the array can be completed.

        Args:
            shape: The array. Its `contains` is ignored.
            contains: The assertion whose matching items are counted.
            shapes: The shapes of every node. An item's node without shapes has no value.
        """
        self._shape = shape
        self._contains = contains
        self._shapes = shapes
        self._last = max(len(shape.prefix), shape.least, shape.most or 0)
        self._live: set[State] = set()
        counts = range(max(contains.least, contains.most or 0) + 1)
        states = [(index, count) for index in range(self._last + 1) for count in counts]
        while found := [
            state
            for state in states
            if state not in self._live
            and (self.is_accepting(state) or next(self.transitions(state), None))
        ]:
            self._live.update(found)

    def is_accepting(self, state: State) -> bool:
        """Return True if the array may end in this state."""
        return state[0] >= self._shape.least and state[1] >= self._contains.least

    def transitions(self, state: State) -> Iterator[tuple[Node, State]]:
        """Yield each possible next item and the state after it.

        Items after which the array cannot be completed are left out.
        """
        index, count = state
        shape, contains = self._shape, self._contains
        node = shape.prefix[index] if index < len(shape.prefix) else shape.rest
        if node is None or (shape.most is not None and index >= shape.most):
            return
        after = index + 1 if shape.most is not None else min(index + 1, self._last)
        counted, other = item_nodes(node, contains)
        is_full = contains.most is not None and count >= contains.most
        more = count + 1 if contains.most is not None else min(count + 1, contains.least)
        options = [(other, (after, count))] + ([] if is_full else [(counted, (after, more))])
        for item, then in options:
            if self._shapes[item] and (then in self._live or self.is_accepting(then)):
                yield item, then


def item_nodes(node: Node, contains: Contains) -> tuple[Node, Node]:
    """Return the node of items that count for `contains`, and that of items that need not."""
    other = node if contains.most is None else node | {contains.opposite}
    return node | {contains.subschema}, other
