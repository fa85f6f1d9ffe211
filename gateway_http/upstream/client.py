"""The gRPC channel to one service, and calls on it.

A call is cancelled when the code that reads it returns, fails or is cancelled. gRPC does not cancel
a call that is no longer read, and the service would go on generating.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway_http.upstream.connection import Connection
from gateway_http.upstream.rpcs import Request, Response, Rpc
from gateway_http.upstream.tracing import call_span

OPTIONS = [
    # gRPC servers close a connection if its client pings more often.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A restarted service is reached within seconds. With gRPC's default it can take two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A new channel does not share the backoff of an earlier one that had the same address.
    ("grpc.use_local_subchannel_pool", 1),
    # A service at a new address is reached within seconds, too: names are resolved again when a
    # connection ends.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.max_receive_message_length", 32 << 20),
    # If a stream's client does not read, 64 KiB wait here, and flow control stops the service.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_send_message_length", -1),  # `max_body_bytes` limits requests already
    # Larger requests are never retried. gRPC's default is smaller than a long conversation.
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),
]

# The service sends this in the initial metadata of a stream that it has admitted if the first token
# takes long. Other streams have empty initial metadata, which may arrive before their first chunk
# or their status.
_ADMITTED_KEY = "chatrpc-admitted"


@dataclass(frozen=True)
class CallOptions:
    """The timeout and the metadata of a call."""

    timeout_s: float
    metadata: Sequence[tuple[str, str | bytes]] = ()


class Upstream:
    """The channel to one service. Create, use and close it within one event loop.

    Every method but `close` raises AioRpcError if its call fails.

    Attributes:
        progress: A text about the wait for the first item of a stream; "" if there is none.
    """

    progress = ""

    def __init__(self, connection: Connection) -> None:
        self._health_name = connection.health_name
        self._channel = _channel(connection)
        # Connect now. Otherwise the first calls would all go to the replica that connects first.
        self._channel.get_state(try_to_connect=True)
        self._methods: dict[Rpc[Any, Any], Any] = {}
        # The package's type stubs lack the stub's methods.
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    @property
    def is_connected(self) -> bool:
        """True if a replica is connected and ready. If none is, gRPC tries to connect."""
        state = self._channel.get_state(try_to_connect=True)
        return state is grpc.ChannelConnectivity.READY

    async def wait_connected(self) -> None:
        """Wait until a replica is connected and ready."""
        while True:
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            await self._channel.wait_for_state_change(state)

    async def close(self, grace_s: float | None = None) -> None:
        """Close the channel. Calls that have not ended after `grace_s` seconds are cancelled.

        A task that waits for such a call gets CancelledError.
        """
        await self._channel.close(grace_s)

    async def call(
        self, rpc: Rpc[Request, Response], request: Request, options: CallOptions
    ) -> Response:
        """Return the response of an RPC that is not streamed."""
        with call_span(rpc, request) as trace:
            metadata = (*options.metadata, *trace)
            call = self._method(rpc)(request, timeout=options.timeout_s, metadata=metadata)
            try:
                return cast("Response", await call)
            finally:
                call.cancel()

    async def stream(
        self, rpc: Rpc[Request, Response], request: Request, options: CallOptions
    ) -> AsyncGenerator[Response | None, None]:
        """Yield the responses of a streamed RPC.

        After the first item, the request is admitted and will not be rejected. The first item is
        None if the service reports the admission before its first response.
        """
        with call_span(rpc, request) as trace:
            metadata = (*options.metadata, *trace)
            call = self._method(rpc)(request, timeout=options.timeout_s, metadata=metadata)
            first = asyncio.ensure_future(call.read())
            try:
                if _ADMITTED_KEY in dict(await call.initial_metadata()):
                    await asyncio.wait({first}, timeout=0)
                    if not first.done():
                        yield None
                response = await first
                while response is not grpc.aio.EOF:
                    yield cast("Response", response)
                    response = await call.read()
            finally:
                call.cancel()
                first.cancel()

    async def is_ready(self, timeout_s: float) -> bool:
        """Return whether the service reports the connection's health name as serving."""
        response = await self._health.Check(
            health_pb2.HealthCheckRequest(service=self._health_name), timeout=timeout_s
        )
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def _method(self, rpc: Rpc[Any, Any]) -> Any:
        """Return gRPC's callable for an RPC on this channel."""
        method = self._methods.get(rpc)
        if method is None:
            make = self._channel.unary_stream if rpc.is_streamed else self._channel.unary_unary
            method = self._methods[rpc] = make(
                f"/{rpc.full_name}",
                request_serializer=rpc.request_type.SerializeToString,
                response_deserializer=rpc.response_type.FromString,
            )
        return method


def _channel(connection: Connection) -> grpc.aio.Channel:
    options = [*OPTIONS, ("grpc.service_config", connection.service_config)]
    tls = connection.tls
    if tls is None:
        return grpc.aio.insecure_channel(connection.target, options=options)
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.aio.secure_channel(connection.target, credentials, options=options)
