"""Who sent a request, and what it may do: the owner of an API key, or anybody."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from chatrpc_process.keys import Key
from chatrpc_process.quotas import QuotaExceeded, Quotas, Standing
from gateway_http.protocol.error import ApiError


class Caller:
    """Without a key, where none is asked for, everything is permitted and nothing counted."""

    def __init__(self, key: Key | None, quotas: Quotas) -> None:
        self._key = key
        self._quotas = quotas

    def may_use(self, *names: str) -> bool:
        """Whether it may use the model that these are the names of."""
        return self._key is None or any(map(self._key.may_use, names))

    def check_model(self, name: str, *others: str) -> None:
        """Raise ApiError for a model that it may not use by this name, or by one of the others."""
        if not self.may_use(name, *others):
            raise ApiError(
                403,
                f"This API key may not use the model `{name}`.",
                param="model",
                code="permission_denied",
            )

    @contextmanager
    def generation(self, model: str, *others: str) -> "Iterator[Spending]":
        """A generation, which counts against its limits while in the context.

        Args:
            model: its name for the caller; `others`: those that it has besides.

        Raises:
            ApiError: the model is not for it, or a limit is reached.
        """
        self.check_model(model, *others)
        spending = Spending(self._key, self._quotas)
        if self._key is None:
            yield spending
            return
        try:
            with self._quotas.request(self._key):
                try:
                    yield spending
                finally:
                    spending.settle()
        except QuotaExceeded as error:
            raise _limit_reached(error) from None

    def limits(self) -> dict[str, str]:
        """What is left of its limits, as the headers of an answer; nothing without limits."""
        if self._key is None:
            return {}
        return {
            **_headers("requests", self._quotas.requests(self._key)),
            **_headers("tokens", self._quotas.tokens(self._key)),
        }


class Spending:
    """The tokens that one generation takes, of its prompt and its answer."""

    def __init__(self, key: Key | None, quotas: Quotas) -> None:
        self._key = key
        self._quotas = quotas
        self._num_unsettled = 0

    def note(self, num_tokens: int) -> None:
        """So many more have come."""
        self._num_unsettled += num_tokens

    def settle(self) -> None:
        """Take what has been noted since the last time off the caller's limit."""
        if self._key is not None:
            self._quotas.spend(self._key, self._num_unsettled)
        self._num_unsettled = 0


def duration(seconds: float) -> str:
    """As OpenAI's headers have it: `0s`, `12ms`, `1.5s`, `6m0s`."""
    ms = math.ceil(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    minutes, seconds_left = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{seconds_left}s"


def _headers(what: str, standing: Standing | None) -> dict[str, str]:
    if standing is None:
        return {}
    return {
        f"x-ratelimit-limit-{what}": str(standing.limit),
        f"x-ratelimit-remaining-{what}": str(standing.remaining),
        f"x-ratelimit-reset-{what}": duration(standing.reset_s),
    }


def _limit_reached(error: QuotaExceeded) -> ApiError:
    return ApiError(
        429,
        str(error),
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(max(1, math.ceil(error.retry_after_s)))},
    )
