"""The use of each owner's limits in this process.

A limit per minute is a token bucket. It has the capacity of one minute and refills evenly.

- A request costs as many requests as it has sequences (prompts times `n`).
- The number of tokens is known only at the end. So the maximum is reserved when the request is
  admitted, and the unused part is returned when it ends.
- A request is admitted if the bucket has at least one token. If the bucket had to contain the whole
  reservation, clients could not use their limit: reservations are upper bounds (see `cost.py`).
- A bucket's debt is at most two minutes of refill. A request that would exceed this has to wait. A
  request is never admitted if its least cost exceeds three minutes of refill.

LiteLLM and Envoy AI Gateway also limit tokens by estimates and correct them at the end. The
libraries for fixed or sliding windows have no reservations.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from chatrpc_process.access.cost import Cost
from chatrpc_process.access.keys import Key

_PERIOD_S = 60.0
_CONCURRENCY_RETRY_S = 1.0
_MOST_DEBT = 2  # maximum debt of a bucket, in minutes of refill


@dataclass(frozen=True, slots=True)
class RateLimitState:
    """The remaining part of a limit. The whole limit is available again after `reset_s` seconds."""

    limit: int
    remaining: int
    reset_s: float


class QuotaExceeded(Exception):
    """A limit is used up for now. `what` names it: requests, tokens or concurrent requests."""

    def __init__(self, what: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"The limit of this key, {_limit(what, limit)}, is reached.")
        self.what = what
        self.limit = limit
        self.retry_after_s = retry_after_s


class NeverAdmitted(Exception):
    """A request by itself exceeds a limit of its key, so waiting does not help.

    `field` is the field of its parameters that the client can lower.
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(f"{message} It can never be admitted.")
        self.field = field


class Quotas:
    """The use of all limits so far, in this process.

    Args:
        clock: Returns a monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._num_running: Counter[str] = Counter()

    @contextmanager
    def admit(self, key: Key, cost: Cost) -> Iterator["Reservation"]:
        """Count a request as running while in the context, and reserve its tokens.

        At the end of the context, the tokens that are still reserved are charged.

        Raises:
            NeverAdmitted: The request by itself exceeds a limit.
            QuotaExceeded: A limit is used up for now.
        """
        owner, num_sequences = key.owner_name, cost.num_sequences
        requests, tokens = self._bucket(key, "requests"), self._bucket(key, "tokens")
        if cost.num_tokens == 0:
            tokens = None
        _check_ever(key, cost)
        most = key.max_concurrent_requests
        if most is not None and self._num_running[owner] + num_sequences > most:
            raise QuotaExceeded("concurrent requests", most, _CONCURRENCY_RETRY_S)
        for bucket, needed in (
            (tokens, 0 if tokens is None else max(1, cost.least_tokens - tokens.most_debt)),
            (requests, num_sequences),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(needed)) > 0:
                raise QuotaExceeded(bucket.what, bucket.limit, wait_s)
        if requests is not None:
            requests.take(num_sequences)
        reservation = Reservation(tokens)
        reservation.resize(cost.num_tokens)
        self._num_running[owner] += num_sequences
        try:
            yield reservation
        finally:
            self._num_running[owner] -= num_sequences
            if not self._num_running[owner]:
                del self._num_running[owner]

    def requests(self, key: Key) -> RateLimitState | None:
        """Return the remaining requests of the key, or None if they are not limited."""
        bucket = self._bucket(key, "requests")
        return None if bucket is None else bucket.state()

    def tokens(self, key: Key) -> RateLimitState | None:
        """Return the remaining tokens of the key, or None if they are not limited."""
        bucket = self._bucket(key, "tokens")
        return None if bucket is None else bucket.state()

    def _bucket(self, key: Key, what: str) -> "_Bucket | None":
        """Return the bucket of a limit. If the limit has changed in the key file, a full one."""
        limit = key.requests_per_minute if what == "requests" else key.tokens_per_minute
        if limit is None:
            return None
        name = key.owner_name, what
        bucket = self._buckets.get(name)
        if bucket is None or bucket.limit != limit:
            bucket = self._buckets[name] = _Bucket(what, limit, self._clock)
        return bucket


class Reservation:
    """The tokens that one request has reserved or used. Without a token limit it does nothing."""

    def __init__(self, bucket: "_Bucket | None") -> None:
        self._bucket = bucket
        self._held = 0
        # The maximum charge of this request, so that the bucket's debt never exceeds `most_debt`.
        self._most = 0 if bucket is None else int(bucket.level()) + bucket.most_debt

    def resize(self, num_tokens: int) -> None:
        """Change the number of reserved tokens to `num_tokens`."""
        if self._bucket is not None:
            held = min(num_tokens, self._most)
            self._bucket.take(held - self._held)
            self._held = held


class _Bucket:
    """The token bucket of a limit per minute. A negative level is a debt."""

    def __init__(self, what: str, limit: int, clock: Callable[[], float]) -> None:
        self.what = what
        self.limit = limit
        self.most_debt = _MOST_DEBT * limit
        self._clock = clock
        self._level = float(limit)
        self._updated_s = clock()

    def level(self) -> float:
        now_s = self._clock()
        gained = (now_s - self._updated_s) * self.limit / _PERIOD_S
        self._level = min(float(self.limit), self._level + gained)
        self._updated_s = now_s
        return self._level

    def take(self, amount: int) -> None:
        self._level = self.level() - amount

    def wait_s(self, needed: int) -> float:
        """Return the seconds until refill raises the level to `needed`; 0 if it is high enough."""
        return max(0.0, (needed - self.level()) * _PERIOD_S / self.limit)

    def state(self) -> RateLimitState:
        level = self.level()
        reset_s = (self.limit - level) * _PERIOD_S / self.limit
        return RateLimitState(self.limit, max(0, int(level)), reset_s)


def _check_ever(key: Key, cost: Cost) -> None:
    """Raise NeverAdmitted if a request by itself exceeds a limit of its key."""
    for what, limit in (
        ("concurrent requests", key.max_concurrent_requests),
        ("requests", key.requests_per_minute),
    ):
        if limit is not None and cost.num_sequences > limit:
            raise NeverAdmitted(
                f"This request counts as {cost.num_sequences}, one for each choice of each prompt. "
                f"The limit of its key is {_limit(what, limit)}.",
                cost.sequences_field,
            )
    limit, times = key.tokens_per_minute, 1 + _MOST_DEBT
    if limit is not None and cost.least_tokens > times * limit:
        raise NeverAdmitted(
            f"This request may cost {cost.least_tokens} tokens. One request may cost at most "
            f"{times} times the limit of its key, {_limit('tokens', limit)}.",
            cost.tokens_field,
        )


def _limit(what: str, limit: int) -> str:
    return f"{limit} {what}" + ("" if what == "concurrent requests" else " a minute")
