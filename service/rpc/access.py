"""Who calls, and what they may: the API key in a call's metadata.

It travels as `authorization: Bearer KEY`, or as `x-api-key: KEY`. Health needs none.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import structlog

from chatrpc.v1 import model_service_pb2
from chatrpc_process.keys import Key, KeyRing
from chatrpc_process.quotas import QuotaExceeded, Quotas
from chatrpc_process.secret import sent_secret
from chatrpc_process.watched import Watched
from service.errors import LimitReached, ModelForbidden, Unauthenticated
from service.types import Caller

# What costs nothing: it counts against no limit.
_FREE = (model_service_pb2.ListModelsRequest, model_service_pb2.GetModelRequest)


class Call(Protocol):
    """A call under way."""

    @property
    def num_tokens(self) -> int:
        """What it has cost so far, prompt and answer."""
        ...


class Access:
    """Lets calls in by their keys. Without a file of keys everybody may do everything."""

    def __init__(self, keys: Watched[KeyRing] | None = None) -> None:
        self._keys = keys
        self._quotas = Quotas()

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Key | None:
        """The caller's key; None where none is needed.

        Raises:
            Unauthenticated
        """
        if self._keys is None:
            return None
        secret = sent_secret(metadata)
        key = None if secret is None else self._keys.value.find(secret)
        if key is None:
            raise Unauthenticated(is_missing=secret is None)
        structlog.contextvars.bind_contextvars(key=key.name)
        return key

    def caller(self, key: Key | None) -> Caller:
        """The caller that calls with `key`, as scheduling and caching know it."""
        return Caller() if key is None else Caller(key.name)

    @contextmanager
    def use(self, key: Key | None, request: Any, call: Call) -> Iterator[None]:
        """A call of the key, `request` its message.

        It counts against the key's limits, unless it only asks what models there are.

        Raises:
            ModelForbidden, LimitReached
        """
        _check_model(key, _model(request))
        if key is None or isinstance(request, _FREE):
            yield
            return
        try:
            with self._quotas.request(key):
                try:
                    yield
                finally:
                    self._quotas.spend(key, call.num_tokens)
        except QuotaExceeded as error:
            raise LimitReached(str(error), error.what, error.retry_after_s) from error


def _model(request: Any) -> str:
    """The model that a call is about; none if it is about all of them."""
    named = getattr(request, "params", request)  # which a generation's message has, and no other
    return str(getattr(named, "model", "") or getattr(named, "id", ""))


def _check_model(key: Key | None, model: str) -> None:
    if key is not None and model and not key.may_use(model):
        raise ModelForbidden(model)
