"""Calls to the standard services: health, reflection, load reports, channelz.

If one of their servicers raises an exception, for example for an invalid message, gRPC would send
UNKNOWN with the text of the exception. Here the call gets one of our own statuses instead. Most of
these services need no key, so the size of requests and the number of streams are limited.
"""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import structlog

from service.errors import InvalidField
from service.rpc.calls import status
from service.rpc.calls.context import Context, Handler
from service.rpc.calls.interceptor import abort
from service.rpc.calls.message_reader import parse
from service.rpc.calls.open_streams import OpenStreams
from service.rpc.calls.rpcs import BY_PATH

# A request has only names of services and symbols. Responses may be larger.
MAX_REQUEST_BYTES = 4 << 10
# A gateway opens one stream for each replica and model. A stream takes about 25 KB.
MAX_OPEN_STREAMS = 1024

log = structlog.get_logger(__name__)


class StandardServiceInterceptor(grpc.aio.ServerInterceptor):
    """Limits calls to the standard services, and turns their errors into statuses.

    It runs after `CallInterceptor`.

    Args:
        max_open_streams: Maximum number of open streams.
        other_paths: The paths of the RPCs of all other services.
    """

    def __init__(
        self,
        max_open_streams: int = MAX_OPEN_STREAMS,
        other_paths: Container[str] = BY_PATH,
    ) -> None:
        self._other_paths = other_paths
        self._streams = OpenStreams(max_open_streams)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method in self._other_paths:
            return handler  # type: ignore[no-any-return]
        if handler.request_streaming:  # only reflection
            return grpc.stream_stream_rpc_method_handler(
                self._conversation(handler), None, handler.response_serializer
            )
        if handler.response_streaming:
            # gRPC would keep the request of a unary call for as long as its stream is open.
            return grpc.stream_stream_rpc_method_handler(
                self._stream(handler), None, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler), None, handler.response_serializer
        )

    def _stream(self, handler: Any) -> Any:
        async def call(requests: AsyncIterator[bytes], context: Context) -> None:
            async with _errors_as_statuses(context), self._streams.opened(context.peer()):
                message = _small(handler, await anext(requests, b""))
                async with aclosing(handler.unary_stream(message, context)) as responses:
                    async for response in responses:
                        await context.write(response)

        return call

    def _conversation(self, handler: Any) -> Any:
        async def call(
            requests: AsyncIterator[bytes], context: Context
        ) -> AsyncGenerator[Any, None]:
            async with _errors_as_statuses(context), self._streams.opened(context.peer()):
                messages = (_small(handler, request) async for request in requests)
                async for response in handler.stream_stream(messages, context):
                    yield response

        return call


def _unary(handler: Any) -> Any:
    async def call(request: bytes, context: Context) -> Any:
        async with _errors_as_statuses(context):
            return await handler.unary_unary(_small(handler, request), context)

    return call


def _small(handler: Any, request: bytes) -> Any:
    """Return the message in the bytes `request`.

    Raises:
        InvalidField: The request is too large, or is not a valid message.
    """
    if len(request) > MAX_REQUEST_BYTES:
        raise InvalidField(
            "request", f"A request to this service has at most {MAX_REQUEST_BYTES} bytes."
        )
    return parse(handler.request_deserializer, request)


@asynccontextmanager
async def _errors_as_statuses(context: Context) -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except NotImplementedError:  # the servicer lacks this method of the proto
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "The method is not implemented.")
    except Exception as error:
        request_id = uuid.uuid4().hex
        proto = status.status(error, request_id)
        if status.reason(proto) == "INTERNAL":
            log.exception("unexpected_error", request_id=request_id)
        await abort(context, proto, ())
