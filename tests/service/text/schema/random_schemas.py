"""Random JSON schemas with all keywords that constrain values."""

import random
from decimal import Decimal
from typing import Any

Schema = dict[str, Any]

_NAMES = ("a", "b", "name", "kind of", "é", 'q"q')
_PATTERNS = ("^[a-c]{2,4}$", "^x", "y+", "^(yes|no)$", r"^\d{3}-\d{2}$", "^(?!x)[a-z]+$", r"^\S*$")
_FORMATS = ("date", "date-time", "uuid", "ipv4", "ipv6", "email", "time", "duration", "path")
_LARGE = (2**53, 2**63 - 1, 2**64, 10**19, -(2**53) - 1, -(2**63))
_DECIMALS = ("0.1", "1e-7", "-0.25", "1e19", "99.5", "1E400", "-1e400", "0.30000000000000004")


def random_schema(choose: random.Random) -> Schema:
    """Return a schema. Grammars can enforce all or most of its keywords."""
    return _recursive(choose) if choose.random() < 0.05 else _schema(choose, 3)


def unenforceable_schema(choose: random.Random) -> Schema:
    """Return a schema. Grammars cannot enforce most of its keywords."""
    odd: list[Schema] = [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 3},
        {"type": "string", "pattern": r"\bx", "maxLength": 5},
        {"type": "string", "pattern": r"(a|b)\1", "minLength": 2},
        {"type": "integer", "multipleOf": 999_983, "minimum": 3},
        {"type": "object", "minProperties": 3, "additionalProperties": {"type": "null"}},
        {"type": "array", "not": {"uniqueItems": True}, "items": {"type": "boolean"}},
        {"type": "array", "maxItems": 2, "contains": {"uniqueItems": True}, "maxContains": 1},
    ]
    return {
        "type": "object",
        "properties": {
            "odd": choose.choice(odd),
            "list": {"type": "array", "items": choose.choice(odd), "maxItems": 2},
            "plain": _schema(choose, 1),
        },
        "required": ["odd", "plain"],
        "additionalProperties": False,
    }


def _schema(choose: random.Random, depth: int) -> Schema:
    kinds = [_string, _integer, _number, _enum, _const, _plain, _multiple, _negated]
    if depth > 0:
        kinds += [_object] * 4 + [_array] * 2 + [_any_of, _one_of, _map, _merged, _limited]
        kinds += [_conditional, _dependent, _listed, _containing, _unevaluated, _overlapping]
    return choose.choice(kinds)(choose, depth - 1)


