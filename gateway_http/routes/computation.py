"""Serves requests whose input the model computes, and that generate nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway_http.errors import from_rpc
from gateway_http.http.bodies import Decoded
from gateway_http.http.request_io import json_response
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
from gateway_http.upstream.rpcs import Rpc

_Body = TypeVar("_Body", bound=ReceivedBody)


def _same_size(_: Any, num_bytes: int) -> int:
    return num_bytes


@dataclass(frozen=True)
class Computation(Generic[_Body]):
    """An ASGI application that serves a unary RPC which computes an input.

    If the client disconnects, its call to the service is cancelled.

    Attributes:
        rpc: The RPC. Its response has `model` and `usage`.
        decode: Decodes a body. Raises ApiError.
        message: Converts a body to the RPC's request, without the model. Raises ApiError.
        names: Returns the client's names of parameters; see `param_of`.
        response: Converts the RPC's response, given the name of its model for clients.
        input_field: The field of the RPC's request that has most of the input.
        input_bytes: Takes the RPC's request and the size of the body. Returns the size of all that
            the model computes.
    """

    rpc: Rpc[Any, Any]
    decode: Callable[[bytes], _Body]
    message: Callable[[_Body], Any]
    names: Callable[[_Body], Mapping[str, str]]
    response: Callable[[Any, str, _Body], Struct]
    input_field: str = "input"
    input_bytes: Callable[[Any, int], int] = _same_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        caller = caller_of(request)
        context_of(request).limit_headers = caller.limits
        async with bodies_of(request).decoded(request, caller, self._receive) as decoded:
            response = await run_while_connected(request, self._computed(request, decoded))
        await response(scope, receive, send)

    def _receive(self, content: bytes) -> Received[_Body, Any]:
        return decode_and_convert(content, self.decode, self.message, self.names)

    async def _computed(self, request: Request, decoded: Decoded[Received[_Body, Any]]) -> Response:
        body, names = decoded.value.body, decoded.value.names
        caller, record = caller_of(request), context_of(request).record
        record.model = body.model
        converted = decoded.value.params_or_raise()
        router = router_of(request)
        caller.check_model(body.model, *router.names(body.model))
        num_bytes = self.input_bytes(converted, decoded.num_bytes)
        try:
            with caller.computation(num_bytes, self.input_field, names) as charge:
                metrics = CompletionMetrics(metrics_of(request), charge.note, record)
                with router.route(body.model) as route:
                    message = self.rpc.request_type(model=route.model)
                    message.MergeFrom(converted)
                    timeout_s = settings_of(request).request_timeout_s
                    response = await route.call(
                        self.rpc, message, call_metadata_of(request), timeout_s
                    )
                    model = route.public_name(response.model)
                metrics.note_computation(response.usage, model)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, names) from None
        return await bodies_of(request).converted(
            caller, response.ByteSize(), self._respond, response, model, body
        )

    def _respond(self, response: Any, model: str, body: _Body) -> Response:
        return json_response(self.response(response, model, body))
