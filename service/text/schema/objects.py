"""The objects that fulfil all of a branch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from service.text.schema import patterns
from service.text.schema.branches import Branch
from service.text.schema.claims import ANYTHING, NOTHING, STRING, Claim, Properties
from service.text.schema.errors import SchemaError
from service.text.schema.scalars import any_of
from service.text.schema.shapes import Node, Nodes, Object, Property, Scalars
from service.text.schema.values import quoted

MAX_PROPERTIES = 1_000  # of one object


@dataclass(frozen=True, slots=True)
class _Names:
    """A terminal of names; `values` are all of them where they are known."""

    terminal: str
    values: tuple[str, ...] | None


def objects(nodes: Nodes, branch: Branch, *, is_closed: bool) -> Iterator[Object]:
    """The objects that fulfil all of a branch: one shape, or none.

    Args:
        is_closed: without other properties than those declared, unless the branch allows them.

    Raises:
        SchemaError: there are too many properties.
        TooCostly: the demands on names take too much to compile.
    """
    parts = branch.properties + tuple(_unevaluated_properties(branch))
    names = _names(nodes, branch)
    declared = [name for part in parts for name, _ in part.names]
    if is_closed and not any(part.patterns or part.rest is not None for part in parts):
        allowed = tuple((name, ANYTHING) for name in (*declared, *branch.required))
        parts += (Properties(allowed, rest=NOTHING),)
    if names is not None and names.values is not None:
        declared += names.values
    declared = list(dict.fromkeys((*declared, *branch.required)))
    if len(declared) > MAX_PROPERTIES:
        path = parts[0].names[0][1].path if parts and parts[0].names else ""
        within, keyword, _ = path.rpartition(".properties")
        raise SchemaError(within + keyword, f"An object has at most {MAX_PROPERTIES} properties.")
    nodes.grow(1 + len(declared))
    properties = []
    by_name = [dict(part.names) for part in parts]
    for name in declared:
        is_required = name in branch.required
        node = _property(nodes, parts, by_name, name)
        is_named = names is None or _is_named(nodes, names, name)
        if name in branch.forbidden or not is_named or nodes.is_empty(node):
            if is_required:
                return
        else:
            properties.append(Property(name, node, is_required))
    known = [*declared, *branch.forbidden]
    others = tuple(_others(nodes, parts, names, known))
    shape = Object(tuple(properties), others, *branch.property_count, branch.count_path)
    yield from _counted(nodes, shape)


def _counted(nodes: Nodes, shape: Object) -> Iterator[Object]:
    """The object without limits that are fulfilled by themselves."""
    least, most = shape.least, shape.most
    num_required = sum(each.is_required for each in shape.properties)
    if least <= num_required:
        least = 0
    if not shape.others and most is not None and most >= len(shape.properties):
        most = None
    # Names of other properties can be the same, and a reader of JSON keeps one of them.
    certain = len(shape.properties) + bool(shape.others)
    if least > certain:
        if not shape.others:
            return
        reason = (
            "A grammar cannot tell whether names differ. Of this object it can demand "
            f"{certain} different ones."
        )
        nodes.enforcement.give_up(shape.count_path, reason)
    if most is not None and (most < num_required or most < least):
        return
    yield replace(shape, least=least, most=most)


def _names(nodes: Nodes, branch: Branch) -> _Names | None:
    """What all names must be; None: anything."""
    if not branch.names:
        return None
    node = frozenset({*branch.names, STRING})
    found = [shape for shape in nodes.shapes(node) if isinstance(shape, Scalars)]
    known = nodes.known_values(node)
    values = None if known is None else tuple(json.loads(value) for value in known)
    return _Names(" | ".join(f"({shape.terminal})" for shape in found), values)


def _is_named(nodes: Nodes, names: _Names, name: str) -> bool:
    if names.values is not None:
        return name in names.values
    return nodes.terminals.matches(names.terminal, name)


def _property(
    nodes: Nodes, parts: tuple[Properties, ...], by_name: list[dict[str, Claim]], name: str
) -> Node:
    """What a property of this name holds. `by_name` is the names of each part, as a map."""
    claims: set[Claim] = set()
    for part, named in zip(parts, by_name, strict=True):
        found = [named[name]] if name in named else []
        found += (
            claim for terminal, _, claim in part.patterns if nodes.terminals.matches(terminal, name)
        )
        if not found and part.rest is not None:
            found.append(part.rest)
        claims.update(found)
    return frozenset(claims)


def _others(
    nodes: Nodes, parts: tuple[Properties, ...], names: _Names | None, declared: list[str]
) -> Iterator[tuple[str, Node]]:
    """Groups of names that are not declared, with what such properties hold.

    A name belongs to the group of the one pattern that it matches, or to that of no pattern.
    Names that match several are in no group: an answer can do without them.
    """
    if names is not None and names.values is not None:
        return
    by_text = {pattern[0]: pattern for part in parts for pattern in part.patterns}
    key = patterns.STRING
    if names is not None:
        key += f" & ({names.terminal})"
    if declared:
        key += f" & ~({any_of(map(quoted, dict.fromkeys(declared)))})"
    for text in (*by_text, ""):
        group = key
        for other, opposite, _ in by_text.values():
            group += f" & ({other})" if other == text else f" & ~({opposite})"
        claims: set[Claim] = set()
        for part in parts:
            found = [claim for terminal, _, claim in part.patterns if terminal == text]
            if not found and part.rest is not None:
                found.append(part.rest)
            claims.update(found)
        node = frozenset(claims)
        # Without patterns there are always names that are not declared.
        can_match = (not by_text and names is None) or not nodes.terminals.is_empty(group)
        if can_match and not nodes.is_empty(node):
            yield group, node


def _unevaluated_properties(branch: Branch) -> Iterator[Properties]:
    for each in branch.unevaluated:
        parts = [part for part in branch.properties if each.owner in part.owners]
        if not each.is_of_items and all(part.rest is None for part in parts):
            yield Properties(
                tuple((name, ANYTHING) for part in parts for name, _ in part.names),
                tuple(
                    (terminal, opposite, ANYTHING)
                    for part in parts
                    for terminal, opposite, _ in part.patterns
                ),
                each.claim,
            )
