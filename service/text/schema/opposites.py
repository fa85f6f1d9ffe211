"""Ways not to fulfil the keywords of a schema. Those that no grammar can tell are left out."""

from collections.abc import Iterator

from service.text.schema import patterns
from service.text.schema.claims import (
    ANYTHING,
    NUMBERS,
    TYPES,
    Alternative,
    Claim,
    Contains,
    Count,
    Items,
    Limit,
    Literals,
    Presence,
    Properties,
    Text,
    Types,
)
from service.text.schema.keywords import Keywords
from service.text.schema.pattern_syntax import InvalidPattern, UnsupportedPattern


def opposites(keywords: Keywords) -> Iterator[Alternative]:
    """Each way not to fulfil a schema by its keywords about the value and its parts.

    Raises:
        SchemaError: a keyword is malformed.
    """
    yield from _type_opposites(keywords)
    yield from _value_opposites(keywords)
    yield from _number_opposites(keywords)
    yield from _string_opposites(keywords)
    yield from _array_opposites(keywords)
    yield from _object_opposites(keywords)


def _type_opposites(keywords: Keywords) -> Iterator[Alternative]:
    if others := TYPES - keywords.types():
        yield Alternative((Types(others),))


def _value_opposites(keywords: Keywords) -> Iterator[Alternative]:
    if "const" in keywords.schema:
        yield from keywords.differs(keywords.schema["const"], "const")
    values = keywords.schema.get("enum")
    if isinstance(values, list):
        scalars = tuple(value for value in values if not isinstance(value, dict | list))
        others = tuple(
            keywords.inner("enum", {"const": value}, index).opposite()
            for index, value in enumerate(values)
            if isinstance(value, dict | list)
        )
        yield Alternative((Literals(scalars, is_excluded=True),), others)


def _number_opposites(keywords: Keywords) -> Iterator[Alternative]:
    for limit in keywords.limits():
        beyond = Limit(limit.number, not limit.is_lower, not limit.is_exclusive)
        yield Alternative((Types(NUMBERS), beyond))
    if keywords.schema.get("multipleOf") == 1:
        yield Alternative((Types(frozenset({"fraction"})),))


def _string_opposites(keywords: Keywords) -> Iterator[Alternative]:
    strings = Types(frozenset({"string"}))
    least, most = keywords.count("minLength"), keywords.count("maxLength")
    if least:
        yield Alternative((strings, Text(patterns.lengths(0, least - 1))))
    if most is not None:
        yield Alternative((strings, Text(patterns.lengths(most + 1, None))))
    pattern = keywords.schema.get("pattern")
    if isinstance(pattern, str):
        try:
            terminal = patterns.terminal(pattern, is_negated=True)
        except (InvalidPattern, UnsupportedPattern):
            return
        yield Alternative((strings, Text(terminal, is_negated=True)))


def _array_opposites(keywords: Keywords) -> Iterator[Alternative]:
    arrays, items = Types(frozenset({"array"})), keywords.items()
    for index, claim in enumerate(items.prefix):
        before = (ANYTHING,) * index
        longer = Count(index + 1, None, True, keywords.path)
        yield Alternative((arrays, longer, Items((*before, claim.opposite()), None)))
    if items.rest is not None and not items.prefix:
        rest = items.rest
        yield Alternative((arrays, Contains(rest.opposite(), rest, 1, None, rest.path)))
    least, most = keywords.count("minItems"), keywords.count("maxItems")
    if least:
        yield Alternative((arrays, Count(0, least - 1, True, keywords.path)))
    if most is not None:
        yield Alternative((arrays, Count(most + 1, None, True, keywords.path)))
    contains = keywords.contains()
    if contains is not None and contains.least == 1:
        yield Alternative((arrays, Items((), contains.opposite)))


def _object_opposites(keywords: Keywords) -> Iterator[Alternative]:
    objects = Types(frozenset({"object"}))
    for name, schema in keywords.map_of_schemas("properties").items():
        other = keywords.inner("properties", schema, name).opposite()
        yield Alternative((objects, Presence((name,)), Properties(((name, other),))))
    for name in keywords.required():
        yield Alternative((objects, Presence((name,), is_forbidden=True)))
    least, most = keywords.count("minProperties"), keywords.count("maxProperties")
    if least:
        yield Alternative((objects, Count(0, least - 1, False, keywords.path)))
    if most is not None:
        yield Alternative((objects, Count(most + 1, None, False, keywords.path)))
    for name, then in keywords.dependencies():
        present = (objects, Presence((name,)))
        if isinstance(then, Claim):
            yield Alternative(present, (then.opposite(),))
        else:
            for missing in then:
                yield Alternative((*present, Presence((missing,), is_forbidden=True)))
