"""An HTTP/2 client on a plain socket, for behaviour that no library allows."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.fakes.wait import failsafe

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Headers = list[tuple[str, str]]


def call_headers(path: str, *more: tuple[str, str]) -> Headers:
    """Return the headers of a gRPC call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


class RawHttp2:
    """A connection to a gRPC server. Leaving the `async with` closes it.

    Bytes of the server are read and dropped. If `reads` is False, they are not read.
    """

    def __init__(self, port: int, *, reads: bool = True) -> None:
        self._port = port
        self._reads = reads
        self._encoder = hpack.Encoder()
        self._next_stream = 1
        self._is_cut = False

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reading.cancel()
        self._writer.transport.abort()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def open(self) -> None:
        """Send the connection preface and the settings."""
        await self.send(PREFACE + SettingsFrame(0).serialize())

    async def send(self, data: bytes) -> None:
        """Send bytes. Do nothing if the server has closed the connection."""
        if self.has_ended:
            return
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            self._is_cut = True

    async def send_frames(self, frames: Iterable[Frame]) -> None:
        await self.send(b"".join(frame.serialize() for frame in frames))

    async def ended(self) -> None:
        """Wait until the server closes the connection."""
        async with failsafe():
            await self._reading

    @property
    def has_ended(self) -> bool:
        return self._is_cut or self._reading.done()

    def call(self, path: str, message: bytes | None = None) -> list[Frame]:
        """Return the frames of a call. Without a message the call never ends."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        block = self._encoder.encode(call_headers(path))
        frames: list[Frame] = [HeadersFrame(stream, block, flags=["END_HEADERS"])]
        if message is not None:
            framed = b"\0" + len(message).to_bytes(4, "big") + message
            frames.append(DataFrame(stream, framed, flags=["END_STREAM"]))
        return frames

    def reset_call(self, path: str, message: bytes | None = None) -> list[Frame]:
        """Return the frames of a call that is cancelled at once."""
        frames = self.call(path, message)
        return [*frames, RstStreamFrame(frames[0].stream_id, error_code=8)]

    def endless_headers(self, num_frames: int) -> list[Frame]:
        """Return the frames of a header block without an end."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        block = self._encoder.encode(call_headers("/x", ("x-more", "x" * 8000)))
        return [
            HeadersFrame(stream, block),
            *(ContinuationFrame(stream, block) for _ in range(num_frames)),
        ]

    async def _read(self) -> None:
        if not self._reads:
            await asyncio.Event().wait()
        try:
            while await self._reader.read(1 << 16):
                pass
        except ConnectionError:
            pass


def settings(number: int) -> list[Frame]:
    return [SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535})] * number


def pings(number: int) -> list[Frame]:
    return [PingFrame(0, b"12345678")] * number


def window_updates(number: int) -> list[Frame]:
    return [WindowUpdateFrame(0, window_increment=1)] * number
