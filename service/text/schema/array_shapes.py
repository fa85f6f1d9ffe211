"""The shapes of arrays."""

from collections.abc import Iterator
from dataclasses import replace

from service.text.schema.assertions import ANYTHING, Items, Subschema
from service.text.schema.conjunctions import Conjunction
from service.text.schema.shapes import ArrayShape, Node, ShapeGraph

_MAX_CONTAINED = 32  # maximum number of items of an array with `contains`
_MAX_UNIQUE = 64  # maximum number of values of unique items: a rule's parameter has 64 bits


def array_shapes(graph: ShapeGraph, conjunction: Conjunction) -> Iterator[ArrayShape]:
    """Yield the arrays that match a conjunction: one shape, or none."""
    parts = conjunction.items + tuple(_unevaluated_items(conjunction))
    length = max((len(part.prefix) for part in parts), default=0)
    prefix = tuple(
        frozenset(subschema for part in parts if (subschema := _item(part, index)) is not None)
        for index in range(length)
    )
    rest: Node | None = frozenset(part.rest for part in parts if part.rest is not None)
    least, most = conjunction.item_count
    graph.add_size(1 + length)
    for index, item in enumerate(prefix):
        if (most is None or index < most) and graph.is_empty(item):
            most = index
    if rest is not None and graph.is_empty(rest):
        rest = None
        most = length if most is None else min(most, length)
    if most is not None and most <= length:
        prefix, rest = prefix[:most], None
    if most is not None and least > most:
        return
    yield from _bounded(graph, conjunction, ArrayShape(prefix, rest, least, most))


def _bounded(
    graph: ShapeGraph, conjunction: Conjunction, array: ArrayShape
) -> Iterator[ArrayShape]:
    """Yield the array with `contains` and `uniqueItems` applied if a grammar can enforce them."""
    for each in conjunction.contains:
        if array.contains is not None:
            graph.enforcement.cannot_enforce(
                each.path, "Only one `contains` is supported for an array."
            )
        elif max(each.least, each.most or 0, array.least, array.most or 0) > _MAX_CONTAINED:
            reason = f"The keyword is supported for at most {_MAX_CONTAINED} items."
            graph.enforcement.cannot_enforce(each.path, reason)
        else:
            array = replace(array, contains=each)
    has_items = array.most != 0 and (bool(array.prefix) or array.rest is not None)
    if array.contains is not None and array.contains.least and not has_items:
        return
    if conjunction.unique and (array.most is None or array.most > 1):
        values = graph.enumerated_values(array.rest) if array.rest is not None else None
        if values is None or array.prefix or array.contains or len(values) > _MAX_UNIQUE:
            if not _are_apart(graph, array):
                reason = (
                    "A grammar can enforce unique items only if all items are values of one "
                    f"enumeration with at most {_MAX_UNIQUE} values."
                )
                graph.enforcement.cannot_enforce(conjunction.unique[0].path, reason)
        else:
            most = len(values) if array.most is None else min(array.most, len(values))
            if array.least > most:
                return
            array = replace(array, is_unique=True, most=most)
    yield array


def _are_apart(graph: ShapeGraph, array: ArrayShape) -> bool:
    """Return True if certainly no two items of a tuple can be equal."""
    if array.rest is not None:
        return False
    return all(
        graph.are_disjoint(*first, *second)
        for index, first in enumerate(array.prefix)
        for second in array.prefix[:index]
    )


def _unevaluated_items(conjunction: Conjunction) -> Iterator[Items]:
    for each in conjunction.unevaluated:
        parts = [part for part in conjunction.items if each.scope in part.scopes]
        if each.is_of_items and all(part.rest is None for part in parts):
            length = max((len(part.prefix) for part in parts), default=0)
            yield Items((ANYTHING,) * length, each.subschema)


def _item(part: Items, index: int) -> Subschema | None:
    return part.prefix[index] if index < len(part.prefix) else part.rest
