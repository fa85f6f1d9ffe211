"""Ends a process whose event loop is blocked.

Probes, metrics and the shutdown need the event loop. While a call blocks it, probes time out.
Without the watchdog, a process that nothing probes would hang forever.
"""

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

EXIT_CODE = 1

# Maximum time in seconds between two ticks. Each tick wakes the process. A loop counts as blocked
# after several missed ticks.
_LONGEST_TICK_S = 1.0
_LEAST_TICKS = 4
# The loop may be blocked because nothing reads the log. Then writing a log line blocks, too.
_LOG_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


@contextmanager
def watched_loop(timeout_s: float, end: Callable[[int], object] = os._exit) -> Iterator[None]:
    """While in the context, call `end` with EXIT_CODE if the running loop is blocked too long.

    A thread counts missed ticks and reads no clock. So if the process or its machine is suspended
    for any time, only one tick is missed. If another thread never releases the interpreter's lock,
    this thread cannot run either; only a probe from outside detects that.

    Args:
        timeout_s: Maximum time in seconds for which the loop may be blocked.
    """
    stopped = threading.Event()
    watching = threading.Thread(
        target=_watch,
        args=(asyncio.get_running_loop(), threading.get_ident(), timeout_s, stopped, end),
        name="watchdog",
        daemon=True,
    )
    watching.start()
    try:
        yield
    finally:
        stopped.set()


def _watch(
    loop: asyncio.AbstractEventLoop,
    thread_id: int,
    timeout_s: float,
    stopped: threading.Event,
    end: Callable[[int], object],
) -> None:
    tick_s = min(_LONGEST_TICK_S, timeout_s / _LEAST_TICKS)
    has_run = threading.Event()
    has_run.set()
    missed_s = 0.0
    while not stopped.wait(tick_s):
        if has_run.is_set():
            has_run.clear()
            missed_s = 0.0
            try:
                loop.call_soon_threadsafe(has_run.set)
            except RuntimeError:  # the loop is closed
                return
            continue
        missed_s += tick_s
        if missed_s >= timeout_s:
            _log_stack(thread_id, missed_s)
            end(EXIT_CODE)
            return


def _log_stack(thread_id: int, missed_s: float) -> None:
    frame = sys._current_frames().get(thread_id)
    stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
    writing = threading.Thread(
        target=lambda: log.critical("event_loop_hangs", missed_s=round(missed_s, 1), stack=stack),
        daemon=True,
    )
    writing.start()
    writing.join(_LOG_TIMEOUT_S)
