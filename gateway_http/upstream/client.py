"""The gRPC service behind the gateway: one channel, and every call that is made on it.

A completion's call is cancelled when its caller leaves, by whatever way: gRPC no longer does so by
itself for a call that is merely dropped, and the service would generate on for nobody.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    chat_service_pb2_grpc,
    completion_pb2,
    completion_service_pb2,
    completion_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from gateway_http.upstream.connection import Connection
from gateway_http.upstream.tracing import called

OPTIONS = [
    # Not more often: servers drop a client that pings more than they like.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A service that comes back is found within seconds; gRPC's own limit is two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # And so is one that takes the place of another. Names are looked up when a connection ends.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.max_receive_message_length", 32 << 20),
    # Of a stream whose client does not read, 64 KiB wait here, and the service knows.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_send_message_length", -1),  # max_body_bytes bounds it
    # What is larger is never retried; by default that is a long conversation.
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),
]

# The service puts this into the initial metadata of a stream that it has admitted, and whose first
# token takes its time. Other streams have initial metadata too, empty, which may be here before
# their first chunk or their status is.
_ADMITTED_KEY = "chatrpc-admitted"

# The most that ListModels gives at once.
_PAGE_SIZE = 1000

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class CallOptions:
    """What goes with a call beside its message."""

    timeout_s: float
    metadata: Sequence[tuple[str, str | bytes]] = ()


class Upstream:
    """Made and closed inside the event loop that uses it. Every method raises AioRpcError."""

    def __init__(self, connection: Connection) -> None:
        self._health_name = connection.health_name
        self._channel = _channel(connection)
        # Now: the first calls would all go to whichever replica connects first.
        self._channel.get_state(try_to_connect=True)
        self._chat: chat_service_pb2_grpc.ChatServiceAsyncStub = (
            chat_service_pb2_grpc.ChatServiceStub(self._channel)
        )
        self._completions: completion_service_pb2_grpc.CompletionServiceAsyncStub = (
            completion_service_pb2_grpc.CompletionServiceStub(self._channel)
        )
        self._models: model_service_pb2_grpc.ModelServiceAsyncStub = (
            model_service_pb2_grpc.ModelServiceStub(self._channel)
        )
        # The type stubs of this one do not know its methods.
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    @property
    def is_connected(self) -> bool:
        """Whether a replica is there that says it is ready. Asking has it looked for."""
        state = self._channel.get_state(try_to_connect=True)
        return state is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        await self._channel.close()

    async def create_chat(
        self, params: chat_pb2.ChatCompletionParams, options: CallOptions
    ) -> chat_pb2.ChatCompletion:
        request = chat_service_pb2.CreateChatCompletionRequest(params=params)
        return (await _unary(self._chat.CreateChatCompletion, request, options)).completion

    async def stream_chat(
        self, params: chat_pb2.ChatCompletionParams, options: CallOptions, idle_s: float
    ) -> AsyncGenerator[chat_pb2.ChatCompletionChunk | None, None]:
        """The chunks as they come, and None whenever none has come for `idle_s`.

        The first item says that the request will not be refused; it is None where it is still
        waiting for its first token after some seconds.
        """
        request = chat_service_pb2.StreamChatCompletionRequest(params=params)
        stream = _stream(self._chat.StreamChatCompletion, request, options, idle_s)
        async with aclosing(stream) as responses:
            async for response in responses:
                yield None if response is None else response.chunk

    async def create_completion(
        self, params: completion_pb2.CompletionParams, options: CallOptions
    ) -> completion_pb2.Completion:
        request = completion_service_pb2.CreateCompletionRequest(params=params)
        return (await _unary(self._completions.CreateCompletion, request, options)).completion

    async def stream_completion(
        self, params: completion_pb2.CompletionParams, options: CallOptions, idle_s: float
    ) -> AsyncGenerator[completion_pb2.CompletionChunk | None, None]:
        """As `stream_chat`."""
        request = completion_service_pb2.StreamCompletionRequest(params=params)
        stream = _stream(self._completions.StreamCompletion, request, options, idle_s)
        async with aclosing(stream) as responses:
            async for response in responses:
                yield None if response is None else response.chunk

    async def list_models(self, options: CallOptions) -> list[model_service_pb2.Model]:
        models: list[model_service_pb2.Model] = []
        request = model_service_pb2.ListModelsRequest(page_size=_PAGE_SIZE)
        while True:
            page = await _unary(self._models.ListModels, request, options)
            models.extend(page.models)
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    async def get_model(self, model_id: str, options: CallOptions) -> model_service_pb2.Model:
        request = model_service_pb2.GetModelRequest(id=model_id)
        return (await _unary(self._models.GetModel, request, options)).model

    async def tokenize(
        self, request: model_service_pb2.TokenizeRequest, options: CallOptions
    ) -> model_service_pb2.TokenizeResponse:
        return await _unary(self._models.Tokenize, request, options)

    async def detokenize(
        self, request: model_service_pb2.DetokenizeRequest, options: CallOptions
    ) -> model_service_pb2.DetokenizeResponse:
        return await _unary(self._models.Detokenize, request, options)

    async def is_ready(self, timeout_s: float) -> bool:
        response = await self._health.Check(
            health_pb2.HealthCheckRequest(service=self._health_name), timeout=timeout_s
        )
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(connection: Connection) -> grpc.aio.Channel:
    options = [*OPTIONS, ("grpc.service_config", connection.service_config)]
    tls = connection.tls
    if tls is None:
        return grpc.aio.insecure_channel(connection.target, options=options)
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.aio.secure_channel(connection.target, credentials, options=options)


async def _unary(
    method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
    request: _Request,
    options: CallOptions,
) -> _Response:
    with called(request) as trace:
        metadata = (*options.metadata, *trace)
        call = method(request, timeout=options.timeout_s, metadata=metadata)
        try:
            return await call
        finally:
            call.cancel()


async def _stream(
    method: "grpc.aio.UnaryStreamMultiCallable[_Request, _Response]",
    request: _Request,
    options: CallOptions,
    idle_s: float,
) -> AsyncGenerator[_Response | None, None]:
    """The responses as they come, and None whenever none has come for `idle_s`.

    The first item says that the request will not be refused; it is None where the service says so
    before it has a response.
    """
    with called(request) as trace:
        metadata = (*options.metadata, *trace)
        call = method(request, timeout=options.timeout_s, metadata=metadata)
        read = asyncio.ensure_future(call.read())
        try:
            headers = await call.initial_metadata()
            patience_s = 0.0 if _ADMITTED_KEY in dict(headers) else None
            while True:
                # Not wait_for: it would cancel the read, and with it the call.
                await asyncio.wait({read}, timeout=patience_s)
                patience_s = idle_s
                if not read.done():
                    yield None
                    continue
                response = read.result()
                if response is grpc.aio.EOF:
                    return
                yield cast("_Response", response)
                read = asyncio.ensure_future(call.read())
        finally:
            call.cancel()
            read.cancel()
