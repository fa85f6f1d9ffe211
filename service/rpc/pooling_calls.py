"""The steps of a call that generates nothing, which several services share."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from service.deadline import deadline_scope
from service.domain.backend import CallContext, ModelSpec, ServedModel
from service.errors import MissingField, UnsupportedMethod
from service.rpc.calls.caller import current_caller, received_bytes
from service.rpc.calls.context import Context
from service.rpc.calls.deadline import deadline_of
from service.rpc.calls.work_pools import WorkPools
from service.rpc.decode.options import WithPriority, priority
from service.rpc.serving.lifecycle import Lifecycle

# Larger requests are decoded, and responses with more numbers encoded, off the event loop.
_MAX_DECODED_BYTES_ON_LOOP = 64 << 10
_MAX_ENCODED_NUMBERS_ON_LOOP = 50_000  # about a millisecond

Backend = TypeVar("Backend")
Result = TypeVar("Result")


class _ModelRequest(WithPriority, Protocol):
    """A proto that names a model."""

    @property
    def model(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PoolingCall:
    """An admitted call. Its model has the backend that it needs."""

    model: ServedModel
    context: CallContext
    pools: WorkPools

    async def decode(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return `function(*arguments)`. For a large request it is called off the event loop."""
        if received_bytes() > _MAX_DECODED_BYTES_ON_LOOP:
            return await self.pools.text(function, *arguments)
        return function(*arguments)

    async def encode(
        self, num_numbers: int, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Return `function(*arguments)`. For many numbers it is called off the event loop."""
        if num_numbers > _MAX_ENCODED_NUMBERS_ON_LOOP:
            return await self.pools.text(function, *arguments)
        return function(*arguments)


class PoolingCalls:
    """Admits calls to the models of `lifecycle`.

    Args:
        pools: Threads for work that would block the event loop.
        request_timeout_s: Maximum duration of a request in seconds, even if its deadline is later.
    """

    def __init__(self, lifecycle: Lifecycle, pools: WorkPools, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._pools = pools
        self._request_timeout_s = request_timeout_s

    @asynccontextmanager
    async def admitted(
        self,
        method: str,
        request: _ModelRequest,
        context: Context,
        backend_of: Callable[[ServedModel], Backend | None],
        num_sequences: Callable[[ModelSpec], int] = lambda _: 1,
    ) -> AsyncIterator[tuple[PoolingCall, Backend]]:
        """Admit a call. In the context it has capacity, and it ends at its deadline.

        Args:
            method: Name of the RPC.
            backend_of: Returns the backend that the RPC needs; None if the model lacks it.
            num_sequences: Returns the number of sequences for which capacity is reserved.

        Raises:
            ChatrpcError: The call is rejected.
        """
        if not request.model:
            raise MissingField("model")
        deadline = deadline_of(context, self._request_timeout_s)
        model = self._lifecycle.admit(request.model, context)
        backend = backend_of(model)
        if backend is None:
            raise UnsupportedMethod(method, model.card.id)
        caller = current_caller()
        call = CallContext(caller, deadline, priority(request, caller), self._pools)
        with model.backend.reserve(caller, num_sequences(model.backend.spec)):
            async with deadline_scope(deadline):
                yield PoolingCall(model, call, self._pools), backend
