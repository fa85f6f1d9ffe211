"""From the name of a model to the service that answers for it, while both may change.

A call ends on the channel that it began on: where a name is sent elsewhere, new calls go there, and
the old channel is closed when its last call is over. So a model is exchanged and no request lost.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.upstream.call_metadata import CallMetadata
from gateway_http.upstream.client import CallOptions, Upstream
from gateway_http.upstream.connection import Connection
from gateway_http.upstream.registry import Entry
from gateway_http.upstream.service_config import AFFINITY_KEY

_log = structlog.get_logger(__name__)

# What a call counts as that could be for any model.
_ANY = "*"
_MAX_TOLD_NAME = 200


@dataclass(frozen=True)
class Route:
    """A model as it is called now. `model` is what the service knows it by."""

    entry: Entry
    upstream: Upstream
    model: str

    def told(self, model: str) -> str:
        """What a client is told where the service says `model`: the name that /v1/models lists."""
        return self.entry.name or model

    def options(
        self,
        timeout_s: float,
        metadata: CallMetadata,
        headers: Mapping[str, str],
        params: Any = None,
    ) -> CallOptions:
        """Return the options of a call to the model's service.

        Args:
            metadata: That of the request.
            headers, params: Those of the request, by which its replica may be chosen.
        """
        pairs = metadata.with_key(self.entry.connection.api_key)
        affinity = self.entry.affinity
        if affinity is not None and (key := affinity.of(headers, params)) is not None:
            pairs.append((AFFINITY_KEY, key))
        return CallOptions(timeout_s, pairs)


class Router:
    """Made and closed inside the event loop that uses it."""

    def __init__(self, entries: Sequence[Entry], metrics: Metrics) -> None:
        self._metrics = metrics
        self._channels: dict[Connection, _Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.entries: Sequence[Entry] = ()
        self.adopt(entries)
        metrics.watch_upstreams(self._connected)

    def adopt(self, entries: Sequence[Entry]) -> None:
        """From now on these, and no others. Calls that have begun go on as they began."""
        wanted = {entry.connection for entry in entries}
        for connection in wanted - self._channels.keys():
            self._channels[connection] = _Channel(connection)
        for connection in self._channels.keys() - wanted:
            closing = asyncio.ensure_future(self._channels.pop(connection).retire())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self.entries = tuple(entries)
        self._by_name = {
            name: entry
            for entry in entries
            if entry.name is not None
            for name in (entry.name, *entry.aliases)
        }
        self._metrics.models.register(
            {name: entry.name for name, entry in self._by_name.items() if entry.name is not None}
        )
        self._other = next((entry for entry in entries if entry.name is None), None)

    async def close(self) -> None:
        """At once, whatever still runs."""
        for closing in self._closing:
            closing.cancel()
        for channel in self._channels.values():
            await channel.upstream.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def names(self, name: str) -> tuple[str, ...]:
        """All names that the registry has for the model of this one."""
        entry = self._by_name.get(name)
        return () if entry is None or entry.name is None else (entry.name, *entry.aliases)

    @contextmanager
    def route(self, name: str) -> Iterator[Route]:
        """The model of this name or alias, for one call, which is counted.

        Raises:
            ApiError: there is none.
        """
        entry = self._by_name.get(name, self._other)
        if entry is None:
            raise _not_found(name)
        with self.route_to(entry, name) as route:
            yield route

    @contextmanager
    def route_to(self, entry: Entry, name: str = "") -> Iterator[Route]:
        """As `route`, for one of `entries`."""
        channel = self._channels.get(entry.connection)
        if channel is None:  # since it was among `entries`
            raise _not_found(entry.name or name)
        with channel.use() as upstream:
            outcome = "CANCELLED"  # unless it ends by itself
            try:
                yield Route(entry, upstream, entry.upstream_model or name)
                outcome = "OK"
            except grpc.aio.AioRpcError as error:
                outcome = error.code().name
                if entry.name is None or error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                _log.warning("upstream_model_not_found", model=entry.name, reason=error.details())
                raise _not_found(entry.name) from None
            finally:
                model, target = entry.name or _ANY, entry.connection.target
                self._metrics.upstream_requests.labels(model, outcome).inc()
                _log.debug("upstream_call_finished", model=model, target=target, code=outcome)

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether any of the services takes requests."""
        checks = [
            asyncio.ensure_future(channel.is_ready(timeout_s))
            for channel in self._channels.values()
        ]
        waiting = set(checks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                # A check whose channel is closed at the gateway's end is cancelled, and not we.
                if any(not check.cancelled() and check.result() for check in done):
                    return True
            return False
        finally:
            for task in checks:
                task.cancel()
            await asyncio.gather(*checks, return_exceptions=True)

    def _connected(self) -> Iterator[tuple[str, bool]]:
        for entry in self.entries:
            yield entry.name or _ANY, self._channels[entry.connection].upstream.is_connected


class _Channel:
    """An upstream, and how many calls are on it."""

    def __init__(self, connection: Connection) -> None:
        self.upstream = Upstream(connection)
        self._num_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def use(self) -> Iterator[Upstream]:
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
        """Close it when its last call is over. No call may begin on it any more."""
        try:
            await self._idle.wait()
        finally:
            await self.upstream.close()


def _not_found(name: str) -> ApiError:
    return ApiError(
        404,
        f"The model `{name[:_MAX_TOLD_NAME]}` does not exist. GET /v1/models lists those that do.",
        param="model",
        code="model_not_found",
    )
