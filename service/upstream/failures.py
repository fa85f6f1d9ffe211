"""Converts the failures of upstreams to errors of our own API.

The messages of an upstream's rejections are sent to the client, since they are about its request.
Those of other failures are only logged, and only at debug, since they may quote a prompt.
"""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from service.errors import (
    ChatrpcError,
    ContextLengthExceeded,
    InvalidField,
    UnsupportedMethod,
    UpstreamAccessDenied,
    UpstreamDown,
    UpstreamInvalidResponse,
    UpstreamRateLimited,
)
from service.upstream.dialects import Names

_MAX_RETRY_AFTER_S = 3600.0
_DEFAULT_RETRY_AFTER_S = 1.0
_MAX_TEXT_CHARS = 500
# Types and codes of errors are such names. Anything else could be a text.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# The length of the context, or that of the prompt, in messages of OpenAI, vLLM and SGLang.
_CONTEXT_LENGTH = re.compile(r"context length (?:is |of |\()(\d{1,9}) tokens")
_PROMPT_LENGTH = re.compile(
    r"(?:resulted in|contains(?: at least)?|input \(|bound for) ?(\d{1,9})(?: input)? tokens"
)
_NO_MODEL = re.compile(
    r"model.{0,300}(not found|does not exist|not exist)", re.IGNORECASE | re.DOTALL
)


class AttemptFailed(Exception):
    """An upstream did not serve a request. Another upstream may do so.

    Attributes:
        error: The error for the client if there is no other upstream.
        cause: The cause for the log. It has no text of the upstream.
        text: The text of the upstream's error, which may quote a prompt; "" if there is none.
        aside_s: Minimum time in seconds for which the upstream gets no requests; None if it may
            get them at once.
        is_disconnect: True if the connection was closed before any response. An idle connection
            that the upstream closes at this moment fails in this way.
    """

    def __init__(
        self,
        error: ChatrpcError,
        cause: str,
        aside_s: float | None = 0.0,
        *,
        text: str = "",
        is_disconnect: bool = False,
    ) -> None:
        super().__init__(cause)
        self.error = error
        self.cause = cause
        self.text = text[:_MAX_TEXT_CHARS]
        self.aside_s = aside_s
        self.is_disconnect = is_disconnect


class _ErrorObject(msgspec.Struct, frozen=True):
    """The error in a response. SGLang and others send its fields without the outer object."""

    message: Any = None
    type: Any = None
    param: Any = None
    code: Any = None
    n_prompt_tokens: Any = None  # llama.cpp
    n_ctx: Any = None

    @property
    def names(self) -> str:
        """The type and the code, as far as they are names, for logs."""
        named = {"type": str(self.type), "code": str(self.code)}
        return "".join(
            f", {name} {value}"
            for name, value in named.items()
            if value != "None" and _NAME.fullmatch(value)
        )

    @property
    def text(self) -> str:
        return self.message if isinstance(self.message, str) else ""


