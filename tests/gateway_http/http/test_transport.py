"""The transport of a client that does not read."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest

from gateway_http.http.transport import ClientTransport


class Unread:
    """A transport without a socket, whose unsent bytes wait in this process."""

    def __init__(self) -> None:
        self.num_unsent = 0
        self.num_written = 0
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.num_written += len(data)
        self.num_unsent += len(data)

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def get_extra_info(self, _: str) -> Any:
        return self

    def fileno(self) -> int:
        return -1

    def is_closing(self) -> bool:
        return self.is_closed


class Clock:
    """An event loop whose time passes only in `wait`."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self._now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> "Timer":
        timer = Timer(self._now_s + delay_s, callback)
        self._timers.append(timer)
        return timer

    def wait(self, seconds: float) -> None:
        end_s = self._now_s + seconds
        while due := [timer for timer in self._timers if timer.at_s <= end_s]:
            first = min(due, key=lambda timer: timer.at_s)
            self._timers.remove(first)
            self._now_s = first.at_s
            if not first.is_cancelled:
                first.callback()
        self._now_s = end_s


@dataclass
class Timer:
    at_s: float
    callback: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


TIMEOUT_S = 32


def watched() -> tuple[Unread, ClientTransport, list[float], Clock]:
    unread, cuts, clock = Unread(), list[float](), Clock()
    transport = ClientTransport(
        cast("asyncio.Transport", unread),
        TIMEOUT_S,
        lambda: cuts.append(clock.time()),
        cast("asyncio.AbstractEventLoop", clock),
    )
    return unread, transport, cuts, clock


def test_unread_bytes_are_reported_once_after_the_timeout() -> None:
    unread, transport, cuts, clock = watched()
    transport.write(b"x")
    clock.wait(10 * TIMEOUT_S)
    assert len(cuts) == 1
    assert TIMEOUT_S <= cuts[0] <= 1.1 * TIMEOUT_S
    unread.is_closed = True
    transport.write(b"x")  # this has no effect
    assert unread.num_written == 1


@pytest.mark.parametrize("num_bytes", [100, 1 << 24])
def test_reading_some_of_it_in_time_is_reading(num_bytes: int) -> None:
    """The client reads all of a few bytes, or 64 KiB of many."""
    unread, transport, cuts, clock = watched()
    transport.write(b"x" * num_bytes)
    for _ in range(20):
        clock.wait(TIMEOUT_S / 2)
        unread.num_unsent -= min(num_bytes, 40 << 10)
        transport.write(b"x" * min(num_bytes, 40 << 10))
    assert not cuts


def test_reading_single_bytes_does_not_count() -> None:
    unread, transport, cuts, clock = watched()
    transport.write(b"x" * 10_000)
    for _ in range(2 * TIMEOUT_S):
        clock.wait(1)
        unread.num_unsent -= 1
    assert len(cuts) == 1
    assert cuts[0] <= 1.1 * TIMEOUT_S


def test_time_begins_anew_with_what_is_written_later() -> None:
    unread, transport, cuts, clock = watched()
    transport.write(b"x")
    clock.wait(TIMEOUT_S - 1)
    unread.num_unsent = 0
    clock.wait(TIMEOUT_S)
    transport.write(b"x")
    clock.wait(TIMEOUT_S - 1)
    assert not cuts
    clock.wait(5)
    assert len(cuts) == 1


def test_stopped_transport_checks_nothing() -> None:
    _, transport, cuts, clock = watched()
    transport.write(b"x")
    transport.stop_watching()
    clock.wait(10 * TIMEOUT_S)
    assert not cuts
