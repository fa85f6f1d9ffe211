"""POST /v1/responses and /v1/responses/input_tokens: OpenAI's Responses API."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from chatrpc.v1 import chat_pb2
from gateway_http.convert import responses_requests
from gateway_http.convert.responses_output import ResponseEvents, response
from gateway_http.http.bodies import Decoded
from gateway_http.http.request_io import json_response
from gateway_http.protocol.error import ApiError, UnsupportedParameter, converted_or_error
from gateway_http.protocol.responses import InputTokenCount
from gateway_http.protocol.responses_request import (
    InputTokensRequest,
    Item,
    ResponsePrompt,
    ResponsesRequest,
    decode_input_tokens_request,
    decode_request,
)
from gateway_http.routes.generation import Generation, Operation
from gateway_http.routes.received import Received
from gateway_http.routes.request_state import bodies_of, caller_of, run_while_connected
from gateway_http.routes.response_storage import (
    NO_STORE,
    record,
    refers_to_stored,
    resolve,
    store_of,
)
from gateway_http.routes.tokens import call_tokenize
from gateway_http.upstream import rpcs

_Prompt = TypeVar("_Prompt", bound=ResponsePrompt)
_Message = TypeVar("_Message")

_Received = Received[ResponsesRequest, chat_pb2.ChatCompletionParams]


class _Responses(
    Operation[
        ResponsesRequest,
        chat_pb2.ChatCompletionParams,
        chat_pb2.ChatCompletion,
        chat_pb2.ChatCompletionChunk,
    ]
):
    """The operation. A body that refers to stored responses is converted by `_complete`."""

    def receive(self, content: bytes) -> _Received:
        body = self.decode(content)
        if refers_to_stored(body):
            return Received(body, chat_pb2.ChatCompletionParams(), {})
        return Received(body, converted_or_error(self.params, body), self.names(body))


async def _complete(request: Request, decoded: Decoded[_Received]) -> _Received:
    """Add what the body refers to, and free the input unless the response will be stored.

    Raises:
        ApiError: The body refers to something that does not exist, or asks for a store that does
            not exist.
    """
    received = decoded.value
    body = received.body
    has_store = store_of(request) is not None
    if body.store and not has_store:
        raise UnsupportedParameter("store", NO_STORE)
    if refers_to_stored(body):
        converted, names, num_bytes = await _with_stored(
            request, decoded, body, responses_requests.params
        )
        received = replace(received, params=converted, names=names, num_stored_bytes=num_bytes)
    body.store = has_store and body.store is not False
    if not body.store:
        body.drop_input()
    return received


RESPONSES = _Responses(
    decode=decode_request,
    params=responses_requests.params,
    names=responses_requests.sent_names,
    create=rpcs.CREATE_CHAT_COMPLETION,
    stream=rpcs.STREAM_CHAT_COMPLETION,
    completion=response,
    events=ResponseEvents,
    failure=ResponseEvents.fail,
    complete=_complete,
    record=record,
)

create_response = Generation(RESPONSES)


async def count_input_tokens(request: Request) -> Response:
    """Return the number of tokens of a conversation's prompt."""
    caller = caller_of(request)
    async with bodies_of(request).decoded(request, caller, decode_input_tokens_request) as decoded:
        return await run_while_connected(request, _counted(request, decoded))


async def _counted(request: Request, decoded: Decoded[InputTokensRequest]) -> Response:
    body = decoded.value
    converted, names, _ = await _with_stored(
        request, decoded, body, responses_requests.tokenize_request
    )
    tokenized = await call_tokenize(request, body.model, converted, names)
    return json_response(InputTokenCount(len(tokenized.token_ids)))


async def _with_stored(
    request: Request,
    decoded: Decoded[Any],
    prompt: _Prompt,
    convert: Callable[[_Prompt, Sequence[Item]], _Message],
) -> tuple[_Message | ApiError, dict[str, str], int]:
    """Convert a prompt with the stored items that it refers to.

    Returns:
        The message or its error, the names of its parameters, and the size of the items in bytes.

    Raises:
        ApiError: The prompt refers to something that does not exist, or that is too large.
    """
    previous, num_bytes = await resolve(request, prompt, decoded.hold)
    converted, names = await bodies_of(request).converted(
        caller_of(request), decoded.num_bytes + num_bytes, _converted, convert, prompt, previous
    )
    return converted, names, num_bytes


def _converted(
    convert: Callable[[_Prompt, Sequence[Item]], _Message],
    prompt: _Prompt,
    previous: Sequence[Item],
) -> tuple[_Message | ApiError, dict[str, str]]:
    """Return the message made from a prompt or its error, and the names of its parameters."""
    message = converted_or_error(lambda body: convert(body, previous), prompt)
    return message, responses_requests.sent_names(prompt, previous)