class Failures:
    """Converts failed responses to one kind of request.

    Args:
        method: The RPC, for a service that does not have its endpoint.
        model: The model's name for clients.
        default_field: The field that is named if the upstream names none.
    """

    def __init__(self, names: Names, method: str, model: str, default_field: str) -> None:
        self._names = names
        self._method = method
        self._model = model
        self._default_field = default_field

    def of_response(self, response: httpx.Response, content: bytes) -> Exception:
        """Return the exception for a response that is no success."""
        return self._of(response.status_code, response.headers, _error_object(content))

    def of_event(self, error: Any) -> Exception:
        """Return the exception for an error in an event stream."""
        found = _parsed(error)
        is_status = isinstance(found.code, int) and 400 <= found.code < 600
        return self._of(found.code if is_status else 500, {}, found)

    def too_large(self, max_bytes: int) -> InvalidField:
        """Return the error for a request whose response has more than `max_bytes`."""
        return InvalidField(
            self._default_field,
            f"The response to this input has more than {max_bytes >> 20} MiB. Send less of it.",
        )

    def _of(self, status: int, headers: Mapping[str, str], error: _ErrorObject) -> Exception:
        cause, text = f"HTTP status {status}{error.names}", error.text
        if status < 400:
            what = "redirected the request" if 300 <= status < 400 else f"returned status {status}"
            invalid = UpstreamInvalidResponse(f"The upstream service {what}.")
            return AttemptFailed(invalid, cause, text=text)
        if status in (401, 402, 403):
            denied = UpstreamAccessDenied("The upstream service rejects this service's access.")
            return AttemptFailed(denied, cause, text=text)
        if status == 429:
            after_s = retry_after_s(headers)
            limited = UpstreamRateLimited(
                "The upstream service limits requests. Please retry later.", after_s
            )
            return AttemptFailed(limited, cause, after_s, text=text)
        if status in (404, 405, 501):
            return self._not_found(status, cause, error)
        if status >= 500 or status in (408, 425):
            after_s = retry_after_s(headers)
            down = UpstreamDown("The upstream service failed. Please retry later.", after_s)
            aside_s = after_s if "retry-after" in headers else 0.0
            return AttemptFailed(down, cause, aside_s, text=text)
        return self._rejection(error)

    def _not_found(self, status: int, cause: str, error: _ErrorObject) -> Exception:
        names_model = error.code == "model_not_found" or error.param == "model"
        if status == 404 and (names_model or _NO_MODEL.search(error.text)):
            gone = UpstreamDown("The upstream service no longer serves the model.")
            return AttemptFailed(gone, cause, text=error.text)
        # A proxy returns the same status while it has no route to the upstream.
        unsupported = UnsupportedMethod(self._method, self._model)
        return AttemptFailed(unsupported, cause, None, text=error.text)

    def _rejection(self, error: _ErrorObject) -> ChatrpcError:
        too_long = _context_length(error)
        if too_long is not None:
            return ContextLengthExceeded(*too_long, self._default_field, self._prompt_words)
        param = error.param if isinstance(error.param, str) else ""
        field = self._names.field_of(param) or self._default_field
        return InvalidField(field, _sentence(error.text))

    @property
    def _prompt_words(self) -> str:
        return "messages" if self._default_field == "messages" else "prompt"


def failure_of_transport(error: Exception) -> AttemptFailed:
    """Return the failure for an error of the connection, or for an invalid response to HTTP."""
    cause = f"{type(error).__name__}: {error}"[:_MAX_TEXT_CHARS]
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
            text = "The upstream service cannot be reached. Please retry later."
            if "certificate" in cause.lower() or "ssl" in cause.lower():
                text = "The certificate of the upstream service is not valid, or TLS failed."
        case httpx.TimeoutException():
            text = "The upstream service did not respond in time."
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.DecodingError():
            invalid = UpstreamInvalidResponse("The response of the upstream service is invalid.")
            return AttemptFailed(invalid, cause)
        case _:
            text = "The upstream service ended its response before it was complete."
    is_disconnect = isinstance(error, httpx.ReadError | httpx.WriteError) or (
        isinstance(error, httpx.RemoteProtocolError) and "without sending a response" in cause
    )
    return AttemptFailed(UpstreamDown(text), cause, is_disconnect=is_disconnect)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the seconds of `Retry-After`, which is a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return _DEFAULT_RETRY_AFTER_S
    if not seconds >= 0:  # NaN too
        return _DEFAULT_RETRY_AFTER_S
    return min(seconds, _MAX_RETRY_AFTER_S)


def _error_object(content: bytes) -> _ErrorObject:
    try:
        return _parsed(msgspec.json.decode(content))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ErrorObject()


def _parsed(body: Any) -> _ErrorObject:
    """Return the error in a decoded body: an object, an object in `error`, or a text."""
    if isinstance(body, dict) and "error" in body:
        body = body["error"]
    if isinstance(body, str):
        return _ErrorObject(message=body)
    if not isinstance(body, dict):
        return _ErrorObject()
    if "message" not in body and "detail" in body:  # FastAPI
        detail = body["detail"]
        return _ErrorObject(message=detail if isinstance(detail, str) else str(detail))
    return msgspec.convert(body, _ErrorObject)


def _context_length(error: _ErrorObject) -> tuple[int, int] | None:
    """Return the length of the prompt and of the context, if the prompt is too long."""
    if isinstance(error.n_prompt_tokens, int) and isinstance(error.n_ctx, int):
        return error.n_prompt_tokens, error.n_ctx
    context, prompt = _CONTEXT_LENGTH.search(error.text), _PROMPT_LENGTH.search(error.text)
    if context is None or prompt is None:
        return None
    return int(prompt[1]), int(context[1])


def _sentence(text: str) -> str:
    """Return a message that does not look like the predicate of a sentence about the field."""
    text = text.strip() or "The upstream service rejects the request."
    return text[0].upper() + text[1:]
