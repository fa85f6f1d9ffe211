"""Shapes: sets of scalars, arrays or objects whose parts are nodes.

A node is the set of subschemas that apply to one value. Its shapes are alternatives.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from service.text.schema.assertions import Contains, Subschema
from service.text.schema.enforcement import Enforcement
from service.text.schema.terminal_checks import TerminalChecker

Node: TypeAlias = frozenset[Subschema]


@dataclass(frozen=True, slots=True)
class ScalarShape:
    """A set of values without parts: a terminal, or a JSON schema for the grammar compiler.

    `values` are all values of the set as JSON texts; None if they are not known.
    """

    terminal: str = ""
    schema: str = ""
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """Arrays whose first items match `prefix` and whose other items match `rest`.

    If `rest` is None, there are no other items. If `is_unique`, there is no `prefix`, `rest` is an
    enumeration, and each of its values occurs at most once.
    """

    prefix: tuple[Node, ...]
    rest: Node | None
    least: int
    most: int | None
    is_unique: bool = False
    contains: Contains | None = None


@dataclass(frozen=True, slots=True)
class PropertyShape:
    """A declared property of an object."""

    name: str
    node: Node
    is_required: bool


@dataclass(frozen=True, slots=True)
class ObjectShape:
    """Objects with `properties`, in this order, and then `others`.

    `others` are pairs of a terminal for the name, as JSON text, and the node of the value.
    """

    properties: tuple[PropertyShape, ...]
    others: tuple[tuple[str, Node], ...]
    least: int
    most: int | None
    count_path: str = ""


Shape: TypeAlias = ScalarShape | ArrayShape | ObjectShape


class ShapeGraph(Protocol):
    """The operations of `SchemaGraph` that build the shapes of a node."""

    terminals: TerminalChecker
    enforcement: Enforcement

    def shapes(self, node: Node) -> tuple[Shape, ...]:
        """Return the alternatives of a node. There are none if no value matches its subschemas."""
        ...

    def is_empty(self, node: Node) -> bool:
        """Return True if certainly no value matches the node. Deep parts are not considered."""
        ...

    def are_disjoint(self, *subschemas: Subschema) -> bool:
        """Return True if certainly no value matches all of the subschemas."""
        ...

    def enumerated_values(self, node: Node) -> tuple[str, ...] | None:
        """Return all values of a node as JSON texts; None unless they are enumerated scalars."""
        ...

    def add_size(self, count: int) -> None:
        """Count conjunctions or properties, which cost time and memory."""
        ...
