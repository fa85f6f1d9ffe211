"""The keywords of one schema, read and checked one by one."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from service.text.schema.assertions import (
    ANYTHING,
    NOTHING,
    NUMBERS,
    TYPES,
    Alternative,
    Clause,
    Contains,
    Items,
    Literals,
    NumberLimit,
    Properties,
    PropertyPresence,
    SizeRange,
    Subschema,
    Types,
)
from service.text.schema.errors import SchemaError
from service.text.schema.json_values import Json, Number, extend_path, quoted, type_of

_NAMED_TYPES = {name: frozenset({name}) for name in TYPES - {"fraction"}} | {"number": NUMBERS}
# Every output is shorter than this, so a larger upper limit has no effect.
_NO_LIMIT = 2**31
_MAX_LEAST = 65_536  # the largest supported value of `minLength`, `minItems` and the like


class Keywords:
    """The keywords of one schema, checked when they are read. Each error has the keyword's path."""

    def __init__(self, subschema: Subschema) -> None:
        # null means that the keyword is absent, as for all fields of a request.
        self.schema: dict[str, Json] = {
            keyword: value
            for keyword, value in subschema.schema.items()
            if value is not None or keyword == "const"
        }
        self.subschema = subschema
        self.path = subschema.path
        self.scopes: frozenset[str] = frozenset()
        if not subschema.is_negated:
            self.scopes = subschema.scopes
            if self.schema.keys() & {"unevaluatedProperties", "unevaluatedItems"}:
                self.scopes |= {subschema.path}

    def path_of(self, keyword: str) -> str:
        return extend_path(self.path, keyword)

    def number(self, keyword: str) -> Number | None:
        value = self.schema.get(keyword)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise SchemaError(self.path_of(keyword), "The value must be a number.")
        return value

    def count(self, keyword: str) -> int | None:
        """Return a limit on a size; None if there is no limit, or if no output can exceed it."""
        value = self.number(keyword)
        if value is None:
            return None
        if value < 0 or type_of(value) != "integer":
            raise SchemaError(
                self.path_of(keyword), "The value must be an integer that is at least 0."
            )
        is_upper = keyword.startswith("max")
        if value > (_NO_LIMIT if is_upper else _MAX_LEAST):
            if is_upper:
                return None
            raise SchemaError(self.path_of(keyword), f"The value may be at most {_MAX_LEAST}.")
        return int(value)

    def strings(self, keyword: str) -> tuple[str, ...]:
        return _strings(self.schema.get(keyword, []), self.path_of(keyword))

    def required(self) -> tuple[str, ...]:
        """Return the names of required properties; empty for a boolean, as in draft 3."""
        return () if isinstance(self.schema.get("required"), bool) else self.strings("required")

    def in_place_subschema(self, keyword: str, schema: Json, *steps: str | int) -> Subschema:
        """Return a subschema that applies to the same value, as in `allOf`."""
        path = self.path_of(keyword)
        for key in steps:
            path = extend_path(path, key)
        return Subschema(schema, path, False, self.scopes, self.subschema.negated_by)

    def child_subschema(self, keyword: str, schema: Json, *steps: str | int) -> Subschema:
        """Return a subschema that applies to a part of the value, as in `properties`."""
        return replace(self.in_place_subschema(keyword, schema, *steps), scopes=frozenset())

    def schemas(self, keyword: str) -> list[Subschema]:
        """Return the subschema of a keyword like `not`, as a list that is empty if it is absent."""
        return (
            [self.in_place_subschema(keyword, self.schema[keyword])]
            if keyword in self.schema
            else []
        )

    def list_of_schemas(self, keyword: str) -> list[Subschema]:
        if keyword not in self.schema:
            return []
        options = self.schema[keyword]
        if not isinstance(options, list) or not options:
            raise SchemaError(self.path_of(keyword), "The value must be a list of schemas.")
        return [
            self.in_place_subschema(keyword, schema, index) for index, schema in enumerate(options)
        ]

    def map_of_schemas(self, keyword: str) -> dict[str, Json]:
        schemas = self.schema.get(keyword, {})
        if not isinstance(schemas, dict):
            raise SchemaError(self.path_of(keyword), "The value must be an object.")
        return schemas

    def const_and_enum(self) -> Iterator[Clause]:
        if "const" in self.schema:
            yield (self._equal_to(self.schema["const"], "const"),)
        if "enum" in self.schema:
            values = self.schema["enum"]
            if not isinstance(values, list):
                raise SchemaError(self.path_of("enum"), "The value must be a list.")
            scalars = tuple(value for value in values if not isinstance(value, dict | list))
            options = [Alternative((Literals(scalars),))] if scalars else []
            for index, value in enumerate(values):
                if isinstance(value, dict | list):
                    options.append(self._equal_to(value, "enum", index))
            yield tuple(options)

    def _equal_to(self, value: Json, keyword: str, *steps: int) -> Alternative:
        if isinstance(value, dict):
            names = tuple(
                (name, self.child_subschema(keyword, {"const": item}, *steps, name))
                for name, item in value.items()
            )
            closed = Properties(names, rest=NOTHING)
            return Alternative(
                (Types(frozenset({"object"})), closed, PropertyPresence(tuple(value)))
            )
        if isinstance(value, list):
            items = Items(
                tuple(
                    self.child_subschema(keyword, {"const": item}, *steps, index)
                    for index, item in enumerate(value)
                ),
                NOTHING,
            )
            count = SizeRange(len(value), len(value), True, self.path_of(keyword))
            return Alternative((Types(frozenset({"array"})), items, count))
        return Alternative((Literals((value,)),))

    def unequal_to(self, value: Json, keyword: str, *steps: int) -> Iterator[Alternative]:
        """Yield the alternatives of values that differ from `value`.

        Objects with additional properties are left out.
        """
        if isinstance(value, dict):
            objects = Types(frozenset({"object"}))
            yield Alternative((Types(TYPES - {"object"}),))
            for name, item in value.items():
                other = self.child_subschema(keyword, {"const": item}, *steps, name).negated()
                yield Alternative((objects, PropertyPresence((name,), is_forbidden=True)))
                yield Alternative(
                    (objects, PropertyPresence((name,)), Properties(((name, other),)))
                )
            if not value:
                yield Alternative((objects, SizeRange(1, None, False, self.path_of(keyword))))
        elif isinstance(value, list):
            arrays, path = Types(frozenset({"array"})), self.path_of(keyword)
            yield Alternative((Types(TYPES - {"array"}),))
            yield Alternative((arrays, SizeRange(len(value) + 1, None, True, path)))
            if value:
                yield Alternative((arrays, SizeRange(0, len(value) - 1, True, path)))
            for index, item in enumerate(value):
                before = (ANYTHING,) * index
                other = self.child_subschema(keyword, {"const": item}, *steps, index).negated()
                at_least = SizeRange(index + 1, None, True, path)
                yield Alternative((arrays, at_least, Items((*before, other), None)))
        else:
            yield Alternative((Literals((value,), is_excluded=True),))

    def dependencies(self) -> Iterator[tuple[str, Subschema | tuple[str, ...]]]:
        """Yield each name with the schema or the further properties that its presence requires."""
        for name, schema in self.map_of_schemas("dependentSchemas").items():
            yield name, self.in_place_subschema("dependentSchemas", schema, name)
        for name, names in self.map_of_schemas("dependentRequired").items():
            yield name, _strings(names, extend_path(self.path_of("dependentRequired"), name))
        for name, either in self.map_of_schemas("dependencies").items():
            if isinstance(either, list):
                yield name, _strings(either, extend_path(self.path_of("dependencies"), name))
            else:
                yield name, self.in_place_subschema("dependencies", either, name)

    def contains(self) -> Contains | None:
        if "contains" not in self.schema:
            return None
        least, most = self.count("minContains"), self.count("maxContains")
        inner = self.child_subschema("contains", self.schema["contains"])
        return Contains(
            inner,
            inner.negated(self.path_of("contains")),
            1 if least is None else least,
            most,
            self.path_of("contains"),
        )

    def items(self) -> Items:
        """Return the subschemas of items, as draft 2020 or earlier drafts write them."""
        before: Json = self.schema.get("prefixItems", [])
        keyword, rest_keyword = "prefixItems", "items"
        if isinstance(self.schema.get("items"), list):
            before, keyword, rest_keyword = self.schema["items"], "items", "additionalItems"
        if not isinstance(before, list):
            raise SchemaError(self.path_of(keyword), "The value must be a list of schemas.")
        rest = None
        if rest_keyword in self.schema:
            rest = self.child_subschema(rest_keyword, self.schema[rest_keyword])
        prefix = (
            self.child_subschema(keyword, schema, index) for index, schema in enumerate(before)
        )
        return Items(tuple(prefix), rest, self.scopes)

    def limits(self) -> Iterator[NumberLimit]:
        for keyword, is_lower in (("minimum", True), ("maximum", False)):
            exclusive = f"exclusive{keyword.capitalize()}"
            is_exclusive = self.schema.get(exclusive)
            limit = self.number(keyword)
            if limit is not None:  # draft 4 has a boolean that makes it exclusive
                yield NumberLimit(limit, is_lower, is_exclusive is True)
            if not isinstance(is_exclusive, bool):
                limit = self.number(exclusive)
                if limit is not None:
                    yield NumberLimit(limit, is_lower, True)

    def types(self) -> frozenset[str]:
        named = self.schema.get("type")
        if named is None:
            return TYPES
        found: frozenset[str] = frozenset()
        for name in named if isinstance(named, list) else [named]:
            if not isinstance(name, str) or name not in _NAMED_TYPES:
                raise SchemaError(self.path_of("type"), _type_error(name))
            found |= _NAMED_TYPES[name]
        return found


def _strings(value: Json, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SchemaError(path, "The value must be a list of names.")
    return tuple(dict.fromkeys(value))


def _type_error(value: Json) -> str:
    if isinstance(value, str):
        return f"{quoted(value[:60])} is not a type of JSON Schema."
    return f"A type must be a string, not a value of type {type_of(value)}."
