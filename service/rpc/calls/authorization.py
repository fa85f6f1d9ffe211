"""Authorization of calls, by the API key and the `CallerInfo` in their metadata.

The key is sent as `authorization: Bearer KEY` or as `x-api-key: KEY`. Health checks need no key.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from google.protobuf.message import DecodeError

from chatrpc.v1 import caller_pb2
from chatrpc.v1.limits import LIMITS
from chatrpc_process.access.cost import Cost, cost_of, cost_of_input, default_output_limit
from chatrpc_process.access.keys import Key, KeyRing
from chatrpc_process.access.quotas import NeverAdmitted, QuotaExceeded, Quotas, Reservation
from chatrpc_process.access.secret import sent_secret
from chatrpc_process.files.watched import Watched
from service.domain.engine import Caller
from service.errors import (
    ActingForbidden,
    ExceedsLimit,
    InvalidField,
    LimitReached,
    ModelForbidden,
    Unauthenticated,
)
from service.rpc.calls.caller import GenerationObserver, acting_for
from service.rpc.calls.rpcs import Rpc

CALLER_KEY = "chatrpc-caller-bin"
MAX_CALLER_BYTES = 4096

Metadata = Iterable[tuple[str, str | bytes]]


class Call(GenerationObserver, Protocol):
    """A call that is being served."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens computed for the call so far, prompt and output together."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """The key that a call was made with, and the caller that it is made for."""

    key: Key | None
    caller: Caller

    def may_use(self, model: str) -> bool:
        return self.key is None or self.key.may_use(model)


class Access:
    """Admits calls by their keys. If no file of keys is given, every call is admitted."""

    def __init__(self, keys: Watched[KeyRing] | None = None) -> None:
        self._keys = keys
        self._quotas = Quotas()

    def authenticate(self, metadata: Metadata) -> Identity:
        """Return the identity of a call.

        Raises:
            Unauthenticated: A key is required, and it is missing or unknown.
            ActingForbidden: The call names another caller, and its key does not permit that.
            InvalidField: The description of the other caller is invalid.
        """
        metadata = list(metadata)
        key = None
        if self._keys is not None:
            secret = sent_secret(metadata)
            key = None if secret is None else self._keys.value.find(secret)
            if key is None:
                raise Unauthenticated(is_missing=secret is None)
            structlog.contextvars.bind_contextvars(key=key.name)
        info = _caller_info(metadata)
        if info is None or (key is not None and info.only_without_keys):
            return Identity(key, _own_caller(key))
        if key is not None and not key.may_act_for_others:
            raise ActingForbidden(CALLER_KEY)
        structlog.contextvars.bind_contextvars(caller=info.name)
        return Identity(key, _other_caller(key, info))

    @contextmanager
    def use(
        self, identity: Identity, rpc: Rpc, message: Any, num_bytes: int, call: Call
    ) -> Iterator[None]:
        """Serve a call while in the context. It counts against the limits of its key.

        Args:
            message: The request. A missing output limit is set if the key has a limit of tokens.
            num_bytes: The size of the request on the wire.

        Raises:
            ModelForbidden: The key does not permit the model.
            LimitReached: A limit of the key is used up for now.
            ExceedsLimit: The request by itself exceeds a limit of the key.
        """
        key, model = identity.key, rpc.model_of(message)
        if model and not identity.may_use(model):
            raise ModelForbidden(model)
        if key is None or not rpc.is_limited:
            with acting_for(identity.caller, identity.may_use, observer=call):
                yield
            return
        with (
            self._admitted(key, rpc, message, num_bytes) as reservation,
            acting_for(identity.caller, identity.may_use, reservation.resize, call),
        ):
            num_least = 0
            try:
                yield
                if rpc.input_field:  # not every backend of embeddings counts their tokens
                    num_least = _cost_of_input(rpc, message, num_bytes).least_tokens
            finally:
                reservation.resize(call.num_tokens or num_least)

    @contextmanager
    def _admitted(self, key: Key, rpc: Rpc, message: Any, num_bytes: int) -> Iterator[Reservation]:
        """Admit a call, and reserve tokens of its key's limit while in the context.

        The parameters of a generation get the key's default output limit.
        """
        cost, params = Cost(), rpc.params_of(message)
        if rpc.input_field:
            cost = _cost_of_input(rpc, message, num_bytes)
        elif params is not None:
            limit = default_output_limit(params, key)
            cost = cost_of(params, num_bytes, limit)
            if limit is not None:
                params.sampling.max_completion_tokens = limit
        try:
            with self._quotas.admit(key, cost) as reservation:
                yield reservation
        except QuotaExceeded as error:
            raise LimitReached(str(error), error.what, error.retry_after_s) from error
        except NeverAdmitted as error:
            raise ExceedsLimit(error.field, str(error)) from error


def _cost_of_input(rpc: Rpc, message: Any, num_bytes: int) -> Cost:
    return cost_of_input(rpc.input_bytes(message, num_bytes), rpc.input_field)


def _caller_info(metadata: Sequence[tuple[str, str | bytes]]) -> caller_pb2.CallerInfo | None:
    """Return the checked description of the caller in a call's metadata; None if there is none."""
    values = [value for name, value in metadata if name == CALLER_KEY and isinstance(value, bytes)]
    if not values:
        return None
    if len(values) > 1:
        raise InvalidField(CALLER_KEY, "occurs more than once.")
    if len(values[0]) > MAX_CALLER_BYTES:
        raise InvalidField(CALLER_KEY, f"has more than {MAX_CALLER_BYTES} bytes.")
    try:
        info = caller_pb2.CallerInfo.FromString(values[0])
    except DecodeError:
        raise InvalidField(CALLER_KEY, "is not a valid CallerInfo.") from None
    name = LIMITS["CallerInfo.name"]
    if not name.min_size <= len(info.name) <= name.max_size or not info.name.isprintable():
        raise InvalidField(
            f"{CALLER_KEY}.name",
            f"must have {name.min_size} to {name.max_size} printable characters.",
        )
    max_size = LIMITS["CallerInfo.cache_namespace"].max_size
    if len(info.cache_namespace) > max_size:
        raise InvalidField(
            f"{CALLER_KEY}.cache_namespace", f"must have at most {max_size} characters."
        )
    weight = LIMITS["CallerInfo.weight"]
    if info.HasField("weight") and not weight.allow(info.weight):
        raise InvalidField(f"{CALLER_KEY}.weight", f"must be {weight.range}, not {info.weight}.")
    return info


def _own_caller(key: Key | None) -> Caller:
    if key is None:
        return Caller()
    name = _escaped(key.owner_name)
    return Caller(name, key.weight, "" if key.cache_scope == "shared" else name, key.min_priority)


def _other_caller(key: Key | None, info: caller_pb2.CallerInfo) -> Caller:
    """Return the caller that `info` describes.

    Its name contains the key's name. So it differs from the callers that other keys describe.
    """
    sender = _own_caller(key)
    namespace = info.cache_namespace
    min_priority = sender.min_priority
    if info.HasField("min_priority"):
        min_priority = max(min_priority, info.min_priority)
    return Caller(
        f"{sender.name}/{info.name}",
        info.weight if info.HasField("weight") else 1,
        f"{sender.name}/{namespace}" if namespace else sender.cache_namespace,
        min_priority,
    )


def _escaped(name: str) -> str:
    """Return the name with slashes escaped. A slash separates it from the name of a caller."""
    return name.replace("%", "%25").replace("/", "%2F")
