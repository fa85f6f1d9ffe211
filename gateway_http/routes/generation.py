"""What chat and text completions have in common as HTTP: whole or as a stream of events."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway_http.auth.caller import Caller, Spending
from gateway_http.config import Settings
from gateway_http.errors import from_exception, from_rpc
from gateway_http.http import sse
from gateway_http.http.bodies import Bodies
from gateway_http.http.completion_metrics import AnswerTelemetry
from gateway_http.http.request_io import json_response, while_connected
from gateway_http.http.request_record import RequestRecord
from gateway_http.metrics import Metrics
from gateway_http.protocol.completion import Completion
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.response import ChatCompletion
from gateway_http.protocol.sampling import GenerationRequest
from gateway_http.upstream.client import CallOptions, Upstream
from gateway_http.upstream.router import Route, Router

_Body = TypeVar("_Body", bound=GenerationRequest)


class OfModel(Protocol):
    """What names a model: a request, an answer, a piece of one."""

    model: str

    def ByteSize(self) -> int: ...  # noqa: N802  # protobuf's name


_Params = TypeVar("_Params", bound=OfModel)
_Whole = TypeVar("_Whole", bound=OfModel)
_Chunk = TypeVar("_Chunk", bound=OfModel)
_Chunk_contra = TypeVar("_Chunk_contra", contravariant=True)


class Events(Protocol[_Chunk_contra]):
    """What a stream of the wire's chunks is to a client."""

    is_started: bool  # a token has been sent

    def push(self, chunk: _Chunk_contra, /) -> "list[Any]": ...

    def finish(self) -> "list[Any]": ...


@dataclass(frozen=True)
class Received(Generic[_Body, _Params]):
    """A request's body, and what it is converted to: parameters, or why they cannot be made.

    The body no longer has the model's input. `names` says how this client calls what the service
    may find wrong.
    """

    body: _Body
    params: _Params | ApiError
    names: Mapping[str, str]


@dataclass(frozen=True)
class Operation(Generic[_Body, _Params, _Whole, _Chunk]):
    """A kind of completion: from the body to the wire and back."""

    decode: Callable[[bytes], _Body]
    params: Callable[[_Body], _Params]
    names: Callable[[_Body], Mapping[str, str]]
    create: Callable[[Upstream, _Params, CallOptions], Awaitable[_Whole]]
    answer: Callable[[_Whole, _Body], ChatCompletion | Completion]
    stream: Callable[[Upstream, _Params, CallOptions, float], AsyncGenerator[_Chunk | None, None]]
    events: Callable[[_Body], Events[_Chunk]]

    def receive(self, content: bytes) -> Received[_Body, _Params]:
        """Decode and convert a body. Raises ApiError if it cannot be decoded.

        Both are done at once, so that large bodies do not wait half converted, with all that they
        take then.
        """
        body = self.decode(content)
        names = self.names(body)
        params: _Params | ApiError
        try:
            params = self.params(body)
        except ApiError as error:
            params = error
        body.drop_input()
        return Received(body, params, names)

    def respond(self, whole: _Whole, body: _Body) -> tuple[ChatCompletion | Completion, Response]:
        """Convert and encode a whole completion."""
        answer = self.answer(whole, body)
        return answer, json_response(answer)


