"""Serves requests whose output a model generates, as a whole or as a stream of events."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from gateway_http.auth.caller import TokenCharge
from gateway_http.errors import from_exception, from_rpc
from gateway_http.http.bodies import Decoded
from gateway_http.http.request_io import json_response
from gateway_http.http.sse import EventStream
from gateway_http.protocol.error import ApiError
from gateway_http.routes.completion_metrics import CompletionMetrics
from gateway_http.routes.received import Received, ReceivedBody, decode_and_convert
from gateway_http.routes.request_state import (
    bodies_of,
    call_metadata_of,
    caller_of,
    context_of,
    metrics_of,
    router_of,
    run_while_connected,
    settings_of,
)
from gateway_http.upstream.router import Route
from gateway_http.upstream.rpcs import Rpc

_Body = TypeVar("_Body", bound="GenerationBody")
_Params = TypeVar("_Params")
_Whole = TypeVar("_Whole")
_Chunk = TypeVar("_Chunk")
_Chunk_contra = TypeVar("_Chunk_contra", contravariant=True)


class GenerationBody(ReceivedBody, Protocol):
    """The body of a request that generates."""

    @property
    def stream(self) -> bool | None: ...

    @property
    def request_id(self) -> str | None:
        """The id of the request, if the body has one."""
        ...


class Events(Protocol[_Chunk_contra]):
    """Converts the chunks of one stream to the events of an API."""

    is_started: bool  # true once an event with a token has been returned

    def push(self, chunk: _Chunk_contra, model: str, /) -> "list[Any]":
        """Return the events of a chunk; `model` is the name for clients, "" if it names none."""
        ...

    def finish(self) -> "list[Any]":
        """Return the events after the last chunk."""
        ...


@dataclass(frozen=True)
class Operation(Generic[_Body, _Params, _Whole, _Chunk]):
    """A kind of completion: its conversions and its RPCs.

    Attributes:
        decode: Decodes a body. Raises ApiError.
        params: Converts a body to the parameters of both RPCs, without the model. Raises ApiError.
        names: Returns the client's names of parameters; see `param_of`.
        create: The RPC of a whole completion.
        stream: The RPC of a streamed completion.
        completion: Converts a whole completion, given the name of its model for clients.
        events: Makes the converter of a stream.
        failure: Returns the events that end a stream that failed, given its converter. None if the
            stream ends with the error in the form of the API.
        complete: Completes what was received by what is stored. Raises ApiError.
        record: Stores a completion before it is sent: given the whole one, or the last event of a
            stream.
    """

    decode: Callable[[bytes], _Body]
    params: Callable[[_Body], _Params]
    names: Callable[[_Body], Mapping[str, str]]
    create: Rpc[Any, Any]
    stream: Rpc[Any, Any]
    completion: Callable[[_Whole, str, _Body], Struct]
    events: Callable[[_Body], Events[_Chunk]]
    failure: Callable[[Any, ApiError], Sequence[Struct]] | None = None
    complete: (
        Callable[[Request, Decoded[Received[_Body, _Params]]], Awaitable[Received[_Body, _Params]]]
        | None
    ) = None
    record: Callable[[Request, _Body, Any], Awaitable[None]] | None = None

    def receive(self, content: bytes) -> Received[_Body, _Params]:
        """Decode and convert a body. Raises ApiError if it cannot be decoded."""
        return decode_and_convert(content, self.decode, self.params, self.names)


class Generation(Generic[_Body, _Params, _Whole, _Chunk]):
    """An ASGI application that serves an operation.

    If the client disconnects, its call to the service is cancelled. If the gateway stops, the call
    is cancelled and the client gets an error.
    """

    def __init__(self, operation: Operation[_Body, _Params, _Whole, _Chunk]) -> None:
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        caller, context = caller_of(request), context_of(request)
        context.limit_headers = caller.limits
        bodies = bodies_of(request)
        async with bodies.decoded(request, caller, self._operation.receive) as decoded:
            received = decoded.value
            body = received.body
            if body.request_id is not None:
                context.suggest_id(body.request_id)
            context.record.model, context.record.is_streamed = body.model, bool(body.stream)
            params = received.params_or_raise()
            caller.check_model(body.model, *router_of(request).names(body.model))
            if self._operation.complete is not None:
                received = await self._operation.complete(request, decoded)
                params = received.params_or_raise()
            completion = _Completion(self._operation, request, body, params, received.names, send)
            await completion.run(decoded.num_bytes + received.num_stored_bytes)


class _Completion(Generic[_Body, _Params, _Whole, _Chunk]):
    """A completion, from checked parameters to the end of its response."""

    def __init__(
        self,
        operation: Operation[_Body, _Params, _Whole, _Chunk],
        request: Request,
        body: _Body,
        params: _Params,
        names: Mapping[str, str],
        send: Send,
    ) -> None:
        self._operation = operation
        self._request = request
        self._body = body
        self._params = params
        self._names = names
        self._send = send
        self._context = context_of(request)
        self._record = self._context.record
        self._style = self._context.style

    async def run(self, num_bytes: int) -> None:
        """Send the response.

        Args:
            num_bytes: The size of the request's body.

        Raises:
            ApiError: The request failed before its response has begun.
            ClientDisconnect: The client has disconnected.
        """
        caller, is_streamed = caller_of(self._request), bool(self._body.stream)
        try:
            with caller.generation(
                self._params, num_bytes, self._names, is_streamed=is_streamed
            ) as charge:
                if is_streamed:
                    await self._stream(charge)
                else:
                    await run_while_connected(self._request, self._create(charge))
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._names) from None

    async def _create(self, charge: TokenCharge) -> None:
        request, operation = self._request, self._operation
        metrics = self._metrics(charge)
        timeout_s = settings_of(request).request_timeout_s
        with router_of(request).route(self._body.model) as route:
            message = self._message(operation.create, route, charge)
            metadata = call_metadata_of(request)
            response = await route.call(operation.create, message, metadata, timeout_s)
            model = route.public_name(response.completion.model)
        bodies, caller = bodies_of(request), caller_of(request)
        whole, size = response.completion, response.completion.ByteSize()
        result = await bodies.converted(
            caller, size, operation.completion, whole, model, self._body
        )
        if operation.record is not None:
            await operation.record(request, self._body, result)
        http_response = await bodies.converted(caller, size, json_response, result)
        metrics.note_completion(whole, model)
        charge.charge_used()  # before the head is sent: it reports the remaining tokens
        await http_response(request.scope, request.receive, self._send)

    async def _stream(self, charge: TokenCharge) -> None:
        interval_s, style = settings_of(self._request).sse_ping_interval_s, self._style
        converter = self._operation.events(self._body)
        async with EventStream(self._send, interval_s, style.ping, style.done) as events:
            try:
                await run_while_connected(
                    self._request, self._send_events(charge, events, converter)
                )
            except ClientDisconnect:
                raise
            except Exception as error:
                if not events.is_open:
                    raise
                if isinstance(error, grpc.aio.AioRpcError):
                    error = from_rpc(error, self._names)
                api_error = from_exception(error)
                self._record.fail(api_error)
                await events.write(self._failure(api_error, converter))
            await events.close()

    def _failure(self, error: ApiError, events: Events[_Chunk]) -> bytes:
        """Return the encoded events that end a stream that failed."""
        style, failure = self._style, self._operation.failure
        if failure is None:
            return style.event(style.error(error, self._context.request_id))
        return b"".join(map(style.event, failure(events, error)))

    async def _send_events(
        self, charge: TokenCharge, stream: EventStream, events: Events[_Chunk]
    ) -> None:
        request, rpc = self._request, self._operation.stream
        metrics = self._metrics(charge)
        bodies, caller = bodies_of(request), caller_of(request)
        with router_of(request).route(self._body.model) as route:
            responses = route.stream(
                rpc,
                self._message(rpc, route, charge),
                call_metadata_of(request),
                settings_of(request).request_timeout_s,
            )
            async with aclosing(responses):
                async for response in responses:
                    if response is None:
                        await stream.ping(route.progress)
                        continue
                    chunk = response.chunk
                    model = route.public_name(chunk.model)
                    encoded = await bodies.converted(
                        caller, chunk.ByteSize(), self._encoded, events, chunk, model
                    )
                    metrics.note_chunk(chunk, model, is_started=events.is_started)
                    await stream.write(encoded)
        last = events.finish()
        if self._operation.record is not None:
            await self._operation.record(request, self._body, last[-1])
        await stream.write(b"".join(map(self._style.event, last)))

    def _encoded(self, events: Events[_Chunk], chunk: _Chunk, model: str) -> bytes:
        """Return the encoded events of a chunk."""
        return b"".join(map(self._style.event, events.push(chunk, model)))

    def _message(self, rpc: Rpc[Any, Any], route: Route, charge: TokenCharge) -> Any:
        """Return the message of a call. It is a copy of the parameters with the service's name of
        the model. If the request has no output limit, it has the caller's.
        """
        message = rpc.request_type(params=self._params)
        message.params.model = route.model
        if charge.output_limit is not None:
            message.params.sampling.max_completion_tokens = charge.output_limit
        return message

    def _metrics(self, charge: TokenCharge) -> CompletionMetrics:
        return CompletionMetrics(metrics_of(self._request), charge.note, self._record)
