"""The shapes of values: scalars, arrays and objects, whose parts are nodes.

A node stands for a set of claims about one value. Its shapes are alternatives.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from service.text.schema.claims import Claim, Contains
from service.text.schema.enforcement import Enforcement
from service.text.schema.terminals import Terminals

Node: TypeAlias = frozenset[Claim]


@dataclass(frozen=True, slots=True)
class Scalars:
    """A terminal, or a JSON schema of the grammar compiler's, for values that hold no others.

    `values` are all of them, as JSON texts, where they are known.
    """

    terminal: str = ""
    schema: str = ""
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """Arrays whose items are `prefix`, then `rest`; None: no further items.

    `is_unique`: all are of one enumeration, `rest`, each at most once.
    """

    prefix: tuple[Node, ...]
    rest: Node | None
    least: int
    most: int | None
    is_unique: bool = False
    contains: Contains | None = None


@dataclass(frozen=True, slots=True)
class Property:
    name: str
    node: Node
    is_required: bool


@dataclass(frozen=True, slots=True)
class Object:
    """Objects with these properties, in this order, and then others.

    `others` are terminals of names, as JSON, and what such properties hold.
    """

    properties: tuple[Property, ...]
    others: tuple[tuple[str, Node], ...]
    least: int
    most: int | None
    count_path: str = ""


Shape: TypeAlias = Scalars | Array | Object


class Nodes(Protocol):
    """What the shapes of one node need to know of others."""

    terminals: Terminals
    enforcement: Enforcement

    def shapes(self, node: Node) -> tuple[Shape, ...]:
        """The alternatives of a node; none where no value fulfils its claims."""
        ...

    def is_empty(self, node: Node) -> bool:
        """Whether it is certain, without looking deep, that no value fulfils a node's claims."""
        ...

    def are_disjoint(self, *claims: Claim) -> bool:
        """Whether it is certain that no value fulfils all of the claims."""
        ...

    def known_values(self, node: Node) -> tuple[str, ...] | None:
        """All values of a node, as JSON texts, if it is an enumeration of scalars."""
        ...

    def grow(self, count: int) -> None:
        """Count something that takes time and memory; see `graph`."""
        ...
