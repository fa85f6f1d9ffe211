"""Finds the shapes that a schema's root needs, and removes those that no value matches."""

from collections.abc import Iterator
from dataclasses import replace

from service.text.schema.contains_automaton import item_nodes
from service.text.schema.schema_graph import SchemaGraph
from service.text.schema.shapes import ArrayShape, Node, ObjectShape, Shape


def reachable_shapes(graph: SchemaGraph) -> dict[Node, tuple[Shape, ...]]:
    """Return the shapes of every node that the root refers to, directly or indirectly.

    Raises:
        SchemaError: The schema is malformed or too complex, or it is strict and not enforceable.
    """
    found: dict[Node, tuple[Shape, ...]] = {}
    pending = [graph.root]
    while pending:
        node = pending.pop()
        if node not in found:
            found[node] = graph.shapes(node)
            pending += (child for shape in found[node] for child in _children(shape))
    return found


def satisfiable_shapes(shapes: dict[Node, tuple[Shape, ...]]) -> dict[Node, tuple[Shape, ...]]:
    """Return the shapes that have a value, without the parts that have none.

    Only this step finds endless recursion, such as an object that requires an object of its kind.
    """
    satisfiable: set[Node] = set()
    # In terms of grammars, this finds the productive symbols, from the terminals upwards.
    while found := {
        node
        for node, alternatives in shapes.items()
        if node not in satisfiable and any(_has_value(shape, satisfiable) for shape in alternatives)
    }:
        satisfiable |= found
    return {
        node: tuple(
            _without(shape, satisfiable) for shape in found if _has_value(shape, satisfiable)
        )
        for node, found in shapes.items()
    }


def _has_value(shape: Shape, satisfiable: set[Node]) -> bool:
    match shape:
        case ArrayShape(prefix, rest, least, contains=contains):
            nodes = prefix if rest is None else (*prefix, rest)
            if any(node not in satisfiable for node in prefix[:least]):
                return False
            if least > len(prefix) and rest not in satisfiable:
                return False
            return (
                contains is None
                or contains.least == 0
                or any(item_nodes(node, contains)[0] in satisfiable for node in nodes)
            )
        case ObjectShape(properties, others, least):
            if any(each.is_required and each.node not in satisfiable for each in properties):
                return False
            possible = sum(each.node in satisfiable for each in properties)
            return least <= possible or any(node in satisfiable for _, node in others)
    return True


def _without(shape: Shape, satisfiable: set[Node]) -> Shape:
    match shape:
        case ArrayShape(prefix, rest):
            for index, node in enumerate(prefix):
                if node not in satisfiable:
                    return replace(shape, prefix=prefix[:index], rest=None, most=index)
            if rest is not None and rest not in satisfiable:
                return replace(shape, rest=None, most=len(prefix))
        case ObjectShape(properties, others):
            return replace(
                shape,
                properties=tuple(each for each in properties if each.node in satisfiable),
                others=tuple(each for each in others if each[1] in satisfiable),
            )
    return shape


def _children(shape: Shape) -> Iterator[Node]:
    match shape:
        case ArrayShape(prefix, rest, contains=contains):
            for node in (*prefix, rest):
                if node is not None:
                    yield node
                    if contains is not None:
                        yield from item_nodes(node, contains)
        case ObjectShape(properties, others):
            yield from (each.node for each in properties)
            yield from (node for _, node in others)
