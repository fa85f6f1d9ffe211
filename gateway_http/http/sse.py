"""Server-sent events in the forms that clients expect."""

import msgspec
from starlette.types import Send

PING = b": ping\n\n"
"""A comment. Clients skip it. Proxies see traffic, and keep the connection open."""

DONE = b"data: [DONE]\n\n"
"""The end of a stream. OpenAI's clients treat a stream without it as incomplete."""

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode


# Unicode has further line ends, which JSON does not escape. Clients that split a stream with
# `str.splitlines`, as httpx's `iter_lines` does, would split events at them.
_LINE_ENDS = {
    "\u0085".encode(): rb"\u0085",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
}


def event(data: msgspec.Struct) -> bytes:
    """Return the event with `data` as JSON. The JSON contains no line end of any kind."""
    text = _encode(data)
    if not text.isascii():
        for line_end, escaped in _LINE_ENDS.items():
            text = text.replace(line_end, escaped)
    return b"data: " + text + b"\n\n"


def named_event(data: msgspec.Struct) -> bytes:
    """Return the event with `data` as JSON. Its name is the tag of the struct."""
    return f"event: {data.__struct_config__.tag}\n".encode() + event(data)


class EventStream:
    """A response that consists of events. Its head is sent with the first event. Until then, the
    request can be rejected with an error response.

    Attributes:
        is_open: True once the head has been sent.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_open = False

    async def write(self, events: bytes) -> None:
        """Send encoded events."""
        await self._write(events, more=True)

    async def close(self, end: bytes = DONE) -> None:
        """Send the end of the stream, and end the response."""
        await self._write(end, more=False)

    async def _write(self, events: bytes, *, more: bool) -> None:
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})
        await self._send({"type": "http.response.body", "body": events, "more_body": more})
