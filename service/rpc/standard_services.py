"""Calls to the standard services beside our own: health, reflection, load reports, channelz.

What their servicers do not foresee, such as bytes that are no message, gRPC itself answers with
UNKNOWN and the words of the exception; here it gets a status of ours.
"""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import structlog

from service.rpc import status
from service.rpc.interceptor import Context, Handler, abort, parse

_OURS = "/chatrpc."

log = structlog.get_logger(__name__)


class StandardServiceInterceptor(grpc.aio.ServerInterceptor):
    """Turns the errors of what is not ours into statuses. It stands behind `CallInterceptor`."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OURS):
            return handler  # type: ignore[no-any-return]
        if handler.request_streaming:  # reflection, both ways
            return grpc.stream_stream_rpc_method_handler(
                _conversation(handler), None, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler), None, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _answer(handler), None, handler.response_serializer
        )


def _answer(handler: Any) -> Any:
    async def call(request: bytes, context: Context) -> Any:
        async with _refusing(context):
            return await handler.unary_unary(parse(handler, request), context)

    return call


def _stream(handler: Any) -> Any:
    async def call(request: bytes, context: Context) -> None:
        async with _refusing(context):
            message = parse(handler, request)
            async with aclosing(handler.unary_stream(message, context)) as responses:
                async for response in responses:
                    await context.write(response)

    return call


def _conversation(handler: Any) -> Any:
    async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[Any, None]:
        async with _refusing(context):
            messages = (parse(handler, request) async for request in requests)
            async for response in handler.stream_stream(messages, context):
                yield response

    return call


@asynccontextmanager
async def _refusing(context: Context) -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except NotImplementedError:  # a method of the proto that gRPC's own servicer lacks
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "The method is not implemented.")
    except Exception as error:
        request_id = uuid.uuid4().hex
        proto = status.status(error, request_id)
        if status.reason(proto) == "INTERNAL":
            log.exception("unexpected_error", request_id=request_id)
        await abort(context, proto, ())
