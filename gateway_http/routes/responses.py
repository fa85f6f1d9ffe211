"""POST /v1/responses and /v1/responses/input_tokens: OpenAI's Responses API."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.convert import responses_requests
from gateway_http.convert.responses_output import ResponseEvents, response
from gateway_http.http.request_io import json_response
from gateway_http.protocol.error import ApiError, converted_or_error
from gateway_http.protocol.responses import InputTokenCount
from gateway_http.protocol.responses_request import (
    ResponsesRequest,
    decode_input_tokens_request,
    decode_request,
)
from gateway_http.routes.generation import Generation, Operation
from gateway_http.routes.request_state import bodies_of, caller_of, run_while_connected
from gateway_http.routes.tokens import call_tokenize
from gateway_http.upstream import rpcs

RESPONSES: Operation[
    ResponsesRequest,
    chat_pb2.ChatCompletionParams,
    chat_pb2.ChatCompletion,
    chat_pb2.ChatCompletionChunk,
] = Operation(
    decode=decode_request,
    params=responses_requests.params,
    names=responses_requests.sent_names,
    create=rpcs.CREATE_CHAT_COMPLETION,
    stream=rpcs.STREAM_CHAT_COMPLETION,
    completion=response,
    events=ResponseEvents,
    failure=ResponseEvents.fail,
)

create_response = Generation(RESPONSES)


async def count_input_tokens(request: Request) -> Response:
    """Return the number of tokens of a conversation's prompt."""
    caller = caller_of(request)
    async with bodies_of(request).decoded(request, caller, _receive_input_tokens) as decoded:
        return await run_while_connected(request, _counted(request, *decoded.value))


def _receive_input_tokens(
    content: bytes,
) -> tuple[str | None, Mapping[str, str], model_service_pb2.TokenizeRequest | ApiError]:
    """Decode and convert a body.

    Returns:
        The name of the model, the client's names of parameters, and the message without a model or
        the error of its conversion.

    Raises:
        ApiError: The body cannot be decoded.
    """
    body = decode_input_tokens_request(content)
    converted = converted_or_error(responses_requests.tokenize_request, body)
    return body.model, responses_requests.sent_names(body), converted


async def _counted(
    request: Request,
    model: str | None,
    names: Mapping[str, str],
    converted: model_service_pb2.TokenizeRequest | ApiError,
) -> Response:
    tokenized = await call_tokenize(request, model, converted, names)
    return json_response(InputTokenCount(len(tokenized.token_ids)))
