"""The arrays that fulfil all of a branch."""

from collections.abc import Iterator
from dataclasses import replace

from service.text.schema.branches import Branch
from service.text.schema.claims import ANYTHING, Claim, Items
from service.text.schema.shapes import Array, Node, Nodes

_MAX_CONTAINED = 32  # items of an array that must hold some of a kind
_MAX_UNIQUE = 64  # the bits of a rule's parameter


def arrays(nodes: Nodes, branch: Branch) -> Iterator[Array]:
    """The arrays that fulfil all of a branch: one shape, or none."""
    parts = branch.items + tuple(_unevaluated_items(branch))
    length = max((len(part.prefix) for part in parts), default=0)
    prefix = tuple(
        frozenset(claim for part in parts if (claim := _item(part, index)) is not None)
        for index in range(length)
    )
    rest: Node | None = frozenset(part.rest for part in parts if part.rest is not None)
    least, most = branch.item_count
    nodes.grow(1 + length)
    for index, item in enumerate(prefix):
        if (most is None or index < most) and nodes.is_empty(item):
            most = index
    if rest is not None and nodes.is_empty(rest):
        rest = None
        most = length if most is None else min(most, length)
    if most is not None and most <= length:
        prefix, rest = prefix[:most], None
    if most is not None and least > most:
        return
    yield from _bounded(nodes, branch, Array(prefix, rest, least, most))


def _bounded(nodes: Nodes, branch: Branch, array: Array) -> Iterator[Array]:
    """The array with what its items are together: unique, or holding some of a kind."""
    for each in branch.contains:
        if array.contains is not None:
            nodes.enforcement.give_up(each.path, "Only one such keyword is supported.")
        elif max(each.least, each.most or 0, array.least, array.most or 0) > _MAX_CONTAINED:
            reason = f"It is supported for up to {_MAX_CONTAINED} items."
            nodes.enforcement.give_up(each.path, reason)
        else:
            array = replace(array, contains=each)
    has_items = array.most != 0 and (bool(array.prefix) or array.rest is not None)
    if array.contains is not None and array.contains.least and not has_items:
        return
    if branch.unique and (array.most is None or array.most > 1):
        values = nodes.known_values(array.rest) if array.rest is not None else None
        if values is None or array.prefix or array.contains or len(values) > _MAX_UNIQUE:
            if not _are_apart(nodes, array):
                reason = (
                    "A grammar cannot tell items apart, unless all are of one enumeration with "
                    f"at most {_MAX_UNIQUE} values."
                )
                nodes.enforcement.give_up(branch.unique[0].path, reason)
        else:
            most = len(values) if array.most is None else min(array.most, len(values))
            if array.least > most:
                return
            array = replace(array, is_unique=True, most=most)
    yield array


def _are_apart(nodes: Nodes, array: Array) -> bool:
    """Whether no two places of a tuple can hold equal items."""
    if array.rest is not None:
        return False
    return all(
        nodes.are_disjoint(*first, *second)
        for index, first in enumerate(array.prefix)
        for second in array.prefix[:index]
    )


def _unevaluated_items(branch: Branch) -> Iterator[Items]:
    for each in branch.unevaluated:
        parts = [part for part in branch.items if each.owner in part.owners]
        if each.is_of_items and all(part.rest is None for part in parts):
            length = max((len(part.prefix) for part in parts), default=0)
            yield Items((ANYTHING,) * length, each.claim)


def _item(part: Items, index: int) -> Claim | None:
    return part.prefix[index] if index < len(part.prefix) else part.rest
