"""How far the engine came with what one call asked of it."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from service.domain.engine import Request, RequestTimes

# What the call that this task serves has asked of the engine.
_asked: ContextVar[list[Request] | None] = ContextVar("chatrpc_asked", default=None)


def begin() -> list[Request]:
    """The list that gets what the call of this task asks of the engine from now on."""
    requests: list[Request] = []
    _asked.set(requests)
    return requests


def ask(*requests: Request) -> None:
    """Note what is about to be asked; of no effect outside a call."""
    asked = _asked.get()
    if asked is not None:
        asked.extend(requests)


class Phase(NamedTuple):
    """Of `time.monotonic()`, in seconds."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Phases:
    """The stay of a call's requests in the engine, all of them together.

    Each value None where none of them came so far.
    """

    queued_s: float | None
    scheduled_s: float | None
    first_token_s: float | None
    last_token_s: float | None

    @classmethod
    def of(cls, requests: Iterable[Request]) -> "Phases":
        times = [request.times for request in requests]
        return cls(
            _fold(min, times, lambda t: t.queued_s),
            _fold(min, times, lambda t: t.scheduled_s),
            _fold(min, times, lambda t: t.first_token_s),
            _fold(max, times, lambda t: t.last_token_s),
        )

    def until(self, now_s: float) -> Iterator[Phase]:
        """Queue, prefill and decode, as far as there are; the one it ended in lasts until now."""
        begins = (
            ("queue", self.queued_s, self.scheduled_s),
            ("prefill", self.scheduled_s, self.first_token_s),
            ("decode", self.first_token_s, self.last_token_s),
        )
        for name, start_s, end_s in begins:
            if start_s is not None:
                yield Phase(name, start_s, now_s if end_s is None else end_s)


def wall_clock() -> Callable[[float], int]:
    """From times of `time.monotonic()` to nanoseconds since 1970, as the two clocks stand now."""
    now_ns, now_s = time.time_ns(), time.monotonic()
    return lambda monotonic_s: now_ns - int((now_s - monotonic_s) * 1e9)


def _fold(
    choose: Callable[[Iterable[float]], float],
    times: list[RequestTimes],
    read: Callable[[RequestTimes], float | None],
) -> float | None:
    found = [value for t in times if (value := read(t)) is not None]
    return choose(found) if found else None
