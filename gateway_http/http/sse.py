"""Server-sent events in the form that OpenAI's clients expect."""

import msgspec
from starlette.types import Send

PING = b": ping\n\n"
"""A comment. Clients skip it. Proxies see traffic, and keep the connection open."""

_DONE = b"data: [DONE]\n\n"
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

    async def close(self) -> None:
        """Send `[DONE]` and end the response. Clients treat a stream without it as incomplete."""
        await self._write(_DONE, more=False)

    async def _write(self, events: bytes, *, more: bool) -> None:
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})
        await self._send({"type": "http.response.body", "body": events, "more_body": more})
