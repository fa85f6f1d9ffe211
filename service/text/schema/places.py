"""Arrays of which some items must be of a kind, place by place."""

from collections.abc import Iterator

from service.text.schema.claims import Contains
from service.text.schema.shapes import Array, Node, Shape


class Places:
    """How far an array has come: the next place, and the number of items that count so far."""

    def __init__(
        self, shape: Array, contains: Contains, shapes: dict[Node, tuple[Shape, ...]]
    ) -> None:
        self._shape = shape
        self._contains = contains
        self._shapes = shapes
        self._last = max(len(shape.prefix), shape.least, shape.most or 0)
        self._useful: set[tuple[int, int]] = set()
        counts = range(max(contains.least, contains.most or 0) + 1)
        states = [(place, count) for place in range(self._last + 1) for count in counts]
        while found := [
            at
            for at in states
            if at not in self._useful and (self.is_end(at) or next(self.steps(at), None))
        ]:
            self._useful.update(found)

    def is_end(self, at: tuple[int, int]) -> bool:
        return at[0] >= self._shape.least and at[1] >= self._contains.least

    def steps(self, at: tuple[int, int]) -> Iterator[tuple[Node, tuple[int, int]]]:
        """Each item that may come next, with where the array is then; none to a dead end."""
        place, count = at
        shape, contains = self._shape, self._contains
        node = shape.prefix[place] if place < len(shape.prefix) else shape.rest
        if node is None or (shape.most is not None and place >= shape.most):
            return
        after = place + 1 if shape.most is not None else min(place + 1, self._last)
        counted, other = kinds(node, contains)
        is_full = contains.most is not None and count >= contains.most
        more = count + 1 if contains.most is not None else min(count + 1, contains.least)
        ways = [(other, (after, count))] + ([] if is_full else [(counted, (after, more))])
        for kind, then in ways:
            if self._shapes[kind] and (then in self._useful or self.is_end(then)):
                yield kind, then


def kinds(node: Node, contains: Contains) -> tuple[Node, Node]:
    """Items that count for `contains`, and those that need not."""
    other = node if contains.most is None else node | {contains.opposite}
    return node | {contains.claim}, other
