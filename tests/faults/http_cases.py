"""HTTP requests with random damage, which no HTTP library would send.

The random number generator determines them completely.
"""

import json
import random
from collections.abc import Callable
from typing import Any

from gateway_http.endpoints import ENDPOINTS

_BODIES: dict[str, dict[str, Any]] = {
    "create_chat_completion": {
        "model": "fake",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "temperature": 0.5,
        "stop": ["x"],
        "stream": False,
    },
    "create_completion": {"model": "fake", "prompt": ["hi", [1, 2]], "max_tokens": 2, "n": 1},
    "tokenize": {"model": "fake", "prompt": "hi", "add_special_tokens": True},
    "detokenize": {"model": "fake", "tokens": [1, 2, 3]},
}
_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    2**63,
    -(2**63) - 1,
    "",
    "fake",
    "\ud800",
    "\x00",
    "é" * 100,
    [],
    [[]],
    {},
    {"type": "json_schema"},
    [{"role": "user"}],
    [{"role": "assistant", "content": None, "tool_calls": [{}]}],
)
_SCALARS = b'0123456789eE+-."\\[]{},: \ntruefalsn\x00\xff\xc3'
_LINES = (
    b"Content-Length: 0",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 5, 6",
    b"Content-Length: 0x10",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Connection: close",
    b"Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
    b"Expect: 100-continue",
    b"Expect: nonsense",
    b"Content-Type: text/plain",
    b"Content-Type: application/json; charset=nonsense",
    b"Content-Encoding: gzip",
    b"Host: ",
    b"Host: a\r\nHost: b",
    b"X: " + b"x" * 9000,
    b" folded: yes",
    b"no colon",
    b": no name",
    b"X\x00: y",
    b"X: \x00\x01\x7f\xff",
    b"X: a\rb",
    b"X-Request-Id: \xff\xfe",
    b"Authorization: Bearer \xff",
    b"Traceparent: 00-" + b"f" * 32 + b"-" + b"f" * 16 + b"-01",
    b"Origin: null\r\nAccess-Control-Request-Method: POST",
    b"Range: bytes=0-",
    b"If-None-Match: *",
)
_TARGETS = (
    b"/",
    b"//v1//models",
    b"/v1/models/%2e%2e%2f%2e%2e",
    b"/v1/models/%00",
    b"/v1/models/%ff%fe",
    b"/v1/models/%zz",
    b"/v1/models/" + b"a/" * 500,
    b"/v1/models/fake?x=%00&" + b"y" * 3000,
    b"*",
    b"http://elsewhere/v1/models",
    b"elsewhere:443",
    b"/v1/chat/completions/",
    b"/v1/models#fragment",
    "/v1/modèles".encode(),
)
_METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI")


def random_case(choose: random.Random) -> bytes:
    """Return the bytes that are sent on one connection."""
    endpoint = choose.choice(ENDPOINTS)
    path = choose.choice(("/v1", "")) + endpoint.path.replace("{model_id}", "fake")
    body = b""
    if endpoint.name in _BODIES:
        body = choose.choice(_BODY_DAMAGES)(choose, dict(_BODIES[endpoint.name]))
    head = [
        f"{endpoint.method} {path} HTTP/1.1".encode(),
        b"Host: localhost",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    return choose.choice(_DAMAGES)(choose, head, body)


def _joined(head: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _none(_: random.Random, head: list[bytes], body: bytes) -> bytes:
    return _joined(head, body)


def _cut(choose: random.Random, head: list[bytes], body: bytes) -> bytes:
    whole = _joined(head, body)
    return whole[: choose.randrange(len(whole))]


def _flip(choose: random.Random, head: list[bytes], body: bytes) -> bytes:
    whole = bytearray(_joined(head, body))
    for _ in range(choose.randrange(1, 6)):
        whole[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
    return bytes(whole)


def _insert(choose: random.Random, head: list[bytes], body: bytes) -> bytes:
    whole = _joined(head, body)
    index = choose.randrange(len(whole))
    more = choose.choice((b"\r\n", b"\n", b"\0", b"\r", b" ", choose.randbytes(9), b"x" * 3000))
    return whole[:index] + more + whole[index:]


def _more_lines(choose: random.Random, head: list[bytes], body: bytes) -> bytes:
    for line in choose.choices(_LINES, k=choose.randrange(1, 4)):
        head.insert(choose.randrange(1, len(head) + 1), line)
    return _joined(head, body)


def _other_first_line(choose: random.Random, head: list[bytes], body: bytes) -> bytes:
    method, target, version = head[0].split(b" ")
    parts = [
        choose.choice((method, choose.choice(_METHODS))),
        choose.choice((target, choose.choice(_TARGETS))),
        choose.choice((version, b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"")),
    ]
    return _joined([b" ".join(parts), *head[1:]], body)


def _chunked(choose: random.Random, head: list[bytes], body: bytes) -> bytes:
    """Return the request in chunks, valid or invalid ones."""
    head[-1] = b"Transfer-Encoding: chunked"
    size = choose.choice((b"%x" % len(body), b"%x" % (len(body) + 5), b"-1", b"ffffffffffffffffff"))
    end = choose.choice((b"\r\n0\r\n\r\n", b"\r\n0\r\nX: y\r\n\r\n", b"0\r\n\r\n", b"\r\n", b""))
    return _joined(head, size + choose.choice((b"", b";a=b", b";" * 999)) + b"\r\n" + body + end)


def _pipelined(choose: random.Random, head: list[bytes], body: bytes) -> bytes:
    return _joined(head, body) * choose.randrange(2, 20)


def _noise(choose: random.Random, _head: list[bytes], _body: bytes) -> bytes:
    return choose.randbytes(choose.choice((1, 10, 300, 5000)))


_DAMAGES: tuple[Callable[[random.Random, list[bytes], bytes], bytes], ...] = (
    _none,
    _none,
    _none,
    _none,
    _cut,
    _flip,
    _insert,
    _more_lines,
    _other_first_line,
    _chunked,
    _pipelined,
    _noise,
)


def _whole(_: random.Random, body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _other_values(choose: random.Random, body: dict[str, Any]) -> bytes:
    for _ in range(choose.randrange(1, 4)):
        body[choose.choice((*body, "tools", "response_format", "logit_bias", "n", "x"))] = (
            choose.choice(_VALUES)
        )
    return json.dumps(body).encode()


def _fewer_fields(choose: random.Random, body: dict[str, Any]) -> bytes:
    del body[choose.choice(list(body))]
    return json.dumps(body).encode()


def _other_characters(choose: random.Random, body: dict[str, Any]) -> bytes:
    text = bytearray(json.dumps(body).encode())
    for _ in range(choose.randrange(1, 5)):
        index = choose.randrange(len(text))
        text[index : index + choose.randrange(2)] = bytes([choose.choice(_SCALARS)])
    return bytes(text)


def _field_twice(choose: random.Random, body: dict[str, Any]) -> bytes:
    name = choose.choice(list(body))
    value = json.dumps(choose.choice(_VALUES))
    return json.dumps(body)[:-1].encode() + f', "{name}": {value}}}'.encode()


_BODY_DAMAGES: tuple[Callable[[random.Random, dict[str, Any]], bytes], ...] = (
    _whole,
    _other_values,
    _other_values,
    _fewer_fields,
    _other_characters,
    _field_twice,
)
