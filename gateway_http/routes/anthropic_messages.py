"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.convert import anthropic_requests
from gateway_http.convert.anthropic_responses import MessageEvents, message
from gateway_http.http.request_io import json_response
from gateway_http.protocol.anthropic import CountTokensRequest, MessagesRequest, TokenCount
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import ApiError, converted_or_error
from gateway_http.routes.generation import Generation, Operation
from gateway_http.routes.request_state import bodies_of, caller_of, run_while_connected
from gateway_http.routes.tokens import call_tokenize
from gateway_http.upstream import rpcs

MESSAGES: Operation[
    MessagesRequest,
    chat_pb2.ChatCompletionParams,
    chat_pb2.ChatCompletion,
    chat_pb2.ChatCompletionChunk,
] = Operation(
    decode=decoder(MessagesRequest),
    params=anthropic_requests.params,
    names=anthropic_requests.sent_names,
    create=rpcs.CREATE_CHAT_COMPLETION,
    stream=rpcs.STREAM_CHAT_COMPLETION,
    completion=message,
    events=MessageEvents,
)

create_message = Generation(MESSAGES)

_decode_count_tokens = decoder(CountTokensRequest)


async def count_tokens(request: Request) -> Response:
    """Return the number of tokens of a conversation's prompt."""
    caller = caller_of(request)
    async with bodies_of(request).decoded(request, caller, _receive_count_tokens) as decoded:
        return await run_while_connected(request, _counted(request, *decoded.value))


def _receive_count_tokens(
    content: bytes,
) -> tuple[str, Mapping[str, str], model_service_pb2.TokenizeRequest | ApiError]:
    """Decode and convert a body.

    Returns:
        The name of the model, the client's names of parameters, and the message without a model or
        the error of its conversion.

    Raises:
        ApiError: The body cannot be decoded.
    """
    body = _decode_count_tokens(content)
    converted = converted_or_error(anthropic_requests.tokenize_request, body)
    return body.model, anthropic_requests.sent_names(body), converted


async def _counted(
    request: Request,
    model: str,
    names: Mapping[str, str],
    converted: model_service_pb2.TokenizeRequest | ApiError,
) -> Response:
    tokenized = await call_tokenize(request, model, converted, names)
    return json_response(TokenCount(len(tokenized.token_ids)))
