"""Server-sent events in the forms that clients expect."""

import asyncio
from typing import Self

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
    request can be rejected with an error response. After the head, a ping is sent whenever nothing
    was sent for `ping_interval_s` seconds.

    Use it as a context manager, and write from one task.

    Args:
        ping: A comment or an event without content, encoded.
        done: The end of the stream, encoded.

    Attributes:
        is_open: True once the head has been sent.
    """

    def __init__(
        self, send: Send, ping_interval_s: float, ping: bytes = PING, done: bytes = DONE
    ) -> None:
        self._send = send
        self._ping_interval_s = ping_interval_s
        self._ping = ping
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._written_s = 0.0
        self._pings: asyncio.Task[None] | None = None
        self.is_open = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end_pings()

    async def ping(self, comment: str = "") -> None:
        """Send a ping, or a comment instead. `comment` has no line end."""
        await self.write(f": {comment}\n\n".encode() if comment else self._ping)

    async def write(self, events: bytes) -> None:
        """Send encoded events."""
        await self._write(events, more=True)

    async def close(self) -> None:
        """Send the end of the stream, and end the response."""
        await self._end_pings()
        await self._write(self._done, more=False)

    async def _write(self, events: bytes, *, more: bool) -> None:
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})
            if more:
                self._pings = asyncio.create_task(self._ping_when_idle())
        self._written_s = self._loop.time()
        await self._send({"type": "http.response.body", "body": events, "more_body": more})

    async def _ping_when_idle(self) -> None:
        while True:
            await asyncio.sleep(self._written_s + self._ping_interval_s - self._loop.time())
            if self._loop.time() - self._written_s >= self._ping_interval_s:
                await self.ping()

    async def _end_pings(self) -> None:
        if self._pings is not None:
            self._pings.cancel()
            await asyncio.gather(self._pings, return_exceptions=True)
            self._pings = None
