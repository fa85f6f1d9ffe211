"""Decoding of a body to a typed request, or to an error in OpenAI's words."""

import codecs
import json
import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from gateway_http.protocol.elements import check_elements
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.unknown_nulls import null_tolerant_decoder

_Body = TypeVar("_Body")

# Characters of a client's value in an error.
_MAX_QUOTED = 200

# Long lists of integers. Some bodies consist mostly of them, and the search for keys skips them.
_LONG_LISTS = re.compile(r"\[\s*\d[\d\s,]{512,}\d")
_MANY_CHARS = 32 << 10

# Messages of msgspec, with OpenAI's code and message for the same mismatch.
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
        r"Expected `str` matching regex .*",  # only `request_id` has one
        "invalid_value",
        "Invalid '{param}': expected 1 to 128 printable ASCII characters without spaces.",
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


def decoder(
    kind: type[_Body], prepare: Callable[[bytes], bytes] | None = None
) -> Callable[[bytes], _Body]:
    """Return a function that decodes a body of this type.

    It raises InvalidRequest if the bytes are not such a body. A body of 8 MiB takes a few times
    50 ms, during which the interpreter's lock is held. Large bodies are decoded in a thread.

    Args:
        kind: The type.
        prepare: Completes the JSON before it is decoded. It returns other bytes unchanged.
    """
    decode_json = null_tolerant_decoder(kind)

    def decode(body: bytes) -> _Body:
        content = body.removeprefix(codecs.BOM_UTF8)
        try:
            text = content.decode()
            check_elements(content)
            request = decode_json(content if prepare is None else prepare(content))
            _reject_duplicates(text)
        except msgspec.ValidationError as error:
            raise _mismatch(str(error)) from None
        except UnicodeDecodeError as error:
            raise _malformed(f"it is not valid UTF-8 (byte {error.start})") from None
        except (msgspec.DecodeError, ValueError) as error:
            raise _malformed(_reason(content, str(error))) from None
        return request

    return decode


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the JSON body of your request: {reason}.")


def _reason(body: bytes, error: str) -> str:
    """Return the reason why a body is not JSON, made from the message of msgspec."""
    if not body.strip():
        return "it is empty"
    if error == "Input data was truncated":
        return f"it ends in the middle of a value (byte {len(body)})"
    return error.removeprefix("JSON is malformed: ").rstrip(".")


def _reject_duplicates(text: str) -> None:
    """Raise InvalidRequest if a key occurs twice in one object.

    msgspec takes the last of equal keys. Another reader of the same body may take the first.
    """
    shorter = _LONG_LISTS.sub("[0", text) if len(text) > _MANY_CHARS else text
    try:
        _decode_keys(shorter)
    except InvalidRequest:
        if shorter is text:
            raise
        _decode_keys(text)  # now keys that are long lists of integers differ, too


def _decode_keys(text: str) -> None:
    json.loads(text, object_pairs_hook=_check_keys, parse_int=str)


def _check_keys(pairs: list[tuple[str, object]]) -> None:
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
    """Return the error for a message of msgspec.

    A message is "<what> - at `$.<where>`", or only "<what>" if it is about the whole body.
    """
    what, at, where = text.rpartition(" - at ")
    param = _param(where) if at else ""
    code, words, details = _explain(what if at else text)
    if field := details.get("field"):
        param = f"{param}.{field}" if param else field
    return InvalidRequest(words.format(param=param or "body", **details), param or None, code)


def _explain(what: str) -> tuple[str, str, dict[str, str]]:
    """Return OpenAI's code and message, and the values to format the message with."""
    for pattern, code, words in _MISMATCHES:
        if match := re.fullmatch(pattern, what, re.DOTALL):
            details = {name: value[:_MAX_QUOTED] for name, value in match.groupdict().items()}
            if "got" in details:
                details = {name: _type_names(types) for name, types in details.items()}
            return code, words, details
    return "invalid_value", "Invalid '{param}': {reason}.", {"reason": what[:_MAX_QUOTED]}


def _param(where: str) -> str:
    """Return a path as OpenAI writes it: "`$.messages[0].role`" is "messages[0].role"."""
    path = re.search(r"\$\.?(.*?)`?$", where, re.DOTALL)
    return path[1][:_MAX_QUOTED] if path else ""


def _type_names(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null"] or ["null"]
    return " or ".join(_TYPE_NAMES.get(name, name) for name in names)
