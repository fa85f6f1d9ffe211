"""Conjunctions: the merged assertions of one combination of alternatives."""

from dataclasses import dataclass, field, replace

from service.text.schema.assertions import (
    TYPES,
    Assertion,
    Contains,
    Items,
    Literals,
    MultipleOf,
    NumberLimit,
    Properties,
    PropertyNames,
    PropertyPresence,
    SizeRange,
    StringTerminal,
    Subschema,
    Types,
    Unevaluated,
    UniqueItems,
)
from service.text.schema.json_values import Json, comparison_key, type_of
from service.text.schema.numbers import Bounds


@dataclass(slots=True)
class Conjunction:
    """The merged assertions of one way to match a node.

    Attributes:
        subschemas: The subschemas that have been split into these assertions.
    """

    types: frozenset[str] = TYPES
    literals: tuple[Json, ...] | None = None
    excluded: tuple[Json, ...] = ()
    bounds: Bounds = field(default_factory=Bounds)
    multiples: tuple[MultipleOf, ...] = ()
    texts: tuple[StringTerminal, ...] = ()
    items: tuple[Items, ...] = ()
    contains: tuple[Contains, ...] = ()
    unique: tuple[UniqueItems, ...] = ()
    properties: tuple[Properties, ...] = ()
    names: tuple[Subschema, ...] = ()
    required: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()
    unevaluated: tuple[Unevaluated, ...] = ()
    item_count: tuple[int, int | None] = (0, None)
    property_count: tuple[int, int | None] = (0, None)
    count_path: str = ""
    subschemas: frozenset[Subschema] = frozenset()

    @property
    def is_contradictory(self) -> bool:
        """True if certainly no value can match. Parts of the value are not considered."""
        return not self.types or not self.forbidden.isdisjoint(self.required)

    def with_assertions(self, assertions: tuple[Assertion, ...]) -> "Conjunction":
        """Return this conjunction with further assertions."""
        if not assertions:
            return self
        conjunction = replace(self)
        for assertion in assertions:
            conjunction._add(assertion)
        return conjunction

    def _add(self, assertion: Assertion) -> None:  # noqa: C901, PLR0912  # one line for each kind of assertion
        match assertion:
            case Types(types):
                self.types &= types
            case Literals(values, is_excluded=True):
                self.excluded += values
            case Literals(values):
                if self.literals is not None:
                    known = set(map(comparison_key, self.literals))
                    values = tuple(value for value in values if comparison_key(value) in known)
                self.literals = values
                self.types &= frozenset(map(type_of, values))
            case NumberLimit(number, is_lower, is_exclusive):
                narrowed = self.bounds.at_least if is_lower else self.bounds.at_most
                self.bounds = narrowed(number, is_exclusive=is_exclusive)
            case MultipleOf():
                self.multiples += (assertion,)
            case StringTerminal():
                self.texts += (assertion,)
            case Items():
                self.items += (assertion,)
            case Contains():
                self.contains += (assertion,)
            case UniqueItems():
                self.unique += (assertion,)
            case Properties():
                self.properties += (assertion,)
            case PropertyNames(subschema):
                self.names += (subschema,)
            case PropertyPresence(names, is_forbidden=True):
                self.forbidden |= set(names)
            case PropertyPresence(names):
                self.required += tuple(name for name in names if name not in self.required)
            case SizeRange(least, most, is_of_items=True):
                self.item_count = _narrower(self.item_count, (least, most))
            case SizeRange(least, most, path=path):
                self.property_count = _narrower(self.property_count, (least, most))
                self.count_path = self.count_path or path
            case Unevaluated():
                self.unevaluated += (assertion,)


def _narrower(
    first: tuple[int, int | None], second: tuple[int, int | None]
) -> tuple[int, int | None]:
    ends = [most for _, most in (first, second) if most is not None]
    return max(first[0], second[0]), min(ends, default=None)
