"""JSON schemas made up at random, of all the keywords that are enforced."""

import random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("a", "b", "name", "kind of", "é", 'q"q')
_PATTERNS = ("^[a-c]{2,4}$", "^x", "y+", "^(yes|no)$", r"^\d{3}-\d{2}$")
_FORMATS = ("date", "date-time", "uuid", "ipv4", "email")


def random_schema(choose: random.Random) -> Schema:
    """A schema that some answer fulfils."""
    return _recursive(choose) if choose.random() < 0.05 else _schema(choose, 3)


def _schema(choose: random.Random, depth: int) -> Schema:
    kinds = [_string, _integer, _number, _enum, _const, _plain, _multiple]
    if depth > 0:
        kinds += [_object] * 4 + [_array] * 2 + [_any_of, _one_of, _map, _merged]
    return choose.choice(kinds)(choose, depth - 1)


def _string(choose: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    match choose.randrange(4):
        case 0:
            schema["minLength"] = choose.randrange(4)
            schema["maxLength"] = schema["minLength"] + choose.randrange(5)
        case 1:
            schema["pattern"] = choose.choice(_PATTERNS)
        case 2:
            schema["format"] = choose.choice(_FORMATS)
    return schema


def _integer(choose: random.Random, depth: int) -> Schema:
    low = choose.randrange(-300, 300)
    schema: Schema = {"type": "integer"}
    if choose.random() < 0.7:
        schema[choose.choice(["minimum", "exclusiveMinimum"])] = low
    if choose.random() < 0.7:
        schema[choose.choice(["maximum", "exclusiveMaximum"])] = low + choose.randrange(2, 5000)
    return schema


def _multiple(choose: random.Random, depth: int) -> Schema:
    return {"type": "integer", "multipleOf": choose.choice([1, 2, 5, 7, 12, 100])}


def _number(choose: random.Random, depth: int) -> Schema:
    low = choose.choice([-2.5, 0, 0.25, 17, 1e3])
    schema: Schema = {"type": "number"}
    if choose.random() < 0.7:
        schema["minimum"] = low
        schema["maximum"] = low + choose.choice([0.5, 3, 1000])
    return schema


def _enum(choose: random.Random, depth: int) -> Schema:
    values = [1, "one", None, True, 2.5, "two words", {"k": [1]}, [], 'q"\\']
    return {"enum": choose.sample(values, choose.randrange(1, 5))}


def _const(choose: random.Random, depth: int) -> Schema:
    return {"const": choose.choice(["x", 0, False, None, {"a": {"b": 1}}, [1, "2"]])}


def _plain(choose: random.Random, depth: int) -> Schema:
    kinds = ["boolean", "null", "string", "integer", "number"]
    return {"type": choose.choice([choose.choice(kinds), choose.sample(kinds, 2)])}


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


def _map(choose: random.Random, depth: int) -> Schema:
    values = _schema(choose, depth)
    if choose.random() < 0.5:
        return {
            "type": "object",
            "patternProperties": {"^[a-z]{1,3}$": values},
            "additionalProperties": False,
        }
    return {"type": "object", "additionalProperties": values, "minProperties": 1}


def _array(choose: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "array", "items": _schema(choose, depth)}
    if choose.random() < 0.4:
        schema["prefixItems"] = [_schema(choose, depth) for _ in range(2)]
    if choose.random() < 0.6:
        schema["minItems"] = choose.randrange(3)
        schema["maxItems"] = schema["minItems"] + choose.randrange(3)
    return schema


def _any_of(choose: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(choose, depth) for _ in range(choose.randrange(1, 4))]}


def _one_of(choose: random.Random, depth: int) -> Schema:
    """Told apart by a tag, as libraries write their unions."""
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


def _merged(choose: random.Random, depth: int) -> Schema:
    """What libraries make of a class and the one it derives from."""
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
