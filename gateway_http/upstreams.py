"""The gRPC service behind the gateway: one channel, and every call that is made on it.

A completion's call is cancelled when its caller leaves, by whatever way: gRPC no longer does so by
itself for a call that is merely dropped, and the service would generate on for nobody.
"""

import asyncio
import json
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

# A refusal by UNAVAILABLE is one replica's: try again, where that can be another. It is retried by
# gRPC, and only as long as the service has sent nothing.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "chatrpc.v1.ChatService"},
                {"service": "chatrpc.v1.CompletionService"},
                {"service": "chatrpc.v1.ModelService"},
            ],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # With most calls failing, retries would only add to the load: they stop until calls succeed.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    "loadBalancingConfig": [{"round_robin": {}}],
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Not more often: servers drop a client that pings more than they like.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A service that comes back is found within seconds; gRPC's own limit is two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 32 << 20),
    # Of a stream whose client does not read, 64 KiB wait here, and the service knows.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_send_message_length", -1),  # max_body_bytes bounds it
]

# The service puts this into the initial metadata of a stream that it has admitted. A refused stream
# has initial metadata too, empty, which may be here before its status is.
_ADMITTED_KEY = "chatrpc-admitted"

# The most that ListModels gives at once.
_PAGE_SIZE = 1000

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class CallOptions:
    """What goes with a call beside its message."""

    timeout_s: float
    metadata: Sequence[tuple[str, str]] = ()


class Upstream:
    """Made and closed inside the event loop that uses it. Every method raises AioRpcError."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
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

        The first item says that the request has been admitted; it is None where no token is ready.
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
            page = await self._models.ListModels(
                request, timeout=options.timeout_s, metadata=tuple(options.metadata)
            )
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
            health_pb2.HealthCheckRequest(service="readiness"), timeout=timeout_s
        )
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def _unary(
    method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
    request: _Request,
    options: CallOptions,
) -> _Response:
    call = method(request, timeout=options.timeout_s, metadata=tuple(options.metadata))
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

    The first item says that the request has been admitted; it is None where no response is ready.
    """
    call = method(request, timeout=options.timeout_s, metadata=tuple(options.metadata))
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
