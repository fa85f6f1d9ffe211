"""The timer for the part of a request that has not been received yet."""

import asyncio
from collections.abc import Callable


class ArrivalTimer:
    """Calls a function unless a head or a body has been received in time. It has one deadline."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """True from `start` until `stop`, even after the deadline."""
        return self._handle is not None

    def start(self, timeout_s: float, on_late: Callable[[], None]) -> None:
        """Call `on_late` in `timeout_s` seconds. This replaces an earlier deadline."""
        self.stop()
        self._handle = self._loop.call_later(timeout_s, on_late)

    def stop(self) -> None:
        """Cancel the deadline, if there is one."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
