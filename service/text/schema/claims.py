"""What is said about a value: by schemas, and by the simple assertions that schemas come to.

A claim says that a value fulfils a schema, or that it does not. It comes to clauses, all of which
hold; of a clause at least one alternative holds; of an alternative all atoms and further claims.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from service.text.schema.values import Json, Number

NUMBERS = frozenset({"integer", "fraction"})
TYPES = frozenset({"null", "boolean", "string", "array", "object"}) | NUMBERS


@dataclass(frozen=True, slots=True)
class Claim:
    """A value fulfils `schema`, or does not.

    `path` is where the schema stands. `owners` are the paths of the schemas around it whose
    `unevaluatedProperties` or `unevaluatedItems` count what it evaluates. `cause` is the path of
    the keyword for which a schema is negated.
    """

    schema: Json = field(compare=False)
    path: str
    holds: bool = True
    owners: frozenset[str] = frozenset()
    cause: str = field(default="", compare=False)

    def opposite(self, cause: str = "") -> "Claim":
        """The value does not fulfil the schema, where it does here, and the other way round."""
        return Claim(self.schema, self.path, not self.holds, cause=cause or self.cause)


# Claims that are in no document. `#` begins no path.
ANYTHING = Claim(True, "#anything")
NOTHING = Claim(False, "#nothing")
OBJECT = Claim({"type": "object"}, "#object")
STRING = Claim({"type": "string"}, "#string")


@dataclass(frozen=True, slots=True)
class Types:
    """The value is of one of these types. All other atoms are about values of one type alone."""

    types: frozenset[str]


@dataclass(frozen=True, slots=True)
class Literals:
    """The value is one of these, or it is none of these; none is an array or an object."""

    values: tuple[Json, ...]
    is_excluded: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """A number is at least, or at most, the limit."""

    number: Number
    is_lower: bool
    is_exclusive: bool


@dataclass(frozen=True, slots=True)
class Multiple:
    """A number is a multiple of this one."""

    number: Number
    path: str


@dataclass(frozen=True, slots=True)
class Text:
    """The terminal matches a string as JSON writes it."""

    terminal: str
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """What an array holds: at its first places, and at all others (None: anything)."""

    prefix: tuple[Claim, ...]
    rest: Claim | None
    owners: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Contains:
    """An array has at least, and at most, so many items that fulfil the claim."""

    claim: Claim
    opposite: Claim
    least: int
    most: int | None
    path: str


@dataclass(frozen=True, slots=True)
class Count:
    """The number of an array's items, or of an object's properties."""

    least: int
    most: int | None
    is_of_items: bool
    path: str


@dataclass(frozen=True, slots=True)
class Unique:
    """No two items of an array are equal."""

    path: str


@dataclass(frozen=True, slots=True)
class Properties:
    """What an object's properties hold: by name, by pattern, and all others (None: anything).

    A pattern is the terminal that the name's JSON matches, and the one to be used with `~`.
    """

    names: tuple[tuple[str, Claim], ...] = ()
    patterns: tuple[tuple[str, str, Claim], ...] = ()
    rest: Claim | None = None
    owners: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Names:
    """The name of every property of an object fulfils the claim."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Presence:
    """An object has these properties, or has none of them."""

    names: tuple[str, ...]
    is_forbidden: bool = False


@dataclass(frozen=True, slots=True)
class Unevaluated:
    """What the schemas within `owner` do not evaluate fulfils the claim."""

    owner: str
    claim: Claim
    is_of_items: bool


Atom: TypeAlias = (
    Types | Literals | Limit | Multiple | Text | Items | Contains | Count | Unique | Properties
    | Names | Presence | Unevaluated
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alternative:
    atoms: tuple[Atom, ...] = ()
    claims: tuple[Claim, ...] = ()


Clause: TypeAlias = tuple[Alternative, ...]
