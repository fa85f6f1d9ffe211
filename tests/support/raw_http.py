"""An HTTP client on a plain socket, for behaviour that no library allows."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.fakes.wait import failsafe


class RawClient:
    """A connection. Leaving the `async with` closes it."""

    def __init__(
        self, url: str, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._address = urlsplit(url)
        self._tls = tls
        self._receive_buffer = receive_buffer

    async def __aenter__(self) -> Self:
        raw = socket.socket()
        if self._receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        raw.setblocking(False)
        address = self._address.hostname, self._address.port
        try:
            await asyncio.get_running_loop().sock_connect(raw, address)
        except BaseException:
            raw.close()
            raise
        limit = self._receive_buffer or 1 << 16
        self._reader, self._writer = await asyncio.open_connection(
            sock=raw,
            limit=limit,
            ssl=self._tls,
            server_hostname=None if self._tls is None else self._address.hostname,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def post(
        self,
        body: dict[str, Any],
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        content = json.dumps(body).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        await self.send(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def read_until(self, separator: bytes) -> bytes:
        async with failsafe():
            return await self._reader.readuntil(separator)

    async def read(self, num_bytes: int) -> bytes:
        """Return at most this many bytes, or b"" at the end of the connection."""
        async with failsafe():
            return await self._reader.read(num_bytes)

    async def read_all(self) -> bytes:
        """Return all bytes until the end of the connection."""
        content = b""
        with suppress(ConnectionError):
            while piece := await self.read(1 << 16):
                content += piece
        return content

    async def trickle(self, data: bytes) -> None:
        """Send one byte each millisecond."""
        with suppress(ConnectionError):  # the peer may close the connection
            for byte in data:
                await self.send(bytes([byte]))
                await asyncio.sleep(0.001)

    async def ended(self) -> bool:
        """Wait for bytes or the end. Return True if the connection ended without further bytes."""
        try:
            async with failsafe():
                return not await self._reader.read(1)
        except ConnectionError:
            return True

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError, ssl.SSLError):  # the peer may have closed first
            await self._writer.wait_closed()

    async def reset(self) -> None:
        """Abort the connection: the peer gets a RST."""
        raw: socket.socket = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
