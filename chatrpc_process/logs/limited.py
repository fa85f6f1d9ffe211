"""Limits log lines that clients can cause in any number, such as those of rejected connections."""

import asyncio
import threading
from collections.abc import Callable, Hashable
from typing import Any

_INTERVAL_S = 10.0


class LimitedLog:
    """Writes the first of several similar lines and counts the others.

    Further lines of one kind within an interval are suppressed. At the end of the interval, the
    last of them is written, with their number as `num_suppressed`. So a flood causes one line for
    each interval and kind, and the log still contains its size.

    Args:
        interval_s: Length of an interval in seconds, from the first line of a kind.
    """

    def __init__(self, interval_s: float = _INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._suppressed: dict[Hashable, _Suppressed] = {}

    def write(
        self, write: Callable[..., object], event: str, *, kind: Hashable, **fields: Any
    ) -> None:
        """Write a line or count it. Any thread may call this.

        Args:
            write: The method of a logger that writes the line.
            kind: Lines with equal `event` and `kind` are similar. The number of different kinds
                must be bounded.
        """
        with self._lock:
            suppressed = self._suppressed.get((event, kind))
            if suppressed is not None:
                suppressed.num_lines += 1
                suppressed.fields = fields
                return
            self._suppressed[event, kind] = _Suppressed(write)
        write(event, **fields)
        self._end_interval_later(event, kind)

    def _end_interval_later(self, event: str, kind: Hashable) -> None:
        """End the interval from a timer of the running event loop, or of a thread without one."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            timer = threading.Timer(self._interval_s, self._end_interval, (event, kind))
            timer.daemon = True
            timer.start()
        else:
            loop.call_later(self._interval_s, self._end_interval, event, kind)

    def _end_interval(self, event: str, kind: Hashable) -> None:
        with self._lock:
            ended = self._suppressed.pop((event, kind))
            if ended.num_lines:
                self._suppressed[event, kind] = _Suppressed(ended.write)
        if ended.num_lines:
            ended.write(event, **ended.fields, num_suppressed=ended.num_lines)
            self._end_interval_later(event, kind)


class _Suppressed:
    """The lines of one kind that were not written in the current interval."""

    def __init__(self, write: Callable[..., object]) -> None:
        self.write = write
        self.num_lines = 0
        self.fields: dict[str, Any] = {}
