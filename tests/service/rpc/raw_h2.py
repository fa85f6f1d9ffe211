"""An HTTP/2 client for tests that break rules which libraries enforce (RFC 9113)."""

import asyncio
import struct
from types import TracebackType
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS = 0x1, 0x4
INITIAL_WINDOW_SIZE = 4
CANCEL = 8


class RawH2:
    """A connection to a gRPC server on this machine, without TLS."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await self.send(SETTINGS, 0, 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.transport.abort()

    async def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self._writer.write(head + payload)
        await self._writer.drain()

    async def open(self, stream: int, method: str) -> None:
        """Begin a call and leave its request open."""
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        block = b"".join(_field(name, value) for name, value in fields.items())
        await self.send(HEADERS, END_HEADERS, stream, block)

    async def reset(self, stream: int) -> None:
        await self.send(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))

    async def until(self, kind: int) -> bytes:
        """Return the payload of the next frame of this kind, or raise IncompleteReadError."""
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == kind:
                return payload


def _field(name: str, value: str) -> bytes:
    """Encode a literal header field without indexing.

    See https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2.
    """
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
