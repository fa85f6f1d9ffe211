"""How much each key has used of what it may.

A limit a minute is a bucket that holds a minute's worth and fills evenly. What a request costs in
tokens is known at its end: it is let in while there is any left, and may overdraw; the debt has to
be filled first, which is why none of the libraries for fixed or sliding windows would do.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from chatrpc_process.keys import Key

_PERIOD_S = 60.0
_CONCURRENCY_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of a limit. `reset_s` is how long until all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


class QuotaExceeded(Exception):
    """A key has used up what it may. `what` is requests, tokens or concurrent requests."""

    def __init__(self, what: str, limit: int, retry_after_s: float) -> None:
        per = "" if what == "concurrent requests" else " a minute"
        super().__init__(f"The limit of this key, {limit} {what}{per}, is reached.")
        self.what = what
        self.limit = limit
        self.retry_after_s = retry_after_s


class Quotas:
    """The use that all keys have made so far, in this process.

    Args:
        clock: seconds from any time on, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str, int], _Bucket] = {}
        self._num_running: Counter[str] = Counter()

    @contextmanager
    def request(self, key: Key) -> Iterator[None]:
        """A request of the key, counted as running while in the context.

        Raises:
            QuotaExceeded
        """
        most = key.max_concurrent_requests
        if most is not None and self._num_running[key.name] >= most:
            raise QuotaExceeded("concurrent requests", most, _CONCURRENCY_RETRY_S)
        buckets = self._bucket(key, "tokens"), self._bucket(key, "requests")
        now_s = self._clock()
        for bucket in buckets:
            if bucket is not None and (wait_s := bucket.wait_s(now_s)) > 0:
                raise QuotaExceeded(bucket.what, bucket.limit, wait_s)
        if buckets[1] is not None:
            buckets[1].take(1, now_s)
        self._num_running[key.name] += 1
        try:
            yield
        finally:
            self._num_running[key.name] -= 1
            if not self._num_running[key.name]:
                del self._num_running[key.name]

    def spend(self, key: Key, num_tokens: int) -> None:
        """Count the tokens of a request, those of its prompt and those of its answer."""
        if (bucket := self._bucket(key, "tokens")) is not None:
            bucket.take(num_tokens, self._clock())

    def requests(self, key: Key) -> Standing | None:
        """What is left of its requests; None without a limit."""
        bucket = self._bucket(key, "requests")
        return None if bucket is None else bucket.standing(self._clock())

    def tokens(self, key: Key) -> Standing | None:
        """What is left of its tokens; None without a limit."""
        bucket = self._bucket(key, "tokens")
        return None if bucket is None else bucket.standing(self._clock())

    def _bucket(self, key: Key, what: str) -> "_Bucket | None":
        """A limit that has changed, in a file read anew, begins with a full bucket."""
        limit = key.requests_per_minute if what == "requests" else key.tokens_per_minute
        if limit is None:
            return None
        name = key.name, what, limit
        if name not in self._buckets:
            self._buckets[name] = _Bucket(what, limit, float(limit), self._clock())
        return self._buckets[name]


@dataclass(slots=True)
class _Bucket:
    what: str
    limit: int
    level: float
    updated_s: float

    def take(self, amount: int, now_s: float) -> None:
        self._fill(now_s)
        self.level -= amount

    def wait_s(self, now_s: float) -> float:
        """Until there is one to take; 0 if there is one now."""
        self._fill(now_s)
        return max(0.0, (1.0 - self.level) * _PERIOD_S / self.limit)

    def standing(self, now_s: float) -> Standing:
        self._fill(now_s)
        reset_s = (self.limit - self.level) * _PERIOD_S / self.limit
        return Standing(self.limit, max(0, int(self.level)), reset_s)

    def _fill(self, now_s: float) -> None:
        gained = (now_s - self.updated_s) * self.limit / _PERIOD_S
        self.level = min(float(self.limit), self.level + gained)
        self.updated_s = now_s
