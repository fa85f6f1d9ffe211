"""The outermost layer of every call to a chatrpc service: request id, errors, log line."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from service.errors import InvalidField
from service.metrics import Metrics
from service.rpc import status
from service.rpc.access import Access
from service.rpc.telemetry import CallMetrics

REQUEST_ID_KEY = "x-request-id"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

# Quoted: these are generic in their type stubs alone.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

log = structlog.get_logger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Names each call, asks for its key, turns its errors into statuses, counts and logs its end.

    Health and reflection pass untouched: probes would flood the log, and `Watch` writes by itself.
    """

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/chatrpc."):
            return handler
        # Requests are parsed in here: grpc itself answers UNKNOWN to one that cannot be.
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(handler, method), None, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler, method), None, handler.response_serializer
        )

    def _unary(self, handler: Any, method: str) -> Any:
        async def call(request: bytes, context: Context) -> Any:
            async with _call(method, context, self._metrics) as counting:
                key = self._access.authenticate(context.invocation_metadata() or ())
                message = _parse(handler, request)
                with self._access.use(key, message, counting):
                    response = await handler.unary_unary(message, context)
                    if hasattr(response, "completion"):
                        counting.note_completion(response.completion)
                    return response

        return call

    def _stream(self, handler: Any, method: str) -> Any:
        async def call(request: bytes, context: Context) -> AsyncGenerator[Any, None]:
            async with _call(method, context, self._metrics) as counting:
                key = self._access.authenticate(context.invocation_metadata() or ())
                message = _parse(handler, request)
                with self._access.use(key, message, counting):
                    async with aclosing(handler.unary_stream(message, context)) as responses:
                        async for response in responses:
                            counting.note_chunk(response.chunk)
                            yield response

        return call


def _parse(handler: Any, request: bytes) -> Any:
    try:
        return handler.request_deserializer(request)
    except DecodeError as error:
        raise InvalidField("request", "The request is not a valid protobuf message.") from error


@asynccontextmanager
async def _call(method: str, context: Context, metrics: Metrics) -> AsyncIterator[CallMetrics]:
    request_id = _request_id(context)
    structlog.contextvars.bind_contextvars(request_id=request_id)
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    started = time.monotonic()
    outcome = code = "CANCELLED"  # unless it ends by itself
    counting = CallMetrics(metrics, method)
    try:
        yield counting
        outcome = code = "OK"
    except Exception as error:  # CancelledError and GeneratorExit are none: they go on untouched
        proto = status.status(error, request_id)
        outcome, code = status.reason(proto), status.code(proto).name
        if outcome == "INTERNAL":
            log.exception("call failed", method=method)
        metadata = ((REQUEST_ID_KEY, request_id), *status.retry_pushback(error))
        await _abort(context, proto, metadata)
    finally:
        counting.end(code)
        duration_ms = round((time.monotonic() - started) * 1000, 1)
        log.info("call", method=method, outcome=outcome, duration_ms=duration_ms)


async def _abort(context: Context, proto: status_pb2.Status, metadata: status.Metadata) -> NoReturn:
    """End the call with a status. One that has ended meanwhile, core refuses to end again."""
    try:
        await context.abort(
            status.code(proto), proto.message, metadata + status.trailing_metadata(proto)
        )
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # the deadline of the call, most often, at the same moment as ours
        raise asyncio.CancelledError from error


def _request_id(context: Context) -> str:
    """The caller's own, if it is short and printable, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
