"""Server-sent events as OpenAI's clients read them."""

import msgspec
from starlette.types import Send

PING = b": ping\n\n"
"""A comment: clients skip it, proxies see a living connection."""

_DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode


# Unicode's other line ends, which JSON leaves as they are. Clients that split a stream by Python's
# `str.splitlines`, as httpx's `iter_lines` does, would take them for the ends of events. JSON
# escapes those below U+0020 in any case.
_LINE_ENDS = {
    "\u0085".encode(): rb"\u0085",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
}


def event(data: msgspec.Struct) -> bytes:
    """Return the event with `data` as JSON, which has no line end of any kind."""
    text = _encode(data)
    if not text.isascii():
        for line_end, escaped in _LINE_ENDS.items():
            text = text.replace(line_end, escaped)
    return b"data: " + text + b"\n\n"


class EventStream:
    """A response of events. Its status and headers go out with the first of them: until then, the
    request can still be answered with an error.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_open = False

    async def write(self, events: bytes) -> None:
        await self._write(events, more=True)

    async def close(self) -> None:
        """Write `[DONE]`, without which clients would take a cut stream for a whole one."""
        await self._write(_DONE, more=False)

    async def _write(self, events: bytes, *, more: bool) -> None:
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})
        await self._send({"type": "http.response.body", "body": events, "more_body": more})
