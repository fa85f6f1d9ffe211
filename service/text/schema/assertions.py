"""The simple assertions that the keywords of a schema make, those about parts of it apart."""

from collections.abc import Iterator

from service.text.schema import formats, patterns
from service.text.schema.claims import (
    TYPES,
    Atom,
    Claim,
    Count,
    Multiple,
    Names,
    Presence,
    Properties,
    Text,
    Types,
    Unevaluated,
    Unique,
)
from service.text.schema.enforcement import Enforcement
from service.text.schema.errors import SchemaError
from service.text.schema.keywords import Keywords
from service.text.schema.pattern_syntax import InvalidPattern, UnsupportedPattern
from service.text.schema.values import Json, quoted, step

_MAX_PATTERNS = 8  # of the names of one object
_NEVER = "(/a/ & /b/)"


def assertions(keywords: Keywords, enforcement: Enforcement) -> Iterator[Atom]:
    """Each assertion, in the order in which the types are written here.

    Raises:
        SchemaError: a keyword is malformed, or must be followed and cannot be enforced.
    """
    yield from _type_atoms(keywords)
    yield from _number_atoms(keywords)
    yield from _string_atoms(keywords, enforcement)
    yield from _array_atoms(keywords)
    yield from _property_atoms(keywords, enforcement)
    yield from _object_atoms(keywords, enforcement)


def _type_atoms(keywords: Keywords) -> Iterator[Atom]:
    if (types := keywords.types()) != TYPES:
        yield Types(types)


def _number_atoms(keywords: Keywords) -> Iterator[Atom]:
    yield from keywords.limits()
    multiple = keywords.number("multipleOf")
    if multiple is not None:
        if multiple <= 0:
            raise SchemaError(keywords.where("multipleOf"), "It is not above 0.")
        yield Multiple(multiple, keywords.where("multipleOf"))


def _string_atoms(keywords: Keywords, enforcement: Enforcement) -> Iterator[Atom]:
    least, most = keywords.count("minLength") or 0, keywords.count("maxLength")
    if least or most is not None:
        yield Text(patterns.lengths(least, most) if most is None or least <= most else _NEVER)
    if "pattern" in keywords.schema:
        path = keywords.where("pattern")
        terminal = _terminal(keywords.schema["pattern"], path, enforcement)
        if terminal is not None:
            yield Text(terminal)
    form = keywords.schema.get("format")
    if isinstance(form, str) and form in formats.TERMINALS:
        yield Text(formats.TERMINALS[form])


def _array_atoms(keywords: Keywords) -> Iterator[Atom]:
    items = keywords.items()
    if items.prefix or items.rest is not None:
        yield items
    least, most = keywords.count("minItems") or 0, keywords.count("maxItems")
    if least or most is not None:
        yield Count(least, most, True, keywords.where("minItems" if least else "maxItems"))
    contains = keywords.contains()
    if contains is not None and (contains.least or contains.most is not None):
        yield contains
    if _boolean(keywords, "uniqueItems"):
        yield Unique(keywords.where("uniqueItems"))
    if "unevaluatedItems" in keywords.schema:
        inner = keywords.inner("unevaluatedItems", keywords.schema["unevaluatedItems"])
        yield Unevaluated(keywords.path, inner, True)


def _property_atoms(keywords: Keywords, enforcement: Enforcement) -> Iterator[Atom]:
    names = tuple(
        (name, keywords.inner("properties", schema, name))
        for name, schema in keywords.map_of_schemas("properties").items()
    )
    by_pattern: list[tuple[str, str, Claim]] = []
    for pattern, schema in keywords.map_of_schemas("patternProperties").items():
        if len(by_pattern) == _MAX_PATTERNS:
            reason = f"More than {_MAX_PATTERNS} patterns of names are not supported."
            enforcement.give_up(keywords.where("patternProperties"), reason)
            break
        path = step(keywords.where("patternProperties"), pattern)
        terminal = _terminal(pattern, path, enforcement)
        if terminal is not None:
            opposite = patterns.terminal(pattern, is_negated=True)
            inner = keywords.inner("patternProperties", schema, pattern)
            by_pattern.append((terminal, opposite, inner))
    rest = None
    if "additionalProperties" in keywords.schema:
        schema = keywords.schema["additionalProperties"]
        rest = keywords.inner("additionalProperties", schema)
    if names or by_pattern or rest is not None:
        yield Properties(names, tuple(by_pattern), rest, keywords.owners)


def _object_atoms(keywords: Keywords, enforcement: Enforcement) -> Iterator[Atom]:
    if isinstance(keywords.schema.get("required"), bool):
        # Draft 3 wrote it into the schema of the property itself.
        enforcement.give_up(
            keywords.where("required"), "It is not a list of names, as all drafts from 4 on say."
        )
    elif required := keywords.required():
        yield Presence(required)
    least, most = keywords.count("minProperties") or 0, keywords.count("maxProperties")
    if least or most is not None:
        path = keywords.where("minProperties" if least else "maxProperties")
        yield Count(least, most, False, path)
    if "propertyNames" in keywords.schema:
        yield Names(keywords.inner("propertyNames", keywords.schema["propertyNames"]))
    if "unevaluatedProperties" in keywords.schema:
        inner = keywords.inner("unevaluatedProperties", keywords.schema["unevaluatedProperties"])
        yield Unevaluated(keywords.path, inner, False)


def _boolean(keywords: Keywords, keyword: str) -> bool:
    value = keywords.schema.get(keyword, False)
    if not isinstance(value, bool):
        raise SchemaError(keywords.where(keyword), "It is not a boolean.")
    return value


def _terminal(pattern: Json, path: str, enforcement: Enforcement) -> str | None:
    """The terminal of a pattern; None where it cannot be enforced."""
    if not isinstance(pattern, str):
        raise SchemaError(path, "A pattern is a string.")
    try:
        return patterns.terminal(pattern)
    except InvalidPattern as error:
        raise SchemaError(path, f"The pattern is not a regular expression: {error}.") from error
    except UnsupportedPattern as error:
        enforcement.give_up(path, f"The pattern's part {quoted(str(error))} is not supported.")
        return None
