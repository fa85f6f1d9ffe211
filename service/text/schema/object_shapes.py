"""The shapes of objects."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from service.text.schema import patterns
from service.text.schema.assertions import ANYTHING, NOTHING, STRING, Properties, Subschema
from service.text.schema.conjunctions import Conjunction
from service.text.schema.errors import SchemaError
from service.text.schema.json_values import quoted
from service.text.schema.scalar_shapes import literals_terminal
from service.text.schema.shapes import Node, ObjectShape, PropertyShape, ScalarShape, ShapeGraph

MAX_PROPERTIES = 1_000  # maximum number of declared properties of one object


@dataclass(frozen=True, slots=True)
class _AllowedNames:
    """The terminal of allowed property names. `values` are all of them, if they are known."""

    terminal: str
    values: tuple[str, ...] | None


def object_shapes(
    graph: ShapeGraph, conjunction: Conjunction, *, is_closed: bool
) -> Iterator[ObjectShape]:
    """Yield the objects that match a conjunction: one shape, or none.

    Args:
        is_closed: If True, only undeclared properties that the conjunction allows are allowed.

    Raises:
        SchemaError: The object has too many properties.
        TerminalTooComplex: The constraints on names cost too much to compile.
    """
    parts = conjunction.properties + tuple(_unevaluated_properties(conjunction))
    names = _names(graph, conjunction)
    declared = [name for part in parts for name, _ in part.names]
    if is_closed and not any(part.patterns or part.rest is not None for part in parts):
        allowed = tuple((name, ANYTHING) for name in (*declared, *conjunction.required))
        parts += (Properties(allowed, rest=NOTHING),)
    if names is not None and names.values is not None:
        declared += names.values
    declared = list(dict.fromkeys((*declared, *conjunction.required)))
    if len(declared) > MAX_PROPERTIES:
        path = parts[0].names[0][1].path if parts and parts[0].names else ""
        within, keyword, _ = path.rpartition(".properties")
        raise SchemaError(
            within + keyword, f"An object may have at most {MAX_PROPERTIES} properties."
        )
    graph.add_size(1 + len(declared))
    properties = []
    by_name = [dict(part.names) for part in parts]
    for name in declared:
        is_required = name in conjunction.required
        node = _property(graph, parts, by_name, name)
        is_named = names is None or _is_named(graph, names, name)
        if name in conjunction.forbidden or not is_named or graph.is_empty(node):
            if is_required:
                return
        else:
            properties.append(PropertyShape(name, node, is_required))
    known = [*declared, *conjunction.forbidden]
    others = tuple(_others(graph, parts, names, known))
    shape = ObjectShape(
        tuple(properties), others, *conjunction.property_count, conjunction.count_path
    )
    yield from _counted(graph, shape)


def _counted(graph: ShapeGraph, shape: ObjectShape) -> Iterator[ObjectShape]:
    """Yield the object after removing size limits that are always satisfied."""
    least, most = shape.least, shape.most
    num_required = sum(each.is_required for each in shape.properties)
    if least <= num_required:
        least = 0
    if not shape.others and most is not None and most >= len(shape.properties):
        most = None
    # Two undeclared properties can have the same name, and a JSON parser keeps only one of them.
    certain = len(shape.properties) + bool(shape.others)
    if least > certain:
        if not shape.others:
            return
        reason = (
            "A grammar cannot enforce that names differ. For this object it can enforce a minimum "
            f"of {certain} properties."
        )
        graph.enforcement.cannot_enforce(shape.count_path, reason)
    if most is not None and (most < num_required or most < least):
        return
    yield replace(shape, least=least, most=most)


def _names(graph: ShapeGraph, conjunction: Conjunction) -> _AllowedNames | None:
    """Return the allowed property names, or None if any name is allowed."""
    if not conjunction.names:
        return None
    node = frozenset({*conjunction.names, STRING})
    found = [shape for shape in graph.shapes(node) if isinstance(shape, ScalarShape)]
    known = graph.enumerated_values(node)
    values = None if known is None else tuple(json.loads(value) for value in known)
    return _AllowedNames(" | ".join(f"({shape.terminal})" for shape in found), values)


def _is_named(graph: ShapeGraph, names: _AllowedNames, name: str) -> bool:
    if names.values is not None:
        return name in names.values
    return graph.terminals.matches(names.terminal, name)


def _property(
    graph: ShapeGraph, parts: tuple[Properties, ...], by_name: list[dict[str, Subschema]], name: str
) -> Node:
    """Return the node of the property with this name.

    Args:
        parts: The assertions about properties.
        by_name: The declared properties of each part, as a map.
    """
    subschemas: set[Subschema] = set()
    for part, named in zip(parts, by_name, strict=True):
        found = [named[name]] if name in named else []
        found += (
            subschema
            for terminal, _, subschema in part.patterns
            if graph.terminals.matches(terminal, name)
        )
        if not found and part.rest is not None:
            found.append(part.rest)
        subschemas.update(found)
    return frozenset(subschemas)


def _others(
    graph: ShapeGraph,
    parts: tuple[Properties, ...],
    names: _AllowedNames | None,
    declared: list[str],
) -> Iterator[tuple[str, Node]]:
    """Yield groups of undeclared names, each with the node of such a property.

    A name belongs to the group of the one pattern that it matches, or to the group of names that
    match no pattern. Names that match several patterns are in no group: an output does not need
    them.
    """
    if names is not None and names.values is not None:
        return
    by_text = {pattern[0]: pattern for part in parts for pattern in part.patterns}
    key = patterns.STRING
    if names is not None:
        key += f" & ({names.terminal})"
    if declared:
        key += f" & ~({literals_terminal(map(quoted, dict.fromkeys(declared)))})"
    for text in (*by_text, ""):
        group = key
        for other, opposite, _ in by_text.values():
            group += f" & ({other})" if other == text else f" & ~({opposite})"
        subschemas: set[Subschema] = set()
        for part in parts:
            found = [subschema for terminal, _, subschema in part.patterns if terminal == text]
            if not found and part.rest is not None:
                found.append(part.rest)
            subschemas.update(found)
        node = frozenset(subschemas)
        # Without patterns, there are always undeclared names.
        can_match = (not by_text and names is None) or not graph.terminals.is_empty(group)
        if can_match and not graph.is_empty(node):
            yield group, node


def _unevaluated_properties(conjunction: Conjunction) -> Iterator[Properties]:
    for each in conjunction.unevaluated:
        parts = [part for part in conjunction.properties if each.scope in part.scopes]
        if not each.is_of_items and all(part.rest is None for part in parts):
            yield Properties(
                tuple((name, ANYTHING) for part in parts for name, _ in part.names),
                tuple(
                    (terminal, opposite, ANYTHING)
                    for part in parts
                    for terminal, opposite, _ in part.patterns
                ),
                each.subschema,
            )
