"""JSON values with exact numbers: integers are `int`, all other numbers `Decimal`."""

import json
import re
from collections.abc import Hashable
from decimal import Decimal
from typing import Any, NoReturn, TypeAlias

Json: TypeAlias = Any  # None, bool, int, Decimal, str, list of Json or dict of str to Json
Number: TypeAlias = int | Decimal

# The regular expressions that compare numbers grow with the number of digits.
MAX_DIGITS = 80  # not counting leading and trailing zeros
MAX_EXPONENT = 1_000

_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    str: "string",
    list: "array",
    dict: "object",
}
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")


def loads(text: str) -> Json:
    """Parse JSON without losing precision.

    Raises:
        ValueError: `text` is not JSON, has a key twice in one object, an unpaired surrogate or a
            number that is too long.
        RecursionError: The text is nested too deeply.
    """
    value = json.loads(
        text,
        parse_int=_integer,
        parse_float=_decimal,
        parse_constant=_reject_constant,
        object_pairs_hook=_object,
    )
    if "\\u" in text:
        dumps(value).encode()  # a UnicodeEncodeError is a ValueError
    return value


def dumps(value: Json) -> str:
    """Return a value as JSON on one line. Numbers keep their digits; strings are as in `quoted`."""
    match value:
        case dict():
            pairs = (f"{quoted(name)}: {dumps(item)}" for name, item in value.items())
            return f"{{{', '.join(pairs)}}}"
        case list():
            return f"[{', '.join(map(dumps, value))}]"
        case Decimal():
            return str(value)
        case str():
            return quoted(value)
    return json.dumps(value)


def quoted(text: str) -> str:
    """Return a string as JSON text in the one form that grammars allow, with the fewest escapes."""
    return json.dumps(text, ensure_ascii=False)


def comparison_key(value: Json) -> Hashable:
    """Return a key that is equal for equal JSON values: 1 equals 1.0, but not `true`."""
    match value:
        case dict():
            return "object", frozenset((name, comparison_key(item)) for name, item in value.items())
        case list():
            return "array", tuple(map(comparison_key, value))
    return type_of(value) in ("integer", "fraction"), value


def type_of(value: Json) -> str:
    """Return the name of the JSON type. A number has the type `integer` or `fraction`."""
    if isinstance(value, Decimal):
        return "integer" if value == value.to_integral_value() else "fraction"
    return _TYPES[type(value)]


def extend_path(path: str, key: str | int) -> str:
    """Return the path of a schema, extended by a key or an index. Unusual keys are quoted."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if _NAME.fullmatch(key) else f"{path}[{quoted(key)}]"


def _integer(text: str) -> Number:
    if len(text) > MAX_EXPONENT:
        raise ValueError("a number is too long")
    return int(_checked(Decimal(text)))


def _decimal(text: str) -> Decimal:
    # The exponent may be longer than a Decimal can hold.
    exponent = re.search(r"[eE][+-]?0*(\d+)$", text)
    if len(text) > 2 * MAX_EXPONENT or (exponent is not None and len(exponent[1]) > 6):
        raise ValueError("a number is too long")
    return _checked(Decimal(text))


def _checked(number: Decimal) -> Decimal:
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    if number and abs(number.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"a number has an exponent of more than {MAX_EXPONENT}")
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return number


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {quoted(name[:100])} occurs twice in one object")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
