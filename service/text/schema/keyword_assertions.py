"""The simple assertions of a schema's keywords, except keywords that combine whole schemas."""

from collections.abc import Iterator

from service.text.schema import patterns, string_formats
from service.text.schema.assertions import (
    TYPES,
    Assertion,
    MultipleOf,
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
from service.text.schema.enforcement import Enforcement
from service.text.schema.errors import SchemaError
from service.text.schema.json_values import Json, extend_path, quoted
from service.text.schema.keywords import Keywords
from service.text.schema.pattern_syntax import InvalidPattern, UnsupportedPattern

_MAX_PATTERNS = 8  # maximum number of patterns in one `patternProperties`
_NEVER = "(/a/ & /b/)"


def assertions_of(keywords: Keywords, enforcement: Enforcement) -> Iterator[Assertion]:
    """Yield each assertion of a schema's keywords.

    Raises:
        SchemaError: A keyword is malformed, or it cannot be enforced and the schema is strict.
    """
    yield from _type_assertions(keywords)
    yield from _number_assertions(keywords)
    yield from _string_assertions(keywords, enforcement)
    yield from _array_assertions(keywords)
    yield from _property_assertions(keywords, enforcement)
    yield from _object_assertions(keywords, enforcement)


def _type_assertions(keywords: Keywords) -> Iterator[Assertion]:
    if (types := keywords.types()) != TYPES:
        yield Types(types)


def _number_assertions(keywords: Keywords) -> Iterator[Assertion]:
    yield from keywords.limits()
    multiple = keywords.number("multipleOf")
    if multiple is not None:
        if multiple <= 0:
            raise SchemaError(keywords.path_of("multipleOf"), "The number must be greater than 0.")
        yield MultipleOf(multiple, keywords.path_of("multipleOf"))


def _string_assertions(keywords: Keywords, enforcement: Enforcement) -> Iterator[Assertion]:
    least, most = keywords.count("minLength") or 0, keywords.count("maxLength")
    if least or most is not None:
        yield StringTerminal(
            patterns.lengths(least, most) if most is None or least <= most else _NEVER
        )
    if "pattern" in keywords.schema:
        path = keywords.path_of("pattern")
        terminal = _terminal(keywords.schema["pattern"], path, enforcement)
        if terminal is not None:
            yield StringTerminal(terminal)
    form = keywords.schema.get("format")
    if isinstance(form, str) and form in string_formats.TERMINALS:
        yield StringTerminal(string_formats.TERMINALS[form])


def _array_assertions(keywords: Keywords) -> Iterator[Assertion]:
    items = keywords.items()
    if items.prefix or items.rest is not None:
        yield items
    least, most = keywords.count("minItems") or 0, keywords.count("maxItems")
    if least or most is not None:
        yield SizeRange(least, most, True, keywords.path_of("minItems" if least else "maxItems"))
    contains = keywords.contains()
    if contains is not None and (contains.least or contains.most is not None):
        yield contains
    if _boolean(keywords, "uniqueItems"):
        yield UniqueItems(keywords.path_of("uniqueItems"))
    if "unevaluatedItems" in keywords.schema:
        inner = keywords.child_subschema("unevaluatedItems", keywords.schema["unevaluatedItems"])
        yield Unevaluated(keywords.path, inner, True)


def _property_assertions(keywords: Keywords, enforcement: Enforcement) -> Iterator[Assertion]:
    names = tuple(
        (name, keywords.child_subschema("properties", schema, name))
        for name, schema in keywords.map_of_schemas("properties").items()
    )
    by_pattern: list[tuple[str, str, Subschema]] = []
    for pattern, schema in keywords.map_of_schemas("patternProperties").items():
        if len(by_pattern) == _MAX_PATTERNS:
            reason = f"At most {_MAX_PATTERNS} patterns are supported."
            enforcement.cannot_enforce(keywords.path_of("patternProperties"), reason)
            break
        path = extend_path(keywords.path_of("patternProperties"), pattern)
        terminal = _terminal(pattern, path, enforcement)
        if terminal is not None:
            opposite = patterns.terminal(pattern, is_negated=True)
            inner = keywords.child_subschema("patternProperties", schema, pattern)
            by_pattern.append((terminal, opposite, inner))
    rest = None
    if "additionalProperties" in keywords.schema:
        schema = keywords.schema["additionalProperties"]
        rest = keywords.child_subschema("additionalProperties", schema)
    if names or by_pattern or rest is not None:
        yield Properties(names, tuple(by_pattern), rest, keywords.scopes)


def _object_assertions(keywords: Keywords, enforcement: Enforcement) -> Iterator[Assertion]:
    if isinstance(keywords.schema.get("required"), bool):
        # In draft 3, `required` is a boolean in the schema of the property itself.
        enforcement.cannot_enforce(
            keywords.path_of("required"),
            "The value must be a list of names, not a boolean as in draft 3.",
        )
    elif required := keywords.required():
        yield PropertyPresence(required)
    least, most = keywords.count("minProperties") or 0, keywords.count("maxProperties")
    if least or most is not None:
        path = keywords.path_of("minProperties" if least else "maxProperties")
        yield SizeRange(least, most, False, path)
    if "propertyNames" in keywords.schema:
        yield PropertyNames(
            keywords.child_subschema("propertyNames", keywords.schema["propertyNames"])
        )
    if "unevaluatedProperties" in keywords.schema:
        inner = keywords.child_subschema(
            "unevaluatedProperties", keywords.schema["unevaluatedProperties"]
        )
        yield Unevaluated(keywords.path, inner, False)


def _boolean(keywords: Keywords, keyword: str) -> bool:
    value = keywords.schema.get(keyword, False)
    if not isinstance(value, bool):
        raise SchemaError(keywords.path_of(keyword), "The value must be a boolean.")
    return value


def _terminal(pattern: Json, path: str, enforcement: Enforcement) -> str | None:
    """Return the terminal of a pattern, or None if a grammar cannot enforce it."""
    if not isinstance(pattern, str):
        raise SchemaError(path, "A pattern must be a string.")
    try:
        return patterns.terminal(pattern)
    except InvalidPattern as error:
        raise SchemaError(
            path, f"The pattern is not a valid regular expression: {error}."
        ) from error
    except UnsupportedPattern as error:
        enforcement.cannot_enforce(
            path, f"This part of the pattern is not supported: {quoted(str(error))}."
        )
        return None
