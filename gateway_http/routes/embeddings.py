"""POST /v1/embeddings."""

from collections.abc import Mapping
from typing import NamedTuple

import grpc
from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import embedding_service_pb2
from gateway_http.convert import embeddings
from gateway_http.errors import from_rpc
from gateway_http.http.bodies import Decoded
from gateway_http.http.request_io import json_response
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.embeddings import EmbeddingsRequest
from gateway_http.protocol.error import ApiError, converted_or_error
from gateway_http.routes.completion_metrics import CompletionMetrics
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
from gateway_http.upstream.rpcs import CREATE_EMBEDDINGS

_decode = decoder(EmbeddingsRequest)


class _Received(NamedTuple):
    """A decoded body, and the message made from it.

    Attributes:
        body: The body, without the input.
        message: The request without the model, or the error of its conversion.
        names: The client's names of parameters; see `param_of`.
    """

    body: EmbeddingsRequest
    message: embedding_service_pb2.CreateEmbeddingsRequest | ApiError
    names: Mapping[str, str]


async def create_embeddings(request: Request) -> Response:
    """Return the embeddings of texts or of token ids."""
    caller = caller_of(request)
    context_of(request).limit_headers = caller.limits
    async with bodies_of(request).decoded(request, caller, _receive) as decoded:
        return await run_while_connected(request, _embedded(request, decoded))


def _receive(content: bytes) -> _Received:
    """Decode and convert a body. Raises ApiError if it cannot be decoded."""
    body = _decode(content)
    names = embeddings.sent_names(body)
    message = converted_or_error(embeddings.embeddings_request, body)
    body.input = ""  # it is most of the request, and no response depends on it
    return _Received(body, message, names)


async def _embedded(request: Request, decoded: Decoded[_Received]) -> Response:
    body, converted, names = decoded.value
    caller, record = caller_of(request), context_of(request).record
    record.model = body.model
    if isinstance(converted, ApiError):
        raise converted
    router = router_of(request)
    caller.check_model(body.model, *router.names(body.model))
    try:
        with caller.embeddings(decoded.num_bytes) as charge:
            metrics = CompletionMetrics(metrics_of(request), charge.note, record)
            with router.route(body.model) as route:
                message = embedding_service_pb2.CreateEmbeddingsRequest(model=route.model)
                message.MergeFrom(converted)
                timeout_s = settings_of(request).request_timeout_s
                response = await route.call(
                    CREATE_EMBEDDINGS, message, call_metadata_of(request), timeout_s
                )
                model = route.public_name(response.model)
            metrics.note_embeddings(response.usage.prompt_tokens, model)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, names) from None
    return await bodies_of(request).converted(
        caller, response.ByteSize(), _response, response, model, body
    )


def _response(
    response: embedding_service_pb2.CreateEmbeddingsResponse, model: str, body: EmbeddingsRequest
) -> Response:
    return json_response(embeddings.embeddings_response(response, model, body))
