"""From the bytes of a body to a typed request, or to OpenAI's words for what is wrong with them."""

import json
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from gateway_http.protocol.error import InvalidRequest

_Body = TypeVar("_Body")

# An error repeats what the client sent; this much of it is enough to recognise it by.
_MAX_QUOTED = 200

# msgspec's words for a mismatch, and OpenAI's code and words for the same.
_MISMATCHES = [
    (
        r"Object missing required field `(?P<field>.*)`",
        "missing_required_parameter",
        "Missing required parameter: '{param}'.",
    ),
    (
        r"Object contains unknown field `(?P<field>.*)`",
        "unknown_parameter",
        "Unrecognized request argument supplied: {param}",
    ),
    (
        r"Expected `int` >= (?P<limit>.*)",
        "integer_below_min_value",
        "Invalid '{param}': integer below minimum value. Expected a value >= {limit}.",
    ),
    (
        r"Expected `int` <= (?P<limit>.*)",
        "integer_above_max_value",
        "Invalid '{param}': integer above maximum value. Expected a value <= {limit}.",
    ),
    (
        r"Expected `float` >= (?P<limit>.*)",
        "decimal_below_min_value",
        "Invalid '{param}': decimal below minimum value. Expected a value >= {limit}.",
    ),
    (
        r"Expected `float` <= (?P<limit>.*)",
        "decimal_above_max_value",
        "Invalid '{param}': decimal above maximum value. Expected a value <= {limit}.",
    ),
    (
        r"Expected `array` of length >= (?P<limit>.*)",
        "empty_array",
        "Invalid '{param}': empty array. Expected an array with minimum length {limit}.",
    ),
    (
        r"Expected `(?P<expected>.*)`, got `(?P<got>.*)`",
        "invalid_type",
        "Invalid type for '{param}': expected {expected}, but got {got} instead.",
    ),
    (
        r"Invalid (enum )?value (?P<value>.*)",
        "invalid_value",
        "Invalid value for '{param}': {value}.",
    ),
]

_TYPE_NAMES = {
    "int": "an integer",
    "float": "a decimal",
    "bool": "a boolean",
    "str": "a string",
    "bytes": "a base64 string",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def decoder(kind: type[_Body]) -> Callable[[bytes], _Body]:
    """The reader of bodies of one type. It raises InvalidRequest, whatever the bytes are."""
    decode_text = msgspec.json.Decoder(kind).decode

    def decode(body: bytes) -> _Body:
        try:
            text = body.decode()
            request = decode_text(text)
            # msgspec takes the last of equal keys. Another reader of the same body may take the
            # first, so a second look refuses them.
            json.loads(text, object_pairs_hook=_refuse_duplicates, parse_int=str)
        except msgspec.ValidationError as error:
            raise _mismatch(str(error)) from None
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidRequest(
                f"We could not parse the JSON body of your request: {error}."
            ) from None
        except RecursionError:
            raise InvalidRequest(
                "We could not parse the JSON body of your request: it is nested too deeply."
            ) from None
        return request

    return decode


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise InvalidRequest(
                f"Invalid body: the key '{name[:_MAX_QUOTED]}' occurs twice in one object.",
                name[:_MAX_QUOTED],
                "invalid_value",
            )
        names.add(name)


def _mismatch(text: str) -> InvalidRequest:
    """msgspec says "<what> - at `$.<where>`", or "<what>" alone where the whole body is meant."""
    what, at, where = text.rpartition(" - at ")
    param = _param(where) if at else ""
    code, words, details = _explain(what if at else text)
    if field := details.get("field"):
        param = f"{param}.{field}" if param else field
    return InvalidRequest(words.format(param=param or "body", **details), param or None, code)


def _explain(what: str) -> tuple[str, str, dict[str, str]]:
    """OpenAI's code, its words, and what to fill into them."""
    for pattern, code, words in _MISMATCHES:
        if match := re.fullmatch(pattern, what, re.DOTALL):
            details = {name: value[:_MAX_QUOTED] for name, value in match.groupdict().items()}
            if "got" in details:
                details = {name: _type_names(types) for name, types in details.items()}
            return code, words, details
    return "invalid_value", "Invalid '{param}': {reason}.", {"reason": what[:_MAX_QUOTED]}


def _param(where: str) -> str:
    """The path as OpenAI writes it: "`$.messages[0].role`" is "messages[0].role"."""
    path = re.search(r"\$\.?(.*?)`?$", where, re.DOTALL)
    return path[1][:_MAX_QUOTED] if path else ""


def _type_names(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null"] or ["null"]
    return " or ".join(_TYPE_NAMES.get(name, name) for name in names)
