"""The routing table: from the name of a model to the channel of its service.

The table may change at any time. A call ends on the channel that it began on: after a change, new
calls use the new channel, and the old one is closed after its last call. So a model can be moved
without losing a request.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import assert_never

import grpc
import structlog

from chatrpc.v1 import model_service_pb2
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.upstream.call_metadata import CallMetadata
from gateway_http.upstream.client import CallOptions, Upstream
from gateway_http.upstream.connection import Connection
from gateway_http.upstream.hosted.models import HostedModels, HostedUpstream, HostingOptions
from gateway_http.upstream.hosted.process import Launch, ServiceLauncher
from gateway_http.upstream.registry import Entry, HostedModel, RegisteredModel, WholeService
from gateway_http.upstream.rpcs import LIST_MODELS, Request, Response, Rpc
from gateway_http.upstream.service_config import AFFINITY_KEY

_log = structlog.get_logger(__name__)

_MAX_QUOTED_NAME = 200
# The largest page of ListModels.
_PAGE_SIZE = 1000


@dataclass(frozen=True)
class Route:
    """A model's service, for the calls of one request.

    Attributes:
        entry: The entry of the routing table.
        model: The service's name of the model.
        upstream: The service's channel.
    """

    entry: Entry
    model: str
    upstream: Upstream | HostedUpstream

    @property
    def progress(self) -> str:
        """A text about the wait for the first item of a stream; "" if there is none."""
        return self.upstream.progress

    def public_name(self, model: str) -> str:
        """Return the name for clients of the model that the service calls `model`."""
        return self.entry.public_name(model)

    async def call(
        self,
        rpc: Rpc[Request, Response],
        request: Request,
        metadata: CallMetadata,
        timeout_s: float,
    ) -> Response:
        """Return the response of an RPC that is not streamed. Raises AioRpcError."""
        options = self._options(rpc, request, metadata, timeout_s)
        return await self.upstream.call(rpc, request, options)

    def stream(
        self,
        rpc: Rpc[Request, Response],
        request: Request,
        metadata: CallMetadata,
        timeout_s: float,
    ) -> AsyncGenerator[Response | None, None]:
        """Return the responses of a streamed RPC, as `Upstream.stream` does."""
        options = self._options(rpc, request, metadata, timeout_s)
        return self.upstream.stream(rpc, request, options)

    async def list_models(
        self, metadata: CallMetadata, timeout_s: float
    ) -> list[model_service_pb2.Model]:
        """Return all models that the service lists. Raises AioRpcError.

        Args:
            metadata: The metadata of the calls.
            timeout_s: The timeout of each page in seconds.
        """
        models: list[model_service_pb2.Model] = []
        page_token = ""
        while True:
            request = model_service_pb2.ListModelsRequest(
                page_size=_PAGE_SIZE, page_token=page_token
            )
            page = await self.call(LIST_MODELS, request, metadata, timeout_s)
            models.extend(page.models)
            page_token = page.next_page_token
            if not page_token:
                return models

    def _options(
        self,
        rpc: Rpc[Request, Response],
        request: Request,
        metadata: CallMetadata,
        timeout_s: float,
    ) -> CallOptions:
        if isinstance(self.entry, HostedModel):
            return CallOptions(timeout_s, metadata.with_key(None))
        pairs = metadata.with_key(self.entry.connection.api_key)
        affinity = self.entry.affinity
        if affinity is not None:
            key = affinity.key(metadata.session_id, rpc.affinity, request)
            if key is not None:
                pairs.append((AFFINITY_KEY, key))
        return CallOptions(timeout_s, pairs)


class Router:
    """The routing table and its channels. Create, use and close it within one event loop.

    Args:
        entries: The entries of the table.
        metrics: The gateway's metrics.
        launch: Starts the processes of hosted models.
        hosting: The limits of hosted models.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        metrics: Metrics,
        launch: Launch = ServiceLauncher(),  # noqa: B008  # it is frozen
        hosting: HostingOptions = HostingOptions(),  # noqa: B008  # it is frozen
    ) -> None:
        self._metrics = metrics
        self.hosted = HostedModels(launch, hosting, metrics)
        self._channels: dict[Connection, _Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.entries: Sequence[Entry] = ()
        self.adopt(entries)
        metrics.watch_upstreams(self._connected)

    def adopt(self, entries: Sequence[Entry]) -> None:
        """Replace the table. Calls that have begun are not affected."""
        self.hosted.adopt([entry for entry in entries if isinstance(entry, HostedModel)])
        wanted = {entry.connection for entry in entries if not isinstance(entry, HostedModel)}
        for connection in wanted - self._channels.keys():
            self._channels[connection] = _Channel(connection)
        for connection in self._channels.keys() - wanted:
            closing = asyncio.ensure_future(self._channels.pop(connection).retire())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self.entries = tuple(entries)
        self._by_name: dict[str, RegisteredModel | HostedModel] = {}
        self._whole_service: WholeService | None = None
        for entry in entries:
            match entry:
                case RegisteredModel() | HostedModel():
                    self._by_name |= dict.fromkeys(entry.names, entry)
                case WholeService():
                    self._whole_service = self._whole_service or entry
                case _:
                    assert_never(entry)
        self._metrics.models.register({name: m.name for name, m in self._by_name.items()})

    async def close(self) -> None:
        """Close all channels at once, and end hosted models. Running calls fail."""
        for closing in self._closing:
            closing.cancel()
        for channel in self._channels.values():
            await channel.upstream.close()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.hosted.close()

    def resolve(self, name: str) -> Entry:
        """Return the entry that serves the model of this name or alias.

        Raises:
            ApiError: There is no such model.
        """
        entry = self._by_name.get(name, self._whole_service)
        if entry is None:
            raise _not_found(name)
        return entry

    def names(self, name: str) -> tuple[str, ...]:
        """Return all names of the registered model `name`; empty if there is no such model."""
        entry = self._by_name.get(name)
        return () if entry is None else entry.names

    @contextmanager
    def route(self, name: str) -> Iterator[Route]:
        """Provide the route to the model of this name or alias. The context counts as one call.

        Raises:
            ApiError: There is no such model.
        """
        with self.route_to(self.resolve(name), name) as route:
            yield route

    @contextmanager
    def route_to(self, entry: Entry, name: str = "") -> Iterator[Route]:
        """Provide the route to a model of an entry of the table, as `route` does.

        Args:
            entry: The entry.
            name: The client's name of the model; "" for calls that name none.
        """
        with self._use(entry, name) as upstream:
            outcome = "CANCELLED"  # replaced if the call ends by itself
            try:
                yield Route(entry, entry.upstream_name(name), upstream)
                outcome = "OK"
            except grpc.aio.AioRpcError as error:
                outcome = error.code().name
                is_unknown = error.code() is grpc.StatusCode.NOT_FOUND
                if not is_unknown or isinstance(entry, WholeService):
                    raise
                _log.warning("upstream_model_not_found", model=entry.name, reason=error.details())
                raise _not_found(entry.name) from None
            finally:
                self._metrics.upstream_requests.labels(entry.label, outcome).inc()
                target = "" if isinstance(entry, HostedModel) else entry.connection.target
                _log.debug("upstream_call_finished", model=entry.label, target=target, code=outcome)

    def _use(self, entry: Entry, name: str) -> AbstractContextManager[Upstream | HostedUpstream]:
        """Return a context that provides the upstream of an entry. The context counts as a call.

        Raises:
            ApiError: The entry has been removed from the table.
        """
        if isinstance(entry, HostedModel):
            return nullcontext(self.hosted.upstream(entry))  # it counts its calls itself
        channel = self._channels.get(entry.connection)
        if channel is None:
            raise _not_found(entry.public_name(name))
        return channel.use()

    async def is_ready(self, timeout_s: float) -> bool:
        """Return whether any of the services accepts requests. A hosted model can be loaded."""
        if any(isinstance(entry, HostedModel) for entry in self.entries):
            return True
        checks = [
            asyncio.ensure_future(channel.is_ready(timeout_s))
            for channel in self._channels.values()
        ]
        waiting = set(checks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                # If the gateway closes a channel, only the check on it is cancelled, not this task.
                if any(not check.cancelled() and check.result() for check in done):
                    return True
            return False
        finally:
            for task in checks:
                task.cancel()
            await asyncio.gather(*checks, return_exceptions=True)

    def _connected(self) -> Iterator[tuple[str, bool]]:
        for entry in self.entries:
            if isinstance(entry, HostedModel):
                upstream = self.hosted.loaded(entry)
                yield entry.label, upstream is not None and upstream.is_connected
            else:
                yield entry.label, self._channels[entry.connection].upstream.is_connected


class _Channel:
    """An upstream that counts the calls on it."""

    def __init__(self, connection: Connection) -> None:
        self.upstream = Upstream(connection)
        self._num_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def use(self) -> Iterator[Upstream]:
        """Count a call while in the context."""
        self._num_calls += 1
        self._idle.clear()
        try:
            yield self.upstream
        finally:
            self._num_calls -= 1
            if self._num_calls == 0:
                self._idle.set()

    async def is_ready(self, timeout_s: float) -> bool:
        with self.use() as upstream:
            try:
                return await upstream.is_ready(timeout_s)
            except grpc.aio.AioRpcError:
                return False

    async def retire(self) -> None:
        """Close the channel after its last call. No further call may begin on it."""
        try:
            await self._idle.wait()
        finally:
            await self.upstream.close()


def _not_found(name: str) -> ApiError:
    return ApiError(
        404,
        f"The model `{name[:_MAX_QUOTED_NAME]}` does not exist. "
        "GET /v1/models lists those that do.",
        param="model",
        code="model_not_found",
    )