class Generation(Generic[_Body, _Params, _Whole, _Chunk]):
    """An ASGI application rather than a function: it watches its client while it works.

    When the client leaves, the work is cancelled, and with it the call to the service. When
    `stopping` is set, so is the work, and the client is told.
    """

    def __init__(
        self,
        operation: Operation[_Body, _Params, _Whole, _Chunk],
        settings: Settings,
        metrics: Metrics,
        stopping: asyncio.Event,
        bodies: Bodies,
    ) -> None:
        self._operation = operation
        self._bodies = bodies
        self._settings = settings
        self._stopping = stopping
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = Request(scope, receive)
        caller: Caller = http.state.caller
        http.state.exchange.limits = caller.limits
        async with self._bodies.decoded(http, self._operation.receive) as decoded:
            body, params = decoded.value.body, decoded.value.params
            if body.request_id is not None:
                http.state.exchange.suggest_id(body.request_id)
            record: RequestRecord = http.state.exchange.record
            record.model, record.is_streamed = body.model, bool(body.stream)
            if isinstance(params, ApiError):
                raise params
            names = decoded.value.names
            await self._answer(http, body, params, names, decoded.num_bytes, send)

    async def _answer(
        self,
        http: Request,
        body: _Body,
        params: _Params,
        names: Mapping[str, str],
        num_bytes: int,
        send: Send,
    ) -> None:
        caller: Caller = http.state.caller
        router: Router = http.state.router
        caller.check_model(body.model, *router.names(body.model))
        is_streamed = bool(body.stream)
        try:
            with caller.generation(params, num_bytes, names, is_streamed=is_streamed) as spending:
                if is_streamed:
                    await self._stream(http, body, params, names, spending, send)
                else:
                    work = self._create(http, body, params, spending, send)
                    await while_connected(http.receive, self._stopping, work)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, names) from None

    async def _create(
        self, http: Request, body: _Body, params: _Params, spending: Spending, send: Send
    ) -> None:
        telemetry = AnswerTelemetry(self._metrics, spending.note, http.state.exchange.record)
        with self._route(http, body) as route:
            options = self._options(http, route, params)
            whole = await self._operation.create(route.upstream, params, options)
            whole.model = route.told(whole.model)
        answer, response = await self._bodies.converted(
            http, whole.ByteSize(), self._operation.respond, whole, body
        )
        telemetry.note_answer(answer)
        spending.settle()  # before the head, which tells what is left
        await response(http.scope, http.receive, send)

    async def _stream(
        self,
        http: Request,
        body: _Body,
        params: _Params,
        names: Mapping[str, str],
        spending: Spending,
        send: Send,
    ) -> None:
        events = sse.EventStream(send)
        work = self._send_events(http, body, params, spending, events)
        try:
            await while_connected(http.receive, self._stopping, work)
        except ClientDisconnect:
            raise
        except Exception as error:
            if not events.is_open:
                raise
            if isinstance(error, grpc.aio.AioRpcError):
                error = from_rpc(error, names)
            answer = from_exception(error)
            http.state.exchange.record.fail(answer)
            await events.write(sse.event(answer.body))
        await events.close()

    async def _send_events(
        self,
        http: Request,
        body: _Body,
        params: _Params,
        spending: Spending,
        events: sse.EventStream,
    ) -> None:
        telemetry = AnswerTelemetry(self._metrics, spending.note, http.state.exchange.record)
        answer = self._operation.events(body)
        async with aclosing(self._chunks(http, body, params)) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    await events.write(sse.PING)
                    continue
                size = chunk.ByteSize()
                pushed = await self._bodies.converted(http, size, _pushed, answer, chunk)
                telemetry.note_chunk(chunk, is_started=answer.is_started)
                await events.write(pushed)
        await events.write(b"".join(map(sse.event, answer.finish())))

    async def _chunks(
        self, http: Request, body: _Body, params: _Params
    ) -> AsyncGenerator[_Chunk | None, None]:
        idle_s = self._settings.sse_ping_interval_s
        with self._route(http, body) as route:
            options = self._options(http, route, params)
            stream = self._operation.stream(route.upstream, params, options, idle_s)
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    if chunk is not None:
                        chunk.model = route.told(chunk.model)
                    yield chunk

    def _route(self, http: Request, body: _Body) -> AbstractContextManager[Route]:
        router: Router = http.state.router
        return router.route(body.model)

    def _options(self, http: Request, route: Route, params: _Params) -> CallOptions:
        params.model = route.model
        metadata = http.state.exchange.call_metadata
        return route.options(self._settings.request_timeout_s, metadata, http.headers, params)


def _pushed(events: Events[_Chunk], chunk: _Chunk) -> bytes:
    """The events of a chunk, encoded."""
    return b"".join(map(sse.event, events.push(chunk)))
