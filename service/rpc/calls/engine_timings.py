"""Queue, prefill and decode times of one call."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from service.domain.engine import EngineTimings


class Phase(NamedTuple):
    """A phase of a generation. Times are in seconds of `time.monotonic()`."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def merged(timings: Collection[EngineTimings]) -> EngineTimings:
    """Return the timings of several engine requests as if they were one request."""
    return EngineTimings(
        _choose(min, (t.queued_s for t in timings)),
        _choose(min, (t.scheduled_s for t in timings)),
        _choose(min, (t.first_token_s for t in timings)),
        _choose(max, (t.last_token_s for t in timings)),
        sum(t.num_tokens for t in timings),
    )


def phases(timings: EngineTimings, now_s: float) -> Iterator[Phase]:
    """Yield the phases that have begun: queue, prefill, decode. An unfinished one ends now."""
    bounds = (
        ("queue", timings.queued_s, timings.scheduled_s),
        ("prefill", timings.scheduled_s, timings.first_token_s),
        ("decode", timings.first_token_s, timings.last_token_s),
    )
    for name, start_s, end_s in bounds:
        if start_s is not None:
            yield Phase(name, start_s, now_s if end_s is None else end_s)


def wall_clock() -> Callable[[float], int]:
    """Return a function that converts a time of `time.monotonic()` to nanoseconds since 1970."""
    now_ns, now_s = time.time_ns(), time.monotonic()
    return lambda monotonic_s: now_ns - int((now_s - monotonic_s) * 1e9)


def _choose(
    choose: Callable[[list[float]], float], times_s: Iterable[float | None]
) -> float | None:
    known = [time_s for time_s in times_s if time_s is not None]
    return choose(known) if known else None
