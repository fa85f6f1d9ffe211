"""The forms of errors and of streams in the APIs that the gateway serves."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from msgspec import UNSET

from gateway_http.http import sse
from gateway_http.protocol import anthropic
from gateway_http.protocol.error import ApiError, ErrorBody

# Anthropic's types of errors by status, where it is not that of the status's class.
_ERROR_TYPES: dict[int, anthropic.ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(frozen=True)
class ApiStyle:
    """The form of an API's errors and streams.

    Attributes:
        error: Returns the body of an error response, or of the event that ends a stream. Its second
            argument is the id of the request.
        error_type: The type of these bodies.
        id_header: The header of responses that contains the id of the request.
        event: Encodes an event of a stream.
        ping: The encoded event, or comment, that keeps a connection open.
        done: The end of a stream after its last event.
        stream_description: A description of streams, for the OpenAPI document.
    """

    error: Callable[[ApiError, str], msgspec.Struct]
    error_type: type[msgspec.Struct]
    id_header: str
    event: Callable[[msgspec.Struct], bytes]
    ping: bytes
    done: bytes
    stream_description: str


def _openai_error(error: ApiError, _: str) -> ErrorBody:
    return error.body


def _anthropic_error(error: ApiError, request_id: str) -> anthropic.MessagesError:
    by_class: anthropic.ErrorType = "api_error" if error.status >= 500 else "invalid_request_error"
    message, param = error.body.error.message, error.body.error.param
    if param is not None and param not in message:
        message = f"{param}: {message}"
    return anthropic.MessagesError(
        anthropic.MessagesErrorObject(
            _ERROR_TYPES.get(error.status, by_class),
            message,
            anthropic.UnsupportedThread() if param == "thread" else UNSET,
        ),
        request_id,
    )


OPENAI = ApiStyle(
    error=_openai_error,
    error_type=ErrorBody,
    id_header="x-request-id",
    event=sse.event,
    ping=sse.PING,
    done=sse.DONE,
    stream_description="With `stream`: events `data: {...}`, the last of which is `data: [DONE]`. "
    "If the request fails after the first event, an event contains the error object.",
)
"""OpenAI's API."""

RESPONSES = ApiStyle(
    error=_openai_error,
    error_type=ErrorBody,
    id_header="x-request-id",
    event=sse.named_event,
    ping=sse.PING,
    done=b"",
    stream_description="With `stream`: events `event: ...`, `data: {...}`, the last of which is "
    "`response.completed`, `response.incomplete` or `response.failed`. If the request fails after "
    "the head of the response and before its first event, the only event is `error`.",
)
"""OpenAI's Responses API."""

ANTHROPIC = ApiStyle(
    error=_anthropic_error,
    error_type=anthropic.MessagesError,
    id_header="request-id",
    event=sse.named_event,
    ping=sse.named_event(anthropic.Ping()),
    done=b"",
    stream_description="With `stream`: events `event: ...`, `data: {...}`, the last of which is "
    "`message_stop`. If the request fails after the first event, the last one is `error`.",
)
"""Anthropic's Messages API."""
