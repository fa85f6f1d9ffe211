"""The keywords of one schema, read and checked one by one."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from service.text.schema.claims import (
    ANYTHING,
    NOTHING,
    NUMBERS,
    TYPES,
    Alternative,
    Claim,
    Clause,
    Contains,
    Count,
    Items,
    Limit,
    Literals,
    Presence,
    Properties,
    Types,
)
from service.text.schema.errors import SchemaError
from service.text.schema.values import Json, Number, quoted, step, type_of

_NAMED_TYPES = {name: frozenset({name}) for name in TYPES - {"fraction"}} | {"number": NUMBERS}
# An answer is shorter than this, so that an upper limit beyond it demands nothing.
_NO_LIMIT = 2**31
_MAX_LEAST = 65_536  # what `minLength` and `minItems` may demand


class Keywords:
    """The keywords of one schema, checked as they are read. Each error names the keyword."""

    def __init__(self, claim: Claim) -> None:
        # As everywhere in a request, null is the same as absent.
        self.schema: dict[str, Json] = {
            keyword: value
            for keyword, value in claim.schema.items()
            if value is not None or keyword == "const"
        }
        self.claim = claim
        self.path = claim.path
        self.owners = claim.owners if claim.holds else frozenset()
        if claim.holds and self.schema.keys() & {"unevaluatedProperties", "unevaluatedItems"}:
            self.owners |= {claim.path}

    def where(self, keyword: str) -> str:
        return step(self.path, keyword)

    def number(self, keyword: str) -> Number | None:
        value = self.schema.get(keyword)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise SchemaError(self.where(keyword), "It is not a number.")
        return value

    def count(self, keyword: str) -> int | None:
        """A limit on a size; None also where no answer is so large."""
        value = self.number(keyword)
        if value is None:
            return None
        if value < 0 or type_of(value) != "integer":
            raise SchemaError(self.where(keyword), "It is not a whole number from 0 on.")
        is_upper = keyword.startswith("max")
        if value > (_NO_LIMIT if is_upper else _MAX_LEAST):
            if is_upper:
                return None
            raise SchemaError(self.where(keyword), f"It is supported up to {_MAX_LEAST}.")
        return int(value)

    def strings(self, keyword: str) -> tuple[str, ...]:
        return _strings(self.schema.get(keyword, []), self.where(keyword))

    def required(self) -> tuple[str, ...]:
        """The required properties. A boolean, as draft 3 has it, names none."""
        return () if isinstance(self.schema.get("required"), bool) else self.strings("required")

    def child(self, keyword: str, schema: Json, *steps: str | int) -> Claim:
        """A claim about the same value."""
        path = self.where(keyword)
        for key in steps:
            path = step(path, key)
        return Claim(schema, path, True, self.owners, self.claim.cause)

    def inner(self, keyword: str, schema: Json, *steps: str | int) -> Claim:
        """A claim about a part of the value."""
        return replace(self.child(keyword, schema, *steps), owners=frozenset())

    def schemas(self, keyword: str) -> list[Claim]:
        """The claim of a keyword that is a schema about the same value, if it is there."""
        return [self.child(keyword, self.schema[keyword])] if keyword in self.schema else []

    def list_of_schemas(self, keyword: str) -> list[Claim]:
        if keyword not in self.schema:
            return []
        options = self.schema[keyword]
        if not isinstance(options, list) or not options:
            raise SchemaError(self.where(keyword), "It is not a list of schemas.")
        return [self.child(keyword, schema, index) for index, schema in enumerate(options)]

    def map_of_schemas(self, keyword: str) -> dict[str, Json]:
        schemas = self.schema.get(keyword, {})
        if not isinstance(schemas, dict):
            raise SchemaError(self.where(keyword), "It is not an object.")
        return schemas

    def enumerations(self) -> Iterator[Clause]:
        if "const" in self.schema:
            yield (self._equals(self.schema["const"], "const"),)
        if "enum" in self.schema:
            values = self.schema["enum"]
            if not isinstance(values, list):
                raise SchemaError(self.where("enum"), "It is not a list of values.")
            scalars = tuple(value for value in values if not isinstance(value, dict | list))
            options = [Alternative((Literals(scalars),))] if scalars else []
            for index, value in enumerate(values):
                if isinstance(value, dict | list):
                    options.append(self._equals(value, "enum", index))
            yield tuple(options)

    def _equals(self, value: Json, keyword: str, *steps: int) -> Alternative:
        if isinstance(value, dict):
            names = tuple(
                (name, self.inner(keyword, {"const": item}, *steps, name))
                for name, item in value.items()
            )
            closed = Properties(names, rest=NOTHING)
            return Alternative((Types(frozenset({"object"})), closed, Presence(tuple(value))))
        if isinstance(value, list):
            items = Items(
                tuple(
                    self.inner(keyword, {"const": item}, *steps, index)
                    for index, item in enumerate(value)
                ),
                NOTHING,
            )
            count = Count(len(value), len(value), True, self.where(keyword))
            return Alternative((Types(frozenset({"array"})), items, count))
        return Alternative((Literals((value,)),))

    def differs(self, value: Json, keyword: str, *steps: int) -> Iterator[Alternative]:
        """Ways not to equal a value; for an object, but for further properties."""
        if isinstance(value, dict):
            objects = Types(frozenset({"object"}))
            yield Alternative((Types(TYPES - {"object"}),))
            for name, item in value.items():
                other = self.inner(keyword, {"const": item}, *steps, name).opposite()
                yield Alternative((objects, Presence((name,), is_forbidden=True)))
                yield Alternative((objects, Presence((name,)), Properties(((name, other),))))
            if not value:
                yield Alternative((objects, Count(1, None, False, self.where(keyword))))
        elif isinstance(value, list):
            arrays, path = Types(frozenset({"array"})), self.where(keyword)
            yield Alternative((Types(TYPES - {"array"}),))
            yield Alternative((arrays, Count(len(value) + 1, None, True, path)))
            if value:
                yield Alternative((arrays, Count(0, len(value) - 1, True, path)))
            for index, item in enumerate(value):
                before = (ANYTHING,) * index
                other = self.inner(keyword, {"const": item}, *steps, index).opposite()
                at_least = Count(index + 1, None, True, path)
                yield Alternative((arrays, at_least, Items((*before, other), None)))
        else:
            yield Alternative((Literals((value,), is_excluded=True),))

    def dependencies(self) -> Iterator[tuple[str, Claim | tuple[str, ...]]]:
        """What is demanded once a property is there: a schema, or further properties."""
        for name, schema in self.map_of_schemas("dependentSchemas").items():
            yield name, self.child("dependentSchemas", schema, name)
        for name, names in self.map_of_schemas("dependentRequired").items():
            yield name, _strings(names, step(self.where("dependentRequired"), name))
        for name, either in self.map_of_schemas("dependencies").items():
            if isinstance(either, list):
                yield name, _strings(either, step(self.where("dependencies"), name))
            else:
                yield name, self.child("dependencies", either, name)

    def contains(self) -> Contains | None:
        if "contains" not in self.schema:
            return None
        least, most = self.count("minContains"), self.count("maxContains")
        inner = self.inner("contains", self.schema["contains"])
        return Contains(
            inner,
            inner.opposite(self.where("contains")),
            1 if least is None else least,
            most,
            self.where("contains"),
        )

    def items(self) -> Items:
        """Of draft 2020, or of those before it, where `items` may be a list."""
        before: Json = self.schema.get("prefixItems", [])
        keyword, rest_keyword = "prefixItems", "items"
        if isinstance(self.schema.get("items"), list):
            before, keyword, rest_keyword = self.schema["items"], "items", "additionalItems"
        if not isinstance(before, list):
            raise SchemaError(self.where(keyword), "It is not a list of schemas.")
        rest = None
        if rest_keyword in self.schema:
            rest = self.inner(rest_keyword, self.schema[rest_keyword])
        prefix = (self.inner(keyword, schema, index) for index, schema in enumerate(before))
        return Items(tuple(prefix), rest, self.owners)

    def limits(self) -> Iterator[Limit]:
        for keyword, is_lower in (("minimum", True), ("maximum", False)):
            exclusive = f"exclusive{keyword.capitalize()}"
            is_exclusive = self.schema.get(exclusive)
            limit = self.number(keyword)
            if limit is not None:  # in draft 4 the other keyword is a boolean
                yield Limit(limit, is_lower, is_exclusive is True)
            if not isinstance(is_exclusive, bool):
                limit = self.number(exclusive)
                if limit is not None:
                    yield Limit(limit, is_lower, True)

    def types(self) -> frozenset[str]:
        named = self.schema.get("type")
        if named is None:
            return TYPES
        found: frozenset[str] = frozenset()
        for name in named if isinstance(named, list) else [named]:
            if not isinstance(name, str) or name not in _NAMED_TYPES:
                raise SchemaError(self.where("type"), f"There is no type {_shown(name)}.")
            found |= _NAMED_TYPES[name]
        return found


def _strings(value: Json, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SchemaError(path, "It is not a list of names.")
    return tuple(dict.fromkeys(value))


def _shown(value: Json) -> str:
    return quoted(value[:60]) if isinstance(value, str) else type_of(value)
