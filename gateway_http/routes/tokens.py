"""POST /tokenize and /detokenize."""

from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import model_service_pb2
from gateway_http.auth.caller import Caller
from gateway_http.convert import tokens
from gateway_http.errors import from_rpc
from gateway_http.http.bodies import Bodies
from gateway_http.http.request_io import json_response, while_connected
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.tokens import DetokenizeRequest, TokenizeRequest
from gateway_http.upstream.client import CallOptions
from gateway_http.upstream.router import Route, Router

_TIMEOUT_S = 60

_decode_tokenize = decoder(TokenizeRequest)
_decode_detokenize = decoder(DetokenizeRequest)


async def tokenize(request: Request) -> Response:
    async with _bodies(request).decoded(request, _receive_tokenize) as decoded:
        return await _while_connected(request, _tokenized(request, *decoded.value))


async def detokenize(request: Request) -> Response:
    async with _bodies(request).decoded(request, _decode_detokenize) as decoded:
        return await _while_connected(request, _detokenized(request, decoded.value))


def _receive_tokenize(
    content: bytes,
) -> tuple[TokenizeRequest, model_service_pb2.TokenizeRequest | ApiError]:
    """Decode and convert a body: to a request without a model, or to why it cannot be made.

    Raises ApiError if the body cannot be decoded.
    """
    body = _decode_tokenize(content)
    try:
        return body, tokens.tokenize_request(body, model="")
    except ApiError as error:
        return body, error


async def _tokenized(
    request: Request,
    body: TokenizeRequest,
    wanted: model_service_pb2.TokenizeRequest | ApiError,
) -> Response:
    with _counted(request):
        name = await _name(request, body.model)
        if isinstance(wanted, ApiError):
            raise wanted
        with _router(request).route(name) as route:
            wanted.model = route.model
            try:
                answer = await route.upstream.tokenize(wanted, _options(request, route))
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, tokens.names(body)) from None
    size = answer.ByteSize()
    return await _bodies(request).converted(request, size, _tokenize_response, answer, body)


def _tokenize_response(
    answer: model_service_pb2.TokenizeResponse, body: TokenizeRequest
) -> Response:
    return json_response(tokens.tokenize_answer(answer, body))


async def _detokenized(request: Request, body: DetokenizeRequest) -> Response:
    with _counted(request):
        name = await _name(request, body.model)
        with _router(request).route(name) as route:
            wanted = model_service_pb2.DetokenizeRequest(model=route.model, token_ids=body.tokens)
            answer = await route.upstream.detokenize(wanted, _options(request, route))
    return json_response(tokens.detokenize_answer(answer))


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Return the work's result; cancel it if the client leaves, or the gateway stops."""
    return await while_connected(request.receive, request.app.state.stopping, work)


def _bodies(request: Request) -> Bodies:
    bodies: Bodies = request.app.state.bodies
    return bodies


async def _name(request: Request, named: str | None) -> str:
    """llama.cpp's clients name none: its server has but one."""
    caller: Caller = request.state.caller
    request.state.exchange.record.model = named or ""
    if named is not None:
        caller.check_model(named, *_router(request).names(named))
        return named
    entry = _router(request).entries[0]
    if entry.name is not None:
        caller.check_model(entry.name, *entry.aliases)
        return entry.name
    with _router(request).route_to(entry) as route:
        listed = await route.upstream.list_models(_options(request, route))
    served = [model for model in listed if caller.may_use(model.id, *model.aliases)]
    if not served:
        raise ApiError(
            503,
            "No model is served yet.",
            kind="service_unavailable_error",
            code="service_unavailable",
            headers={"retry-after": "1"},
        )
    return served[0].id


def _counted(request: Request) -> AbstractContextManager[None]:
    """Count the request against its caller's limits, and report what is left of them."""
    caller: Caller = request.state.caller
    request.state.exchange.limits = caller.limits
    return caller.tokenization()


def _router(request: Request) -> Router:
    router: Router = request.state.router
    return router


def _options(request: Request, route: Route) -> CallOptions:
    return route.options(_TIMEOUT_S, request.state.exchange.call_metadata, request.headers)
