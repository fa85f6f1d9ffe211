"""Subschemas, and the simple assertions that their keywords make about a value.

A subschema is equivalent to a list of clauses (a conjunctive normal form). A value matches the
subschema if it satisfies every clause. It satisfies a clause if it satisfies at least one of its
alternatives: all assertions and all further subschemas of that alternative.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from service.text.schema.json_values import Json, Number

NUMBERS = frozenset({"integer", "fraction"})
TYPES = frozenset({"null", "boolean", "string", "array", "object"}) | NUMBERS


@dataclass(frozen=True, slots=True)
class Subschema:
    """A schema in the document that a value must match, or must not match if `is_negated`.

    Attributes:
        path: The path of the schema in the document.
        scopes: The paths of the enclosing schemas whose `unevaluatedProperties` or
            `unevaluatedItems` take into account what this schema evaluates.
        negated_by: The path of the keyword that negates the schema.
    """

    schema: Json = field(compare=False)
    path: str
    is_negated: bool = False
    scopes: frozenset[str] = frozenset()
    negated_by: str = field(default="", compare=False)

    def negated(self, negated_by: str = "") -> "Subschema":
        """Return the negation: values that match it do not match this subschema."""
        return Subschema(
            self.schema, self.path, not self.is_negated, negated_by=negated_by or self.negated_by
        )


# Subschemas that are in no document. No path in a document begins with `#`.
ANYTHING = Subschema(True, "#anything")
NOTHING = Subschema(False, "#nothing")
OBJECT = Subschema({"type": "object"}, "#object")
STRING = Subschema({"type": "string"}, "#string")


@dataclass(frozen=True, slots=True)
class Types:
    """The value has one of these types. All other assertions apply to values of one type only."""

    types: frozenset[str]


@dataclass(frozen=True, slots=True)
class Literals:
    """The value is one of `values`, or none of them if `is_excluded`. All are scalars."""

    values: tuple[Json, ...]
    is_excluded: bool = False


@dataclass(frozen=True, slots=True)
class NumberLimit:
    """A number is at least, or at most, `number`."""

    number: Number
    is_lower: bool
    is_exclusive: bool


@dataclass(frozen=True, slots=True)
class MultipleOf:
    """A number is a multiple of `number`."""

    number: Number
    path: str


@dataclass(frozen=True, slots=True)
class StringTerminal:
    """The terminal matches a string as JSON writes it."""

    terminal: str
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """Subschemas of an array's items: the first ones, and the rest (None if there is none)."""

    prefix: tuple[Subschema, ...]
    rest: Subschema | None
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Contains:
    """An array has `least` to `most` items that match `subschema`."""

    subschema: Subschema
    opposite: Subschema
    least: int
    most: int | None
    path: str


@dataclass(frozen=True, slots=True)
class SizeRange:
    """The number of an array's items, or of an object's properties, is in a range."""

    least: int
    most: int | None
    is_of_items: bool
    path: str


@dataclass(frozen=True, slots=True)
class UniqueItems:
    """No two items of an array are equal."""

    path: str


@dataclass(frozen=True, slots=True)
class Properties:
    """Subschemas of an object's properties: by name, by pattern, and the rest (or None).

    A pattern is a pair of terminals over the JSON text of the name: one to match, and a wider one
    to use with `~`.
    """

    names: tuple[tuple[str, Subschema], ...] = ()
    patterns: tuple[tuple[str, str, Subschema], ...] = ()
    rest: Subschema | None = None
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PropertyNames:
    """The name of every property of an object matches the subschema."""

    subschema: Subschema


@dataclass(frozen=True, slots=True)
class PropertyPresence:
    """An object has all these properties, or none of them if `is_forbidden`."""

    names: tuple[str, ...]
    is_forbidden: bool = False


@dataclass(frozen=True, slots=True)
class Unevaluated:
    """The parts that no schema within `scope` evaluates match the subschema."""

    scope: str
    subschema: Subschema
    is_of_items: bool


Assertion: TypeAlias = (
    Types | Literals | NumberLimit | MultipleOf | StringTerminal | Items | Contains | SizeRange
    | UniqueItems | Properties | PropertyNames | PropertyPresence | Unevaluated
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alternative:
    """Assertions and subschemas that a value must all satisfy."""

    assertions: tuple[Assertion, ...] = ()
    subschemas: tuple[Subschema, ...] = ()


Clause: TypeAlias = tuple[Alternative, ...]
