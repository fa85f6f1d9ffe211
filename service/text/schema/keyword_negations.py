"""The ways in which a value can fail to match a schema.

Keywords whose negation a grammar cannot express are left out.
"""

from collections.abc import Iterator

from service.text.schema import patterns
from service.text.schema.assertions import (
    ANYTHING,
    NUMBERS,
    TYPES,
    Alternative,
    Contains,
    Items,
    Literals,
    NumberLimit,
    Properties,
    PropertyPresence,
    SizeRange,
    StringTerminal,
    Subschema,
    Types,
)
from service.text.schema.keywords import Keywords
from service.text.schema.pattern_syntax import InvalidPattern, UnsupportedPattern


def negations(keywords: Keywords) -> Iterator[Alternative]:
    """Yield each way to fail one of a schema's keywords about the value and its parts.

    Raises:
        SchemaError: A keyword is malformed.
    """
    yield from _type_negations(keywords)
    yield from _value_negations(keywords)
    yield from _number_negations(keywords)
    yield from _string_negations(keywords)
    yield from _array_negations(keywords)
    yield from _object_negations(keywords)


def _type_negations(keywords: Keywords) -> Iterator[Alternative]:
    if others := TYPES - keywords.types():
        yield Alternative((Types(others),))


def _value_negations(keywords: Keywords) -> Iterator[Alternative]:
    if "const" in keywords.schema:
        yield from keywords.unequal_to(keywords.schema["const"], "const")
    values = keywords.schema.get("enum")
    if isinstance(values, list):
        scalars = tuple(value for value in values if not isinstance(value, dict | list))
        others = tuple(
            keywords.child_subschema("enum", {"const": value}, index).negated()
            for index, value in enumerate(values)
            if isinstance(value, dict | list)
        )
        yield Alternative((Literals(scalars, is_excluded=True),), others)


def _number_negations(keywords: Keywords) -> Iterator[Alternative]:
    for limit in keywords.limits():
        beyond = NumberLimit(limit.number, not limit.is_lower, not limit.is_exclusive)
        yield Alternative((Types(NUMBERS), beyond))
    if keywords.schema.get("multipleOf") == 1:
        yield Alternative((Types(frozenset({"fraction"})),))


def _string_negations(keywords: Keywords) -> Iterator[Alternative]:
    strings = Types(frozenset({"string"}))
    least, most = keywords.count("minLength"), keywords.count("maxLength")
    if least:
        yield Alternative((strings, StringTerminal(patterns.lengths(0, least - 1))))
    if most is not None:
        yield Alternative((strings, StringTerminal(patterns.lengths(most + 1, None))))
    pattern = keywords.schema.get("pattern")
    if isinstance(pattern, str):
        try:
            terminal = patterns.terminal(pattern, is_negated=True)
        except (InvalidPattern, UnsupportedPattern):
            return
        yield Alternative((strings, StringTerminal(terminal, is_negated=True)))


def _array_negations(keywords: Keywords) -> Iterator[Alternative]:
    arrays, items = Types(frozenset({"array"})), keywords.items()
    for index, subschema in enumerate(items.prefix):
        before = (ANYTHING,) * index
        longer = SizeRange(index + 1, None, True, keywords.path)
        yield Alternative((arrays, longer, Items((*before, subschema.negated()), None)))
    if items.rest is not None and not items.prefix:
        rest = items.rest
        yield Alternative((arrays, Contains(rest.negated(), rest, 1, None, rest.path)))
    least, most = keywords.count("minItems"), keywords.count("maxItems")
    if least:
        yield Alternative((arrays, SizeRange(0, least - 1, True, keywords.path)))
    if most is not None:
        yield Alternative((arrays, SizeRange(most + 1, None, True, keywords.path)))
    contains = keywords.contains()
    if contains is not None and contains.least == 1:
        yield Alternative((arrays, Items((), contains.opposite)))


def _object_negations(keywords: Keywords) -> Iterator[Alternative]:
    objects = Types(frozenset({"object"}))
    for name, schema in keywords.map_of_schemas("properties").items():
        other = keywords.child_subschema("properties", schema, name).negated()
        yield Alternative((objects, PropertyPresence((name,)), Properties(((name, other),))))
    for name in keywords.required():
        yield Alternative((objects, PropertyPresence((name,), is_forbidden=True)))
    least, most = keywords.count("minProperties"), keywords.count("maxProperties")
    if least:
        yield Alternative((objects, SizeRange(0, least - 1, False, keywords.path)))
    if most is not None:
        yield Alternative((objects, SizeRange(most + 1, None, False, keywords.path)))
    for name, then in keywords.dependencies():
        present = (objects, PropertyPresence((name,)))
        if isinstance(then, Subschema):
            yield Alternative(present, (then.negated(),))
        else:
            for missing in then:
                yield Alternative((*present, PropertyPresence((missing,), is_forbidden=True)))
