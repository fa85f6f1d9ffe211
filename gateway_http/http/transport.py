"""A client's transport, which notices that the client does not read."""

import array
import asyncio
import fcntl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Of Linux: the bytes in a socket's queue that have not been sent. Those that the client's system
# has not acknowledged yet are not counted.
_SIOCOUTQNSD = 0x894B
# How often the unsent bytes are counted within the timeout.
_CHECKS = 16
# This much per timeout is reading, however much there is to read.
_ENOUGH_BYTES = 64 << 10


class ClientTransport:
    """The transport of one connection.

    A client leaves unread what it is sent if, for `timeout_s`, neither all that waited for it at
    the beginning of that time nor 64 KiB of it could be sent. What counts are the bytes that wait
    in this process and in the kernel: the kernel takes megabytes before it refuses any. What the
    client's own system has taken counts as read.

    Writing to a closed transport does nothing. uvloop's own raises, and the writers learn of the
    end of a connection only a moment after it.

    Args:
        on_unread: Called once if the client leaves unread what it is sent.
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
        # While bytes wait: since when, and how many must have been sent for that to begin anew.
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
        """Call this when the connection has been lost."""
        if self._check is not None:
            self._check.cancel()

    def _check_later(self) -> None:
        self._check = self._loop.call_later(self._timeout_s / _CHECKS, self._check_reading)

    def _check_reading(self) -> None:
        self._check = None
        num_unsent = self._num_unsent()
        if num_unsent == 0:
            self._waiting = None
            return  # the next write continues
        now, num_sent = self._loop.time(), self._num_written - num_unsent
        if self._waiting is None or num_sent >= self._waiting[1]:
            self._waiting = now, num_sent + min(num_unsent, _ENOUGH_BYTES)
        elif now - self._waiting[0] >= self._timeout_s:
            self._on_unread()
            return
        self._check_later()

    def _num_unsent(self) -> int:
        """Bytes that wait in this process or in the kernel; elsewhere than on Linux, the former."""
        num_bytes = array.array("i", [0])
        # The socket is closed, or the system does not know the request.
        with suppress(OSError, ValueError):
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), _SIOCOUTQNSD, num_bytes)
        return num_bytes[0] + self._transport.get_write_buffer_size()
