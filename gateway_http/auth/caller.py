"""The caller of a request: its permissions, its limits, and the tokens that it is charged."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from chatrpc.v1 import caller_pb2
from chatrpc_process.access.cost import Cost, cost_of, cost_of_input, default_output_limit
from chatrpc_process.access.keys import Key
from chatrpc_process.access.quotas import (
    NeverAdmitted,
    QuotaExceeded,
    Quotas,
    RateLimitState,
    Reservation,
)
from gateway_http.protocol.error import ApiError, InvalidRequest, PermissionDenied
from gateway_http.protocol.params import param_of

# The key in the trailing metadata of a failed call. Its value is the number of tokens that the
# service has computed.
_NUM_TOKENS_KEY = "chatrpc-num-tokens"


class Caller:
    """The caller of a request. If it has no key, all is permitted and nothing is counted.

    Args:
        key: The request's API key; None if the gateway has no keys, or the path needs none.
        quotas: The use of all keys' limits so far.
    """

    def __init__(self, key: Key | None, quotas: Quotas) -> None:
        self._key = key
        self._quotas = quotas

    @property
    def name(self) -> str:
        """The name of the key's owner; "" without a key."""
        return "" if self._key is None else self._key.owner_name

    @property
    def weight(self) -> int:
        """The caller's share of capacity relative to that of other callers."""
        return 1 if self._key is None else self._key.weight

    @property
    def info(self) -> caller_pb2.CallerInfo | None:
        """The description of the caller for a service, or None if it has no identity."""
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
        """Return whether the caller may use the model that has these names."""
        return self._key is None or any(map(self._key.may_use, names))

    def check_model(self, name: str, *others: str) -> None:
        """Check that the caller may use a model, by one of its names.

        Args:
            name: The name in the request.
            others: The other names of the model.

        Raises:
            PermissionDenied: The caller may not use the model.
        """
        if not self.may_use(name, *others):
            raise PermissionDenied(f"This API key may not use the model `{name}`.", "model")

    @contextmanager
    def generation(
        self, params: Any, num_bytes: int, names: Mapping[str, str], *, is_streamed: bool
    ) -> "Iterator[TokenCharge]":
        """Count a generation against the caller's limits while in the context.

        Args:
            params: The parameters of the generation.
            num_bytes: The size of the request's body.
            names: The client's names of parameters; see `param_of`.
            is_streamed: True if the response is streamed.

        Raises:
            ApiError: A limit is reached, or the request by itself exceeds it.
        """
        if self._key is None:
            yield TokenCharge()
            return
        output_limit = default_output_limit(params, self._key)
        cost = cost_of(params, num_bytes, output_limit)
        with self._admitted(self._key, cost, names) as reservation:
            charge = TokenCharge(reservation, cost, output_limit, is_streamed=is_streamed)
            with charge.charging():
                yield charge

    @contextmanager
    def computation(
        self, num_bytes: int, field: str, names: Mapping[str, str]
    ) -> "Iterator[TokenCharge]":
        """Count a request that generates nothing against the caller's limits while in the context.

        Args:
            num_bytes: The size of all that the model computes.
            field: The field of the RPC's request that has most of it.
            names: The client's names of parameters; see `param_of`.

        Raises:
            ApiError: A limit is reached, or the request by itself exceeds it.
        """
        if self._key is None:
            yield TokenCharge()
            return
        cost = cost_of_input(num_bytes, field)
        with self._admitted(self._key, cost, names) as reservation:
            charge = TokenCharge(reservation, cost)
            with charge.charging():
                yield charge
                charge.note_least()

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
        """Return the response headers that report the caller's limits; empty without limits."""
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


class TokenCharge:
    """Charges the tokens of one request to its caller's limit, for which tokens are reserved.

    Args:
        reservation: The reserved tokens. None if the caller has no limit.
        cost: The maximum cost of the generation.
        output_limit: The default output limit of a sequence, in tokens. None if the request has a
            limit itself, or if the tokens of the caller are not limited.
        is_streamed: True if the response is streamed.
    """

    def __init__(
        self,
        reservation: Reservation | None = None,
        cost: Cost = Cost(),  # noqa: B008  # a Cost is immutable
        output_limit: int | None = None,
        *,
        is_streamed: bool = False,
    ) -> None:
        self.output_limit = output_limit
        self._reservation = reservation
        self._cost = cost
        self._is_streamed = is_streamed
        self._num_noted = 0

    @contextmanager
    def charging(self) -> Iterator[None]:
        """Charge the tokens at the end of the context, by the way in which it ends."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self.charge_failed(error)
            raise
        except ApiError:
            self.charge_used()  # the gateway failed, not the service
            raise
        except BaseException:
            self.charge_disconnected()
            raise
        else:
            self.charge_used()

    def note(self, num_tokens: int) -> None:
        """Count tokens of the prompt and the output. The first call includes the whole prompt."""
        if num_tokens and not self._num_noted:
            self._resize(num_tokens + self._cost.num_output_tokens)
        self._num_noted += num_tokens

    def note_least(self) -> None:
        """Count the least tokens of the request if the service has not counted them."""
        if not self._num_noted:
            self.note(self._cost.least_tokens)

    def charge_used(self) -> None:
        """Charge the counted tokens, and free the rest of the reservation."""
        self._resize(self._num_noted)

    def charge_failed(self, error: grpc.aio.AioRpcError) -> None:
        """Charge the tokens that the service reports as computed, at least the counted ones.

        If the service reports nothing because it has died, only counted tokens are charged. If it
        reports nothing because the deadline has passed and no token was counted, the whole
        reservation is charged, since all of it may have been computed.
        """
        trailing = dict(error.trailing_metadata() or ())
        reported = trailing.get(_NUM_TOKENS_KEY, "")
        if isinstance(reported, str) and reported.isdecimal():
            self._resize(max(self._num_noted, int(reported)))
        elif error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or self._num_noted:
            self.charge_used()

    def charge_disconnected(self) -> None:
        """Charge a generation whose client has left before its end.

        The output of a stream so far is known. Before the first token of a stream, the prompt is
        charged, since it may have been computed. Nothing is known of a response that is not
        streamed, so the whole reservation is charged.
        """
        if self._num_noted:
            self.charge_used()
        elif self._is_streamed:
            self._resize(self._cost.num_prompt_tokens)

    def _resize(self, num_tokens: int) -> None:
        if self._reservation is not None:
            self._reservation.resize(num_tokens)


def duration(seconds: float) -> str:
    """Return a duration in the form of OpenAI's headers: `0s`, `12ms`, `1.5s`, `6m0s`."""
    ms = math.ceil(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    minutes, seconds_left = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{seconds_left}s"


def _headers(what: str, state: RateLimitState | None) -> dict[str, str]:
    if state is None:
        return {}
    return {
        f"x-ratelimit-limit-{what}": str(state.limit),
        f"x-ratelimit-remaining-{what}": str(state.remaining),
        f"x-ratelimit-reset-{what}": duration(state.reset_s),
    }


def _limit_reached(error: QuotaExceeded) -> ApiError:
    return ApiError(
        429,
        str(error),
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(max(1, math.ceil(error.retry_after_s)))},
    )
