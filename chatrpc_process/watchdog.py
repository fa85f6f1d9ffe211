"""Ends a process whose event loop has stopped turning.

Everything else a process knows of its health it says through that loop, so a call that blocks it
silences all of it: probes time out, and where nobody probes it would hang for ever.
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

# Each tick costs a wake-up of the process, and a loop is given up after some of them.
_LONGEST_TICK_S = 1.0
_LEAST_TICKS = 4
# Whoever reads the log may be what the loop waits for: the last words must not hang as well.
_LAST_WORDS_S = 2.0

log = structlog.get_logger(__name__)


@contextmanager
def watched_loop(timeout_s: float, end: Callable[[int], object] = os._exit) -> Iterator[None]:
    """While in here, call `end` with EXIT_CODE if the running loop does not turn for `timeout_s`.

    The time is counted in ticks of the watching thread, not read from a clock: a process that was
    stopped, or whose machine was, has missed one tick when it wakes, however long that took. A
    thread that keeps the interpreter's lock for ever keeps this one from running too; that is for
    probes from outside to find.
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
    has_turned = threading.Event()
    has_turned.set()
    missed_s = 0.0
    while not stopped.wait(tick_s):
        if has_turned.is_set():
            has_turned.clear()
            missed_s = 0.0
            try:
                loop.call_soon_threadsafe(has_turned.set)
            except RuntimeError:  # the loop is closed
                return
            continue
        missed_s += tick_s
        if missed_s >= timeout_s:
            _say(thread_id, missed_s)
            end(EXIT_CODE)
            return


def _say(thread_id: int, missed_s: float) -> None:
    frame = sys._current_frames().get(thread_id)
    stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
    saying = threading.Thread(
        target=lambda: log.critical("event loop hangs", missed_s=round(missed_s, 1), stack=stack),
        daemon=True,
    )
    saying.start()
    saying.join(_LAST_WORDS_S)
