"""How much the owner of each key has used of its limits, in this process.

A limit per minute is a bucket that holds a minute's worth and refills evenly.

Requests cost what they have sequences (prompts times `n`), which is known at once. Tokens are known
only at the end, so the most that a request may cost is reserved when it is admitted: it is taken
out of the bucket, and what was not used is put back when the request ends. A request is admitted
while the bucket has a token left. So requests that are admitted in a period use at most the limit,
what has been refilled, and the cost of one more request; besides, what requests from before the
period put back. Requiring the whole reservation to be there would keep clients from using their
limit, since reservations are upper bounds (see `cost.py`).

No bucket owes more than two minutes of refill: a request waits until that holds, with all that it
is known to cost. One that costs more than three minutes' worth can never be admitted.

LiteLLM and Envoy AI Gateway limit tokens by estimates, too, and correct them at the end. None of
the libraries for fixed or sliding windows knows reservations.
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
_MOST_DEBT = 2  # in minutes of refill


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of a limit. In `reset_s` seconds all of it is available again."""

    limit: int
    remaining: int
    reset_s: float


class QuotaExceeded(Exception):
    """A limit is used up for now. `what` is requests, tokens or concurrent requests."""

    def __init__(self, what: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"The limit of this key, {_limit(what, limit)}, is reached.")
        self.what = what
        self.limit = limit
        self.retry_after_s = retry_after_s


class NeverAdmitted(Exception):
    """A request alone exceeds a limit of its key, so waiting does not help.

    `field` is the field of its parameters to lower.
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(f"{message} It can never be admitted.")
        self.field = field


class Quotas:
    """The use of all limits so far, in this process.

    Args:
        clock: Returns seconds since an arbitrary time; never goes backwards.
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
            NeverAdmitted: The request alone exceeds a limit.
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

    def requests(self, key: Key) -> Standing | None:
        """Return what is left of the key's requests; None without a limit."""
        bucket = self._bucket(key, "requests")
        return None if bucket is None else bucket.standing()

    def tokens(self, key: Key) -> Standing | None:
        """Return what is left of the key's tokens; None without a limit."""
        bucket = self._bucket(key, "tokens")
        return None if bucket is None else bucket.standing()

    def _bucket(self, key: Key, what: str) -> "_Bucket | None":
        """A limit that has changed in the key file begins with a full bucket."""
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
        # No request is charged more than this, so no bucket ever owes more than `most_debt`.
        self._most = 0 if bucket is None else int(bucket.level()) + bucket.most_debt

    def resize(self, num_tokens: int) -> None:
        """Hold this number of tokens from now on; take or give back the difference."""
        if self._bucket is not None:
            held = min(num_tokens, self._most)
            self._bucket.take(held - self._held)
            self._held = held


class _Bucket:
    """What is left of a limit per minute. Its level is negative while it owes."""

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
        """Return the seconds until `needed` are there if nothing is given back; 0: they are."""
        return max(0.0, (needed - self.level()) * _PERIOD_S / self.limit)

    def standing(self) -> Standing:
        level = self.level()
        reset_s = (self.limit - level) * _PERIOD_S / self.limit
        return Standing(self.limit, max(0, int(level)), reset_s)


def _check_ever(key: Key, cost: Cost) -> None:
    """Raise NeverAdmitted for a request that exceeds a limit of its key by itself."""
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
