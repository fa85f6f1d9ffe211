"""POST /tokenize and /detokenize."""

from collections.abc import Mapping

import grpc
from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import model_service_pb2
from gateway_http.convert import tokens
from gateway_http.errors import from_rpc
from gateway_http.http.request_io import json_response
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import ApiError, ServiceUnavailable, converted_or_error
from gateway_http.protocol.tokens import DetokenizeRequest, TokenizeRequest
from gateway_http.routes.request_state import (
    bodies_of,
    call_metadata_of,
    caller_of,
    context_of,
    router_of,
    run_while_connected,
)
from gateway_http.upstream.registry import HostedModel, RegisteredModel, WholeService
from gateway_http.upstream.rpcs import DETOKENIZE, TOKENIZE

_TIMEOUT_S = 60

_decode_tokenize = decoder(TokenizeRequest)
_decode_detokenize = decoder(DetokenizeRequest)


async def tokenize(request: Request) -> Response:
    """Return the token ids of a text or a conversation."""
    caller = caller_of(request)
    async with bodies_of(request).decoded(request, caller, _receive_tokenize) as decoded:
        return await run_while_connected(request, _tokenized(request, *decoded.value))


async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    caller = caller_of(request)
    async with bodies_of(request).decoded(request, caller, _decode_detokenize) as decoded:
        return await run_while_connected(request, _detokenized(request, decoded.value))


def _receive_tokenize(
    content: bytes,
) -> tuple[TokenizeRequest, model_service_pb2.TokenizeRequest | ApiError]:
    """Decode and convert a body. Return the body, and the message without a model or the error of
    its conversion.

    Raises:
        ApiError: The body cannot be decoded.
    """
    body = _decode_tokenize(content)
    return body, converted_or_error(tokens.tokenize_request, body)


async def _tokenized(
    request: Request,
    body: TokenizeRequest,
    converted: model_service_pb2.TokenizeRequest | ApiError,
) -> Response:
    tokenized = await call_tokenize(request, body.model, converted, tokens.sent_names(body))
    return await bodies_of(request).converted(
        caller_of(request), tokenized.ByteSize(), _tokenize_response, tokenized, body
    )


async def call_tokenize(
    request: Request,
    model: str | None,
    converted: model_service_pb2.TokenizeRequest | ApiError,
    names: Mapping[str, str],
) -> model_service_pb2.TokenizeResponse:
    """Return the service's response to a request for tokens.

    Args:
        request: The HTTP request.
        model: The name of the model in the request; None for the first one.
        converted: The message without a model, or the error of its conversion.
        names: The client's names of parameters; see `param_of`.

    Raises:
        ApiError: `converted` is an error, the caller may not use the model or has reached a limit,
            or the call has failed.
    """
    caller = caller_of(request)
    context_of(request).limit_headers = caller.limits
    with caller.tokenization():
        name = await _model_name(request, model)
        if isinstance(converted, ApiError):
            raise converted
        try:
            with router_of(request).route(name) as route:
                message = model_service_pb2.TokenizeRequest(model=route.model)
                message.MergeFrom(converted)
                return await route.call(TOKENIZE, message, call_metadata_of(request), _TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, names) from None


def _tokenize_response(
    tokenized: model_service_pb2.TokenizeResponse, body: TokenizeRequest
) -> Response:
    return json_response(tokens.tokenize_response(tokenized, body))


async def _detokenized(request: Request, body: DetokenizeRequest) -> Response:
    caller = caller_of(request)
    context_of(request).limit_headers = caller.limits
    with caller.tokenization():
        name = await _model_name(request, body.model)
        with router_of(request).route(name) as route:
            message = model_service_pb2.DetokenizeRequest(model=route.model, token_ids=body.tokens)
            metadata = call_metadata_of(request)
            detokenized = await route.call(DETOKENIZE, message, metadata, _TIMEOUT_S)
    return json_response(tokens.detokenize_response(detokenized))


async def _model_name(request: Request, name: str | None) -> str:
    """Return the model that a request names, or the first one if it names none.

    llama.cpp's clients name no model, since its server has only one.

    Raises:
        ApiError: The caller may not use the model, or there is no model.
    """
    caller, router = caller_of(request), router_of(request)
    context_of(request).record.model = name or ""
    if name is not None:
        caller.check_model(name, *router.names(name))
        return name
    match router.entries[0]:
        case (
            RegisteredModel(name=first, aliases=aliases) | HostedModel(name=first, aliases=aliases)
        ):
            caller.check_model(first, *aliases)
            return first
        case WholeService() as service:
            with router.route_to(service) as route:
                models = await route.list_models(call_metadata_of(request), _TIMEOUT_S)
    for model in models:
        if caller.may_use(model.id, *model.aliases):
            return model.id
    raise ServiceUnavailable("No model is served yet.")
