"""JSON schemas as callers send them: refused here is what llguidance would not refuse itself."""

import json
from collections.abc import Iterator
from decimal import Decimal
from math import lcm
from typing import Any, NoReturn

from service.errors import InvalidField, UnsupportedField

MAX_SCHEMA_LENGTH = 131_072  # characters
MAX_SCHEMA_DEPTH = 64  # of nested objects and arrays
MAX_PROPERTIES = 1_000  # of one object
# Multiples of a number are told apart by an automaton of as many states: 80 s for 999 983.
_MAX_MULTIPLE = 1_000
_MAX_MULTIPLES = 10_000  # what several of them come to where they meet


def parse_schema(text: str, field: str) -> dict[str, Any]:
    """The schema that stands in `field`, within limits. True is the schema without any demand.

    Raises:
        InvalidField, UnsupportedField
    """
    if len(text) > MAX_SCHEMA_LENGTH:
        raise InvalidField(field, f"A JSON schema has at most {MAX_SCHEMA_LENGTH} characters.")
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(schema, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise InvalidField(field, f"The schema is not valid JSON: {error}") from error
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidField(field, "A JSON schema is an object.")
    for _ in _objects(schema, field):
        pass  # it is not too deep
    return schema


def check_cost(schema: dict[str, Any], field: str) -> None:
    """Refuse what would take too long to compile.

    Raises:
        InvalidField, UnsupportedField
    """
    multiples = set()
    for node in _objects(schema, field):
        multiple = node.get("multipleOf")
        if isinstance(multiple, int | float) and not isinstance(multiple, bool):
            multiples.add(_coefficient(multiple))
        properties = node.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise InvalidField(field, f"An object has at most {MAX_PROPERTIES} properties.")
    if any(multiple > _MAX_MULTIPLE for multiple in multiples) or lcm(*multiples) > _MAX_MULTIPLES:
        raise UnsupportedField(
            field,
            f"The schema's keyword multipleOf is supported for up to {_MAX_MULTIPLE}, "
            f"and for several whose common multiple is at most {_MAX_MULTIPLES}.",
        )


def check_exact(schema: dict[str, Any], field: str) -> None:
    """Refuse what a grammar would be lenient about.

    Raises:
        UnsupportedField
    """
    if "x-guidance" in schema:
        raise UnsupportedField(field, "The schema's keyword x-guidance is not supported.")
    for node in _objects(schema, field):
        at_least, required = node.get("minProperties"), node.get("required")
        num_certain = len(set(map(str, required))) if isinstance(required, list) else 0
        if isinstance(at_least, int | float) and at_least > max(1, num_certain):
            # A grammar cannot tell a name from the same again, and JSON keeps one of the two.
            raise UnsupportedField(
                field, "The schema's keyword minProperties is supported up to what is required."
            )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _coefficient(number: float) -> int:
    """The number without its power of ten."""
    digits = Decimal(str(number)).normalize().as_tuple().digits
    return int("".join(map(str, digits))) or 1


def _objects(schema: Any, field: str) -> Iterator[dict[str, Any]]:
    """Every object of the document: more than the schemas in it, which is on the safe side."""
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        yield from (node for node in level if isinstance(node, dict))
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise InvalidField(field, f"A JSON schema nests at most {MAX_SCHEMA_DEPTH} levels deep.")