def _string(choose: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    match choose.randrange(5):
        case 0:
            schema["minLength"] = choose.randrange(4)
            schema["maxLength"] = schema["minLength"] + choose.randrange(5)
        case 1:
            schema["pattern"] = choose.choice(_PATTERNS)
        case 2:
            schema["format"] = choose.choice(_FORMATS)
        case 3:
            schema["pattern"] = choose.choice(_PATTERNS)
            schema["maxLength"] = 12
    return schema


def _bound(choose: random.Random) -> int | Decimal:
    match choose.randrange(4):
        case 0:
            return choose.choice(_LARGE) + choose.randrange(-2, 3)
        case 1:
            return Decimal(choose.choice(_DECIMALS))
        case 2:
            return choose.choice([1, -1]) * int(10 ** choose.randrange(20))
    return choose.randrange(-300, 300)


def _integer(choose: random.Random, depth: int) -> Schema:
    low: int | Decimal = _bound(choose)
    schema: Schema = {"type": "integer"}
    if choose.random() < 0.7:
        schema[choose.choice(["minimum", "exclusiveMinimum"])] = low
    if choose.random() < 0.7:
        high = _bound(choose)
        if -(10**30) < low < 10**30:
            high = int(low) + choose.choice([2, 50, 10**6])
        schema[choose.choice(["maximum", "exclusiveMaximum"])] = high
    return schema


def _multiple(choose: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": choose.choice(["integer", "number"])}
    of = choose.choice(["1", "2", "5", "7", "12", "100", "0.01", "0.5", "0.25", "2.5", "0.1"])
    schema["multipleOf"] = Decimal(of) if "." in of else int(of)
    if choose.random() < 0.5:
        schema["minimum"] = choose.choice([0, -50, Decimal("0.5"), -(2**63)])
    if choose.random() < 0.5:
        schema["maximum"] = choose.choice([1000, 2**63 - 1, Decimal("99.5")])
    return schema


def _number(choose: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "number"}
    if choose.random() < 0.6:
        schema[choose.choice(["minimum", "exclusiveMinimum"])] = _bound(choose)
    if choose.random() < 0.6:
        schema[choose.choice(["maximum", "exclusiveMaximum"])] = _bound(choose)
    return schema


def _enum(choose: random.Random, depth: int) -> Schema:
    values = [1, "one", None, True, Decimal("2.5"), "two words", {"k": [1]}, [], 'q"\\', 2**64 + 1]
    return {"enum": choose.sample(values, choose.randrange(1, 5))}


def _const(choose: random.Random, depth: int) -> Schema:
    values = ["x", 0, False, None, {"a": {"b": 1}}, [1, "2"], 2**53 + 1, Decimal("1e400")]
    return {"const": choose.choice(values)}


def _plain(choose: random.Random, depth: int) -> Schema:
    kinds = ["boolean", "null", "string", "integer", "number"]
    return {"type": choose.choice([choose.choice(kinds), choose.sample(kinds, 2)])}


def _negated(choose: random.Random, depth: int) -> Schema:
    what = choose.choice(
        [
            {"const": 5},
            {"enum": ["a", "b", 1, None]},
            {"type": "string"},
            {"type": "integer"},
            {"minimum": 3},
            {"pattern": "^a"},
            {"minLength": 3},
            {"const": {"a": 1}},
            {"const": [1]},
            {"anyOf": [{"type": "string"}, {"maximum": 7}]},
        ]
    )
    types = choose.sample(["string", "integer", "number", "boolean", "null"], 3)
    return {"type": types, "not": what}


def _object(choose: random.Random, depth: int) -> Schema:
    names = choose.sample(_NAMES, choose.randrange(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _schema(choose, depth) for name in names},
        "required": choose.sample(names, choose.randrange(len(names) + 1)),
    }
    if choose.random() < 0.7:
        schema["additionalProperties"] = choose.choice([False, False, {"type": "integer"}])
    return schema


def _limited(choose: random.Random, depth: int) -> Schema:
    schema = _object(choose, depth)
    if choose.random() < 0.6:
        schema["minProperties"] = choose.randrange(len(schema["properties"]) + 1)
    if choose.random() < 0.6:
        least = max(len(schema["required"]), schema.get("minProperties", 0))
        schema["maxProperties"] = least + choose.randrange(3)
    return schema


def _map(choose: random.Random, depth: int) -> Schema:
    values = _schema(choose, depth)
    match choose.randrange(5):
        case 0:
            return {
                "type": "object",
                "patternProperties": {"^[a-z]{1,3}$": values},
                "additionalProperties": False,
            }
        case 1:
            return {"type": "object", "additionalProperties": values, "minProperties": 1}
        case 2:
            names = {"enum": ["x", "y", "z"]}
            return {"type": "object", "propertyNames": names, "additionalProperties": values}
        case 3:
            pattern = {"pattern": "^[a-z]+$", "maxLength": 4}
            return {"type": "object", "propertyNames": pattern, "additionalProperties": values}
    return {
        "type": "object",
        "properties": {"ax": {"type": "integer"}},
        "patternProperties": {"^a": {"minimum": 3}, "z$": {"type": "string"}},
        "additionalProperties": values,
    }


def _array(choose: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "array", "items": _schema(choose, depth)}
    if choose.random() < 0.4:
        schema["prefixItems"] = [_schema(choose, depth) for _ in range(2)]
    if choose.random() < 0.6:
        schema["minItems"] = choose.randrange(3)
        schema["maxItems"] = schema["minItems"] + choose.randrange(3)
    return schema


def _listed(choose: random.Random, depth: int) -> Schema:
    """Return a schema of a set of enumerated values."""
    values = choose.sample(["a", "b", 1, None, True, Decimal("1.5")], choose.randrange(2, 6))
    schema = {"type": "array", "items": {"enum": values}, "uniqueItems": True}
    if choose.random() < 0.5:
        schema["minItems"] = choose.randrange(len(values))
    return schema


def _containing(choose: random.Random, depth: int) -> Schema:
    schema: Schema = {
        "type": "array",
        "items": {"type": ["string", "integer", "null"]},
        "contains": choose.choice([{"type": "string"}, {"const": 7}, {"minimum": 3}]),
    }
    if choose.random() < 0.5:
        schema["minContains"] = choose.randrange(3)
    if choose.random() < 0.4:
        schema["maxContains"] = schema.get("minContains", 1) + choose.randrange(2)
    if choose.random() < 0.4:
        schema["maxItems"] = schema.get("minContains", 1) + choose.randrange(3)
    return schema


def _any_of(choose: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(choose, depth) for _ in range(choose.randrange(1, 4))]}


def _one_of(choose: random.Random, depth: int) -> Schema:
    """Return a union with a tag, as libraries write it."""
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": tag}, "value": _schema(choose, depth)},
                "required": ["kind", "value"],
                "additionalProperties": False,
            }
            for tag in ("first", "second")
        ]
    }


def _overlapping(choose: random.Random, depth: int) -> Schema:
    options: list[Schema] = [
        {"type": "integer"},
        {"type": "number", "minimum": 3},
        {"type": "string", "maxLength": 3},
        {"pattern": "^a", "type": "string"},
        {"enum": ["abc", 4, None]},
        {"type": "null"},
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "string"}}},
    ]
    return {"oneOf": choose.sample(options, choose.randrange(2, 4))}


def _conditional(choose: random.Random, depth: int) -> Schema:
    return {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b", "c"]}, "value": _schema(choose, depth)},
        "required": ["kind"],
        "additionalProperties": False,
        "if": {"properties": {"kind": {"const": "a"}}},
        "then": {"required": ["value"]},
        "else": choose.choice([{}, {"properties": {"value": False}}, {"maxProperties": 1}]),
    }


def _dependent(choose: random.Random, depth: int) -> Schema:
    schema = _object(choose, depth)
    schema["additionalProperties"] = choose.choice([False, True])
    first, second = choose.sample(_NAMES, 2)
    if choose.random() < 0.5:
        schema["dependentRequired"] = {first: [second], second: [first]}
    else:
        schema["dependentSchemas"] = {first: {"properties": {second: {"type": "integer"}}}}
    return schema


def _unevaluated(choose: random.Random, depth: int) -> Schema:
    return {
        "type": "object",
        "properties": {"a": _schema(choose, depth)},
        "anyOf": [
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
            {"properties": {"c": {"type": "string", "maxLength": 3}}},
        ],
        "unevaluatedProperties": choose.choice([False, {"type": "null"}]),
    }


def _merged(choose: random.Random, depth: int) -> Schema:
    """Return the schema that libraries write for a class and its base class."""
    return {
        "allOf": [
            {"type": "object", "properties": {"a": _schema(choose, depth)}},
            {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    }


def _recursive(choose: random.Random) -> Schema:
    return {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": _schema(choose, 0),
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }
