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


def event(data: msgspec.Struct) -> bytes:
    return b"data: " + _encode(data) + b"\n\n"


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
