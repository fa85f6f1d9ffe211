"""Limits on the number of elements and the depth of a JSON body, checked before it is decoded.

A body of 8 MiB can contain millions of small values. Decoding them takes hundreds of megabytes and
holds the interpreter's lock for seconds.
"""

import re

from gateway_http.protocol.error import InvalidRequest

# A conversation of 20 000 messages has this many keys and values. Decoding them takes about 0.2 s.
MAX_ELEMENTS = 100_000
# JSON schemas are nested a few dozen deep.
MAX_DEPTH = 128
# Numbers of a list are decoded so much faster than other elements. With this, 128 prompts of 8192
# token ids are allowed.
_NUMBERS_PER_ELEMENT = 16

# A string without escapes, numbers in a row, a word or a bracket; and the colon of a key. Neither a
# string without an end nor bytes without a token are read again from each byte on.
_TOKEN = re.compile(rb'[^"\d\[\]{}a-z]*("[^"]*"?|\d[\d\s,.eE+-]*|[a-z]+|[\[\]{}]|\Z)(\s*:)?')
_QUOTE, _OPENING, _CLOSING = ord('"'), b"[{", b"]}"
# Characters of a field's name in an error.
_MAX_QUOTED = 200


def check_elements(body: bytes, max_elements: int = MAX_ELEMENTS) -> None:
    """Check how many keys and values a JSON text has, and its depth.

    16 numbers in a row count as one element. Text that is not JSON raises no error here.

    Raises:
        InvalidRequest: There are more than `max_elements`, or they are nested more than `MAX_DEPTH`
            deep. The error names the field of the body in which the limit is exceeded.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH and most_elements(body) <= max_elements:
        return
    num_elements, depth, field = 0, 0, b""
    for match in _TOKEN.finditer(_without_escapes(body)):
        token = match[1]
        if token in _CLOSING:  # also true of the empty token at the end
            depth -= 1
            continue
        num_elements += 1
        if token[0] == _QUOTE:
            if depth == 1 and match[2]:
                field = token.strip(b'"')
        elif token in _OPENING:
            depth += 1
        else:
            num_elements += token.count(b",") // _NUMBERS_PER_ELEMENT
        if num_elements > max_elements:
            raise _rejected(
                field,
                "too many elements",
                f"A request has at most {max_elements} keys and values in all",
            )
        if depth > MAX_DEPTH:
            raise _rejected(
                field,
                "nested too deeply",
                f"Arrays and objects of a request are nested at most {MAX_DEPTH} deep",
            )


def most_elements(body: bytes) -> int:
    """Return an upper bound of the number of keys and values in a JSON text."""
    # Each value but the first has a comma or an opening bracket before it, and may have a key.
    return 1 + 2 * (body.count(b"[") + body.count(b"{") + body.count(b","))


def _without_escapes(body: bytes) -> bytes:
    """Return the text without escaped backslashes and quotes: each quote begins or ends a string.

    Escapes of other characters stay, since they do not matter here.
    """
    return body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body


def _rejected(key: bytes, what: str, limit: str) -> InvalidRequest:
    """Return the error for the field `key`. An empty key means the body as a whole."""
    field = key.decode(errors="replace")[:_MAX_QUOTED]
    return InvalidRequest(
        f"Invalid '{field or 'body'}': {what}. {limit}.", field or None, "invalid_value"
    )
