"""The caller of a request: the owner of an API key, or anybody where the gateway has no keys."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from chatrpc.v1 import caller_pb2
from chatrpc_process.access.cost import Cost, cost_of, limit_output
from chatrpc_process.access.keys import Key
from chatrpc_process.access.quotas import (
    NeverAdmitted,
    QuotaExceeded,
    Quotas,
    Reservation,
    Standing,
)
from gateway_http.protocol.error import ApiError, InvalidRequest
from gateway_http.protocol.params import param_of

# Trailing metadata of a failed call: the tokens that the service has computed for it.
_NUM_TOKENS_KEY = "chatrpc-num-tokens"


class Caller:
    """What a caller may do. Without a key everything is permitted and nothing is counted."""

    def __init__(self, key: Key | None, quotas: Quotas) -> None:
        self._key = key
        self._quotas = quotas

    @property
    def info(self) -> caller_pb2.CallerInfo | None:
        """Describe the caller to a service; None: it has no identity."""
        key = self._key
        if key is None:
            return None
        return caller_pb2.CallerInfo(
            name=key.owner_name,
            weight=key.weight,
            cache_namespace=key.owner_name if key.cache_scope == "key" else "",
            min_priority=key.min_priority,
        )

    @property
    def may_use_all_models(self) -> bool:
        return self._key is None or self._key.may_use_all_models

    def may_use(self, *names: str) -> bool:
        """Whether it may use the model with these names."""
        return self._key is None or any(map(self._key.may_use, names))

    def check_model(self, name: str, *others: str) -> None:
        """Raise ApiError unless it may use the model by this name or by one of the others."""
        if not self.may_use(name, *others):
            raise ApiError(
                403,
                f"This API key may not use the model `{name}`.",
                param="model",
                code="permission_denied",
            )

    @contextmanager
    def generation(
        self, params: Any, num_bytes: int, names: Mapping[str, str], *, is_streamed: bool
    ) -> "Iterator[Spending]":
        """Count a generation against the caller's limits while in the context.

        Args:
            params: The parameters of the call. A missing output limit is set if the caller has a
                limit of tokens.
            num_bytes: The size of the request's body.
            names: The client's own names of parameters, where they differ.

        Raises:
            ApiError: A limit is reached, or the request alone exceeds it.
        """
        if self._key is None:
            yield Spending()
            return
        limit_output(params, self._key)
        cost = cost_of(params, num_bytes)
        with self._admitted(self._key, cost, names) as reservation:
            spending = Spending(reservation, cost, is_streamed=is_streamed)
            try:
                yield spending
            except grpc.aio.AioRpcError as error:
                spending.fail(error)
                raise
            except ApiError:
                spending.settle()  # the gateway's own error, at the cost of what has been noted
                raise
            except BaseException:
                spending.abandon()
                raise
            else:
                spending.settle()

    @contextmanager
    def tokenization(self) -> Iterator[None]:
        """Count a request that generates nothing against the caller's limits while in the context.

        Raises:
            ApiError: A limit is reached.
        """
        if self._key is None:
            yield
            return
        with self._admitted(self._key, Cost(), {}):
            yield

    def limits(self) -> dict[str, str]:
        """Return what is left of its limits, as headers of a response; none without limits."""
        if self._key is None:
            return {}
        return {
            **_headers("requests", self._quotas.requests(self._key)),
            **_headers("tokens", self._quotas.tokens(self._key)),
        }

    @contextmanager
    def _admitted(self, key: Key, cost: Cost, names: Mapping[str, str]) -> Iterator[Reservation]:
        try:
            with self._quotas.admit(key, cost) as reservation:
                yield reservation
        except QuotaExceeded as error:
            raise _limit_reached(error) from None
        except NeverAdmitted as error:
            param = param_of(error.field, names)
            raise InvalidRequest(str(error), param, "request_exceeds_limit") from None


class Spending:
    """The tokens that one generation has reserved and used of its caller's limit."""

    def __init__(
        self,
        reservation: Reservation | None = None,
        cost: Cost = Cost(),  # noqa: B008  # it is immutable
        *,
        is_streamed: bool = False,
    ) -> None:
        self._reservation = reservation
        self._cost = cost
        self._is_streamed = is_streamed
        self._num_noted = 0

    def note(self, num_tokens: int) -> None:
        """Count tokens of the prompt and the output. The first ones include the whole prompt."""
        if num_tokens and not self._num_noted:
            self._resize(num_tokens + self._cost.num_output_tokens)
        self._num_noted += num_tokens

    def settle(self) -> None:
        """Charge what has been noted, and give the rest back."""
        self._resize(self._num_noted)

    def fail(self, error: grpc.aio.AioRpcError) -> None:
        """Charge what the service says it has computed, at least what has been noted.

        A service that has died says nothing, and its callers are not charged. Neither does a call
        whose time is up; its caller may have had the service compute all that it has reserved.
        """
        trailing = dict(error.trailing_metadata() or ())
        said = trailing.get(_NUM_TOKENS_KEY, "")
        if isinstance(said, str) and said.isdecimal():
            self._resize(max(self._num_noted, int(said)))
        elif error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or self._num_noted:
            self.settle()

    def abandon(self) -> None:
        """Charge a generation whose client has left before its end.

        Of a stream, the output so far is known; before the first token, the prompt may have been
        computed. Of a response that is not streamed nothing is known, so that the whole reservation
        is charged.
        """
        if self._num_noted:
            self.settle()
        elif self._is_streamed:
            self._resize(self._cost.num_prompt_tokens)

    def _resize(self, num_tokens: int) -> None:
        if self._reservation is not None:
            self._reservation.resize(num_tokens)


def duration(seconds: float) -> str:
    """Write a duration as OpenAI's headers do: `0s`, `12ms`, `1.5s`, `6m0s`."""
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
