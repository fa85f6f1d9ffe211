"""OpenAI's error object, and the exceptions that are sent as one."""

from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar

import msgspec

from gateway_http.protocol.field_notes import http_only

_Body = TypeVar("_Body")
_Message = TypeVar("_Message")


class ErrorObject(msgspec.Struct, frozen=True):
    """An error in OpenAI's form. Over gRPC it is a status with `google.rpc` details."""

    message: Annotated[str, http_only("The cause, for people. Over gRPC: the status's message.")]
    type: Annotated[str, http_only("The kind of the error. Over gRPC: the status's code.")]
    param: Annotated[
        str | None,
        http_only(
            "The path of the field that caused it. Over gRPC: `BadRequest.FieldViolation.field`."
        ),
    ]
    code: Annotated[
        str | None, http_only("The cause, for programs. Over gRPC: `ErrorInfo.reason`.")
    ]


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every response that is not a success."""

    error: Annotated[ErrorObject, http_only("The error.")]


# OpenAI's codes, and the reasons of `chatrpc.v1.ErrorReason` that they stand for.
_REASONS = {
    "invalid_value": "INVALID_FIELD",
    "missing_required_parameter": "MISSING_FIELD",
    "unsupported_parameter": "UNSUPPORTED_FIELD",
    "invalid_api_key": "UNAUTHENTICATED",
    "permission_denied": "MODEL_FORBIDDEN",
    "rate_limit_exceeded": "LIMIT_REACHED",
    "timeout": "DEADLINE",
}


class ApiError(Exception):
    """A response other than success: an HTTP status, OpenAI's error object, and extra headers.

    Args:
        status: The HTTP status.
        message: A sentence for the client.
        kind: The `type` of the error object.
        param: The parameter that the error is about.
        code: The `code` of the error object.
        headers: Further headers of the response.
        reason: The reason for logs and metrics, in capitals, of which there is a bounded number:
            one of `chatrpc.v1.ErrorReason` if one fits. Default: made from `code`.
        cause: Further details for the log only.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str = "",
        cause: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason or _REASONS.get(code or "", (code or f"HTTP_{status}").upper())
        self.cause = cause
        self.body = ErrorBody(ErrorObject(message, kind, param, code))
        self.headers = headers or {}


class InvalidRequest(ApiError):
    """The request is invalid because of `param`, or as a whole if `param` is None."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code)


class UnsupportedParameter(InvalidRequest):
    """The request has a known parameter that is not supported."""

    def __init__(self, param: str, hint: str = "") -> None:
        message = f"Unsupported parameter: '{param}' is not supported by this server. {hint}"
        super().__init__(message.rstrip(), param, "unsupported_parameter")


class PermissionDenied(ApiError):
    """The caller's API key does not permit the request."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(403, message, param=param, code="permission_denied")


class ServiceUnavailable(ApiError):
    """The request cannot be served now, and may be later.

    Args:
        message: A sentence for the client.
        code: `server_is_overloaded` if there is too much load; otherwise the default.
        retry_after_s: The value of the header Retry-After in seconds; None if it is not sent.
        reason: As in `ApiError`.
    """

    def __init__(
        self,
        message: str,
        code: str = "service_unavailable",
        *,
        retry_after_s: int | None = 1,
        reason: str = "",
    ) -> None:
        super().__init__(
            503,
            message,
            kind="service_unavailable_error",
            code=code,
            headers={} if retry_after_s is None else {"retry-after": str(retry_after_s)},
            reason=reason,
        )


def converted_or_error(convert: Callable[[_Body], _Message], body: _Body) -> _Message | ApiError:
    """Return `convert(body)`, or the ApiError that it raises.

    A handler raises the error later, after it has noted the body's model for the log.
    """
    try:
        return convert(body)
    except ApiError as error:
        return error
