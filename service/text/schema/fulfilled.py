"""Which shapes of a graph have a value at all."""

from collections.abc import Iterator
from dataclasses import replace

from service.text.schema.graph import Graph
from service.text.schema.places import kinds
from service.text.schema.shapes import Array, Node, Object, Shape


def reachable(graph: Graph) -> dict[Node, tuple[Shape, ...]]:
    """Return the shapes of every node that the root refers to, directly or not.

    Raises:
        SchemaError
    """
    found: dict[Node, tuple[Shape, ...]] = {}
    pending = [graph.root]
    while pending:
        node = pending.pop()
        if node not in found:
            found[node] = graph.shapes(node)
            pending += (child for shape in found[node] for child in _children(shape))
    return found


def fulfilled(shapes: dict[Node, tuple[Shape, ...]]) -> dict[Node, tuple[Shape, ...]]:
    """The shapes that have a value, without parts that have none.

    Such parts are found last: an object that must hold one of its own kind without end, say.
    """
    filled: set[Node] = set()
    while found := {
        node
        for node, alternatives in shapes.items()
        if node not in filled and any(_has_value(shape, filled) for shape in alternatives)
    }:
        filled |= found
    return {
        node: tuple(_without(shape, filled) for shape in found if _has_value(shape, filled))
        for node, found in shapes.items()
    }


def _has_value(shape: Shape, filled: set[Node]) -> bool:
    match shape:
        case Array(prefix, rest, least, contains=contains):
            nodes = prefix if rest is None else (*prefix, rest)
            if any(node not in filled for node in prefix[:least]):
                return False
            if least > len(prefix) and rest not in filled:
                return False
            return (
                contains is None
                or contains.least == 0
                or any(kinds(node, contains)[0] in filled for node in nodes)
            )
        case Object(properties, others, least):
            if any(each.is_required and each.node not in filled for each in properties):
                return False
            possible = sum(each.node in filled for each in properties)
            return least <= possible or any(node in filled for _, node in others)
    return True


def _without(shape: Shape, filled: set[Node]) -> Shape:
    match shape:
        case Array(prefix, rest):
            for index, node in enumerate(prefix):
                if node not in filled:
                    return replace(shape, prefix=prefix[:index], rest=None, most=index)
            if rest is not None and rest not in filled:
                return replace(shape, rest=None, most=len(prefix))
        case Object(properties, others):
            return replace(
                shape,
                properties=tuple(each for each in properties if each.node in filled),
                others=tuple(each for each in others if each[1] in filled),
            )
    return shape


def _children(shape: Shape) -> Iterator[Node]:
    match shape:
        case Array(prefix, rest, contains=contains):
            for node in (*prefix, rest):
                if node is not None:
                    yield node
                    if contains is not None:
                        yield from kinds(node, contains)
        case Object(properties, others):
            yield from (each.node for each in properties)
            yield from (node for _, node in others)
