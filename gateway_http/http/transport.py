"""A transport with a timeout for clients that do not read."""

import array
import asyncio
import fcntl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Linux's request for the number of unsent bytes in a socket's queue. It does not include sent bytes
# that are not acknowledged yet.
_SIOCOUTQNSD = 0x894B
# The number of checks within one timeout.
_CHECKS = 16
# If a client reads this many bytes within the timeout, the timeout begins anew.
_ENOUGH_BYTES = 64 << 10


class ClientTransport:
    """The transport of one connection.

    A client does not read if within `timeout_s` neither all bytes that waited at the beginning nor
    64 KiB of them could be sent. Waiting bytes are those in this process and in the kernel, which
    buffers megabytes. Bytes that the client's own system has received count as read.

    Writing to a closed transport does nothing. uvloop's transport raises, and writers are informed
    of the end of a connection only a moment later.

    Args:
        transport: The transport of the connection.
        timeout_s: The timeout in seconds for a client that does not read.
        on_unread: Called once, if the client exceeds the timeout.
        loop: The event loop.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        timeout_s: float,
        on_unread: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._on_unread = on_unread
        self._loop = loop
        self._num_written = 0
        self._check: asyncio.TimerHandle | None = None
        # None if no bytes wait. Otherwise the time at which the timeout began, and the number of
        # bytes that must have been sent for it to begin anew.
        self._waiting: tuple[float, int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._num_written += len(data)
        self._transport.write(data)
        if self._check is None:
            self._check_later()

    def stop_watching(self) -> None:
        """Stop the checks. Call this when the connection has been lost."""
        if self._check is not None:
            self._check.cancel()

    def _check_later(self) -> None:
        self._check = self._loop.call_later(self._timeout_s / _CHECKS, self._check_reading)

    def _check_reading(self) -> None:
        self._check = None
        num_unsent = self._num_unsent()
        if num_unsent == 0:
            self._waiting = None
            return  # the next write starts the checks again
        now, num_sent = self._loop.time(), self._num_written - num_unsent
        if self._waiting is None or num_sent >= self._waiting[1]:
            self._waiting = now, num_sent + min(num_unsent, _ENOUGH_BYTES)
        elif now - self._waiting[0] >= self._timeout_s:
            self._on_unread()
            return
        self._check_later()

    def _num_unsent(self) -> int:
        """Return the bytes that wait in this process and, on Linux, in the kernel."""
        num_bytes = array.array("i", [0])
        # The errors: the socket is closed, or the system does not support this request.
        with suppress(OSError, ValueError):
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), _SIOCOUTQNSD, num_bytes)
        return num_bytes[0] + self._transport.get_write_buffer_size()
