"""All that one alternative of a value asserts."""

from dataclasses import dataclass, field, replace

from service.text.schema.claims import (
    TYPES,
    Atom,
    Claim,
    Contains,
    Count,
    Items,
    Limit,
    Literals,
    Multiple,
    Names,
    Presence,
    Properties,
    Text,
    Types,
    Unevaluated,
    Unique,
)
from service.text.schema.numbers import Bounds
from service.text.schema.values import Json, identity, type_of


@dataclass(slots=True)
class Branch:
    """All atoms of one way to fulfil a node."""

    types: frozenset[str] = TYPES
    literals: tuple[Json, ...] | None = None
    excluded: tuple[Json, ...] = ()
    bounds: Bounds = field(default_factory=Bounds)
    multiples: tuple[Multiple, ...] = ()
    texts: tuple[Text, ...] = ()
    items: tuple[Items, ...] = ()
    contains: tuple[Contains, ...] = ()
    unique: tuple[Unique, ...] = ()
    properties: tuple[Properties, ...] = ()
    names: tuple[Claim, ...] = ()
    required: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()
    unevaluated: tuple[Unevaluated, ...] = ()
    item_count: tuple[int, int | None] = (0, None)
    property_count: tuple[int, int | None] = (0, None)
    count_path: str = ""
    claims: frozenset[Claim] = frozenset()  # that have been taken apart

    @property
    def is_contradictory(self) -> bool:
        """Whether it is plain, without a look at any part, that no value fulfils it."""
        return not self.types or not self.forbidden.isdisjoint(self.required)

    def with_atoms(self, atoms: tuple[Atom, ...]) -> "Branch":
        if not atoms:
            return self
        branch = replace(self)
        for atom in atoms:
            branch._add(atom)
        return branch

    def _add(self, atom: Atom) -> None:  # noqa: C901, PLR0912  # one line for each kind of atom
        match atom:
            case Types(types):
                self.types &= types
            case Literals(values, is_excluded=True):
                self.excluded += values
            case Literals(values):
                if self.literals is not None:
                    known = set(map(identity, self.literals))
                    values = tuple(value for value in values if identity(value) in known)
                self.literals = values
                self.types &= frozenset(map(type_of, values))
            case Limit(number, is_lower, is_exclusive):
                narrowed = self.bounds.from_ if is_lower else self.bounds.to
                self.bounds = narrowed(number, is_exclusive=is_exclusive)
            case Multiple():
                self.multiples += (atom,)
            case Text():
                self.texts += (atom,)
            case Items():
                self.items += (atom,)
            case Contains():
                self.contains += (atom,)
            case Unique():
                self.unique += (atom,)
            case Properties():
                self.properties += (atom,)
            case Names(claim):
                self.names += (claim,)
            case Presence(names, is_forbidden=True):
                self.forbidden |= set(names)
            case Presence(names):
                self.required += tuple(name for name in names if name not in self.required)
            case Count(least, most, is_of_items=True):
                self.item_count = _narrower(self.item_count, (least, most))
            case Count(least, most, path=path):
                self.property_count = _narrower(self.property_count, (least, most))
                self.count_path = self.count_path or path
            case Unevaluated():
                self.unevaluated += (atom,)


def _narrower(
    first: tuple[int, int | None], second: tuple[int, int | None]
) -> tuple[int, int | None]:
    ends = [most for _, most in (first, second) if most is not None]
    return max(first[0], second[0]), min(ends, default=None)
